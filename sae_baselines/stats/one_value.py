"""One value against the seeds of another SAE: by ranks alone, and under normality.

The null throughout: the value is one more seed of the other recipe. Everything here speaks of
that recipe's distribution over seeds; how the value would vary with its own seeds is unknown.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

from sae_baselines.stats.intervals import Interval, share_interval, spread

# Differences this small, relative to the values, are rounding: the same as `spread` takes it.
_ROUNDING = 1e-12
# Standard deviations beyond which both ends of the percentile are 0 or 1 to the last digit;
# `scipy.stats.nct` is exact to 1e-6 below it, and not far above.
_FARTHEST = 500.0


@dataclass(frozen=True)
class Ranked:
    """Where a value falls among n others, whatever their distribution.

    Attributes:
        below: Others that it is better than.
        equal: Others that it equals.
        n: Others.
        share: Mid-rank share, (below + equal / 2) / n.
        interval: For the share of the others' distribution below the value, seen and unseen
            (ties counted half).
        p: P-value of "one more of them" against "better than they are".
    """

    below: int
    equal: int
    n: int
    share: float
    interval: Interval
    p: float


@dataclass(frozen=True)
class Predicted:
    """Where a value falls among n others if these are normal.

    Attributes:
        z: (value - mean) / sd of the others.
        p: One-sided p-value of "one more of them".
        percentile: Share of the others' distribution below the value, Phi(z).
        interval: Its exact confidence interval.
    """

    z: float
    p: float
    percentile: float
    interval: Interval


def ranked(value: float, others: np.ndarray, level: float = 0.95, step: float = 0.0) -> Ranked:
    """Ranks alone; larger is better.

    - share: mid-ranks (Kendall, *Biometrika* 33, 1945): a tie counts half.
    - interval: Clopper and Pearson (*Biometrika* 26, 1934) for a share of which ``below`` of n
      are seen. With ties its lower end is that of the share strictly below, its upper end that
      of the share below or equal: it then covers the share with ties counted half at least as
      often as it says.
    - p: (1 + others at least as good) / (n + 1). If value and others are exchangeable, each
      of the n + 1 ranks is as likely as any, so p <= a with chance a at most, for every a and
      any distribution (Phipson and Smyth, *Stat. Appl. Genet. Mol. Biol.* 9(1), 2010, on why
      the 1 belongs there; the same as a conformal p-value, Vovk et al. 2005). It is 1 / (n + 1)
      at least.

    Args:
        value: The one value.
        others: ``[n]``, n >= 1.
        level: Coverage.
        step: Neighbouring values are so far apart by rounding, and tie.
    """
    n = len(others)
    close = np.maximum(_ROUNDING * np.maximum(np.abs(others), abs(value)), 1.001 * step)
    tied = np.abs(others - value) <= close
    equal = int(tied.sum())
    below = int(((others < value) & ~tied).sum())
    low = share_interval(below, n, level).low
    high = share_interval(below + equal, n, level).high
    return Ranked(
        below=below,
        equal=equal,
        n=n,
        share=(below + equal / 2) / n,
        interval=Interval(low, high, level),
        p=(1 + n - below) / (n + 1),
    )


def seeds_for(alpha: float) -> int:
    """Fewest others with which the ranks alone can give p <= alpha: 1 / (n + 1) <= alpha.

    19 for 0.05.
    """
    return math.ceil(round(1 / alpha, 9)) - 1


def predicted(value: float, others: np.ndarray, level: float = 0.95) -> Predicted | None:
    """Under normality; larger is better. None with fewer than two others or without spread.

    - p: (value - mean) / (sd sqrt(1 + 1/n)) has a t distribution with n - 1 degrees of freedom
      if value and others are draws of one normal distribution: the prediction interval of one
      future observation (Hahn and Meeker, *Statistical Intervals*, 1991, section 4.7), turned
      into a test of one case against few (Crawford and Howell, *Clin. Neuropsychol.* 12, 1998).
    - percentile: Phi(z), z = (value - mean) / sd.
    - interval: z sqrt(n) has a noncentral t distribution with n - 1 degrees of freedom and
      noncentrality sqrt(n) (value - mu) / sigma. The noncentralities that put z sqrt(n) at its
      (1 + level) / 2 and (1 - level) / 2 quantiles, over sqrt(n), through Phi, are the exact
      interval for Phi((value - mu) / sigma) (Crawford and Garthwaite, *Neuropsychologia* 40,
      2002).

    Args:
        value: The one value.
        others: ``[n]``.
        level: Coverage.
    """
    n = len(others)
    if n < 2:
        return None
    sd = float(spread(others))
    if sd == 0:
        return None
    z = (value - float(others.mean())) / sd
    tails = (1 + level) / 2, (1 - level) / 2
    low, high = (
        float(stats.norm.cdf(_noncentrality(z, n, tail) / math.sqrt(n))) for tail in tails
    )
    return Predicted(
        z=z,
        p=float(stats.t.sf(z / math.sqrt(1 + 1 / n), n - 1)),
        percentile=float(stats.norm.cdf(z)),
        interval=Interval(low, high, level),
    )


def _noncentrality(z: float, n: int, q: float) -> float:
    """d with P(T <= z sqrt(n)) = q, T noncentral t of n - 1 degrees of freedom and d."""
    if z < 0:
        # The mirror image: scipy computes the upper tail better.
        return -_noncentrality(-z, n, 1 - q)
    t, df = min(z, _FARTHEST) * math.sqrt(n), n - 1
    # At t = 0 the root is -z_q and it grows with t; far above, T exceeds t almost surely.
    low = -float(stats.norm.ppf(q)) - 1e-6
    high = t * math.sqrt(float(stats.chi2.ppf(0.9999, df)) / df) + 10
    root: Any = optimize.brentq(lambda d: float(stats.nct.cdf(t, df, d)) - q, low, high)
    return float(root)
