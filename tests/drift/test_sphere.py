"""Closed forms about random directions, against simulation and high-precision references."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import betainc
from scipy.stats import norm, ortho_group

from sae_baselines.drift.sphere import (
    chance_of_best,
    expected_best_cosine,
    log_cap_bound,
    log_cap_probability,
    log_chance_of_best,
    quantile_of_best_cosine,
)

# log P(cos >= t), from the incomplete beta function of mpmath at 60 to 250 digits.
REFERENCE = {
    (2, 0.3): -0.9087856754490213,
    (3, -0.5): -0.2876820724517809,
    (5, 0.51): -1.8927113837311276,
    (100, 0.8): -53.573112362269136,
    (576, 0.95): -673.317536218333,
    (4454, 0.5): -644.95132073247727,
    (90_000, 0.1): -456.581318355938993,
    (90_000, 0.113): -582.741879424624647,
    (2304, 0.8): -1180.998542905092,
    (2304, -0.01): -0.3793077033323116,
    (2304, -0.3): -1.891791686714864e-49,
    (4096, 0.999): -12730.51084811225,
    (100_000, 0.8): -51088.50381181455,
}

dimensions = st.integers(2, 100_000)
cosines = st.floats(-1, 1)


def _draw(n: int, m: int, trials: int, seed: int) -> np.ndarray:
    """Best cosine of m random directions with a fixed one, ``[trials]``, by simulation."""
    generator = np.random.default_rng(seed)
    fixed = generator.standard_normal(n)
    fixed /= np.linalg.norm(fixed)
    best = np.empty(trials)
    for i in range(trials):
        rows = generator.standard_normal((m, n))
        best[i] = (rows @ fixed / np.linalg.norm(rows, axis=1)).max()
    return best


def test_the_papers_numbers_of_the_bound() -> None:
    one = log_cap_bound(2304, 0.8)
    assert one == pytest.approx(-737.28, rel=1e-14)
    # 6.36e-321 is subnormal, where float64 holds three digits.
    assert one / math.log(10) == pytest.approx(math.log10(6.36) - 321, abs=1e-3)
    # The paper prints 4.67e-316 for m of them; 73,728 times 6.358e-321 is 4.69e-316.
    many = log_cap_bound(2304, 0.8, 73_728) / math.log(10)
    assert many == pytest.approx(math.log10(4.688) - 316, abs=1e-4)
    assert many == pytest.approx(math.log10(4.67) - 316, abs=2e-3)


@pytest.mark.parametrize(("n", "t"), REFERENCE)
def test_cap_against_high_precision(n: int, t: float) -> None:
    assert log_cap_probability(n, t) == pytest.approx(REFERENCE[n, t], rel=2e-13)


def test_cap_of_the_circle_and_of_the_ball() -> None:
    t = np.linspace(-0.999, 0.999, 41)
    circle = np.exp(log_cap_probability(2, t))
    assert circle == pytest.approx(np.arccos(t) / np.pi, rel=1e-12)
    # Archimedes: heights on the ordinary sphere are uniform.
    assert np.exp(log_cap_probability(3, t)) == pytest.approx((1 - t) / 2, rel=1e-12)


@given(dimensions, st.floats(0.001, 0.999))
def test_cap_is_the_incomplete_beta_function(n: int, t: float) -> None:
    direct = 0.5 * betainc((n - 1) / 2, 0.5, 1 - t * t)
    assume(direct > 1e-290)
    # What scipy is given here, 1 - t^2, has lost digits that its power (n - 1) / 2 shows.
    tolerance = 1e-12 + n * 2e-16 / (1 - t * t)
    assert log_cap_probability(n, t) == pytest.approx(math.log(direct), abs=tolerance)


def test_cap_has_no_step_where_the_formula_changes() -> None:
    # Values around 1e-280, where scipy's tail hands over to the series.
    t = np.linspace(0.64, 0.67, 301)
    values = np.asarray(log_cap_probability(2304, t))
    assert values.min() < math.log(1e-280) < values.max()
    # A smooth curve sampled at 1e-4: third differences are of the order n t / 1e12.
    assert np.abs(np.diff(values, n=3)).max() < 1e-7


@given(dimensions, cosines)
def test_cap_and_opposite_cap_share_the_sphere(n: int, t: float) -> None:
    both = math.exp(log_cap_probability(n, t)) + math.exp(log_cap_probability(n, -t))
    assert both == pytest.approx(1.0, abs=1e-14)


def test_ends() -> None:
    for n in (2, 3, 2304):
        assert log_cap_probability(n, -1.0) == 0.0
        assert log_cap_probability(n, 1.0) == -math.inf
        assert log_cap_probability(n, 0.0) == pytest.approx(math.log(0.5), rel=1e-14)
        assert chance_of_best(n, 5, -1.0) == 1.0
        assert chance_of_best(n, 5, 1.0) == 0.0


@given(dimensions, st.floats(0, 1), st.integers(1, 10**6))
def test_the_bound_bounds(n: int, t: float, m: int) -> None:
    assert log_cap_probability(n, t) <= log_cap_bound(n, t)
    assert log_chance_of_best(n, m, t) <= log_cap_bound(n, t, m) + 1e-12


@given(dimensions, cosines, cosines, st.integers(1, 10**6))
def test_falls_with_the_threshold(n: int, a: float, b: float, m: int) -> None:
    low, high = sorted((a, b))
    assert log_cap_probability(n, low) >= log_cap_probability(n, high)
    assert log_chance_of_best(n, m, low) >= log_chance_of_best(n, m, high)


@given(st.integers(2, 50_000), st.integers(1, 50_000), st.floats(0.001, 0.999))
def test_falls_with_the_dimension(n: int, more: int, t: float) -> None:
    assert log_cap_probability(n + more, t) < log_cap_probability(n, t)


@given(dimensions, st.integers(1, 10**6), st.integers(1, 10**6), st.floats(0.01, 0.99))
def test_grows_with_the_number_of_directions(n: int, m: int, more: int, t: float) -> None:
    fewer = log_chance_of_best(n, m, t)
    many = log_chance_of_best(n, m + more, t)
    assert many >= fewer
    # At most in proportion, and exactly so where it is rare.
    assert many - fewer <= math.log((m + more) / m) - 1e-14 * many + 1e-14
    if many < -40:
        assert many - fewer == pytest.approx(math.log((m + more) / m), abs=1e-9)


@given(dimensions, cosines)
def test_best_of_one_is_the_cap(n: int, t: float) -> None:
    assert log_chance_of_best(n, 1, t) == pytest.approx(
        log_cap_probability(n, t), rel=1e-12, abs=1e-15
    )


def test_best_of_many_against_plain_arithmetic() -> None:
    # Where P is neither tiny nor near one, 1 - (1 - P)^m needs no care.
    p = math.exp(log_cap_probability(10, 0.6))
    for m in (1, 2, 7, 50):
        assert chance_of_best(10, m, 0.6) == pytest.approx(1 - (1 - p) ** m, rel=1e-12)


@pytest.mark.parametrize(
    ("n", "m", "trials"), [(2, 1, 20_000), (3, 4, 20_000), (20, 50, 20_000), (100, 3200, 400)]
)
def test_against_simulation(n: int, m: int, trials: int) -> None:
    """Within 4.5 standard errors: of a binomial share, and of a mean."""
    best = _draw(n, m, trials, seed=n + m)
    for q in (0.1, 0.5, 0.9):
        t = quantile_of_best_cosine(n, m, q)
        chance = chance_of_best(n, m, t)
        assert chance == pytest.approx(1 - q, rel=1e-9)
        error = math.sqrt(q * (1 - q) / trials)
        assert (best >= t).mean() == pytest.approx(chance, abs=4.5 * error)
    error = best.std() / math.sqrt(trials)
    assert best.mean() == pytest.approx(expected_best_cosine(n, m), abs=4.5 * error)


def test_share_recovered_by_chance_against_simulation() -> None:
    """Many features and one dictionary: shares are averages over both."""
    generator = np.random.default_rng(3)
    n, m, t, trials = 8, 30, 0.8, 200
    share = np.empty(trials)
    for i in range(trials):
        features = generator.standard_normal((100, n))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        rows = generator.standard_normal((m, n))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        share[i] = ((features @ rows.T).max(axis=1) >= t).mean()
    # One dictionary's features share its luck: the error is of the dictionaries' means.
    error = share.std() / math.sqrt(trials)
    assert share.mean() == pytest.approx(chance_of_best(n, m, t), abs=4.5 * error)


def test_a_rotation_changes_nothing() -> None:
    """The fixed vector may be any: the law does not depend on it."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((50_000, 6))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    error = math.sqrt(0.25 / 50_000)
    for axis in ortho_group.rvs(6, random_state=1):
        share = (rows @ axis >= 0.3).mean()
        expected = math.exp(log_cap_probability(6, 0.3))
        assert share == pytest.approx(expected, abs=4.5 * error)


