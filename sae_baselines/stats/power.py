"""How many seeds would have been enough?"""

import math
from collections.abc import Callable
from typing import Any

from scipy import optimize
from statsmodels.stats.power import TTestPower

POWER = 0.8
MOST_SEEDS = 100


def seeds_to_differ(mean: float, sd: float, *, alpha: float, at_least: int = 2) -> int | None:
    """Seeds for a two-sided paired t test to find a difference, with 80 % power.

    ``statsmodels.stats.power.TTestPower`` at the effect size mean / sd, as if the observed mean
    and spread were the true ones. They are not: from 3 seeds the spread alone is uncertain by
    a factor of 2 or more, so the number is an order of magnitude. The chance to reject on the
    wrong side is left out (the test is taken as one-sided at alpha / 2): it would not be a
    right answer, and statsmodels' two-sided power is NaN wherever that chance underflows.

    Args:
        mean: Observed mean difference.
        sd: Observed standard deviation over seeds, > 0.
        alpha: Level of the test.
        at_least: Smallest answer.

    Returns:
        Number of seeds, or None above `MOST_SEEDS`.
    """
    effect = abs(mean) / sd
    return _least(lambda n: _power(effect, n, alpha / 2) >= POWER, at_least)


def seeds_to_match(
    mean: float, sd: float, margin: float, *, alpha: float, at_least: int = 2
) -> int | None:
    """Seeds for the two one-sided tests to place a difference inside its margin, 80 % power.

    Each test has to reject: P(both) >= P(first) + P(second) - 1, with each by `TTestPower` at
    the distance of the mean to that side.

    Args:
        mean: Observed mean difference, inside the margin.
        sd: Observed standard deviation over seeds, > 0.
        margin: delta.
        alpha: Level of each one-sided test.
        at_least: Smallest answer.

    Returns:
        Number of seeds, or None above `MOST_SEEDS` or with the mean outside.
    """
    if abs(mean) >= margin:
        return None
    low, high = (margin + mean) / sd, (margin - mean) / sd

    def enough(n: int) -> bool:
        both = _power(low, n, alpha) + _power(high, n, alpha) - 1
        return both >= POWER

    return _least(enough, at_least)


def power_to_differ(difference: float, sd: float, n: int, *, alpha: float) -> float:
    """Chance that n seeds show a true difference, on its side; see `seeds_to_differ`."""
    return _power(abs(difference) / sd, n, alpha / 2)


def power_to_match(sd: float, margin: float, n: int, *, alpha: float) -> float:
    """Least chance that n seeds show equivalence where there is no difference.

    That of both one-sided tests, by the bound of `seeds_to_match`, which is exact where one
    fails at a time.
    """
    return max(0.0, 2 * _power(margin / sd, n, alpha) - 1)


def smallest_difference(sd: float, n: int, *, alpha: float) -> float:
    """The difference that n seeds show with 80 % power, two-sided at alpha."""

    def short(log_effect: float) -> float:
        return _power(math.exp(log_effect), n, alpha / 2) - POWER

    # From an effect of a hundredth, which 100 seeds miss, to one that two seeds show.
    root: Any = optimize.brentq(short, math.log(0.01), math.log(1e4), xtol=1e-6)
    return sd * math.exp(root)


def _power(effect: float, n: int, alpha: float) -> float:
    """Of the one-sided test. scipy's noncentral t is NaN at isolated points far out: there the
    power at a slightly smaller effect is a lower bound, and as good as 1."""
    power = math.nan
    while math.isnan(power):
        power = float(TTestPower().power(effect, n, alpha, alternative="larger"))
        effect *= 0.97
    return power


def _least(enough: Callable[[int], bool], at_least: int) -> int | None:
    """Least n in [at_least, MOST_SEEDS] that is enough, by bisection: power grows with n."""
    low, high = max(2, at_least), MOST_SEEDS
    if low > high or not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle + 1
    return low
