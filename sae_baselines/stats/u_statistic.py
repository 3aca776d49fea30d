"""A mean over pairs of seeds, with an interval that knows that pairs share seeds.

With n seeds there are n (n - 1) / 2 pairs, which are not independent: each seed is in n - 1 of
them. Their mean is a U-statistic of degree two (Hoeffding, *Ann. Math. Stat.* 19, 1948). Its
variance is estimated by leaving out one seed at a time (Arvesen, *Ann. Math. Stat.* 40, 1969):
(n - 1) / n * sum_i (U_without_i - U)^2. The expectation of this is at least the true variance
(Efron and Stein, *Ann. Stat.* 9, 1981), so the interval errs on the wide side where pairs vary
more than seeds do. It is a t interval on n - 1 degrees of freedom; its coverage is simulated in
``benchmarks/pairs_of_seeds.py``.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from sae_baselines.stats.intervals import Interval


def mean_over_pairs(
    values: Mapping[tuple[int, int], float], level: float = 0.95
) -> tuple[float, Interval]:
    """Mean over pairs of seeds, and its jackknife interval.

    Args:
        values: By pair of different seeds, each pair once.
        level: Coverage.

    Returns:
        NaN without a pair; an interval of NaN with fewer than three seeds, or where a pair of
        seeds is missing.
    """
    unknown = Interval(np.nan, np.nan, level)
    if not values:
        return float("nan"), unknown
    n = len({seed for pair in values for seed in pair})
    mean = float(np.mean(list(values.values())))
    if n < 3 or len(values) < n * (n - 1) / 2:
        return mean, unknown
    half = float(half_widths(list(values), np.array(list(values.values())), level))
    return mean, Interval(mean - half, mean + half, level)


def half_widths(
    pairs: Sequence[tuple[int, int]], values: np.ndarray, level: float = 0.95
) -> np.ndarray:
    """Half the width of the interval of a mean over all pairs of seeds.

    Args:
        pairs: All pairs of three or more seeds.
        values: Of each, ``[..., n_pairs]``.
        level: Coverage.

    Returns:
        ``[...]``.
    """
    seeds = sorted({seed for pair in pairs for seed in pair})
    n = len(seeds)
    others = np.array([[seed not in pair for pair in pairs] for seed in seeds], dtype=float)
    without = values @ (others / others.sum(axis=1, keepdims=True)).T
    squares = np.square(without - values.mean(axis=-1, keepdims=True)).sum(axis=-1)
    return stats.t.ppf((1 + level) / 2, n - 1) * np.sqrt((n - 1) / n * squares)
