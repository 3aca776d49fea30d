"""What is read of a published SAE, and which ones are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.transcoder import Transcoder, TranscoderConfig

from sae_baselines.errors import UserError
from sae_baselines.study.reference.check import prepare_check
from sae_baselines.study.reference.read import read_reference
from sae_baselines.study.reference.recipe import CheckOptions
from tests.helpers import make_sae
from tests.study.reference.conftest import QUICK, make_published
from tests.tiny_model import D_MODEL, HOOK

REPO = "google/gemma-scope-2b-pt-transcoders"
Read = Callable[[str], torch.Tensor]


@pytest.fixture
def saved(tmp_path: Path, activations: Read) -> Callable[..., Path]:
    def save(**options: Any) -> Path:
        make_published(activations(HOOK), **options).save_model(tmp_path / "theirs")
        return tmp_path / "theirs"

    return save


def exported(name: str, folder: Path) -> Path:
    make_sae(name).save_inference_model(folder)
    return folder


@pytest.mark.parametrize(
    ("trained_as", "base", "note"),
    [
        ("batchtopk", "batchtopk", None),
        ("matryoshka_batchtopk", "matryoshka_batchtopk", None),
        ("jumprelu", "jumprelu", None),
        ("seeded_topk", "topk", None),
        ("frozen_decoder", "batchtopk", "itself a baseline: frozen_decoder"),
        ("soft_frozen_decoder_jumprelu", "jumprelu", "itself a baseline"),
    ],
)
def test_the_architecture_it_was_trained_as(
    trained_as: str, base: str, note: str | None, tmp_path: Path
) -> None:
    found = read_reference(str(exported(trained_as, tmp_path / "sae")))
    assert found.base == base
    assert (note is None and found.notes == ()) or any(str(note) in n for n in found.notes)


def test_an_unrecorded_jumprelu_is_said_to_be_one(saved: Callable[..., Path]) -> None:
    folder = saved()
    found = read_reference(str(folder))
    assert found.base == "jumprelu"
    assert any("exported as jumprelu too" in note for note in found.notes)
    assert read_reference(str(folder), architecture="batchtopk").base == "batchtopk"
    with pytest.raises(UserError, match=r"architecture: 'batchtop'.*did you mean batchtopk"):
        read_reference(str(folder), architecture="batchtop")


def test_what_is_recorded_beside_it(saved: Callable[..., Path]) -> None:
    folder = saved(metadata={"l0": 6.5, "sequence_separator_token": None})
    nothing = read_reference(str(folder))
    assert (nothing.training_tokens, nothing.runner, nothing.l0) == (None, {}, 6.5)
    (folder / "runner_cfg.json").write_text(json.dumps({"training_tokens": 123, "lr": 1e-4}))
    found = read_reference(str(folder))
    assert (found.training_tokens, found.runner["lr"]) == (123, 1e-4)
    assert found.shown == "theirs"  # its path says nothing on another machine
    assert Path(found.source).is_absolute()
    (folder / "runner_cfg.json").write_text("{")
    with pytest.raises(UserError, match=r"runner_cfg\.json beside it cannot be read"):
        read_reference(str(folder))


def test_text_that_was_read_in_another_way_is_noted(saved: Callable[..., Path]) -> None:
    found = read_reference(str(saved(metadata={"disable_concat_sequences": True})))
    assert any("disable_concat_sequences=True" in note for note in found.notes)


def test_transcoders_are_refused_with_the_reason(tmp_path: Path) -> None:
    cfg = TranscoderConfig(
        d_in=D_MODEL, d_out=D_MODEL, d_sae=64, device="cpu", apply_b_dec_to_input=False
    )
    Transcoder(cfg).save_model(tmp_path / "transcoder")
    with pytest.raises(UserError, match="writes in another space than it reads"):
        read_reference(str(tmp_path / "transcoder"))


@pytest.fixture
def gemma_scope(tmp_path: Path) -> Path:
    """A transcoder in the layout of Gemma Scope's: weights by these names, and nothing else."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "layer_1" / "width_1k" / "average_l0_6"
    folder.mkdir(parents=True)

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    weights = {
        "W_enc": normal(D_MODEL, 64),
        "W_dec": normal(64, D_MODEL),
        "b_enc": normal(64),
        "b_dec": normal(D_MODEL),
        "threshold": np.abs(normal(64)),
    }
    np.savez(folder / "params.npz", **weights)
    return folder


