"""Retained share."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from sae_baselines.stats import fieller, level_at_once, retained, to_frame, together
from tests.stats.tables import BASELINES, frame, paired, rows

TRAINED = np.array([0.852, 0.853, 0.851])
OTHER = np.array([0.785, 0.788, 0.782])


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8))
def test_fieller_is_where_the_paired_t_test_stops_rejecting(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=n) * 0.01
    a, b = 0.8 + shared + rng.normal(size=n) * 0.01, 0.6 + shared + rng.normal(size=n) * 0.01
    found = fieller(b, a)
    if found is None:
        assert stats.ttest_1samp(a, 0)[1] > 0.05  # type: ignore[operator]
        return

    def p(ratio: float) -> float:
        return float(stats.ttest_1samp(b - ratio * a, 0)[1]) - 0.05  # type: ignore[arg-type]

    middle = b.mean() / a.mean()
    assert found.low < middle < found.high
    assert p(found.low) == pytest.approx(0, abs=1e-6)
    assert p(found.high) == pytest.approx(0, abs=1e-6)
    root = optimize.brentq(p, middle, found.high + 1e-3 * (found.high - middle))
    assert found.high == pytest.approx(root, rel=1e-5)


def test_fieller_covers() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        shared = rng.normal(size=3) * 0.02
        found = fieller(
            0.6 + shared + rng.normal(size=3) * 0.01, 0.8 + shared + rng.normal(size=3) * 0.01
        )
        hits += found is not None and found.low <= 0.75 <= found.high
    assert 0.935 < hits / 2000 < 0.965


def test_unbounded() -> None:
    assert fieller(np.array([1.0, 2.0]), np.array([-0.1, 0.2])) is None
    assert fieller(np.array([1.0]), np.array([0.5])) is None


def test_the_papers_row() -> None:
    """EV of Gemma-2-2B layer 12: best frozen .785 of .852."""
    values = paired(TRAINED, OTHER, "soft_frozen_decoder")
    values.update({("frozen_decoder", s): 0.57 + s / 1000 for s in range(3)})
    values.update({("random_decoder", s): 0.84 + s / 1000 for s in range(3)})
    found = {r.baseline: r for r in retained(frame(rows(values)))}
    best = found["soft_frozen_decoder"]
    assert best.share == pytest.approx(0.785 / 0.852)
    assert best.change == pytest.approx((0.785 - 0.852) / 0.852)
    assert best.interval.low < best.share < best.interval.high
    assert best.change_interval.low == pytest.approx(best.interval.low - 1)
    assert best.best
    assert not found["frozen_decoder"].best
    # A control is no frozen baseline, however good.
    assert not found["random_decoder"].best
    wide, narrow = best.best_interval, best.change_interval
    assert wide.level == pytest.approx(0.975)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert np.isnan(found["frozen_decoder"].best_interval.low)
    table = to_frame(list(found.values()))
    assert {"share", "interval_low", "change_interval_high", "best"} <= set(table)


def test_all_frozen_baselines_at_once() -> None:
    """Wider than one alone, no wider than Bonferroni's, and the best's from best to best."""
    rng = np.random.default_rng(0)
    values = paired(TRAINED, OTHER, BASELINES[0])
    for i, name in enumerate(BASELINES[1:]):
        noise = 0.002 * rng.normal(size=3)
        values.update({(name, s): 0.775 - 0.01 * i + noise[s] for s in range(3)})
    found = retained(frame(rows(values)))
    n = len(BASELINES)
    scores = np.array([[values[name, s] for s in range(3)] for name in BASELINES])
    shares = scores.mean(axis=1, keepdims=True) / TRAINED.mean()
    level = level_at_once(scores - shares * TRAINED)
    assert 0.95 < level < 1 - 0.05 / n
    for r in found:
        alone = fieller(scores[BASELINES.index(r.baseline)], TRAINED, level)
        assert alone is not None
        assert r.simultaneous.level == pytest.approx(0.95)
        assert r.simultaneous.low == pytest.approx(alone.low - 1)
        assert r.simultaneous.high > r.change_interval.high
    best = next(r for r in found if r.best)
    assert best.n_variants == n
    assert best.best_of.low == max(r.simultaneous.low for r in found)
    assert best.best_of.high == max(r.simultaneous.high for r in found)
    assert all(np.isnan(r.best_of.low) for r in found if not r.best)


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_intervals_hold_at_once(correlation: float) -> None:
    """Also where Bonferroni's would hold too often: 98 % at a correlation of 0.9."""
    rng = np.random.default_rng(1)
    hits, repeats = 0, 1500
    for _ in range(repeats):
        trained = 1 + 0.02 * rng.normal(size=5)
        shared, own = rng.normal(size=(1, 5)), rng.normal(size=(4, 5))
        noise = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
        found = together(0.8 * trained + 0.02 * noise, trained)
        hits += all(i is not None and i.low <= 0.8 <= i.high for i in found)
    assert 0.935 < hits / repeats < 0.97


def test_one_alone_and_two_seeds() -> None:
    one = np.array([[0.1, 0.2, 0.4]])
    assert level_at_once(one) == 0.95
    # Two seeds say nothing of correlations.
    two = np.array([[0.1, 0.2], [0.1, 0.2], [0.3, 0.1]])
    assert level_at_once(two) == pytest.approx(1 - 0.05 / 3, abs=0.002)
    assert together(np.array([[0.5]]), np.array([0.8])) == [None]


def test_best_of_a_metric_where_lower_is_better() -> None:
    values = paired([0.1, 0.12], [0.3, 0.31])
    values.update({("frozen_encoder", s): 0.2 + s / 100 for s in range(2)})
    found = {r.baseline: r for r in retained(frame(rows(values, direction=-1)))}
    assert found["frozen_encoder"].best
    assert found["frozen_encoder"].share > 1


@pytest.mark.parametrize("trained", [[0.0, 0.0, 0.0], [-0.1, -0.2, -0.1], [1e-9, -1e-9, 0.0]])
def test_nothing_to_divide_by(trained: list[float]) -> None:
    (found,) = retained(frame(rows(paired(trained, [0.5, 0.6, 0.5]))))
    assert np.isnan(found.share)
    assert np.isnan(found.interval.low)
    assert "not above 0" in found.reason
    assert not found.best


def test_uncertain_denominator_has_a_share_and_no_interval() -> None:
    (found,) = retained(frame(rows(paired([0.1, 0.9], [0.5, 0.6]))))
    assert found.share == pytest.approx(0.55 / 0.5)
    assert np.isnan(found.interval.low)
    assert "too uncertain" in found.reason


def test_single_seed() -> None:
    (found,) = retained(frame(rows(paired([0.8], [0.6]))))
    assert found.share == pytest.approx(0.75)
    assert found.reason == "single seed: no interval"


def test_l0_mismatch() -> None:
    (found,) = retained(frame(rows(paired(TRAINED, OTHER)), l0={BASELINES[0]: 99}))
    assert np.isnan(found.share)
    assert "L0 differs" in found.reason
