"""Workers on this machine: one for each GPU, or several that divide its cores."""

import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from sae_baselines.errors import UserError
from sae_baselines.work.executor import logs_of

logger = logging.getLogger("sae_baselines")

# Threads of the libraries underneath; who sets one of these has decided.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# What a worker runs: the work comes through a pipe, never from a file that may be a stranger's;
# asked to stop, it ends as a process at a terminal does.
_WORKER = """
import logging, pickle, signal, sys
signal.signal(signal.SIGTERM, signal.default_int_handler)
logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
logging.getLogger("sae_baselines").setLevel(logging.INFO)
pickle.load(sys.stdin.buffer)()
"""


@dataclass(frozen=True)
class Devices:
    """An `Executor`: worker processes of this machine, each with a device for itself.

    Attributes:
        gpus: Numbers of GPUs, as ``nvidia-smi`` counts; empty for workers on the CPU.
        workers: How many, of those on the CPU; each has as many threads as the others, unless
            ``OMP_NUM_THREADS`` says how many.
    """

    gpus: Sequence[int] = ()
    workers: int = 1

    def __post_init__(self) -> None:
        there = torch.cuda.device_count()
        for gpu in self.gpus:
            if not 0 <= gpu < there:
                raise UserError(
                    f"devices: {gpu} is not one of the {there} GPUs of this machine, which are "
                    "counted from 0; on the CPU say how many --workers"
                )
        if len(set(self.gpus)) < len(self.gpus):
            raise UserError("devices: one is named twice; a GPU has one worker")
        cores = _cores()
        if not self.gpus and not 1 <= self.workers <= cores:
            raise UserError(f"workers: {self.workers} on {cores} cores; use at most one a core")

    @property
    def sharing_memory(self) -> int:
        """How many of them take memory from the same place."""
        return 1 if self.gpus else self.workers

    @property
    def environments(self) -> list[dict[str, str]]:
        """What each worker has in its environment besides."""
        if self.gpus:
            seen = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = seen.split(",") if seen else [str(i) for i in range(max(self.gpus) + 1)]
            return [{"CUDA_VISIBLE_DEVICES": names[gpu]} for gpu in self.gpus]
        own = {name: str(_cores() // self.workers) for name in _THREADS}
        given = {name: os.environ[name] for name in _THREADS if name in os.environ}
        return [given or own for _ in range(self.workers)]

    def run(self, work: Callable[[], object], root: Path) -> None:
        data = pickle.dumps(work)
        started: list[tuple[subprocess.Popen[bytes], Path]] = []
        try:
            logs_of(root).mkdir(parents=True, exist_ok=True)
            for number, extra in enumerate(self.environments):
                log = logs_of(root) / f"worker_{time.strftime('%Y%m%d_%H%M%S')}_{number}.log"
                with log.open("ab") as out:
                    # A group of its own: what is typed at the terminal is told it once, by us.
                    process = subprocess.Popen(
                        [sys.executable, "-c", _WORKER],
                        stdin=subprocess.PIPE,
                        stdout=out,
                        stderr=out,
                        env={**os.environ, **extra},
                        start_new_session=True,
                    )
                started.append((process, log))
                assert process.stdin is not None
                # One that has ended already is told of below.
                with suppress(BrokenPipeError), process.stdin as pipe:
                    pipe.write(data)
                logger.info("worker %d is process %d (log: %s)", number, process.pid, log)
            for process, log in started:
                if code := process.wait():
                    logger.error("worker %d ended with %s: %s", process.pid, code, _last(log))
        finally:
            for process, _ in started:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
            for process, _ in started:
                process.wait()


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _last(log: Path) -> str:
    """The last line that a worker wrote, and where the others are."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"{said[:300]} (log: {log})"
