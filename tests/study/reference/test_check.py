"""SAEs of many kinds, checked: measured as stock SAELens runs them, with twins around them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from typer.testing import CliRunner

from sae_baselines.errors import UserError
from sae_baselines.evals import load_results, study_targets, write_results
from sae_baselines.show import StudyMembers, show
from sae_baselines.study import PanelSpec, train_study
from sae_baselines.study.data import load_text
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.held_out import study_data
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.reference.check import prepare_check
from sae_baselines.study.reference.recipe import CheckOptions
from sae_baselines_cli import app
from tests.study.reference.conftest import D_SAE, MODEL_NAME, QUICK, make_published
from tests.tiny_model import HOOK

Read = Callable[[str], torch.Tensor]


@pytest.fixture
def options(tiny_model: Path, text_file: Path) -> Callable[..., CheckOptions]:
    def build(overrides: dict[str, Any] | None = None, **given: Any) -> CheckOptions:
        fields: dict[str, Any] = {
            "tokens": 128 * 8,
            "seeds": 2,
            "members": ("frozen_decoder", "random"),
            "model": str(tiny_model),
            "dataset": str(text_file),
        }
        return CheckOptions(**{**fields, **given}, overrides={**QUICK, **(overrides or {})})

    return build


def held_out(spec: PanelSpec) -> torch.Tensor:
    model = load_language_model(spec.model, spec.hook_name, "cpu")
    return study_data(spec, model, load_text(spec.dataset), "cpu").held_out.evaluation


def by_stock(sae: SAE[Any], x: torch.Tensor, heads: int | None = None) -> tuple[float, float]:
    """EV and L0 by the SAE's own forward pass, in its own shape."""
    shaped = x if heads is None else x.unflatten(1, (heads, -1))
    with torch.no_grad():
        # hook_z SAEs flatten the last two dimensions of [batch, position, head, d_head].
        shaped = shaped[None]
        acts = sae.encode(shaped)
        out = sae.decode(acts)
    out = out[0].flatten(1).double()
    residual = (x.double() - out).pow(2).sum()
    variance = (x.double() - x.double().mean(dim=0)).pow(2).sum()
    return float(1 - residual / variance), float((acts != 0).sum()) / len(x)


def checked(
    sae: SAE[Any], folder: Path, options: CheckOptions
) -> tuple[PanelSpec, dict[str, Any], Path]:
    """Publish into a folder, check; the spec, the SAE's measurement, the study."""
    sae.save_model(folder / "theirs")
    prepared = prepare_check(str(folder / "theirs"), options, folder / "study")
    train_study(prepared.spec, prepared.folder, resume=True, model=prepared.model)
    measured = json.loads((prepared.folder / "published" / "measurement.json").read_text())
    return prepared.spec, measured, prepared.folder


