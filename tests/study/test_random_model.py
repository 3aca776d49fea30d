"""The trained architecture on a language model with random weights."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from sae_baselines.errors import UserError
from sae_baselines.study import StudyResult, language_model, train_study
from sae_baselines.study.engine import tasks
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.patches.spec import VisionSpec
from sae_baselines.study.redraw import RandomModel, redraw
from sae_baselines.study.spec import ModelSpec, PanelSpec, spec_from_dict
from sae_baselines.study.synthetic.spec import ToySpec
from tests.tiny_model import HOOK, save_tiny_model, tiny_panel

EMBEDDINGS = {"model.embed_tokens.weight", "lm_head.weight"}
KINDS = ("random_model", "random_model:embeddings_kept")


def _weights(folder: Path, drawn: RandomModel | None) -> dict[str, torch.Tensor]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    if drawn is not None:
        redraw(model, drawn)
    return {name: weight.detach() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_matrix_is_drawn_anew_at_its_own_scale(model_folder: Path, kind: str):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    real = _weights(model_folder, None)
    drawn = _weights(model_folder, RandomModel("tiny", kind, 3))
    again = _weights(model_folder, RandomModel("tiny", kind, 3))
    other = _weights(model_folder, RandomModel("tiny", kind, 4))
    assert torch.equal(torch.get_rng_state(), state)
    kept = EMBEDDINGS if kind.endswith("kept") else set()
    matrices = {name for name, weight in real.items() if weight.ndim > 1}
    assert matrices >= EMBEDDINGS
    for name, weight in real.items():
        assert torch.equal(drawn[name], again[name])
        if name not in matrices - kept:
            assert torch.equal(drawn[name], weight)
            continue
        n = weight.numel()
        assert not (drawn[name] == weight).any()
        assert not (drawn[name] == other[name]).any()
        # Six standard errors.
        assert abs(drawn[name].mean() - weight.mean()) < 6 * weight.std() / n**0.5
        assert abs(drawn[name].std() / weight.std() - 1) < 6 / (2 * n) ** 0.5


def test_matrices_have_streams_of_their_own(model_folder: Path):
    drawn = _weights(model_folder, RandomModel("tiny", "random_model", 0))
    queries, keys = (drawn[f"model.layers.0.self_attn.{n}_proj.weight"] for n in "qk")
    stacked = torch.stack([queries.flatten(), keys.flatten()])
    assert abs(torch.corrcoef(stacked)[0, 1]) < 0.2


def test_every_loader_and_dtype_has_the_same_random_model(model_folder: Path):
    drawn = RandomModel("tiny", "random_model", 1)
    tokens = torch.arange(12)[None]

    def logits(**options: Any) -> torch.Tensor:
        spec = ModelSpec(name=str(model_folder), **options)
        hook = HOOK if "loader" not in options else "model.layers.1"
        model = load_language_model(spec, hook, "cpu", drawn)
        return model(tokens, return_type="logits").detach().float()

    hooked, proxied = logits(), logits(loader="AutoModelForCausalLM")
    assert torch.allclose(hooked, proxied, atol=1e-3)
    real = load_language_model(ModelSpec(name=str(model_folder)), HOOK, "cpu")
    assert not torch.allclose(hooked, real(tokens).detach(), atol=0.1)
    half = load_language_model(
        ModelSpec(name=str(model_folder), dtype="bfloat16"), HOOK, "cpu", drawn
    )
    whole = load_language_model(ModelSpec(name=str(model_folder)), HOOK, "cpu", drawn)
    rounded = dict(half.named_parameters())
    for name, weight in whole.named_parameters():
        assert torch.equal(rounded[name], weight.bfloat16())


def _rounded(folder: Path) -> tuple[ModelSpec, RandomModel]:
    """A random model whose predictions in bfloat16 are not those in float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4.5)
    model.save_pretrained(folder)
    spec = ModelSpec(name=str(folder), dtype="bfloat16")
    return spec, RandomModel("tiny", "random_model", 2)


