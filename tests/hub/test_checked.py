"""A study around somebody else's SAE: that SAE stays where it is, rearranged or not."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sae_baselines.hub import CardOptions, plan_publication
from sae_baselines.pipeline import GalleryOptions, gallery
from sae_baselines.study import ModelSpec, train_study
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.reference.check import prepare_check
from sae_baselines.study.reference.recipe import CheckOptions
from tests.hub.conftest import REPO, write_again
from tests.report.page import parse
from tests.study.reference.conftest import QUICK, make_published
from tests.tiny_model import HOOK, save_tiny_model, tiny_text


def test_neither_the_published_sae_nor_its_weights_rearranged_go_up(tmp_path: Path):
    model = save_tiny_model(tmp_path / "tiny")
    tiny_text().to_json(tmp_path / "text.jsonl")
    lm: Any = load_language_model(ModelSpec(name=str(model)), HOOK, "cpu")
    tokens = lm.to_tokens(tiny_text()["text"][:60], prepend_bos=True)[:, :32]
    _, cache = lm.run_with_cache(tokens, names_filter=[HOOK])
    theirs: torch.Tensor = cache[HOOK].flatten(0, 1).detach()
    make_published(theirs).save_model(tmp_path / "theirs")
    options = CheckOptions(
        tokens=128 * 8,
        seeds=2,
        members=("frozen_decoder", "random", "permuted_pairing"),
        model=str(model),
        dataset=str(tmp_path / "text.jsonl"),
        overrides=QUICK,
    )
    prepared = prepare_check(str(tmp_path / "theirs"), options, tmp_path / "study")
    train_study(prepared.spec, prepared.folder, resume=True, model=prepared.model)
    write_again(prepared.folder)
    planned = plan_publication(prepared.folder, REPO, "main", CardOptions("mit"))
    names = {folder.rpartition("/")[2] for folder in planned.members}
    assert names == {"frozen_decoder", "random"}
    weights = [f.source for f in planned.files if f.path.endswith("sae_weights.safetensors")]
    assert len(weights) == 4
    own = load_file(tmp_path / "theirs" / "sae_weights.safetensors")["W_enc"]
    for path in weights:
        assert isinstance(path, Path)
        assert not torch.equal(load_file(path)["W_enc"], own)
    assert [note for note in planned.notes if note.startswith("permuted_pairing: left out")]
    card = planned.card_text
    assert "built around the published SAE `theirs`, which is not in this repo" in card
    assert "Nor are `permuted_pairing`" in card
    assert "## Where the published SAE falls among random ones" in card
    assert "placements.csv" in {file.path for file in planned.files}
    spec = next(file for file in planned.others if file.path == "study.yaml")
    assert isinstance(spec.source, bytes)
    assert str(tmp_path).encode() not in spec.source
    # Side by side with the others it may be looked at.
    (page,) = gallery(prepared.folder, GalleryOptions(per_decade=1))
    columns = parse(page.read_text(encoding="utf-8")).all("thead")[0].all("th")
    assert [th.text for th in columns] == ["", "published", *options.members]
