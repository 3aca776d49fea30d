"""Intervals of a mean difference: over seeds, and over seeds and tasks.

The two answer different questions. The **t interval** is over training seeds with the tasks as
they are: where would the mean over many seeds lie, *on these tasks*? Verdicts rest on it. The
**tasks interval** also counts how tasks vary: would the difference stand *on other tasks of the
kind*? It is shown beside the other and never decides.

What seeds vary is what the intervals are about. Panels whose seeds share one data order (the
default) vary the initial weights alone; ``data_order: per_seed`` varies the data too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

_DRAWS = 20_000


@dataclass(frozen=True)
class Interval:
    """A confidence interval; both ends NaN where there is none (one seed).

    Attributes:
        low: Lower end.
        high: Upper end.
        level: Nominal coverage.
    """

    low: float
    high: float
    level: float

    def inside(self, margin: float) -> bool:
        """Whether the interval lies strictly within (-margin, margin)."""
        return -margin < self.low and self.high < margin


def spread(differences: np.ndarray) -> np.ndarray:
    """Standard deviation over the last axis; exactly 0 where only rounding is left."""
    sd = differences.std(axis=-1, ddof=1)
    rounding = 1e-12 * np.abs(differences).max(axis=-1)
    return np.where(sd <= rounding, 0.0, sd)


def paired_t(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and two-sided p-value of the paired t test, ``scipy.stats.ttest_1samp``.

    For differences d_1..d_n, t = mean(d) / (sd(d) / sqrt(n)) with n - 1 degrees of freedom
    (Student 1908). It is exact for normal d. Where trained and baseline are exchangeable, as
    two runs of the same recipe are, d is at least symmetric about 0, so that skewed scores,
    which hurt the t test most, do not arise; heavy tails make it cautious.

    Args:
        differences: ``[..., n_seeds]``, n_seeds >= 2, each already a mean over tasks.

    Returns:
        Mean and p-value, each ``[...]``. Without any spread p is 1 for a mean of 0, else 0.
    """
    mean = differences.mean(axis=-1)
    sd = spread(differences)
    # Without spread scipy warns of 0 / 0; such rows are replaced by any that have some.
    some = np.where(sd[..., None] > 0, differences, np.arange(differences.shape[-1]))
    p = np.asarray(stats.ttest_1samp(some, 0.0, axis=-1)[1])
    return mean, np.where(sd > 0, p, np.where(mean == 0, 1.0, 0.0))


def tost(differences: np.ndarray, margin: float) -> np.ndarray:
    """p-value of the two one-sided tests (Schuirmann 1987).

    The null hypothesis is |mean difference| >= margin. With t_low = (mean + margin) / se and
    t_high = (mean - margin) / se on n - 1 degrees of freedom, p = max(P(T > t_low), P(T <
    t_high)): `DescrStatsW.ttost_mean` of statsmodels on the paired differences. p <= alpha is
    the same as the (1 - 2 alpha) t interval lying inside (-margin, margin): at alpha = 0.05,
    the 90 % interval.

    Args:
        differences: ``[..., n_seeds]``, n_seeds >= 2.
        margin: delta > 0.

    Returns:
        p, ``[...]``. Without any spread it is 0 inside the margin, else 1.
    """
    some = spread(differences) > 0
    certain = np.where(np.abs(differences.mean(axis=-1)) < margin, 0.0, 1.0)
    n = differences.shape[-1]
    # Rows without spread would divide by 0; any that have some stand in for them.
    columns = np.where(some[..., None], differences, np.arange(n)).reshape(-1, n).T
    p = np.asarray(DescrStatsW(columns).ttost_mean(-margin, margin)[0])
    return np.where(some, p.reshape(some.shape), certain)


def t_interval(differences: np.ndarray, level: float = 0.95) -> Interval:
    """mean(d) -+ t_{(1 + level)/2, n-1} sd(d) / sqrt(n), ``scipy.stats.t.interval``.

    Args:
        differences: ``[n_seeds]``; with one seed both ends are NaN.
        level: Coverage.
    """
    n = len(differences)
    if n < 2:
        return Interval(np.nan, np.nan, level)
    mean, sd = float(differences.mean()), float(spread(differences))
    if sd == 0:
        return Interval(mean, mean, level)
    scale = sd / np.sqrt(n)
    low, high = (float(quantile * scale + mean) for quantile in _t_quantiles(level, n - 1))
    return Interval(low, high, level)