def test_a_transcoder_of_gemma_scope_is_read_as_saelens_reads_it(
    gemma_scope: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, text_file: Path
) -> None:
    small = {"d_in": D_MODEL, "d_out": D_MODEL, "d_sae": 64}
    monkeypatch.setattr(
        "sae_lens.saes.sae.get_conversion_loader_name", lambda _: "gemma_2_transcoder"
    )
    monkeypatch.setattr("sae_lens.saes.sae.get_config_overrides", lambda *_: dict(small))

    def fetch(repo_id: str, filename: str, **_: Any) -> str:
        assert repo_id == REPO
        return str(gemma_scope.parents[2] / filename)

    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", fetch)
    source = f"{REPO}:layer_1/width_1k/average_l0_6"
    with pytest.warns(UserWarning, match="HuggingFace repo_id"):
        found = read_reference(source)
    sae: Any = found.sae
    with np.load(gemma_scope / "params.npz") as params:
        for name, value in sae.state_dict().items():
            np.testing.assert_array_equal(value, params[name])
    assert found.base == "transcoder_jumprelu"
    assert found.metadata["hook_name"] == "blocks.1.ln2.hook_normalized"
    assert found.metadata["hook_name_out"] == "blocks.1.hook_mlp_out"
    # Saved by SAELens it is a folder, around which `check` plans panels.
    sae.save_model(gemma_scope)
    options = CheckOptions(
        tokens=1280, seeds=1, model=str(tiny_model), dataset=str(text_file), overrides=QUICK
    )
    spec = prepare_check(str(gemma_scope), options, gemma_scope / "check").spec
    assert spec.architecture == "transcoder_jumprelu"
    assert 20 < spec.l0s[0] < 40
    assert (spec.hook_name_out, spec.d_out) == ("blocks.1.hook_mlp_out", D_MODEL)


@pytest.mark.parametrize(
    ("hook", "block"),
    [("blocks.1.hook_mlp_in", "blocks.1"), ("blocks.20.mlp.hook_in", "blocks.20")],
)
def test_an_input_behind_the_norms_gain_is_refused_with_what_to_do(
    hook: str, block: str, tmp_path: Path
) -> None:
    # As SAELens names those of Gemma Scope 2 and of Qwen3.
    sae = Transcoder(
        TranscoderConfig(
            d_in=D_MODEL,
            d_out=D_MODEL,
            d_sae=64,
            device="cpu",
            apply_b_dec_to_input=False,
            metadata=SAEMetadata(hook_name=hook, hook_name_out=f"{block}.hook_mlp_out"),
        )
    )
    sae.save_model(tmp_path / "transcoder")
    with pytest.raises(
        UserError, match=rf"multiply.*{block}\.ln2\.w, set hook_name to {block}\.l"
    ):
        read_reference(str(tmp_path / "transcoder"))


@pytest.mark.parametrize(
    "source",
    [
        "mntss-gemma-2-2b-2.5m-clt-as-per-layer:layer_3",
        "somebody/gemma-scope-2:clt/layer_3_width_16k",
    ],
)
def test_a_layer_of_a_cross_layer_transcoder_is_refused(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = TranscoderConfig(d_in=D_MODEL, d_out=D_MODEL, d_sae=64, apply_b_dec_to_input=False)
    monkeypatch.setattr(
        "sae_baselines.controls.source.from_release", lambda *_: Transcoder(cfg)
    )
    with pytest.raises(UserError, match="whose decoders into all layers SAELens adds up"):
        read_reference(source)


def test_weights_of_gemma_scope_alone_say_what_they_lack(gemma_scope: Path) -> None:
    with pytest.raises(UserError, match=r"no cfg\.json; its params\.npz.*neither model nor"):
        read_reference(str(gemma_scope))


def test_others_without_random_twins_are_refused(
    tmp_path: Path, saved: Callable[..., Path]
) -> None:
    with pytest.raises(UserError, match="reads with its decoder"):
        read_reference(str(exported("matching_pursuit", tmp_path / "pursuit")))
    one_head = saved(metadata={"hook_head_index": 2})
    with pytest.raises(UserError, match="head 2"):
        read_reference(str(one_head))
    whitened = saved(normalize_activations="covariance_whitening")
    with pytest.raises(UserError, match="whitened"):
        read_reference(str(whitened))


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no cfg\.json; name an SAE's folder"):
        read_reference(str(tmp_path))
    inside = exported("topk", tmp_path / "panels" / "trained")
    with pytest.raises(UserError, match=rf"name an SAE in it, such as {inside}"):
        read_reference(str(tmp_path))
    with pytest.raises(UserError, match=r"no release that SAELens knows; did you mean gpt2"):
        read_reference("gpt2-small-res-jd:blocks.8.hook_resid_pre")
    with pytest.raises(UserError, match=r"has no SAE 'blocks.8'; did you mean blocks\.8\.hook"):
        read_reference("gpt2-small-res-jb:blocks.8")
    with pytest.raises(UserError, match="neither a folder, nor a release:sae_id"):
        read_reference("somewhere")


def test_weights_that_are_cut_short(saved: Callable[..., Path]) -> None:
    folder = saved()
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="is not an SAE that SAELens can load"):
        read_reference(str(folder))


def test_the_hash_is_of_the_weights_as_they_were_loaded(saved: Callable[..., Path]) -> None:
    folder = saved()
    first = read_reference(str(folder)).weights_sha256
    assert first == read_reference(str(folder)).weights_sha256
    sae: Any = SAE.load_from_disk(folder)
    with torch.no_grad():
        sae.threshold[3] += 1e-6
    sae.save_model(folder)
    assert read_reference(str(folder)).weights_sha256 != first
