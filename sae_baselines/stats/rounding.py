"""Scores whose last step is a rounding to half precision, and what that can hide.

SAEBench's core takes its means in the dtype of the language model. In bfloat16 a loss between 2
and 4 nats is then a multiple of 1/64, whatever the number of tokens: seeds agree, or one of
them stands out, by rounding alone. Such values are known by their bits: all of them lie on the
grid of bfloat16 or float16, on which one float32 number in 65,536 (8,192) does by chance.
"""

import math
from collections.abc import Sequence

import numpy as np

from sae_baselines.evals.registry import metric_of
from sae_baselines.stats.intervals import spread
from sae_baselines.stats.match import Match

# Significant bits of bfloat16 and of float16.
_BITS = (8, 11)
# From a spread of so many steps on, errors of rounding are as good as independent noise, which
# the spread has in it already.
FINE = 3.0
# What is left of a difference of two rounded values where nothing else varies, in steps.
_LEAST_SPREAD = 1 / math.sqrt(6)


def step_of(match: Match) -> float:
    """How far off rounding can put a difference of these two members; 0 if nothing is rounded.

    That is the distance of neighbouring values: each of the two is half of it off at most.
    """
    suite, metric = match.metric
    means = metric_of(suite, metric).rounded
    if not means:
        return 0.0

    def values(name: str) -> list[float]:
        members = (match.tested, match.other)
        found = (match.table.aggregates((suite, name), match.group, m) for m in members)
        return [v for by_seed in found for v in by_seed.values() if math.isfinite(v)]

    step = _grid(values(means[0]))
    if not step or len(means) == 1:
        return step
    # What it is divided by is the same for all SAEs, so that its rounding moves all alike.
    ends = [np.mean(values(name) or [math.nan]) for name in means[1:]]
    span = abs(float(ends[0] - (ends[1] if len(ends) > 1 else 0)))
    return step / span if span > 0 else 0.0


def _grid(values: Sequence[float]) -> float:
    """The widest step of the coarsest grid that all values lie on; 0 if on none."""
    parts = [math.frexp(v) for v in values]
    for bits in _BITS:
        if len(values) > 1 and all((m * 2**bits).is_integer() for m, _ in parts):
            return max(math.ldexp(1, e - bits) if m else 0.0 for m, e in parts)
    return 0.0


def is_coarse(differences: np.ndarray, step: float) -> bool:
    """Whether the spread over seeds is so small that it may be one of rounding."""
    return len(differences) > 1 and float(spread(differences)) < FINE * step


def moved(values: np.ndarray, by: float, step: float) -> np.ndarray:
    """As many values with the mean moved, and no less spread than rounding may have hidden.

    For what asks for number, mean and spread alone, as t tests and intervals do.

    Args:
        values: ``[n]``, n >= 2.
        by: Added to the mean.
        step: Of the rounding.
    """
    unit = np.arange(len(values)) - (len(values) - 1) / 2
    sd = max(float(spread(values)), _LEAST_SPREAD * step)
    return values.mean() + by + unit * sd / unit.std(ddof=1)


def nearer(differences: np.ndarray, step: float) -> np.ndarray:
    """Differences as near to 0 as rounding allows: what 'beats' has to hold for."""
    mean = float(differences.mean())
    return moved(differences, -math.copysign(min(step, abs(mean)), mean), step)


def farther(differences: np.ndarray, step: float) -> np.ndarray:
    """Differences as far from 0 as rounding allows: what 'matches' has to hold for."""
    return moved(differences, math.copysign(step, float(differences.mean())), step)
