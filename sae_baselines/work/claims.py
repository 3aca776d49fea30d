"""Tasks that several processes share, on one machine or many: files alone say who does which.

In a study, ``.tasks/<kind>/<what>/`` holds an attempt's files: ``1.json`` names who made it,
``1.end.json`` how it ended, ``1.log`` what was logged. The attempt with the highest number
counts. A new one is a hard link that only one process can make, on NFS too; it is made where
there is none, where the last one ended, or where whoever made it is dead. Nothing is locked, so
nothing has to be unlocked. Whether a task is done its own files say, not these.
"""

import json
import logging
import os
import platform
import shutil
import subprocess
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from sae_baselines.errors import StoppedError, UserError, one_line
from sae_baselines.files import parse_json, write_atomically

logger = logging.getLogger("sae_baselines")

TASKS = ".tasks"
_WORKERS = "workers"
DONE, FAILED, INTERRUPTED = "done", "failed", "interrupted"
# Seconds between two signs of life, and after how many without one a process is dead, of which
# nothing better is known.
BEAT = 15.0
STALE = 300.0
# Seconds after which a process that waits for others' tasks looks again, at first and later.
_LOOK_AGAIN = 2.0
_LOOK_AGAIN_AT_MOST = 30.0
_END = ".end.json"
# What SLURM says of a job that will not go on.
_OVER = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "TIMEOUT"),
}


class TakenOverError(UserError):
    """A task is another process's by now: nothing of it is written any more."""


@dataclass
class Waiting:
    """Between two looks at what others are at: short at first, then longer and longer."""

    seconds: float = _LOOK_AGAIN

    def again(self) -> None:
        time.sleep(self.seconds)
        self.seconds = min(1.5 * self.seconds, _LOOK_AGAIN_AT_MOST)


def require_own() -> None:
    """Call before a result is written: a process that slept may have been taken for dead.

    Raises:
        TakenOverError: Another process has taken over a task of this one.
    """
    for file, pid in list(_beating.items()):
        if pid != os.getpid() or file.parent.parent.name == _WORKERS:
            continue
        last = (_attempts(file.parent) or [None])[-1]
        if last is None or last.file != file or last.who.get("pid") != pid:
            by = "its claim is gone" if last is None else f"{last.by} has it"
            raise TakenOverError(
                f"{file.parent.parent.name}:{file.parent.name} was taken over while this "
                f"process gave no sign of life ({by}); nothing of it is written here"
            )


@dataclass(frozen=True)
class Attempt:
    """One try at a task.

    Attributes:
        file: Names who made it; its time is the last sign of life.
        number: From 1.
        who: Host, process, job and run that made it; {} where the file is half written.
        end: ``state``, ``reason``, ``seconds``; None while there is none.
    """

    file: Path
    number: int
    who: dict[str, Any]
    end: dict[str, Any] | None

    @property
    def log(self) -> Path:
        return self.file.with_suffix(".log")

    @property
    def by(self) -> str:
        job = f", job {self.who['job']}" if self.who.get("job") else ""
        return f"{self.who.get('host', '?')}, process {self.who.get('pid', '?')}{job}"

    def why_dead(self) -> str | None:
        """Why whoever made it will not go on; None if they may."""
        who = self.who
        if who.get("host") == host() and who.get("pids") == _pid_space():
            if who["pid"] == os.getpid() and self.file not in _beating:
                return "its process has left it"
            started = _started(int(who["pid"]))
            if started is None or (who.get("started") and started != who["started"]):
                return "its process is gone"
            return None
        if (job := who.get("job")) and job == _job() and who.get("restarts", 0) < _restarts():
            return f"job {job} was started again"
        try:
            silent = _time_of_disk(self.file.parent) - self.file.stat().st_mtime
        except FileNotFoundError:
            return "its file is gone"
        # The queue is asked of the silent alone: workers look at each other all the time.
        if job and silent > 3 * BEAT and is_over(str(job)):
            return f"job {job} is over"
        return f"no sign of life for {silent:.0f} s" if silent > STALE else None


