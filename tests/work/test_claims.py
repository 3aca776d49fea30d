"""Who does which task is decided by files, whatever dies and whatever clock is wrong."""

import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_baselines.errors import StoppedError
from sae_baselines.work.claims import (
    DONE,
    FAILED,
    INTERRUPTED,
    STALE,
    Share,
    TakenOverError,
    require_own,
)
from tests.helpers import on_two_ranks

NAME = "measure:batchtopk_l0_6_seed_0.trained"


def _claims_all(rank: int, root: Path) -> None:
    share, mine = Share(root), []
    with ExitStack() as held:
        for i in range(60):
            if held.enter_context(share.doing(f"measure:{i}")):
                mine.append(i)
        # Until both have tried all: what ended may be tried again.
        (root / f"{rank}.json").write_text(json.dumps(mine))
        while not (root / f"{1 - rank}.json").exists():
            pass


def test_of_two_processes_one_does_a_task(tmp_path: Path):
    on_two_ranks(_claims_all, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert sorted(first + second) == list(range(60))
    share = Share(tmp_path)
    assert all(len(share.attempts(f"measure:{i}")) == 1 for i in range(60))
    assert not list((tmp_path / ".tasks").rglob(".*"))


def left_by(share: Share, silent: float = 0, **who: Any) -> None:
    """An attempt without an end, as a process that was killed leaves it."""
    with share.doing(NAME) as mine:
        assert mine
    last = share.last(NAME)
    assert last is not None
    last.file.with_name(f"{last.number}.end.json").unlink()
    told = {**last.who, **who}
    last.file.write_text(json.dumps({k: v for k, v in told.items() if v is not None}))
    time = last.file.stat().st_mtime - silent
    os.utime(last.file, (time, time))


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


ALIVE: dict[str, dict[str, Any]] = {
    "this machine": {"pid": os.getppid(), "started": None},
    "another machine": {"host": "n2", "silent": STALE - 60},
    "a container beside": {"pids": "another", "silent": 0},
    "a job": {"host": "n2", "job": "7", "silent": STALE - 60},
    "a job that just spoke": {"host": "n2", "job": "8"},
}
DEAD: dict[str, tuple[dict[str, Any], str]] = {
    "process": ({"pid": -1}, "its process is gone"),
    "another of its number": ({"pid": os.getppid(), "started": "1"}, "its process is gone"),
    "this process": ({}, "its process has left it"),
    "another machine": ({"host": "n2", "silent": STALE + 60}, "no sign of life for 3"),
    "requeued": ({"host": "n2", "job": "9", "restarts": 0}, "job 9 was started again"),
    "over": ({"host": "n2", "job": "8", "silent": 60}, "job 8 is over"),
    "another's log": ({"pid": None, "host": None, "silent": 1e6}, "no sign of life"),
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Job 7 runs, job 8 is over, and this is job 9 in its second life."""
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text('#!/bin/sh\n[ "$4" = 7 ] && echo RUNNING; [ "$4" = 8 ] && echo FAILED\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("who", ALIVE)
def test_what_somebody_is_at_is_left_to_them(who: str, tmp_path: Path):
    share = Share(tmp_path)
    left_by(share, **ALIVE[who])
    assert share.holder(NAME) is not None
    with share.doing(NAME) as mine:
        assert not mine
    assert len(share.attempts(NAME)) == 1


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("who", DEAD)
def test_what_the_dead_left_is_taken_over_and_said(
    who: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    share, (told, why) = Share(tmp_path), DEAD[who]
    left_by(share, **{**told, **({"pid": dead_process()} if told.get("pid") == -1 else {})})
    assert share.holder(NAME) is None
    caplog.set_level(logging.WARNING, "sae_baselines")
    with share.doing(NAME) as mine:
        assert mine
    assert [(a.number, (a.end or {}).get("state")) for a in share.attempts(NAME)] == [
        (1, None),
        (2, DONE),
    ]
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith(f"{NAME}: attempt 1 (")
    assert why in line


def test_a_claim_that_is_half_written_is_no_dead_one(tmp_path: Path):
    share = Share(tmp_path)
    left_by(share)
    last = share.last(NAME)
    assert last is not None
    last.file.write_text('{"host": "n')
    assert share.holder(NAME) is not None


@given(
    ends=st.lists(
        st.sampled_from([None, ValueError, StoppedError, KeyboardInterrupt]), max_size=4
    )
)
def test_what_failed_is_tried_again_where_it_is_asked_for_and_once_a_run(
    ends: list[type[BaseException] | None], tmp_path_factory: pytest.TempPathFactory
):
    root = tmp_path_factory.mktemp("study")
    share = Share(root)
    for end in ends:
        raised = nullcontext() if end is None else pytest.raises(end)
        with raised, share.doing(NAME, "hash"):
            if end is not None:
                raise end(signal.SIGTERM if end is StoppedError else "it broke\nbadly")
    states = {None: DONE, ValueError: FAILED}
    attempts = share.attempts(NAME)
    assert [a.end and a.end["state"] for a in attempts] == [
        states.get(end, INTERRUPTED) for end in ends
    ]
    assert all(a.end and a.end["inputs"] == "hash" for a in attempts)
    again, only_missing = Share(root), Share(root, retry_failed=False)
    assert again.given_up(NAME) is None
    reason = "ValueError: it broke badly"
    assert only_missing.given_up(NAME) == (reason if ends[-1:] == [ValueError] else None)
    assert share.given_up(NAME) == (reason if ValueError in ends else None)
    for attempt, end in zip(attempts, ends, strict=True):
        assert attempt.log.exists() == (end is ValueError)


def test_who_works_in_a_study_is_seen_and_the_dead_are_forgotten(tmp_path: Path):
    share = Share(tmp_path)
    assert share.others() == []
    with share.registered():
        (other,) = share.others()
        assert other.who["pid"] == os.getpid()
        other.file.write_text(json.dumps({**other.who, "pid": dead_process()}))
        assert share.others() == []
    assert not list((tmp_path / ".tasks" / "workers").iterdir())


def test_who_slept_and_was_taken_over_writes_nothing_and_is_no_failure(tmp_path: Path):
    share = Share(tmp_path)

    def sleeps(elsewhere: bool) -> None:
        with share.doing(NAME), share.registered():
            require_own()
            last = share.last(NAME)
            assert last is not None
            if elsewhere:
                other = {**last.who, "host": "n2", "pid": 1}
                last.file.with_name(f"{last.number + 1}.json").write_text(json.dumps(other))
            require_own()

    sleeps(elsewhere=False)
    with pytest.raises(TakenOverError, match=r"trained was taken over .*n2, process 1"):
        sleeps(elsewhere=True)
    first, slept, other = share.attempts(NAME)
    assert first.end is not None
    assert slept.end is not None
    assert (first.end["state"], slept.end["state"], other.end) == (DONE, INTERRUPTED, None)
    assert share.given_up(NAME) is None


def test_the_last_element_of_an_array_is_not_the_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both have one number in SLURM_JOB_ID, and the queue would tell of all elements."""
    told = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    share = Share(tmp_path)
    with share.doing(NAME):
        pass
    last = share.last(NAME)
    assert last is not None
    assert last.who["job"] == "7_1"
