"""A study from photographs to measurements: what is frozen, resumed, and held out."""

import csv
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file

from sae_baselines.errors import UserError
from sae_baselines.results import COLUMNS, load_results
from sae_baselines.study.engine import StudyResult, run_task, tasks, train_study
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.patches.spec import VisionSpec
from sae_baselines.study.patches.store import PatchStream
from sae_baselines.study.plan import all_members
from sae_baselines.study.runner import InterruptedTrainingError
from sae_baselines.study.sources import patches as study_module
from sae_baselines.study.sources.patches import images_of, spec_of_study
from sae_baselines.study.spec import spec_from_dict
from tests.study.patches.tiny import D_IN, picture, save_photographs, tiny_vision


def _by_member(result: StudyResult) -> dict[str, dict[str, Any]]:
    return {key.member: m for key, m in result.measurements.items()}


def test_every_member_is_there_and_loads_with_stock_saelens(
    study: StudyResult, spec: VisionSpec
):
    assert list(_by_member(study)) == [
        "trained",
        "frozen_decoder",
        "soft_frozen_decoder",
        "frozen_encoder",
        "random_kaiming",
        "random",
    ]
    for key in study.measurements:
        sae = SAE.load_from_disk(StudyFolder(study.folder).member(key))
        assert (sae.cfg.d_in, sae.cfg.d_sae) == (D_IN, 96)
        assert sae.cfg.architecture() == "jumprelu"
    assert spec_of_study(study.folder) == spec


def test_frozen_members_have_not_moved_and_the_trained_one_has(study: StudyResult):
    m = _by_member(study)
    assert m["frozen_decoder"]["cos_to_start_min"] == pytest.approx(1, abs=1e-6)
    assert m["frozen_encoder"]["encoder_cos_to_start_mean"] == pytest.approx(1, abs=1e-6)
    for moved in ("trained", "frozen_encoder"):
        assert m[moved]["cos_to_start_mean"] < 0.99
    assert m["soft_frozen_decoder"]["cos_to_start_min"] >= 0.8 - 1e-5
    assert m["frozen_decoder"]["encoder_cos_to_start_mean"] < 0.99
    assert m["random"]["cos_to_start_mean"] is None
    assert m["trained"]["explained_variance"] > m["random_kaiming"]["explained_variance"]
    assert all(member["l0_matches"] for member in m.values())


def test_measurements_are_of_the_activations_on_disk(study: StudyResult, spec: VisionSpec):
    rows = torch.from_numpy(np.load(study.folder / "activations" / "evaluation.npy").copy())
    key = next(iter(study.measurements))
    sae = SAE.load_from_disk(StudyFolder(study.folder).member(key))
    with torch.no_grad():
        acts = sae.encode(rows)
        error = (rows - sae.decode(acts)).pow(2).sum()
    spread = (rows - rows.mean(dim=0)).pow(2).sum()
    m = study.measurements[key]
    assert m["explained_variance"] == pytest.approx(float(1 - error / spread), abs=1e-4)
    assert m["l0"] == pytest.approx(float((acts > 0).sum(dim=1).double().mean()), abs=1e-6)
    fires = (acts > 0).sum(dim=0)
    assert m["dead"] == int((fires == 0).sum())
    assert m["rare"] == int(((fires > 0) & (fires < len(rows) / 1000)).sum())
    assert m["alive"] == 96 - m["dead"]
    assert m["n_patches"] == len(rows) >= spec.eval_samples


def test_the_results_table_is_like_any_other(study: StudyResult):
    table = load_results(study.folder)
    assert tuple(table.columns) == COLUMNS
    # Suite "panel" has the measured L0, by which the statistics match members.
    assert set(table["suite"]) == {"panel", "vision"}
    ev = table[table["metric"] == "explained_variance"]
    expected = {k.member: m["explained_variance"] for k, m in study.measurements.items()}
    assert dict(zip(ev["member"], ev["value"], strict=True)) == expected
    assert set(ev["direction"]) == {1}
    assert set(ev["constraint"]) >= {"trained", "frozen_decoder", "random:kaiming"}


def test_no_held_out_photograph_was_trained_on(study: StudyResult):
    with (study.folder / "crops.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    parts = {
        p: {r["photograph"] for r in rows if r["part"] == p} for p in ("train", "evaluation")
    }
    facts = images_of(study.folder)
    assert parts["train"] <= set(facts["train"])
    assert parts["evaluation"] == set(facts["held_out"])
    assert not set(facts["train"]) & set(facts["held_out"])
    assert len(facts["held_out"]) == 3  # 0.3 of ten


