"""Intervals against scipy and against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from sae_baselines.stats import hierarchical_bootstrap, t_interval
from sae_baselines.stats.intervals import Interval, paired_t, spread

SAMPLES = arrays(np.float64, st.integers(2, 12), elements=st.floats(-1, 1, width=32))


@settings(deadline=None)
@given(SAMPLES, SAMPLES)
def test_t_against_scipy_on_the_pairs(a: np.ndarray, b: np.ndarray) -> None:
    n = min(len(a), len(b))
    a, b = a[:n], b[:n]
    if spread(a - b) == 0:
        return
    wanted = stats.ttest_rel(a, b)
    mean, p = paired_t(a - b)
    found = t_interval(a - b)
    assert mean == pytest.approx(float(np.mean(a) - np.mean(b)), abs=1e-12)
    assert float(p) == pytest.approx(float(wanted.pvalue), rel=1e-6)
    ends = wanted.confidence_interval(0.95)
    assert found.low == pytest.approx(float(ends.low), rel=1e-6, abs=1e-9)
    assert found.high == pytest.approx(float(ends.high), rel=1e-6, abs=1e-9)


def test_t_known_answer() -> None:
    """Three differences 1, 2, 3: 2 -+ 4.302653 * 1 / sqrt(3)."""
    found = t_interval(np.array([1.0, 2.0, 3.0]))
    assert found.low == pytest.approx(2 - 4.302652729 / 3**0.5)
    assert found.high == pytest.approx(2 + 4.302652729 / 3**0.5)


def test_t_is_vectorised() -> None:
    d = np.random.default_rng(0).normal(size=(3, 4, 5))
    mean, p = paired_t(d)
    assert mean.shape == p.shape == (3, 4)
    assert p[1, 2] == pytest.approx(float(paired_t(d[1, 2])[1]))


def test_no_spread() -> None:
    """0.7 - 0.6 and 0.8 - 0.7 differ in the last bit only."""
    d = np.array([0.7 - 0.6, 0.8 - 0.7, 0.9 - 0.8])
    assert d.std() > 0
    assert spread(d) == 0
    assert float(paired_t(d)[1]) == 0
    assert t_interval(d) == Interval(d.mean(), d.mean(), 0.95)
    assert float(paired_t(np.zeros(3))[1]) == 1


@pytest.mark.parametrize("n", [0, 1])
def test_one_seed_has_no_interval(n: int) -> None:
    d = np.ones(n)
    assert np.isnan(t_interval(d).low)
    assert np.isnan(hierarchical_bootstrap([np.ones(4)] * n).high)


def test_bootstrap_over_seeds_alone_against_scipy() -> None:
    d = np.random.default_rng(1).normal(size=8)
    wanted = stats.bootstrap(
        (d,), np.mean, n_resamples=40_000, method="percentile"
    ).confidence_interval
    found = hierarchical_bootstrap([np.array([x]) for x in d], resamples=40_000)
    assert found.low == pytest.approx(float(wanted.low), abs=0.02)
    assert found.high == pytest.approx(float(wanted.high), abs=0.02)


def brute(rng: np.random.Generator, table: np.ndarray, crossed: bool) -> float:
    n, t = table.shape
    shared = rng.integers(t, size=t)
    picked = [
        table[s, shared if crossed else rng.integers(t, size=t)]
        for s in rng.integers(n, size=n)
    ]
    return float(np.mean(picked))


@pytest.mark.parametrize("crossed", [True, False])
def test_bootstrap_against_a_loop(crossed: bool) -> None:
    rng = np.random.default_rng(2)
    table = (
        rng.normal(size=(5, 1)) * 0.3 + rng.normal(size=(1, 6)) + rng.normal(size=(5, 6)) * 0.3
    )
    wanted = np.quantile([brute(rng, table, crossed) for _ in range(8000)], [0.025, 0.975])
    found = hierarchical_bootstrap(list(table), resamples=20_000, crossed=crossed)
    np.testing.assert_allclose([found.low, found.high], wanted, atol=0.04)


def test_tasks_resampled_jointly_keep_what_they_share() -> None:
    """Effects of tasks do not average out over seeds that all meet the same tasks."""
    table = np.tile(np.linspace(-1, 1, 6), (8, 1)) + np.linspace(-0.01, 0.01, 8)[:, None]
    joint = hierarchical_bootstrap(list(table))
    apart = hierarchical_bootstrap(list(table), crossed=False)
    assert joint.high - joint.low > 2 * (apart.high - apart.low)


def test_bootstrap_is_a_function_of_its_seed() -> None:
    rows = list(np.random.default_rng(0).normal(size=(4, 7)))
    assert hierarchical_bootstrap(rows, seed=3) == hierarchical_bootstrap(rows, seed=3)
    assert hierarchical_bootstrap(rows, seed=3) != hierarchical_bootstrap(rows, seed=4)


def test_bootstrap_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table with many tasks is resampled in parts that fit in memory."""
    rows = list(np.random.default_rng(0).normal(size=(3, 50)))
    whole = hierarchical_bootstrap(rows, resamples=4000)
    monkeypatch.setattr("sae_baselines.stats.intervals._CELLS", 5000)
    parts = hierarchical_bootstrap(rows, resamples=4000)
    assert parts.low == pytest.approx(whole.low, abs=0.05)
    assert parts.high == pytest.approx(whole.high, abs=0.05)


def test_uneven_tasks() -> None:
    found = hierarchical_bootstrap([np.zeros(3), np.ones(7)], crossed=False)
    assert (found.low, found.high) == (0.0, 1.0)


def test_inside() -> None:
    assert Interval(-0.01, 0.019, 0.9).inside(0.02)
    assert not Interval(-0.01, 0.02, 0.9).inside(0.02)
