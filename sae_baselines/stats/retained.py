"""Which share of the trained SAE's score does a random baseline retain?"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from typing_extensions import Unpack

from sae_baselines.evals.registry import metric_of
from sae_baselines.results import Results
from sae_baselines.stats.decision import ALPHA
from sae_baselines.stats.differences import Comparison, Paired, Pairing, comparisons_of
from sae_baselines.stats.intervals import Interval, level_at_once
from sae_baselines.stats.verdict import Verdict


@dataclass(frozen=True)
class Retained(Paired):
    """Ratio of mean scores over seeds (`Paired`).

    Where lower is better a share above 1 is a worse score.

    Attributes:
        share: mean(baseline) / mean(trained); NaN where `reason` says why.
        interval: Fieller interval of the share, 95 %; NaN where there is none.
        change: share - 1, which for the best baseline is the paper's bottom row, (best frozen -
            trained) / trained.
        change_interval: Its interval.
        best: Whether this is the best frozen baseline on this metric.
        best_interval: For the best one, an interval of `change` that allows for the choice: at
            level 1 - alpha / (number of baselines to choose from), so that it holds whichever
            came out best.
        simultaneous: Of a frozen baseline, the interval of `change` at which those of all
            frozen baselines of the metric hold at once (`together`).
        best_of: For the best one, what the truly best of them changes by, whichever it is:
            from the best lower to the best upper end of `simultaneous`.
        n_variants: Frozen baselines that it is the best of; 0 where it is not.
        n_seeds: Seeds.
        reason: Why a number is missing, or empty.
    """

    share: float
    interval: Interval
    change: float
    change_interval: Interval
    best: bool
    best_interval: Interval
    simultaneous: Interval
    best_of: Interval
    n_variants: int
    n_seeds: int
    reason: str


def fieller(baseline: np.ndarray, trained: np.ndarray, level: float = 0.95) -> Interval | None:
    """Interval of mean(baseline) / mean(trained), paired by seed (Fieller 1954).

    It is the set of ratios r at which a paired t test does not reject that the mean of baseline
    - r trained is 0: (b - r a)^2 <= t^2 (s_bb - 2 r s_ab + r^2 s_aa) / n, a quadratic in r,
    with t the quantile (1 + level) / 2 on n - 1 degrees of freedom. Chosen over a bootstrap
    because it is exact for normal scores at any number of seeds, and because it says so when
    there is no finite interval: when the trained score itself is not distinguishable from 0.

    Args:
        baseline: ``[n_seeds]``.
        trained: ``[n_seeds]``.
        level: Coverage.

    Returns:
        The interval, or None where it is unbounded or n < 2.
    """
    n = len(trained)
    if n < 2:
        return None
    a, b = float(trained.mean()), float(baseline.mean())
    covariance = np.cov(trained, baseline, ddof=1)
    f = float(stats.t.ppf((1 + level) / 2, n - 1)) ** 2 / n
    square = a * a - f * covariance[0, 0]
    linear = a * b - f * covariance[0, 1]
    constant = b * b - f * covariance[1, 1]
    if square <= 0:
        return None
    root = np.sqrt(max(0.0, linear**2 - square * constant))
    return Interval(float((linear - root) / square), float((linear + root) / square), level)


def together(
    baselines: np.ndarray, trained: np.ndarray, level: float = 0.95
) -> list[Interval | None]:
    """Intervals of several shares that hold all at once, so that any may be picked afterwards.

    Fieller's, each at the level of `level_at_once` for its residuals baseline - share trained,
    which correlate as all baselines meet the same trained SAE.

    Args:
        baselines: ``[k, n_seeds]``.
        trained: ``[n_seeds]``.
        level: Coverage of all together, and what the intervals say.

    Returns:
        One each; None where it is unbounded or n < 2.
    """
    if len(trained) < 2:
        return [None] * len(baselines)
    shares = baselines.mean(axis=1, keepdims=True) / trained.mean()
    alone = level_at_once(baselines - shares * trained, level)
    found = [fieller(b, trained, alone) for b in baselines]
    return [None if f is None else Interval(f.low, f.high, level) for f in found]


def retained(
    results: pd.DataFrame | Results | Sequence[Comparison],
    *,
    alpha: float = ALPHA,
    **pairing: Unpack[Pairing],
) -> list[Retained]:
    """Retained share of every baseline on every metric, in the order of `differences`.

    "Frozen" are the baselines whose constraint has that word in its name, as all three of the
    paper do; a control without training does not count as the best one.

    Args:
        results: Results, a tidy table, or what `differences` made of one.
        alpha: 1 - coverage of the intervals.
        **pairing: tested, metrics, measured_l0, unpaired_suites, on_missing, as `differences`
            takes them.
    """
    comparisons = comparisons_of(results, **pairing)
    frozen: dict[tuple[Any, ...], list[Comparison]] = defaultdict(list)
    for c in comparisons:
        if "frozen" in c.constraint and not _reason(c):
            frozen[c.architecture, c.l0, c.suite, c.metric].append(c)
    return [
        _retained(c, frozen.get((c.architecture, c.l0, c.suite, c.metric), []), alpha)
        for c in comparisons
    ]


def above_nothing(v: Verdict) -> float | None:
    """The retained share of what is better than nothing; below 0 where the baseline is worse.

    Nothing is the trained member's highest floor, or the score of a guess, where that is known
    and no floor is better. None where neither is known, and where the trained member is not
    above its floor by more than the noise of seeds.
    """
    known = (metric_of(v.suite, v.metric).chance, v.floor)
    values = [value for value in known if value is not None and math.isfinite(value)]
    if not values or (v.above_floor is not None and not v.above_floor.low > 0):
        return None
    nothing = max(values, key=lambda value: v.direction * value)
    if not v.direction * (v.trained - nothing) > 0:
        return None
    return (v.other - nothing) / (v.trained - nothing)


def _retained(c: Comparison, frozen: Sequence[Comparison], alpha: float) -> Retained:
    reason = _reason(c)
    share = np.nan
    interval = chosen = at_once = best_of = None
    best = bool(frozen) and min(frozen, key=lambda f: f.differences.mean()) is c
    if not reason:
        share = float(c.other.mean() / c.trained.mean())
        interval = fieller(c.other, c.trained, 1 - alpha)
        if interval is None:
            reason = "the trained score is too uncertain to divide by: no finite interval"
            if len(c.seeds) == 1:
                reason = "single seed: no interval"
        if best:
            chosen = fieller(c.other, c.trained, 1 - alpha / len(frozen))
        # Those with other seeds are no part of it: they correlate with nothing here.
        same = [f for f in frozen if f.seeds == c.seeds]
        if any(f is c for f in same):
            every = together(np.array([f.other for f in same]), c.trained, 1 - alpha)
            at_once = next(i for f, i in zip(same, every, strict=True) if f is c)
            bounded = [i for i in every if i is not None]
            if best and len(bounded) == len(frozen):
                choose = max if c.direction > 0 else min
                low, high = choose(i.low for i in bounded), choose(i.high for i in bounded)
                best_of = Interval(low, high, 1 - alpha)
    nothing = Interval(np.nan, np.nan, 1 - alpha)
    return Retained(
        **c.pair,
        share=share,
        interval=interval or nothing,
        change=share - 1,
        change_interval=_less_one(interval or nothing),
        best=best,
        best_interval=_less_one(chosen or nothing),
        simultaneous=_less_one(at_once or nothing),
        best_of=_less_one(best_of or nothing),
        n_variants=len(frozen) if best else 0,
        n_seeds=len(c.seeds),
        reason=reason,
    )


def _reason(c: Comparison) -> str:
    """Why there is no ratio at all, or empty."""
    reasons = [c.barred] if c.barred else []
    scale = max((abs(v) for v in (*c.trained, *c.other)), default=math.nan)
    if len(c.seeds) and not float(c.trained.mean()) > 1e-6 * scale:
        reasons.append("the trained score is not above 0, so a share of it means nothing")
    return "; ".join(reasons)


def _less_one(interval: Interval) -> Interval:
    return Interval(interval.low - 1, interval.high - 1, interval.level)