def test_a_finished_study_is_not_repeated(
    study: StudyResult, spec: VisionSpec, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(study_module, "PatchModel", None)  # would be called to do anything
    again = train_study(spec, study.folder)
    assert again.measurements == study.measurements
    # Training activations are large and no longer needed; measured ones serve the page.
    assert [p.name for p in (study.folder / "activations").glob("*.npy")] == ["evaluation.npy"]
    assert not (study.folder / "checkpoints").exists()


def test_killed_and_resumed_is_the_same_to_the_bit(
    study: StudyResult, spec: VisionSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    batch = PatchStream.batch

    def interrupted(self: PatchStream, index: int) -> torch.Tensor:
        if index == 37:
            signal.raise_signal(signal.SIGINT)
        return batch(self, index)

    monkeypatch.setattr(PatchStream, "batch", interrupted)
    with pytest.raises(InterruptedTrainingError):
        train_study(spec, tmp_path / "study")
    monkeypatch.undo()
    assert not (tmp_path / "study" / "panels").exists()
    with pytest.raises(UserError, match="continue it with --resume"):
        train_study(spec, tmp_path / "study")
    resumed = train_study(spec, tmp_path / "study", resume=True)
    assert resumed.measurements == study.measurements
    for key in all_members(spec):
        weights = [
            load_file(StudyFolder(root).member(key) / "sae_weights.safetensors")
            for root in (study.folder, resumed.folder)
        ]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_other_photographs_are_refused(spec: VisionSpec, study: StudyResult, tmp_path: Path):
    copy = tmp_path / "study"
    shutil.copytree(study.folder, copy)
    measurement = next(copy.glob("panels/*/random/measurement.json"))
    measurement.unlink()
    more = save_photographs(tmp_path / "photographs")
    picture(99).save(more / "p99.png")
    record = json.loads((copy / "images.json").read_text())
    assert record["fingerprint"]
    moved = replace(spec.images, path=str(more))
    with pytest.raises(UserError, match="differs in: images"):
        train_study(replace(spec, images=moved), copy, resume=True)
    # The same path with other pictures in it is only seen by looking at them.
    original = Path(spec.images.path)
    try:
        picture(99).save(original / "p99.png")
        with pytest.raises(UserError, match="has other photographs than when"):
            train_study(spec, copy, resume=True)
    finally:
        (original / "p99.png").unlink()


def test_patches_of_enormous_norm_are_left_out(
    dinov2: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = study_module.PatchModel.activations

    def with_artefacts(self: Any, pictures: Any) -> torch.Tensor:
        out = plain(self, pictures)
        out[:, 5] *= 50  # one position, as register-like tokens are
        return out

    monkeypatch.setattr(study_module.PatchModel, "activations", with_artefacts)
    few = {"training_samples": 640, "members": ["trained"], "n_checkpoints": 0}
    studies = {}
    for ratio in (None, 5):
        data = tiny_vision(dinov2, photographs, max_norm_ratio=ratio, **few)
        spec = spec_from_dict(data, "tiny", VisionSpec)
        studies[ratio] = train_study(spec, tmp_path / f"study_{ratio}")
    facts = images_of(studies[5].folder)
    assert facts["norms"]["outliers"] == pytest.approx(1 / 16)
    assert facts["norms"]["largest_at"] == [1, 1]
    assert facts["norms"]["dropped"] == pytest.approx(1 / 16)
    assert facts["train_patches_dropped"] * 15 == facts["train_patches"]
    (all_of_them,), (without,) = (s.measurements.values() for s in studies.values())
    assert without["n_patches"] * 16 == all_of_them["n_patches"] * 15


def test_what_is_wrong_is_said(dinov2: Path, photographs: Path, tmp_path: Path):
    def run(**overrides: Any) -> None:
        data = {**tiny_vision(dinov2, photographs), **overrides}
        train_study(spec_from_dict(data, "vision", VisionSpec), tmp_path / "study")

    with pytest.raises(UserError, match=r"d_in: 768 does not match encoder\.layer\.1.*24"):
        run(d_in=768)
    shutil.rmtree(tmp_path / "study")
    with pytest.raises(UserError, match="l0: 30 is not below d_sae=24"):
        run(d_sae=None, expansion=1, l0=30)
    for overrides, message in (
        ({"training_sample": 3}, "did you mean training_samples"),
        ({"images": {"path": ".", "held_out": 1.5}}, "not between 0 and 1"),
        ({"images": {"path": ".", "held_out": []}}, "the list is empty"),
        ({"images": {"path": ".", "heldout": 0.5}}, "did you mean held_out"),
        ({"model": {"name": "x", "labl": "y"}}, "did you mean label"),
        ({"training_samples": 10}, "less than one batch of 64"),
        ({"members": ["trained", "randm"]}, "did you mean random"),
        ({"members": ["random"]}, "'trained' is missing"),
    ):
        with pytest.raises(UserError, match=message):
            run(**overrides)


def test_a_study_of_another_kind_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"study\.yaml: cannot be read"):
        spec_of_study(tmp_path)
    (tmp_path / "study.yaml").write_text("spec: {name: text}\n")
    with pytest.raises(UserError, match="is not of a vision study"):
        spec_of_study(tmp_path)


def test_the_exported_config_has_the_l0_of_held_out_patches(study: StudyResult) -> None:
    folder = StudyFolder(study.folder)
    for key, measured in study.measurements.items():
        config = json.loads((folder.member(key) / "cfg.json").read_text())
        assert config["metadata"]["l0"] == measured["l0"]
        assert config["metadata"]["sae_baselines"]["l0_held_out"] == measured["l0"]


def test_done_in_tasks_it_is_bitwise_the_same_and_leaves_no_activations(
    study: StudyResult, spec: VisionSpec, tmp_path: Path
) -> None:
    for task in tasks(spec):
        run_task(spec, tmp_path, task.name)
    names = ("*.safetensors", "measurement.json")
    files = [p for name in names for p in (study.folder / "panels").rglob(name)]
    assert len(files) == len(all_members(spec)) * 4
    for path in files:
        assert (tmp_path / path.relative_to(study.folder)).read_bytes() == path.read_bytes()
    left = [p.name for p in (tmp_path / "activations").glob("*.npy")]
    assert left == ["evaluation.npy"]