@lru_cache(maxsize=256)
def _t_quantiles(level: float, df: int) -> tuple[float, float]:
    """Asked again and again: scipy takes a millisecond, most of it checking arguments."""
    low, high = stats.t.interval(level, df=df)
    return float(low), float(high)


def share_interval(k: int, n: int, level: float = 0.95) -> Interval:
    """Of a share of which k of n are seen: Clopper and Pearson's (*Biometrika* 26, 1934)."""
    found = stats.binomtest(k, n).proportion_ci(level, method="exact")
    return Interval(float(found.low), float(found.high), level)


def tasks_interval(
    rows: Sequence[np.ndarray], *, level: float = 0.95, crossed: bool = True
) -> Interval:
    """Interval of the mean difference on other tasks of the kind: over seeds and over tasks.

    Where every seed was scored on the same tasks (``crossed``), half its width is
    sqrt(h_seeds^2 + h_tasks^2): h_seeds is half the width of the t interval over the seeds'
    means, h_tasks of that over the tasks' means (each with its own degrees of freedom). Noise
    of single cells is in both, so that it errs on the wide side; it is never narrower than
    `t_interval`, and covers 95 to 99 % at 95 % from two seeds and two tasks on
    (``benchmarks/verdict_calibration.py``). Where each seed has tasks of its own, the seeds'
    means vary with the tasks already, and it is `t_interval` of these.

    Args:
        rows: Per seed, differences per task ``[n_tasks]``; of length 1 for an aggregate.
        level: Coverage.
        crossed: Whether entry j of every row is the same task.

    Returns:
        NaN with fewer than two seeds.
    """
    seeds = t_interval(np.array([row.mean() for row in rows]), level)
    if len(rows) < 2 or not crossed or len(rows[0]) < 2:
        return seeds
    tasks = t_interval(np.mean(rows, axis=0), level)
    middle = (seeds.low + seeds.high) / 2
    half = float(np.hypot(seeds.high - seeds.low, tasks.high - tasks.low)) / 2
    return Interval(middle - half, middle + half, level)


def level_at_once(values: np.ndarray, level: float = 0.95) -> float:
    """Level of each of k t intervals over the same seeds, so that all hold at once (max-t).

    The distribution of the largest |t| of k means depends on how they correlate. Few seeds say
    little of k (k - 1) / 2 correlations, so one stands for all: their mean, at least 0. Of
    normal values 2 to 6 intervals at 3 to 10 seeds then hold in 93 to 96 % of simulations
    (``benchmarks/three_seeds.py``; 1,000 each), of values with a long tail to one side in 80 to
    87 %, as t intervals do.

    Args:
        values: ``[k, n_seeds]``. Two seeds say nothing of correlations; 0 is taken then.
        level: Of all together.

    Returns:
        From ``level`` (k = 1) to 1 - (1 - level) / k (Bonferroni).
    """
    k, n = values.shape
    if k < 2:
        return level
    correlation = 0.0
    if n > 2 and spread(values).all():
        every = np.corrcoef(values)[np.triu_indices(k, 1)]
        correlation = round(max(0.0, float(every.mean())), 2)
    alone = float(2 * stats.t.cdf(_largest_t(k, n, correlation, level), n - 1) - 1)
    return min(max(alone, level), 1 - (1 - level) / k)


@lru_cache
def _largest_t(k: int, n: int, correlation: float, level: float) -> float:
    """Quantile of the largest |t| of k means of n normal values, all equally correlated."""
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(_DRAWS, 1, n)), rng.normal(size=(_DRAWS, k, n))
    values = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    t = np.abs(values.mean(axis=-1)) / values.std(axis=-1, ddof=1) * math.sqrt(n)
    return float(np.quantile(t.max(axis=1), level))
