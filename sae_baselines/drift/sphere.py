"""What random directions hit by chance: closed forms about unit vectors in R^n.

A random unit vector has cosine u with any fixed one, where (1 + u) / 2 follows a
Beta((n - 1) / 2, (n - 1) / 2) distribution. From this come the chance of a spherical cap
(paper, Appendix D: the bound exp(-n t^2 / 2)), and what the best of m random directions
reaches: the null of "features recovered at cosine > 0.8". At the paper's sizes (n = 2304,
m = 73,728) the chances are below the smallest float64, so everything is kept in logarithms.

Cosines are signed: no absolute value anywhere. Everywhere ``n`` is the dimension (>= 2), ``m``
the number of independent random directions (>= 1) and ``t`` a cosine in [-1, 1], scalar or
array; what is returned is shaped like ``t``, a float for a scalar, and logarithms are natural.
Anything out of range is a `ValueError`.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import bisect
from scipy.special import betainc, betaincc

# scipy's tail is used while it is far from underflow, the series in logarithms below.
_SMALLEST_TAIL = 1e-280
# Below exp(this) log(1 - p) is -p (1 + p / 2) in float64.
_TINY_LOG = -20.0
# Outside these quantiles of the best cosine nothing is left to integrate.
_NEGLIGIBLE = 1e-18
_PANELS, _NODES = 64, 16


def log_cap_bound(n: int, t: ArrayLike, m: int = 1) -> np.ndarray | float:
    """Log of the paper's bound on a cap, ``m exp(-n t^2 / 2)`` (Appendix D).

    It bounds P(cos >= t) from above for t >= 0 only; m directions by the union bound, so
    that it may exceed a probability of one (its logarithm zero).
    """
    cosine = _validate(n, m, t)
    return _shaped(math.log(m) - n * cosine**2 / 2, t)


def log_cap_probability(n: int, t: ArrayLike) -> np.ndarray | float:
    """Log of P(cos(u, v) >= t) for u uniform on the unit sphere of R^n and v fixed, exact.

    For t >= 0 this is half the regularised incomplete beta I_{1-t^2}((n - 1) / 2, 1 / 2).
    -inf at t = 1.
    """
    return _shaped(_log_cap(n, _validate(n, 1, t)), t)


def log_chance_of_best(n: int, m: int, t: ArrayLike) -> np.ndarray | float:
    """Log of `chance_of_best`, without underflow."""
    cosine = _validate(n, m, t)
    log_rate = math.log(m) + _log_rate(n, cosine)
    small = log_rate - np.exp(np.minimum(log_rate, _TINY_LOG)) / 2
    # A rate of 700 is a certainty already.
    large = np.log(-np.expm1(-np.exp(np.clip(log_rate, _TINY_LOG, 6.5))))
    return _shaped(np.where(log_rate < _TINY_LOG, small, large), t)


def chance_of_best(n: int, m: int, t: ArrayLike) -> np.ndarray | float:
    """P(max over m independent random directions of cos with one fixed vector >= t).

    The share of ground-truth features that a random dictionary of m latents is expected to
    "recover" at threshold t: 1 - (1 - P)^m with P the chance of one cap.
    """
    return _shaped(np.exp(log_chance_of_best(n, m, t)), t)


def expected_best_cosine(n: int, m: int) -> float:
    """E[max over m independent random directions of cos with one fixed vector]."""
    low = quantile_of_best_cosine(n, m, _NEGLIGIBLE)
    high = _best_cosine_where_log_rate_is(n, m, math.log(_NEGLIGIBLE))
    # With t = -cos(angle) the integrand is smooth at both ends, also for n = 2.
    edges = np.linspace(math.acos(-low), math.acos(-high), _PANELS + 1)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    half = np.diff(edges)[:, None] / 2
    angle = edges[:-1, None] + half * (nodes + 1)
    survival = chance_of_best(n, m, np.clip(-np.cos(angle), -1.0, 1.0))
    return low + float((half * weights * np.sin(angle) * survival).sum())


def quantile_of_best_cosine(n: int, m: int, q: float) -> float:
    """The cosine that the best of m random directions stays below with probability q.

    q is in (0, 1).
    """
    _validate(n, m, 0.0)
    if not 0.0 < q < 1.0:
        raise ValueError(f"q: {q!r} is out of range; use a probability in (0, 1)")
    return _best_cosine_where_log_rate_is(n, m, math.log(-math.log(q)))


def _best_cosine_where_log_rate_is(n: int, m: int, log_rate: float) -> float:
    wanted = log_rate - math.log(m)
    # By sign alone: the rate runs from infinity at -1 to zero at 1.
    found = bisect(lambda t: float(_log_rate(n, np.asarray(t))) - wanted, -1.0, 1.0, xtol=1e-15)
    return float(found)  # type: ignore[arg-type]


def _log_rate(n: int, t: np.ndarray) -> np.ndarray:
    """log(-log(1 - P)) for the cap's chance P: m directions all miss with exp(-m rate)."""
    log_p = _log_cap(n, t)
    with np.errstate(divide="ignore"):
        # The complement of a cap is the opposite cap.
        large = np.log(-_log_cap(n, -t))
    return np.where(log_p < _TINY_LOG, log_p + np.exp(log_p) / 2, large)