@dataclass
class Share:
    """The tasks of a study, as one run of one command does them.

    Args:
        root: Study folder.
        run: Which run, in every worker of it.
        retry_failed: Try again what failed in other runs; what failed in this one is left.
    """

    root: Path
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    retry_failed: bool = True

    def last(self, name: str) -> Attempt | None:
        """The attempt that counts, if there was any."""
        found = self.attempts(name)
        return found[-1] if found else None

    def attempts(self, name: str) -> list[Attempt]:
        """All attempts, the first one first."""
        return _attempts(self._place(name))

    def _place(self, name: str) -> Path:
        return self.root / TASKS / Path(*name.split(":"))

    def holder(self, name: str) -> Attempt | None:
        """The attempt of a process that is at it now, if one is."""
        last = self.last(name)
        return last if last and last.end is None and last.why_dead() is None else None

    def given_up(self, name: str) -> str | None:
        """Why a task that failed is not tried again in this run; None if it may be tried."""
        ended = [a for a in self.attempts(name) if a.end and a.end["state"] == FAILED]
        if any(a.who.get("run") == self.run for a in ended):
            return ended[-1].end["reason"] if ended[-1].end else None
        last = self.last(name)
        if last is None or last.end is None or last.end["state"] != FAILED:
            return None
        return None if self.retry_failed else last.end["reason"]

    @contextmanager
    def doing(self, name: str, inputs: str = "") -> Iterator[bool]:
        """Do a task alone: the block is entered with False where another process is at it.

        How it ended is recorded, with what it raised, which goes on.

        Args:
            name: Of the task: ``<kind>:<what>``.
            inputs: Hash of what its result depends on, for the record.
        """
        attempt = self._claim(name)
        if attempt is None:
            yield False
            return
        began, handler = time.monotonic(), logging.FileHandler(attempt.log, delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        state, reason = DONE, ""
        try:
            yield True
        except BaseException as error:
            asked = isinstance(error, StoppedError | TakenOverError)
            asked = asked or not isinstance(error, Exception)
            state = INTERRUPTED if asked else FAILED
            reason = f"{type(error).__name__}: {one_line(error, 500)}"
            if state == FAILED:
                with suppress(OSError), attempt.log.open("a", encoding="utf-8") as file:
                    file.write("".join(traceback.format_exception(error)))
            raise
        finally:
            logger.removeHandler(handler)
            handler.close()
            _beating.pop(attempt.file, None)
            seconds = round(time.monotonic() - began, 2)
            end = {"state": state, "reason": reason, "seconds": seconds, "inputs": inputs}
            # A disk that is full tells its own error, and this process' end the rest.
            with suppress(OSError):
                write_atomically(_end_of(attempt.file), json.dumps(end))

    def _claim(self, name: str) -> Attempt | None:
        last = self.last(name)
        if last is not None and last.end is None:
            why = last.why_dead()
            if why is None:
                return None
            logger.warning(
                "%s: attempt %d (%s) is dead: %s; it is taken over",
                name,
                last.number,
                last.by,
                why,
            )
        number = last.number + 1 if last else 1
        file, who = self._place(name) / f"{number}.json", {**_me(), "run": self.run}
        if not _create(file, json.dumps(who)):
            return None
        _beat(file)
        return Attempt(file, number, who, None)

    @contextmanager
    def registered(self) -> Iterator[None]:
        """Be seen at work while the block runs; see `others`."""
        name = f"{_WORKERS}:{uuid.uuid4().hex[:12]}"
        try:
            with self.doing(name):
                yield
        finally:
            shutil.rmtree(self._place(name), ignore_errors=True)

    def others(self) -> list[Attempt]:
        """Processes that are at work here; what dead ones left is removed."""
        alive = []
        for place in sorted((self.root / TASKS / _WORKERS).glob("*/")):
            (*_, last) = _attempts(place) or [None]
            if last is not None and last.end is None and last.why_dead() is None:
                alive.append(last)
            elif last is not None:
                shutil.rmtree(place, ignore_errors=True)
        return alive


def _attempts(place: Path) -> list[Attempt]:
    try:
        names = {path.name for path in place.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return []
    numbers = sorted(int(stem) for n in names if (stem := n.removesuffix(".json")).isdecimal())
    found = []
    for number in numbers:
        file = place / f"{number}.json"
        end = _told(_end_of(file)) if _end_of(file).name in names else None
        found.append(Attempt(file, number, _told(file), end))
    return found


def _end_of(file: Path) -> Path:
    return file.with_name(file.stem + _END)


def _told(file: Path) -> dict[str, Any]:
    try:
        told = parse_json(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        told = None
    if isinstance(told, dict):
        return told
    return {"state": INTERRUPTED, "reason": "its record is damaged", "seconds": 0}


def _create(file: Path, text: str) -> bool:
    """Write a file unless it is there; of several processes that try, one succeeds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{uuid.uuid4().hex[:8]}")
    scratch.write_text(text, encoding="utf-8")
    try:
        os.link(scratch, file)
        return True
    except OSError as error:
        if scratch.stat().st_nlink == 2:  # NFS made the link and lost the answer
            return True
        if isinstance(error, FileExistsError):
            return False
        # A file system without links.
        try:
            with file.open("x", encoding="utf-8") as stream:
                stream.write(text)
        except FileExistsError:
            return False
        return True
    finally:
        scratch.unlink(missing_ok=True)


# Claims, and the process that made them; a thread gives a sign of life for each of them.
_beating: dict[Path, int] = {}


def _beat(file: Path) -> None:
    _beating[file] = os.getpid()
    _start_beating(os.getpid())


@cache
def _start_beating(pid: int) -> None:
    """A thread a process: a fork has none of its parent's."""

    def beat() -> None:
        while True:
            time.sleep(BEAT)
            for file in list(_beating):
                with suppress(OSError):
                    os.utime(file)  # the time of the disk, whatever this machine's clock says

    for file in [file for file, of in _beating.items() if of != pid]:
        del _beating[file]
    threading.Thread(target=beat, daemon=True, name="claims").start()


def _time_of_disk(folder: Path) -> float:
    """The file server's time: clocks of machines may be apart."""
    now = time.monotonic()
    return now + _ahead(folder, int(now // 600))


@lru_cache(maxsize=1024)
def _ahead(folder: Path, period: int) -> float:
    """Seconds by which the file server's clock is ahead, asked once a period."""
    del period
    probe = folder / f".{uuid.uuid4().hex[:8]}"
    probe.touch()
    try:
        return probe.stat().st_mtime - time.monotonic()
    finally:
        probe.unlink(missing_ok=True)


def host() -> str:
    return platform.node()


def _pid_space() -> str:
    """Within which a process has its number: boots and containers have their own."""
    found = []
    for link in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            path = Path(link)
            found.append(str(path.readlink()) if path.is_symlink() else path.read_text())
    return " ".join("".join(found).split())


def _started(pid: int) -> str | None:
    """When a process was started, "" where the system does not say; None if it is not there."""
    with suppress(OSError):
        # After its name, which may have blanks and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""


def _job() -> str | None:
    # The last element of an array has the number of the whole, so that its end would be that of
    # all.
    array, element = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{element}" if array and element else os.environ.get("SLURM_JOB_ID")


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _me() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": host(),
        "pid": pid,
        "pids": _pid_space(),
        "started": _started(pid),
        "job": _job(),
        "restarts": _restarts(),
    }


def is_over(job: str) -> bool:
    """Whether SLURM says that a job will not go on; it may say nothing."""
    if shutil.which("squeue") is None:
        return False
    try:
        asked = subprocess.run(
            ["squeue", "--noheader", "--array", "--jobs", job, "--format", "%T"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    if asked.returncode:
        return "Invalid job id" in asked.stderr
    states = asked.stdout.split()
    return all(state in _OVER for state in states)
