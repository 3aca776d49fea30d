"""Intervals of a mean difference: over seeds (t), and over seeds and tasks (bootstrap).

The two answer different questions. The **t interval** is over training seeds with the tasks as
they are: where would the mean over many seeds lie, *on these tasks*? Verdicts rest on it. The
**bootstrap** also resamples the tasks: would the difference stand *on other tasks of the kind*?
With few seeds it is too narrow (``benchmarks/verdict_calibration.py`` measures by how much), so
it is shown beside the other and never decides.

What seeds vary is what the intervals are about. Panels whose seeds share one data order (the
default) vary the initial weights alone; ``data_order: per_seed`` varies the data too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

RESAMPLES = 4000
_CELLS = 4_000_000  # of a resampled table held in memory at a time


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
    low, high = stats.t.interval(level, df=n - 1, loc=mean, scale=sd / np.sqrt(n))
    return Interval(float(low), float(high), level)


def hierarchical_bootstrap(
    rows: Sequence[np.ndarray],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int | Sequence[int] = 0,
    crossed: bool = True,
) -> Interval:
    """Percentile interval of the mean, resampling seeds and then tasks.

    A task is resampled as a difference, so trained and baseline stay paired in it.

    - ``crossed``: every seed was scored on the same tasks. Each replicate draws seeds, draws
      one list of tasks for all of them, and averages that sub-table (the pigeonhole bootstrap
      of Owen, *Annals of Applied Statistics* 1(2), 2007). Tasks drawn anew within each seed
      would treat "this dataset is easy for trained SAEs" as noise that averages out over seeds,
      which it does not: the same datasets come back with every seed.
    - not ``crossed``: each seed has tasks of its own. Each replicate draws seeds, then tasks
      within each drawn seed.

    Resampling tasks with replacement counts the noise within a cell twice; at many seeds the
    interval errs on the wide side, at few seeds on the narrow one.

    Args:
        rows: Per seed, differences per task ``[n_tasks]``; of length 1 for an aggregate.
        level: Coverage.
        resamples: Replicates.
        seed: Of the generator; the same seed gives the same interval.
        crossed: Whether entry j of every row is the same task.

    Returns:
        Quantiles (1 -+ level) / 2 of the replicates; NaN with fewer than two seeds.
    """
    n = len(rows)
    if n < 2:
        return Interval(np.nan, np.nan, level)
    rng = np.random.default_rng(seed)
    means = (
        _crossed(rng, np.stack(rows), resamples) if crossed else _nested(rng, rows, resamples)
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level)


def _crossed(rng: np.random.Generator, table: np.ndarray, resamples: int) -> np.ndarray:
    n_seeds, n_tasks = table.shape
    # Drawing with replacement is drawing how often each is taken.
    seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=resamples) / n_seeds
    if n_tasks == 1:
        return seeds @ table[:, 0]
    means = np.empty(resamples)
    step = max(1, _CELLS // n_tasks)
    for first in range(0, resamples, step):
        part = slice(first, min(first + step, resamples))
        size = part.stop - first
        tasks = rng.multinomial(n_tasks, np.full(n_tasks, 1 / n_tasks), size=size) / n_tasks
        means[part] = ((seeds[part] @ table) * tasks).sum(axis=1)
    return means


def _nested(rng: np.random.Generator, rows: Sequence[np.ndarray], resamples: int) -> np.ndarray:
    n = len(rows)
    drawn = rng.integers(n, size=(resamples, n))
    cells = np.empty((resamples, n))
    for s, row in enumerate(rows):
        here = drawn == s
        cells[here] = rng.choice(row, size=(int(here.sum()), len(row))).mean(axis=1)
    return cells.mean(axis=1)
