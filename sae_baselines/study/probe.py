"""A few steps of a pass, timed and weighed before hours of them."""

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens.training.sae_trainer import SAETrainer

from sae_baselines.compat.training import TrainingStep, around_each_step, timing_the_model
from sae_baselines.study.memory import memory_of

# Steps that are timed, after one that compiles and allocates.
_STEPS = 8
# Of the memory that is free; fragments and other processes have the rest.
_SHARE_OF_FREE = 0.9
_PROC = Path("/proc")


@dataclass(frozen=True)
class Probe:
    """What training takes on this machine.

    Attributes:
        step_seconds: Of all members, for a batch; the median of several.
        read_seconds: Of the model, for an activation; 0 where none is run.
        peak: Bytes of the device, or of this process where it is the CPU; None where the
            system does not say.
    """

    step_seconds: float
    read_seconds: float
    peak: int | None

    def seconds(self, activations: int, batch: int) -> float:
        """Of a pass of so many activations."""
        return activations * (self.read_seconds + self.step_seconds / batch)


class _EnoughError(Exception):
    pass


def probe(train: Callable[[], Any], device: str, llm_device: str | None = None) -> Probe:
    """Begin to train, and stop after a few steps.

    Args:
        train: Trains by SAELens' trainers.
        device: That it trains on.
        llm_device: The language model's, where it is another one; its memory is not counted.
    """
    model_on = llm_device or device
    stamps: list[float] = []
    read: list[tuple[float, int]] = []
    inside: list[float] = []
    first: list[SAETrainer[Any, Any]] = []

    def step(original: TrainingStep, trainer: SAETrainer[Any, Any], batch: Any) -> Any:
        if not first:
            first.append(trainer)
        if trainer is first[0]:
            _wait_for(device)
            stamps.append(time.perf_counter())
            inside.append(sum(seconds for seconds, _ in read))
            if len(stamps) > _STEPS + 1:
                raise _EnoughError
        return original(trainer, batch)

    gc.collect()
    _forget_peak(device)
    # Numbers drawn here are not missed by the study.
    with (
        torch.random.fork_rng(),
        around_each_step(step),
        timing_the_model(lambda s, n: read.append((s, n)), lambda: _wait_for(model_on)),
        suppress(_EnoughError),
    ):
        train()
    peak = _peak(device)
    gc.collect()
    took = [
        (stamps[i + 1] - inside[i + 1]) - (stamps[i] - inside[i])
        for i in range(1, len(stamps) - 1)
    ]
    activations = sum(n for _, n in read)
    return Probe(
        statistics.median(took) if took else 0.0,
        sum(seconds for seconds, _ in read) / activations if activations else 0.0,
        peak,
    )


def panels_that_fit(one: Probe, two: Probe, least: int, free: int) -> int:
    """How many panels train at once in so much memory; at least one.

    Args:
        one: Of one panel.
        two: Of it and another.
        least: Bytes of a panel's weights and moments, which no measurement is below.
        free: Bytes that all may take together.
    """
    if one.peak is None or two.peak is None:
        return 1
    each = max(two.peak - one.peak, least)
    return 1 + max(0, int((free - one.peak) // each))


def free_memory(device: str, sharing: int = 1) -> int | None:
    """Bytes that this process may take in all, with what it has; None where nobody knows.

    Args:
        device: Of training.
        sharing: Processes that share it.
    """
    if device.startswith("cuda"):
        own = torch.cuda.memory_reserved(device)
        return int((torch.cuda.mem_get_info(device)[0] + own) * _SHARE_OF_FREE)
    limit, found = memory_of(), _told_by("meminfo", "MemAvailable")
    own = _told_by("self/status", "VmRSS")
    if found is None or own is None:
        return None
    free = min(found + own, limit or found + own)
    return int(free * _SHARE_OF_FREE) // sharing


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _forget_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # Linux; elsewhere the highest of all time is told
        (_PROC / "self/clear_refs").write_text("5")


def _peak(device: str) -> int | None:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return _told_by("self/status", "VmHWM")


def _told_by(file: str, name: str) -> int | None:
    with suppress(OSError):
        for line in (_PROC / file).read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return None