def test_expected_best_cosine_known_values() -> None:
    assert expected_best_cosine(2, 1) == pytest.approx(0.0, abs=1e-14)
    assert expected_best_cosine(2304, 1) == pytest.approx(0.0, abs=1e-14)
    # Heights on the ordinary sphere are uniform on [-1, 1]: the best of m has mean
    # (m - 1) / (m + 1).
    for m in (2, 10, 1000, 131_072):
        assert expected_best_cosine(3, m) == pytest.approx((m - 1) / (m + 1), rel=1e-12)
    # On the circle the best of two is at half angle |theta| uniform: 4 / pi^2.
    assert expected_best_cosine(2, 2) == pytest.approx(4 / np.pi**2, rel=1e-12)


def test_expected_best_cosine_of_many_dimensions_is_the_gaussian_maximum() -> None:
    # sqrt(n) cos tends to a standard normal; scipy knows the median of its maximum.
    n, m = 100_000, 131_072
    gaussian = norm.isf(-math.expm1(math.log(0.5) / m)) / math.sqrt(n)
    assert quantile_of_best_cosine(n, m, 0.5) == pytest.approx(gaussian, rel=2e-4)
    assert quantile_of_best_cosine(n, m, 0.5) < expected_best_cosine(n, m) < 0.0147