def test_a_study_of_an_older_version_is_gone_on_with(
    tmp_path: Path, activations: Read, options: Callable[..., CheckOptions]
) -> None:
    make_published(activations(HOOK)).save_model(tmp_path / "theirs")
    study = StudyFolder(tmp_path / "study")
    old = prepare_check(str(tmp_path / "theirs"), options({"held_out_spread": 1}), study.root)
    with study.locked():
        study.open(old.spec, resume=False)
    stored = study.study_file.read_text()
    assert "held_out_spread: 1\n" in stored
    study.study_file.write_text(stored.replace("  held_out_spread: 1\n", ""))
    now = options()
    overrides = {k: v for k, v in now.overrides.items() if k != "held_out_spread"}
    now = dataclasses.replace(now, overrides=overrides)
    again = prepare_check(str(tmp_path / "theirs"), now, study.root)
    study.open(again.spec, resume=True)
    with pytest.raises(UserError, match="held_out_spread, which is 1 there"):
        study.open(dataclasses.replace(again.spec, held_out_spread=8), resume=True)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "jumprelu, b_dec not subtracted": (HOOK, {"apply_b_dec_to_input": False}),
    "jumprelu, norms not folded": (HOOK, {"row_norms": True}),
    "topk": (HOOK, {"architecture": "topk"}),
    "standard": (HOOK, {"architecture": "standard"}),
    "gated": (HOOK, {"architecture": "gated"}),
    "hook_z": ("blocks.1.attn.hook_z", {"reshape_activations": "hook_z"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_measured_as_stock_runs_it_and_its_twins_have_its_l0(
    kind: str, tmp_path: Path, activations: Read, options: Callable[..., CheckOptions]
) -> None:
    hook, fields = KINDS[kind]
    sae = make_published(activations(hook), hook=hook, **fields)
    spec, measured, study = checked(sae, tmp_path, options())
    x = held_out(spec)
    ev, l0 = by_stock(sae, x, heads=4 if "hook_z" in hook else None)
    assert measured["explained_variance"] == pytest.approx(ev, abs=1e-5)
    assert measured["l0"] == pytest.approx(l0, abs=1e-3)
    assert measured["ce_recovered"] is not None
    assert spec.sae["apply_b_dec_to_input"] is sae.cfg.apply_b_dec_to_input
    assert (spec.d_sae, spec.hook_name) == (D_SAE, hook)
    assert spec.l0s[0] == pytest.approx(l0, rel=0.25)  # other held-out tokens: tiny text
    assert spec.published is not None
    for seed in (0, 1):
        panel = study / "panels" / f"{spec.architectures[0]}_l0_{spec.l0s[0]:g}_seed_{seed}"
        for member in ("frozen_decoder", "random"):
            theirs = json.loads((panel / member / "measurement.json").read_text())
            assert theirs["d_sae"] == D_SAE
        control = json.loads((panel / "random" / "provenance.json").read_text())
        # Made of the published SAE, not of a member of the panel.
        assert control["source"]["folder"] == "published"
        assert control["calibration"]["target_l0"] == pytest.approx(
            spec.published.facts["l0_measured"], rel=1e-6
        )


def test_folding_the_decoder_norms_changes_nothing(
    tmp_path: Path, activations: Read, options: Callable[..., CheckOptions]
) -> None:
    apart = make_published(activations(HOOK), row_norms=True)
    folded = make_published(activations(HOOK), row_norms=True)
    folded.fold_W_dec_norm()
    assert not torch.allclose(apart.W_dec, folded.W_dec)
    results = []
    for name, sae in (("apart", apart), ("folded", folded)):
        (tmp_path / name).mkdir()
        results.append(checked(sae, tmp_path / name, options(seeds=1))[1])
    for metric in ("explained_variance", "l0", "ce_loss_with_sae"):
        assert results[0][metric] == pytest.approx(results[1][metric], abs=1e-5)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_activations_normalised_one_by_one(
    norm: str, tmp_path: Path, activations: Read, options: Callable[..., CheckOptions]
) -> None:
    x = activations(HOOK)
    if norm == "layer_norm":
        z = x - x.mean(dim=-1, keepdim=True)
        z = z / z.std(dim=-1, keepdim=True)
    else:
        z = x / x.norm(dim=-1, keepdim=True) * x.shape[1] ** 0.5
    sae = make_published(z, normalize_activations=norm)
    spec, measured, study = checked(sae, tmp_path, options(seeds=1))
    ev, l0 = by_stock(sae, held_out(spec))
    assert ev > 0.05  # directions that were never trained, but it reconstructs
    assert measured["explained_variance"] == pytest.approx(ev, abs=1e-5)
    assert measured["l0"] == pytest.approx(l0, abs=1e-3)
    assert spec.normalize_activations == norm  # and its twins read the same
    member = next((study / "panels").glob("*/frozen_decoder"))
    assert SAE.load_from_disk(member).cfg.normalize_activations == norm


def test_topk_under_layer_norm_says_that_its_twins_are_trained_otherwise(
    tmp_path: Path, activations: Read, options: Callable[..., CheckOptions]
) -> None:
    x = activations(HOOK)
    z = (x - x.mean(dim=-1, keepdim=True)) / x.std(dim=-1, keepdim=True)
    sae = make_published(z, architecture="topk", normalize_activations="layer_norm")
    sae.save_model(tmp_path / "theirs")
    prepared = prepare_check(str(tmp_path / "theirs"), options(), tmp_path / "study")
    assert prepared.spec.normalize_activations == "expected_average_only_in"
    assert any("normalises each activation" in n for n in notes_of(prepared.spec))


def test_an_activation_scale_that_is_recorded_nowhere_is_measured(
    tmp_path: Path, activations: Read, options: Callable[..., CheckOptions]
) -> None:
    x = activations(HOOK)
    factor = x.shape[1] ** 0.5 / float(x.norm(dim=-1).mean())
    sae = make_published(x * factor, normalize_activations="expected_average_only_in")
    spec, measured, study = checked(sae, tmp_path, options(seeds=1))
    assert spec.published is not None
    scale = spec.published.input_scale
    assert scale == pytest.approx(factor, rel=0.05)
    assert scale is not None
    x = held_out(spec)
    scaled = make_published(activations(HOOK) * factor)
    with torch.no_grad():  # what the SAE does to scaled activations, scaled back
        ev, l0 = by_stock(scaled, x * scale)
    assert measured["explained_variance"] == pytest.approx(ev, abs=1e-4)
    assert measured["l0"] == pytest.approx(l0, abs=1e-2)
    assert SAE.load_from_disk(study / "published").cfg.normalize_activations == "none"
    assert any("records no factor" in note for note in notes_of(spec))


def test_bfloat16_weights_are_computed_with_in_float32(
    tmp_path: Path, activations: Read, options: Callable[..., CheckOptions]
) -> None:
    sae = make_published(activations(HOOK)).to(dtype=torch.bfloat16)
    sae.cfg.dtype = "bfloat16"
    spec, measured, study = checked(sae, tmp_path, options(seeds=1))
    ours = SAE.load_from_disk(study / "published")
    assert ours.W_dec.dtype == torch.float32
    assert torch.equal(ours.W_dec, sae.W_dec.float())
    ev, l0 = by_stock(ours, held_out(spec))
    assert measured["explained_variance"] == pytest.approx(ev, abs=1e-5)
    assert measured["l0"] == pytest.approx(l0, abs=1e-3)
    assert any("bfloat16" in note for note in notes_of(spec))


def test_it_is_a_member_of_the_results_and_finished_work_is_not_repeated(
    tmp_path: Path, activations: Read, options: Callable[..., CheckOptions]
) -> None:
    kwargs = {"center_writing_weights": False, "dtype": "bfloat16"}
    sae = make_published(activations(HOOK), metadata={"model_from_pretrained_kwargs": kwargs})
    spec, measured, study = checked(sae, tmp_path, options())
    table = write_results(study)
    theirs = table[table["constraint"] == "published"]
    assert set(theirs["seed"]) == {-1}
    assert set(theirs["panel"]) == {"published"}
    value = theirs[theirs["metric"] == "explained_variance"]["value"].item()
    assert value == measured["explained_variance"]
    assert load_results(study).equals(table)
    target = study_targets(study)[-1]
    assert (target.name, target.facts.l0) == ("published", spec.l0s[0])
    metadata = target.load().cfg.metadata
    assert metadata.model_name == MODEL_NAME
    # SAEBench passes these on; all SAEs of a study are read from one model.
    assert metadata.model_from_pretrained_kwargs == {}
    shown = show(study)
    assert isinstance(shown, StudyMembers)
    last = shown.members[-1]
    assert last.facts["model"] == MODEL_NAME
    assert last.source.endswith("published")
    printed = CliRunner().invoke(app, ["show", str(study)])
    assert printed.exit_code == 0, printed.exception
    assert "5 members on" in " ".join(printed.output.split())

    before = {p: p.stat().st_mtime_ns for p in study.rglob("*.safetensors")}
    again = prepare_check(str(tmp_path / "theirs"), options(), study)
    assert again.spec == spec
    assert again.model is None  # nothing had to be measured again
    assert train_study(again.spec, study, resume=True).trained == []
    assert before == {p: p.stat().st_mtime_ns for p in study.rglob("*.safetensors")}

    # The budget was given and is nowhere recorded; it need not be given again.
    assert prepare_check(str(tmp_path / "theirs"), options(tokens=None), study).spec == spec

    with torch.no_grad():
        sae.W_dec.mul_(1.01)
    sae.save_model(tmp_path / "theirs")
    with pytest.raises(UserError, match="holds another study"):
        prepare_check(str(tmp_path / "theirs"), options(), study)


def test_weights_that_change_between_two_runs_are_noticed(
    tmp_path: Path, activations: Read, options: Callable[..., CheckOptions]
) -> None:
    sae = make_published(activations(HOOK))
    sae.save_model(tmp_path / "theirs")
    prepared = prepare_check(str(tmp_path / "theirs"), options(), tmp_path / "study")
    with torch.no_grad():
        sae.W_enc.mul_(1.01)
    sae.save_model(tmp_path / "theirs")
    with pytest.raises(UserError, match="have changed since the study began"):
        train_study(prepared.spec, prepared.folder, model=prepared.model)


def test_an_sae_of_another_model_is_told_from_a_sound_one(
    tmp_path: Path, activations: Read, options: Callable[..., CheckOptions]
) -> None:
    sae: Any = make_published(activations(HOOK))
    with torch.no_grad():
        sae.threshold.zero_()
        sae.b_enc.fill_(100.0)
    sae.save_model(tmp_path / "dense")
    with pytest.raises(UserError, match="is it the model, hook and text"):
        prepare_check(str(tmp_path / "dense"), options(), tmp_path / "study")
    with torch.no_grad():
        sae.b_enc.fill_(float("nan"))
    sae.save_model(tmp_path / "nan")
    with pytest.raises(UserError, match="NaN"):
        prepare_check(str(tmp_path / "nan"), options(), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def notes_of(spec: PanelSpec) -> list[str]:
    assert spec.published is not None
    return spec.published.facts["notes"]
