"""Which share of the trained SAE's score does a random baseline retain?"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from sae_baselines.results import Results
from sae_baselines.stats.decision import ALPHA
from sae_baselines.stats.differences import (
    UNPAIRED_SUITES,
    Comparison,
    MeasuredL0,
    differences,
)
from sae_baselines.stats.intervals import Interval


@dataclass(frozen=True)
class Retained:
    """Ratio of mean scores over seeds.

    Attributes:
        architecture: Base architecture.
        l0: Target L0.
        suite: Suite.
        metric: Metric.
        direction: +1 where higher is better; where it is -1 a share above 1 is a worse score.
        baseline: Member: a baseline or a control.
        constraint: Its constraint, or which control it is.
        share: mean(baseline) / mean(trained); NaN where `reason` says why.
        interval: Fieller interval of the share, 95 %; NaN where there is none.
        change: share - 1, which for the best baseline is the paper's bottom row, (best frozen -
            trained) / trained.
        change_interval: Its interval.
        best: Whether this is the best frozen baseline on this metric.
        best_interval: For the best one, an interval of `change` that allows for the choice: at
            level 1 - alpha / (number of baselines to choose from), so that it holds whichever
            came out best.
        n_seeds: Seeds.
        reason: Why a number is missing, or empty.
    """

    architecture: str
    l0: float
    suite: str
    metric: str
    direction: int
    baseline: str
    constraint: str
    share: float
    interval: Interval
    change: float
    change_interval: Interval
    best: bool
    best_interval: Interval
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


def retained(
    results: pd.DataFrame | Results | Sequence[Comparison],
    *,
    tested: str = "trained",
    metrics: Collection[str] | None = None,
    measured_l0: MeasuredL0 | None = None,
    unpaired_suites: Collection[str] = UNPAIRED_SUITES,
    on_missing: Literal["error", "exclude"] = "error",
    alpha: float = ALPHA,
) -> list[Retained]:
    """Retained share of every baseline on every metric, in the order of `differences`.

    "Frozen" are the baselines whose constraint has that word in its name, as all three of the
    paper do; a control without training does not count as the best one.

    Args:
        results: A tidy results table, or what `differences` made of one.
        tested: See `differences`.
        metrics: See `differences`.
        measured_l0: See `differences`.
        unpaired_suites: See `differences`.
        on_missing: See `differences`.
        alpha: 1 - coverage of the intervals.
    """
    if isinstance(results, pd.DataFrame | Results):
        comparisons = differences(
            results,
            tested=tested,
            measured_l0=measured_l0,
            metrics=metrics,
            unpaired_suites=unpaired_suites,
            on_missing=on_missing,
        )
    else:
        comparisons = list(results)
    frozen: dict[tuple[str, float, str, str], list[Comparison]] = defaultdict(list)
    for c in comparisons:
        if "frozen" in c.constraint and not _reason(c):
            frozen[_metric(c)].append(c)
    best = {key: min(cs, key=_mean_difference).baseline for key, cs in frozen.items()}
    return [
        _retained(c, best.get(_metric(c)) == c.baseline, len(frozen.get(_metric(c), ())), alpha)
        for c in comparisons
    ]


def _retained(c: Comparison, best: bool, n_frozen: int, alpha: float) -> Retained:
    reason = _reason(c)
    nowhere = Interval(np.nan, np.nan, 1 - alpha)
    share = np.nan
    interval = chosen = nowhere
    if not reason:
        share = float(c.other.mean() / c.trained.mean())
        found = fieller(c.other, c.trained, 1 - alpha)
        if found is not None:
            interval = found
        elif len(c.seeds) == 1:
            reason = "single seed: no interval"
        else:
            reason = "the trained score is too uncertain to divide by: no finite interval"
        if best:
            chosen = fieller(c.other, c.trained, 1 - alpha / n_frozen) or nowhere
    return Retained(
        architecture=c.architecture,
        l0=c.l0,
        suite=c.suite,
        metric=c.metric,
        direction=c.direction,
        baseline=c.baseline,
        constraint=c.constraint,
        share=share,
        interval=interval,
        change=share - 1,
        change_interval=_less_one(interval),
        best=best,
        best_interval=_less_one(chosen),
        n_seeds=len(c.seeds),
        reason=reason,
    )


def _reason(c: Comparison) -> str:
    """Why there is no ratio at all, or empty."""
    if c.failure is not None:
        return c.failure
    if c.excluded:
        return "; ".join(e.reason for e in c.excluded)
    scale = max(float(np.abs(c.trained).max()), float(np.abs(c.other).max()))
    if not float(c.trained.mean()) > 1e-6 * scale:
        return "the trained score is not above 0, so a share of it means nothing"
    return ""


def _less_one(interval: Interval) -> Interval:
    return Interval(interval.low - 1, interval.high - 1, interval.level)


def _mean_difference(c: Comparison) -> float:
    return float(c.differences.mean())


def _metric(c: Comparison) -> tuple[str, float, str, str]:
    return c.architecture, c.l0, c.suite, c.metric