@given(st.integers(2, 5000), st.integers(1, 200_000))
@settings(max_examples=30)
def test_expected_best_cosine_lies_between_its_quantiles(n: int, m: int) -> None:
    mean = expected_best_cosine(n, m)
    assert quantile_of_best_cosine(n, m, 0.2) < mean < quantile_of_best_cosine(n, m, 0.9)
    assert mean <= expected_best_cosine(n, m + 1) + 1e-13
    if m > 1:
        assert expected_best_cosine(n + 1, m) < mean + 1e-13


@given(dimensions, st.integers(1, 10**6), st.floats(1e-9, 1 - 1e-9))
def test_quantile_inverts_the_chance(n: int, m: int, q: float) -> None:
    t = quantile_of_best_cosine(n, m, q)
    step = 1e-12
    assert chance_of_best(n, m, max(t - step, -1)) >= (1 - q) * (1 - 1e-6)
    assert chance_of_best(n, m, min(t + step, 1)) <= (1 - q) * (1 + 1e-6)


def test_arrays_keep_their_shape_and_scalars_are_floats() -> None:
    t = np.array([[0.1, 0.9], [-0.2, 0.8]])
    for function in (
        lambda x: log_cap_bound(2304, x),
        lambda x: log_cap_probability(2304, x),
        lambda x: log_chance_of_best(2304, 10, x),
        lambda x: chance_of_best(2304, 10, x),
    ):
        values = function(t)
        assert isinstance(values, np.ndarray)
        assert values.shape == t.shape
        assert type(function(0.8)) is float
        assert values[1, 1] == function(0.8)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: log_cap_probability(1, 0.5), "n: 1"),
        (lambda: log_cap_probability(2.5, 0.5), "n: 2.5"),  # type: ignore[arg-type]
        (lambda: log_cap_probability(True, 0.5), "n: True"),
        (lambda: log_cap_bound(10, 0.5, m=0), "m: 0"),
        (lambda: chance_of_best(10, -3, 0.5), "m: -3"),
        (lambda: log_chance_of_best(10, 3, 1.5), "t: 1.5"),
        (lambda: log_cap_probability(10, math.nan), "t: nan"),
        (lambda: log_cap_bound(10, [0.5, -1.1]), "t: "),
        (lambda: quantile_of_best_cosine(10, 3, 0.0), "q: 0.0"),
        (lambda: quantile_of_best_cosine(10, 3, 1.0), "q: 1.0"),
        (lambda: expected_best_cosine(1, 3), "n: 1"),
    ],
)
def test_bad_input(call, named) -> None:
    with pytest.raises(ValueError, match=named):
        call()
