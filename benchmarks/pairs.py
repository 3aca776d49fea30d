"""Times of things that take turns, and ratios formed within a turn."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Action = Callable[[], object]


def synchronizer(device: str) -> Callable[[], None]:
    """What waits for the device's work to be done."""
    return torch.cuda.synchronize if device == "cuda" else _nothing


def seconds(action: Action, synchronize: Callable[[], None]) -> float:
    """How long one call takes."""
    synchronize()
    began = time.perf_counter()
    action()
    synchronize()
    return time.perf_counter() - began


def interleaved(
    actions: Mapping[str, Action], repeats: int, synchronize: Callable[[], None]
) -> dict[str, list[float]]:
    """Milliseconds of each action, one number per repeat, starting with another every time."""
    names = list(actions)
    ms: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.freeze()  # what is here already need not be looked through every time
    try:
        for repeat in range(repeats):
            gc.collect()
            turn = repeat % len(names)
            for name in names[turn:] + names[:turn]:
                ms[name].append(seconds(actions[name], synchronize) * 1e3)
    finally:
        gc.unfreeze()
    return ms


def paired(ms: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of the ratio within a repeat."""
    ratios = [a / b for a, b in zip(ms, reference, strict=True)]
    return {"ratio": statistics.median(ratios), "ratio_quartiles": quartiles(ratios)}


def added(*series: Sequence[float]) -> list[float]:
    """Sums within a repeat."""
    return [sum(values) for values in zip(*series, strict=True)]


def quartiles(values: Sequence[float]) -> list[float]:
    """First and third."""
    if len(values) < 2:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def _nothing() -> None:
    return None