@pytest.mark.parametrize("as_it_is", [False, True])
def test_a_models_own_rounding_is_no_other_model(tmp_path: Path, as_it_is: bool):
    spec, random = _rounded(save_tiny_model(tmp_path / "tiny"))
    drawn = None if as_it_is else random
    tokens = torch.randint(18, (1, 32), generator=torch.Generator().manual_seed(0))

    def predicts(**options: Any) -> torch.Tensor:
        model = load_language_model(replace(spec, **options), HOOK, "cpu", drawn)
        with torch.no_grad():
            return model(tokens).float().log_softmax(-1)

    coarse, fine = predicts(), predicts(dtype="float32")
    assert float((fine.exp() * (fine - coarse)).sum(-1).mean()) > 0.02


@pytest.mark.parametrize("as_it_is", [False, True])
def test_a_rounded_model_that_is_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_it_is: bool
):
    spec, random = _rounded(save_tiny_model(tmp_path / "tiny", rope_theta=100.0))
    monkeypatch.setattr(language_model, "set_rotary_base", lambda *_: None)
    with pytest.raises(UserError, match="predicts otherwise than transformers'"):
        load_language_model(spec, HOOK, "cpu", None if as_it_is else random)


def _spec(model_folder: Path, members: list[str]) -> PanelSpec:
    return spec_from_dict(
        tiny_panel(model_folder, members=members, seeds=[0, 1], training_tokens=128 * 8)
    )


def _sum(result: StudyResult, seed: int, member: str) -> str:
    panel = result.folder / "panels" / f"batchtopk_l0_6_seed_{seed}"
    data = (panel / member / "sae_weights.safetensors").read_bytes()
    return hashlib.sha256(data).hexdigest()


def test_a_study_trains_on_its_own_random_models_and_resumes(
    model_folder: Path, text: Dataset, tmp_path: Path
):
    without = train_study(_spec(model_folder, ["trained"]), tmp_path / "a", dataset=text)
    spec = _spec(model_folder, ["trained", "random_model"])
    names = [task.name for task in tasks(spec)]
    assert names[0] == "train:pass_0"
    assert "train:random_model_seed_1_pass_0" in names
    assert len(names) == len(set(names)) == 3 + 4
    result = train_study(spec, tmp_path / "b", dataset=text)
    sums = {(s, m): _sum(result, s, m) for s in (0, 1) for m in ("trained", "random_model")}
    assert len(set(sums.values())) == 4
    for seed in (0, 1):
        # Other members' batches and weights are as they were.
        assert sums[seed, "trained"] == _sum(without, seed, "trained")
        panel = result.folder / "panels" / f"batchtopk_l0_6_seed_{seed}"
        cfg = json.loads((panel / "random_model" / "cfg.json").read_text())
        assert cfg["metadata"]["model_name"].endswith(f"+random_model_seed_{seed}")
        assert cfg["metadata"]["sae_baselines"]["control"] == "random_model"
        assert cfg["metadata"]["sae_baselines"]["random_model"]["seed"] == seed
        measured = json.loads((panel / "random_model" / "measurement.json").read_text())
        assert measured["ce_recovered"] is None
        assert measured["l0"] == pytest.approx(6, rel=0.15)
        real = json.loads((panel / "trained" / "measurement.json").read_text())
        assert real["ce_recovered"] is not None
    lost = result.folder / "panels" / "batchtopk_l0_6_seed_1" / "random_model"
    shutil.rmtree(lost)
    again = train_study(spec, tmp_path / "b", resume=True, dataset=text)
    assert [key.name for key in again.trained] == ["batchtopk_l0_6_seed_1.random_model"]
    assert {k: _sum(again, *k) for k in sums} == sums


def test_what_has_no_random_model_is_refused_in_a_line(model_folder: Path):
    with pytest.raises(UserError, match="did you mean random_model:embeddings_kept"):
        _spec(model_folder, ["trained", "random_model:embedding_kept"])
    members = ["trained", "random_model"]
    with pytest.raises(UserError, match="only a study on text"):
        spec_from_dict({"name": "toy", "members": members}, kind=ToySpec)
    with pytest.raises(UserError, match="only a study on text"):
        spec_from_dict(
            {
                "name": "vision",
                "members": members,
                "model": {"name": "x"},
                "hook_name": "y",
                "images": {"path": "z"},
                "d_sae": 64,
                "l0": 8,
            },
            kind=VisionSpec,
        )
