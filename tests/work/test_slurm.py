"""What is asked of SLURM, in submitit's words, and what becomes of a job whose time is over."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sae_baselines.errors import StoppedError, UserError
from sae_baselines.study.engine import train_on, train_study
from sae_baselines.study.runner import COMPLETE
from sae_baselines.study.spec import spec_from_dict
from sae_baselines.work.choice import executor
from sae_baselines.work.claims import DONE, INTERRUPTED, Share
from sae_baselines.work.slurm import Requeued, Slurm
from sae_baselines_cli import app
from tests.tiny_model import save_tiny_model, tiny_panel, tiny_text

PANEL = """\
cluster:
  partition: gpu
  time: 90
  memory_gb: 24
  gres: gpu:a100:1
  setup: [module load cuda]
"""


def slurm(tmp_path: Path, *settings: str, **options: Any) -> Slurm:
    file = tmp_path / "panel.yaml"
    file.write_text(PANEL)
    made = executor("slurm", file=file, settings=settings, **options)
    assert isinstance(made, Slurm)
    return made


def test_the_script_has_what_the_panel_file_and_the_command_say(tmp_path: Path):
    lines = slurm(
        tmp_path, "partition=short", "account=me", "throttle=3", "cpus=4", workers=8
    ).script(tmp_path / "study")
    asked = {line.removeprefix("#SBATCH --") for line in lines.splitlines()}
    assert {
        "partition=short",
        "account=me",
        "time=90",
        "mem=24GB",
        "gres=gpu:a100:1",
        "cpus-per-task=4",
        "array=0-7%3",
        "signal=USR2@120",
        "requeue",
        "job-name=sae_study",
        "module load cuda",
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}",
    } <= asked
    assert str(tmp_path / "study" / ".tasks" / "logs" / "slurm") in lines
    assert not (tmp_path / "study").exists()


def test_no_slurm_no_submitit_and_a_refusal_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match=r"there is no SLURM here \(sbatch\); run this where"):
        Slurm().run(print, tmp_path)
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(
        '#!/bin/sh\necho "sbatch: error: invalid partition specified: x" >&2\nexit 1\n'
    )
    sbatch.chmod(0o755)
    (sbatch.parent / "srun").symlink_to(sbatch)
    with pytest.raises(
        UserError, match=r"sbatch refuses: .*invalid partition.*sinfo lists"
    ) as it:
        Slurm(partition="x").run(print, tmp_path)
    assert "\n" not in str(it.value)
    monkeypatch.setattr("sae_baselines.work.slurm.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"submitit; pip install 'sae-baselines\[cluster\]'"):
        Slurm().script(tmp_path)


def test_jobs_that_leave_no_log_do_not_see_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """SLURM takes the array, and a node that has no such folder can write nothing there."""
    commands = {
        "sbatch": "echo Submitted batch job 7",
        "squeue": "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1",
    }
    for name, does in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "srun").symlink_to("sbatch")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(UserError, match=r"^out: .*study: job 7 .* that all nodes share$"):
        Slurm().run(print, tmp_path / "study")


def test_without_slurm_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    panel, out = tmp_path / "panel.yaml", tmp_path / "study"
    panel.write_text(yaml.safe_dump(tiny_panel(tmp_path)))
    monkeypatch.setenv("PATH", str(tmp_path))
    for command in (["train", str(panel)], ["check", str(panel)], ["toy"]):
        done = CliRunner().invoke(app, [*command, "--out", str(out), "--on", "slurm"])
        assert "there is no SLURM here (sbatch)" in str(done.exception), command
    assert not out.exists()


def test_a_signal_that_training_took_is_handed_on_to_the_scheduler():
    answered: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: answered.append(number))

    def work() -> None:
        raise StoppedError(signal.SIGUSR2)

    try:
        Requeued(work)()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert answered == [signal.SIGUSR2]
    assert Requeued(work).checkpoint().function == Requeued(work)


@pytest.mark.slow
def test_jobs_that_are_told_to_stop_are_queued_again_and_resumed(tmp_path: Path):
    """By submitit's executor for one machine, which has SLURM's signals and queues again."""
    model, text = save_tiny_model(tmp_path / "model"), tmp_path / "text.parquet"
    tiny_text().to_parquet(text)
    spec = spec_from_dict(
        tiny_panel(
            model,
            str(text),
            members=["trained", "frozen_decoder", "random"],
            seeds=[0, 1],
            max_panels_per_pass=1,
            training_tokens=128 * 300,
        )
    )
    train_study(spec, tmp_path / "whole")
    root = tmp_path / "shared"
    stopped: list[int] = []

    def stop_one() -> None:
        """As SLURM does where time is over: once a pass has a checkpoint behind it."""
        while not list((root / "checkpoints").glob(f"*/*/{COMPLETE}")):
            time.sleep(0.05)
        attempts = [Share(root).last(f"train:{p.name}") for p in spec.passes("")]
        pid = next(a.who["pid"] for a in attempts if a is not None and a.end is None)
        os.kill(pid, signal.SIGUSR2)
        stopped.append(pid)

    thread = threading.Thread(target=stop_one, daemon=True)
    thread.start()
    made = train_on(Slurm(workers=2, engine="local"), spec, root)
    assert stopped
    assert len(made.trained) == 6
    resumed = dict.fromkeys([0, 1], False)
    for path in (root / "panels").rglob("*.safetensors"):
        told = json.loads((path.parent / "provenance.json").read_text())
        if told.get("resumed_at_samples"):
            resumed[told["init_seed"]] = True  # docs/panels.md: it sees other batches
        else:
            twin = tmp_path / "whole" / path.relative_to(root)
            assert path.read_bytes() == twin.read_bytes(), path
    assert sorted(resumed.values()) == [False, True]
    ends = [a.end for p in spec.passes("") for a in Share(root).attempts(f"train:{p.name}")]
    assert sorted(end["state"] for end in ends if end) == [DONE, DONE, INTERRUPTED]
