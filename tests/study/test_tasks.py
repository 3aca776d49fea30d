"""A study done task by task is the study done in one go."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from sae_baselines.errors import UserError
from sae_baselines.study.engine import is_finished, run_task, tasks, train_study
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.spec import MemberSpec, StudySpec, spec_from_dict
from sae_baselines.study.synthetic.spec import ToySpec
from tests.tiny_model import tiny_panel

MEMBERS: list[str | MemberSpec] = [
    "trained",
    "frozen_decoder",
    "frozen_encoder",
    "random",
    "permuted_decoder",
]


def _results(root: Path) -> dict[str, str]:
    """Every file that a number rests on."""
    names = ("*.safetensors", "measurement.json")
    files = [path for name in names for path in (root / "panels").rglob(name)]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def _in_tasks(spec: StudySpec, root: Path, **inputs: Any) -> None:
    for task in tasks(spec):
        assert not is_finished(spec, StudyFolder(root))
        run_task(spec, root, task.name, **inputs)
    assert is_finished(spec, StudyFolder(root))


def test_a_text_study_in_tasks_is_bitwise_the_same(
    model_folder: Path, text: Dataset, tmp_path: Path
):
    panel = tiny_panel(model_folder, members=MEMBERS, seeds=[0, 1], max_panels_per_pass=1)
    spec = spec_from_dict({**panel, "training_tokens": 128 * 20})
    train_study(spec, tmp_path / "whole", dataset=text)
    _in_tasks(spec, tmp_path / "tasks", dataset=text)
    assert _results(tmp_path / "tasks") == _results(tmp_path / "whole")
    assert len(_results(tmp_path / "whole")) == 2 * 5 * 3


def test_a_synthetic_study_in_tasks_is_bitwise_the_same(tmp_path: Path):
    spec = ToySpec(
        n=8,
        m=20,
        mean_active=2,
        architecture="topk",
        d_sae=20,
        l0=2,
        members=MEMBERS[:4],
        training_samples=1280,
        train_batch_size=128,
        calibration_samples=512,
        eval_samples=512,
        device="cpu",
    )
    train_study(spec, tmp_path / "whole")
    _in_tasks(spec, tmp_path / "tasks")
    assert _results(tmp_path / "tasks") == _results(tmp_path / "whole")


def test_tasks_are_named_for_what_they_do_and_an_unknown_one_is_one_line(
    model_folder: Path, tmp_path: Path
):
    spec = spec_from_dict(tiny_panel(model_folder, members=["trained", "random"]))
    (panel,) = spec.panels()
    assert [task.name for task in tasks(spec)] == [
        "train:pass_0",
        "controls",
        f"measure:{panel.name}.trained",
        f"measure:{panel.name}.random",
    ]
    with pytest.raises(UserError, match="task: 'train:pass_1' is unknown; did you mean"):
        run_task(spec, tmp_path, "train:pass_1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["text", "synthetic"])
def test_the_exported_config_has_the_l0_of_held_out_activations(
    kind: str, model_folder: Path, text: Dataset, tmp_path: Path
):
    if kind == "text":
        spec: StudySpec = spec_from_dict(tiny_panel(model_folder, training_tokens=128 * 5))
        result = train_study(spec, tmp_path, dataset=text)
    else:
        spec = ToySpec(
            n=8,
            m=20,
            mean_active=2,
            settings=["constant"],
            architecture="batchtopk",
            d_sae=20,
            l0=2,
            training_samples=1280,
            train_batch_size=128,
            calibration_samples=512,
            eval_samples=512,
            device="cpu",
        )
        result = train_study(spec, tmp_path)
    folder = StudyFolder(tmp_path)
    for key, measured in result.measurements.items():
        config = json.loads((folder.member(key) / "cfg.json").read_text())
        assert config["metadata"]["l0"] == measured["l0"]
        assert config["metadata"]["sae_baselines"]["l0_held_out"] == measured["l0"]
        assert config["metadata"]["sae_baselines"]["samples_seen"] > 0