def _log_cap(n: int, t: np.ndarray) -> np.ndarray:
    positive = np.abs(t)
    a = (n - 1) / 2
    # Each form where its argument has lost no digits.
    near_one = betainc(a, 0.5, (1 - positive) * (1 + positive))
    tail = 0.5 * np.where(positive > 0.9, near_one, betaincc(0.5, a, positive**2))
    with np.errstate(divide="ignore"):
        log_tail = np.array(np.log(tail))
    for index in np.argwhere((tail < _SMALLEST_TAIL) & (positive < 1)):
        place = tuple(index)
        log_tail[place] = _log_cap_by_series(n, float(positive[place]))
    return np.where(t >= 0, log_tail, np.log1p(-np.where(t >= 0, 0.0, tail)))


def _log_cap_by_series(n: int, t: float) -> float:
    """The cap by the power series of the incomplete beta function, whose terms are positive.

    I_x(a, b) = x^a (1 - x)^b / (a B(a, b)) * sum_k (a + b)_k / (a + 1)_k x^k with
    x = 1 - t^2, a = (n - 1) / 2 and b = 1 / 2. Each term is less than x times the one
    before, and x is far from 1 wherever scipy's tail underflows.
    """
    a = (n - 1) / 2
    log_x = math.log1p(-t * t) if t < 0.7 else math.log1p(-t) + math.log1p(t)
    k = np.arange(math.ceil(-45.0 / log_x) + 1)
    log_terms = np.concatenate([[0.0], np.cumsum(np.log((a + 0.5 + k) / (a + 1 + k)) + log_x)])
    series = math.log(float(np.exp(log_terms).sum()))
    return a * log_x + math.log(t) - math.log(2 * a) - _log_beta_with_half(n) + series


def _log_beta_with_half(n: int) -> float:
    """log B((n - 1) / 2, 1 / 2), by recurrence: differences of log-gammas lose digits."""
    first = 1.0 if n % 2 else 0.5
    log_ratio = math.log(math.gamma(first + 0.5) / math.gamma(first))
    steps = np.arange(first, (n - 1) / 2)  # of a, by one
    return math.log(math.pi) / 2 - log_ratio - float(np.log1p(0.5 / steps).sum())


def _validate(n: int, m: int, t: ArrayLike) -> np.ndarray:
    for name, value, least in (("n", n, 2), ("m", m, 1)):
        if isinstance(value, bool) or value != int(value) or value < least:
            raise ValueError(f"{name}: {value!r} is out of range; use an integer >= {least}")
    cosine = np.array(t, dtype=np.float64)
    if not (np.abs(cosine) <= 1).all():  # NaN is not in the range
        raise ValueError(f"t: {t!r} is out of range; use cosines in [-1, 1]")
    return cosine


def _shaped(value: np.ndarray | float, like: ArrayLike) -> np.ndarray | float:
    return float(value) if np.ndim(like) == 0 else np.asarray(value)
