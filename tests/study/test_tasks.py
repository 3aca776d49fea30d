"""A study done task by task is the study done in one go."""

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from typer.testing import CliRunner

from sae_baselines.errors import UserError
from sae_baselines.evals.status import study_status
from sae_baselines.provenance import environment
from sae_baselines.study import engine
from sae_baselines.study.engine import (
    is_finished,
    run_task,
    share_study,
    tasks,
    train_on,
    train_study,
)
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.spec import MemberSpec, StudySpec, spec_from_dict
from sae_baselines.study.synthetic.spec import ToySpec
from sae_baselines.work.claims import DONE, Share
from sae_baselines_cli import app
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


class Forked:
    """Two workers, of which the first is killed as soon as it has measured one SAE."""

    def run(self, work: Callable[[], object], root: Path) -> None:
        del root
        forked = multiprocessing.get_context("fork")
        died = forked.Event()
        calls = (partial(_killed, work), partial(_outliving, work, died))
        workers = [forked.Process(target=call) for call in calls]
        for worker in workers:
            worker.start()
        workers[0].join(120)
        died.set()
        workers[1].join(120)
        assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, 0]


def _killed(work: Callable[[], object]) -> None:
    engine.write_measurement = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    work()


def _outliving(work: Callable[[], object], died: Any) -> None:
    """It leaves the other something to measure."""
    write = engine.write_measurement

    def later(*args: Any) -> None:
        assert died.wait(120)
        write(*args)

    engine.write_measurement = later
    work()


def test_workers_that_share_a_study_and_die_make_the_same(
    model_folder: Path, text_file: Path, tmp_path: Path
):
    panel = tiny_panel(
        model_folder, str(text_file), members=MEMBERS, seeds=[0, 1], max_panels_per_pass=1
    )
    spec = spec_from_dict({**panel, "training_tokens": 128 * 20})
    train_study(spec, tmp_path / "whole")
    made = train_on(Forked(), spec, tmp_path / "shared")
    assert _results(tmp_path / "shared") == _results(tmp_path / "whole")
    assert set(made.trained) == set(made.measurements)
    assert len(made.trained) == 10
    assert not (tmp_path / "shared" / "checkpoints").exists()
    share = Share(tmp_path / "shared")
    tried = {task.name: share.attempts(task.name) for task in tasks(spec)}
    # The one that a process died at was taken over, the others were done once.
    assert sorted(len(attempts) for attempts in tried.values()) == [1] * 12 + [2]
    assert {a.end["state"] for attempts in tried.values() if (a := attempts[-1]).end} == {DONE}
    weights = {a.end["inputs"] for attempts in tried.values() if (a := attempts[-1]).end}
    assert len(weights) == 13
    found = study_status(tmp_path / "shared")
    assert {(task.state, task.said) for task in found} == {("done", "")}
    # Again: nothing is left, and no process is started.
    assert not train_on(Forked(), spec, tmp_path / "shared").trained


def test_a_task_that_fails_leaves_the_others(
    model_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    panel = tiny_panel(model_folder, str(text_file), members=MEMBERS[:2])
    spec = spec_from_dict({**panel, "training_tokens": 128 * 10})
    (key,) = spec.panels()
    measure = engine.write_measurement

    def fail(folder: Path, result: Mapping[str, Any]) -> None:
        if folder.name == "trained":
            raise OSError(28, "No space left on device")
        measure(folder, result)

    monkeypatch.setattr(engine, "write_measurement", fail)
    with pytest.raises(
        UserError, match=r"measure:.*trained failed: OSError: .*No space.*log: "
    ):
        train_on(Here(), spec, tmp_path)
    states = {task.name: task.state for task in study_status(tmp_path)}
    assert states == {
        "train:pass_0": "done",
        f"measure:{key.name}.trained": "failed",
        f"measure:{key.name}.frozen_decoder": "done",
    }
    shown = CliRunner().invoke(app, ["status", str(tmp_path)])
    (line,) = [line for line in shown.output.splitlines() if line.startswith("failed")]
    assert line.startswith(f"failed: measure:{key.name}.trained: OSError: ")
    log = Path(line.partition("(log: ")[2].rstrip(")"))
    assert "Traceback" in log.read_text()
    monkeypatch.setattr(engine, "write_measurement", measure)
    with pytest.raises(UserError, match="No space"):
        train_on(Here(), spec, tmp_path, resume=True)
    again = train_on(Here(), spec, tmp_path, resume=True, retry_failed=True)
    assert [k.member for k in again.trained] == ["trained"]


class Here:
    """One worker, this process."""

    def run(self, work: Callable[[], object], root: Path) -> None:
        del root
        work()


def test_a_worker_of_another_environment_or_disk_is_refused(model_folder: Path, tmp_path: Path):
    spec, share = spec_from_dict(tiny_panel(model_folder)), Share(tmp_path)
    here = environment()
    with pytest.raises(UserError, match=r"study.yaml is not there on .*machines share"):
        share_study(spec, tmp_path, share, here)
    with StudyFolder(tmp_path).joined(share, spec):
        pass
    other = {**here, "versions": {**here["versions"], "torch": "1.0"}}
    with pytest.raises(UserError, match=r"versions: .* has torch .* and not 1\.0"):
        share_study(spec, tmp_path, share, other)


def test_who_shares_and_who_does_not_keep_each_other_out(tmp_path: Path):
    folder = StudyFolder(tmp_path)
    with (
        folder.joined(Share(tmp_path)),
        folder.joined(Share(tmp_path)),
        pytest.raises(UserError, match=r"another process is working in .*process \d+"),
        folder.locked(),
    ):
        pass
    with folder.locked():
        pass


@pytest.mark.thorough
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
