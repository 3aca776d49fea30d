"""A study that lost something: what is made again, what is kept, and what is said."""

import json
import shutil
from pathlib import Path

import pytest
from datasets import Dataset

from sae_baselines.errors import UserError
from sae_baselines.study import PanelSpec, StudyResult, train_study
from sae_baselines.study.folder import (
    StudyFolder,
    flaw_of_measurement,
    load_study,
    read_measurement,
)
from sae_baselines.study.spec import spec_from_dict
from tests.tiny_model import tiny_panel

PANEL = "batchtopk_l0_6_seed_0"
MEMBERS = ["trained", "frozen_decoder", "frozen_encoder", "soft_frozen_decoder", "random"]


@pytest.fixture(scope="module")
def study(
    model_folder: Path, text: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PanelSpec, StudyResult]:
    spec = spec_from_dict(tiny_panel(model_folder, members=MEMBERS, training_tokens=128 * 40))
    out = tmp_path_factory.mktemp("recovery") / "study"
    return spec, train_study(spec, out, dataset=text)


@pytest.fixture
def copy(study: tuple[PanelSpec, StudyResult], tmp_path: Path) -> Path:
    shutil.copytree(study[1].folder, tmp_path / "study")
    return tmp_path / "study"


MEASURED = {
    **{"explained_variance": 0.5, "l0": 6.1, "l0_target": 6.0, "l0_matches": True},
    **{"alive": 30, "d_sae": 32, "n_tokens": 1024, "weights_sha256": "ab", "ce_recovered": 0.9},
    **{"cos_to_start_mean": None, "cos_to_start_min": None},
}


def test_a_measurement_without_checksum_has_what_is_read_of_it(tmp_path: Path):
    path = tmp_path / "measurement.json"
    path.write_text(json.dumps(MEASURED))
    assert read_measurement(tmp_path) == MEASURED
    toy = {k: MEASURED[k] for k in ("l0", "l0_target", "l0_matches", "d_sae")}
    toy |= {"ev": 0.5, "n_samples": 9, "n_features": 3, "true_l0": 1, "dead": 0, "curve": [1]}
    path.write_text(json.dumps(toy))
    assert read_measurement(tmp_path) == toy
    for good in (MEASURED, toy):
        for name in good.keys() - {"weights_sha256", "curve"}:
            path.write_text(json.dumps({k: v for k, v in good.items() if k != name}))
            with pytest.raises(UserError, match=r"measurement\.json: has no .*--resume"):
                read_measurement(tmp_path)
            for odd in ("x", float("nan"), [1.0], {}, 10**400):
                path.write_text(json.dumps({**good, name: odd}))
                with pytest.raises(UserError, match=rf"measurement\.json: {name}: .*--resume"):
                    read_measurement(tmp_path)
    # Not finished, so that training makes it again.
    assert "measurement.json" in (flaw_of_measurement(tmp_path) or "")


def _files(root: Path) -> dict[str, bytes]:
    names = ("sae_weights.safetensors", "sparsity.safetensors", "cfg.json", "measurement.json")
    return {
        str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.name in names
    }


def test_exactly_what_is_lost_is_trained_again_bit_for_bit(
    study: tuple[PanelSpec, StudyResult], copy: Path, text: Dataset
):
    spec, result = study
    members = copy / "panels" / PANEL
    weights = members / "trained" / "sae_weights.safetensors"
    flipped = bytearray(weights.read_bytes())  # of the right length
    flipped[-5] ^= 0x40
    weights.write_bytes(flipped)
    (members / "frozen_decoder" / "sparsity.safetensors").unlink()
    half = members / "frozen_encoder" / "measurement.json"
    half.write_text(half.read_text()[:20])
    (members / "random" / "cfg.json").write_text("{")
    kept = members / "soft_frozen_decoder" / "sae_weights.safetensors"
    before = kept.stat().st_mtime_ns

    with pytest.raises(UserError, match="continue it with --resume"):
        train_study(spec, copy, dataset=text)
    again = train_study(spec, copy, resume=True, dataset=text)
    assert [key.member for key in again.trained] == ["trained", "frozen_decoder", "random"]
    assert again.measurements == result.measurements
    assert _files(copy) == _files(result.folder)
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "name", ["sae_weights.safetensors", "cfg.json", "provenance.json", "sparsity.safetensors"]
)
def test_a_finished_study_with_a_damaged_file_is_not_finished(
    study: tuple[PanelSpec, StudyResult], copy: Path, name: str
):
    spec = study[0]
    path = copy / "panels" / PANEL / "frozen_decoder" / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="unfinished run"):
        train_study(spec, copy)


def test_an_edited_measurement_is_not_believed(
    study: tuple[PanelSpec, StudyResult], copy: Path, text: Dataset
):
    spec, result = study
    path = copy / "panels" / PANEL / "trained" / "measurement.json"
    path.write_text(path.read_text().replace('"l0": ', '"l0": 1'))
    assert json.loads(path.read_text())["l0"] > 10
    again = train_study(spec, copy, resume=True, dataset=text)
    assert again.trained == []
    assert again.measurements == result.measurements


@pytest.mark.parametrize("damaged", [b"", b"spec: {", b"\xff\xfe\x00", b"[1]", None])
def test_a_panel_file_adopts_a_folder_that_lost_its_study_file(
    study: tuple[PanelSpec, StudyResult], copy: Path, damaged: bytes | None
):
    spec, result = study
    path = copy / "study.yaml"
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"--resume with the panel file"):
        load_study(copy)
    other = spec_from_dict({**tiny_panel(Path(spec.model.name), members=MEMBERS), "lr": 1e-5})
    with pytest.raises(UserError, match=r"study\.yaml"):
        train_study(other, copy, resume=True)
    again = train_study(spec, copy, resume=True)
    assert again.trained == []
    assert again.measurements == result.measurements
    assert load_study(copy)[0] == load_study(result.folder)[0]


def test_checkpoints_of_a_run_that_died_before_it_cleaned_up_go(
    study: tuple[PanelSpec, StudyResult], copy: Path
):
    left = copy / "checkpoints" / "pass_0" / "5120"
    left.mkdir(parents=True)
    (left.parent / ".DS_Store").touch()
    (copy / "checkpoints" / "drift_pass_0" / "trained").mkdir(parents=True)
    train_study(study[0], copy)
    assert not (copy / "checkpoints").exists()


def test_checkpoints_may_lead_to_another_disk_before_a_study_begins(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    folder = StudyFolder(tmp_path / "study")
    folder.root.mkdir()
    folder.checkpoints.symlink_to(tmp_path / "disk")
    spec = spec_from_dict(tiny_panel(Path("model")))
    folder.open(spec, resume=False)
    assert folder.study_file.exists()
