"""Intervals against scipy and against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from sae_baselines.stats import t_interval, tasks_interval
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
    assert np.isnan(tasks_interval([np.ones(4)] * n).high)


def test_without_several_paired_tasks_it_is_the_interval_over_seeds() -> None:
    d = np.random.default_rng(1).normal(size=8)
    assert tasks_interval([np.array([x]) for x in d]) == t_interval(d)
    # Each seed has tasks of its own.
    own = tasks_interval([np.zeros(3), np.ones(7)], crossed=False)
    assert own == t_interval(np.array([0.0, 1.0]))


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("k", [2, 20])
@pytest.mark.parametrize("task_sd", [0.0, 1.0, 3.0])
def test_the_interval_over_tasks_covers(n: int, k: int, task_sd: float) -> None:
    rng = np.random.default_rng([n, k, int(task_sd)])
    hits = []
    for _ in range(800):
        table = rng.normal(size=(n, 1)) + task_sd * rng.normal(size=(1, k))
        table += rng.normal(size=(n, k))
        found, seeds = tasks_interval(list(table)), t_interval(table.mean(axis=1))
        hits.append(found.low <= 0 <= found.high)
        assert found.low <= seeds.low <= seeds.high <= found.high
    # 0.95 less three standard errors of 800 repeats.
    assert np.mean(hits) >= 0.927


def test_tasks_that_all_seeds_share_do_not_average_out() -> None:
    table = np.tile(np.linspace(-1, 1, 6), (8, 1)) + np.linspace(-0.01, 0.01, 8)[:, None]
    joint, apart = tasks_interval(list(table)), tasks_interval(list(table), crossed=False)
    assert joint.high - joint.low > 2 * (apart.high - apart.low)


def test_inside() -> None:
    assert Interval(-0.01, 0.019, 0.9).inside(0.02)
    assert not Interval(-0.01, 0.02, 0.9).inside(0.02)
