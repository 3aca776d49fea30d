"""Workers of one machine: what each is given, and what is said of one that ends badly."""

import logging
import os
from functools import partial
from pathlib import Path

import pytest

from sae_baselines.errors import UserError
from sae_baselines.work.choice import executor
from sae_baselines.work.devices import Devices


def test_workers_divide_the_cores_and_who_pins_threads_decides(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert [e["OMP_NUM_THREADS"] for e in Devices(workers=3).environments] == ["2", "2", "2"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert Devices(workers=3).environments == [{"OMP_NUM_THREADS": "1"}] * 3


def test_a_gpu_has_one_worker_among_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    of = "CUDA_VISIBLE_DEVICES"
    assert Devices([2, 0]).environments == [{of: "2"}, {of: "0"}]
    monkeypatch.setenv(of, "4,5,7")
    assert Devices([2, 0]).environments == [{of: "7"}, {of: "4"}]


def test_each_worker_calls_and_one_that_fails_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.ERROR, "sae_baselines")
    Devices(workers=1).run(partial(os.mkdir, tmp_path / "made"), tmp_path)
    assert (tmp_path / "made").is_dir()
    assert not caplog.records
    # Not sys.exit, which wandb replaces in a process that has used it.
    ending = "raise SystemExit('no\\nnot here')"
    Devices(workers=1).run(partial(exec, ending), tmp_path)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "ended with 1: not here (log: " in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"on": "devces"}, "on: 'devces' is unknown; did you mean devices?"),
        ({"on": "here", "workers": 2}, "workers: are for --on devices"),
        ({"on": "slurm", "devices": "0"}, "devices: are for --on devices"),
        ({"on": "here", "settings": ["time=5"]}, "cluster: is for --on slurm"),
        ({"on": "slurm", "settings": ["time"]}, "cluster: 'time' is no name=value"),
        ({"on": "slurm", "settings": ["tme=5"]}, "cluster.tme: is unknown; did you mean time?"),
        ({"on": "slurm", "settings": ["time=0"]}, "cluster.time: 0: Input should be greater"),
        ({"on": "slurm", "settings": ["time=2h"]}, "cluster.time: '2h': Input should be"),
        ({"on": "devices"}, "devices: say which GPUs"),
        ({"on": "devices", "devices": "0;1"}, "devices: '0;1' is no list of numbers"),
        ({"on": "devices", "devices": "0", "workers": 2}, "workers: are of the CPU"),
        ({"on": "devices", "devices": "9"}, "devices: 9 is not one of the 2 GPUs"),
        ({"on": "devices", "devices": "1,1"}, "devices: one is named twice"),
        ({"on": "devices", "workers": 10_000}, "workers: 10000 on "),
    ],
)
def test_bad_input_is_one_line(options: dict, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError) as it:
        executor(**options)
    assert said in str(it.value)
    assert "\n" not in str(it.value)
