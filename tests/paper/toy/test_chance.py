"""The null counts: closed form against simulation, and which of them may be trusted where."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_baselines.baselines import project_to_cap_, sample_directions
from sae_baselines.errors import UserError
from sae_baselines.paper.toy.chance import (
    SimulatedRecovery,
    chance_curve,
    count_and_chance,
    reachable_curve,
    simulate_recovery,
)
from sae_baselines.study.synthetic.recovery import best_cosine, recovered_count
from tests.helpers import random_unit_rows


def _moved(target: torch.Tensor, start: torch.Tensor, tau: float) -> torch.Tensor:
    """The rows in the caps around ``start`` that are nearest to ``target``."""
    rows = target.clone()
    project_to_cap_(rows, start, tau)
    return rows


def _reached(start: torch.Tensor, features: torch.Tensor) -> float:
    """Share of features that some row, moved as far as its cap lets it, has above 0.8."""
    each = features.repeat_interleave(len(start), dim=0)
    moved = _moved(each, start.repeat(len(features), 1), 0.8)
    cosines = torch.nn.functional.cosine_similarity(moved, each)
    return float((cosines.view(len(features), -1).amax(dim=1) > 0.8).double().mean())


LEVELS = np.array([-0.2, 0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])


@pytest.mark.parametrize(("n", "m", "count"), [(3, 5, 200), (8, 30, 200), (20, 64, 300)])
def test_closed_form_and_simulation_agree_at_every_threshold(
    n: int, m: int, count: int
) -> None:
    simulated = simulate_recovery(
        random_unit_rows(count, n, 3), m, seed=0, draws=300, thresholds=LEVELS
    )
    error = simulated.share.std(axis=0, ddof=1) / np.sqrt(simulated.draws)
    # Where hardly any dictionary hits, the spread over few hits says nothing.
    floor = 1 / (count * simulated.draws)
    expected = chance_curve(n, m, LEVELS)
    assert (
        np.abs(simulated.share.mean(axis=0) - expected) < 4 * np.maximum(error, floor)
    ).all()


def test_the_expectation_does_not_ask_where_the_features_are() -> None:
    together = random_unit_rows(1, 6, 0) + 0.05 * random_unit_rows(100, 6, 1)
    simulated = simulate_recovery(together, 20, seed=1, draws=1500, thresholds=[0.8])
    error = simulated.share.std() / np.sqrt(simulated.draws)
    assert abs(simulated.share.mean() - chance_curve(6, 20, [0.8])[0]) < 4 * error
    # The spread does: all of them are hit, or none.
    assert simulated.share.std() > 0.3


def test_a_binomial_is_right_in_many_dimensions_and_too_narrow_in_few() -> None:
    def ratio(n: int, m: int, threshold: float) -> float:
        """Variance of the count over a binomial's."""
        simulated = simulate_recovery(
            random_unit_rows(400, n, 2), m, seed=2, draws=400, thresholds=[threshold]
        )
        p = chance_curve(n, m, [threshold])[0]
        return float(simulated.counts(threshold).var(ddof=1) / (400 * p * (1 - p)))

    # A variance over 400 draws has a standard error of 7 %.
    assert 0.7 < ratio(40, 100, 0.5) < 1.3
    assert ratio(3, 10, 0.9) > 2


def test_a_frozen_decoder_is_a_draw_of_the_null() -> None:
    features = random_unit_rows(300, 6, 5)
    simulated = simulate_recovery(features, 40, seed=11, draws=400, thresholds=[0.8])
    counts = simulated.counts(0.8)
    starts = [
        recovered_count(best_cosine(sample_directions(40, 6, seed=s), features))
        for s in range(40)
    ]
    p = [
        count_and_chance(k, n_features=300, d_in=6, d_sae=40, simulation=simulated).p_value
        for k in starts
    ]
    # As uniform as 40 of them should look, and no start among the simulated dictionaries.
    assert 0.3 < np.mean(p) < 0.7
    assert np.mean(np.array(p) <= 0.1) <= 0.25
    assert abs(np.mean(starts) - counts.mean()) < 4 * counts.std() / np.sqrt(40)


def test_a_row_moved_without_regard_to_the_features_stays_at_chance() -> None:
    features = random_unit_rows(300, 6, 5)
    moved = []
    for seed in range(60):
        start = sample_directions(40, 6, seed=seed)
        target = sample_directions(40, 6, seed=1000 + seed)
        moved.append(recovered_count(best_cosine(_moved(target, start, 0.8), features)))
    expected = 300 * chance_curve(6, 40, [0.8])[0]
    assert abs(np.mean(moved) - expected) < 4 * np.std(moved) / np.sqrt(60)


def test_the_papers_counts_are_beyond_any_chance() -> None:
    null = count_and_chance(3, n_features=3200, d_in=100, d_sae=3200)
    assert null.expected < 1e-10
    assert (null.low, null.high) == (0, 0)
    assert 0 < null.p_value < 1e-10
    assert null.p_value == null.p_bound >= null.p_binomial
    assert 0.3 < null.expected_mean_best_cosine < 0.4
    nothing = count_and_chance(0, n_features=3200, d_in=100, d_sae=3200)
    assert nothing.p_value == nothing.p_bound == nothing.p_binomial == 1.0


def test_p_values_of_the_simulation_count_ties_and_the_observation() -> None:
    simulated = SimulatedRecovery(
        np.array([0.8]), np.array([[0.0], [0.1], [0.1], [0.3]]), np.zeros(4), 10, 0
    )
    assert simulated.counts().tolist() == [0, 1, 1, 3]
    p = [
        count_and_chance(k, n_features=10, d_in=3, d_sae=5, simulation=simulated).p_simulated
        for k in (0, 1, 2, 4)
    ]
    assert p == [1.0, 4 / 5, 2 / 5, 1 / 5]
    null = count_and_chance(1, n_features=10, d_in=3, d_sae=5, simulation=simulated)
    assert null.simulated_mean == pytest.approx(1.25)
    assert null.simulated_sd == pytest.approx(np.std([0, 1, 1, 3], ddof=1))
    assert null.draws == 4


@settings(max_examples=20)
@given(n=st.integers(2, 12), m=st.integers(1, 60), observed=st.integers(0, 50))
def test_the_bound_bounds(n: int, m: int, observed: int) -> None:
    null = count_and_chance(observed, n_features=50, d_in=n, d_sae=m)
    assert 0 <= null.p_binomial <= null.p_bound * (1 + 1e-9) <= 1 + 1e-9
    assert null.low - 1 <= null.expected <= null.high + 1


def test_draws_are_a_function_of_the_seed_and_leave_global_state_alone() -> None:
    features = random_unit_rows(50, 5, 0)
    before = torch.get_rng_state()
    a, b, c = (simulate_recovery(features, 20, seed=s, draws=5) for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(a.share, b.share)
    assert not np.array_equal(a.share, c.share)
    assert len(np.unique(a.mean_best_cosine)) == 5


def test_a_covariance_changes_the_null() -> None:
    features = random_unit_rows(200, 8, 0)
    flat = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3]))
    cov = simulate_recovery(features, 60, seed=0, draws=20, scheme="cov", covariance=flat)
    iso = simulate_recovery(features, 60, seed=0, draws=20)
    # Directions in three dimensions cannot reach features in eight.
    assert cov.mean_best_cosine.max() < iso.mean_best_cosine.min()


def test_the_expected_reach_is_the_mean_over_starts() -> None:
    features = random_unit_rows(200, 40, 0)
    share = np.array(
        [_reached(sample_directions(30, 40, seed=s), features) for s in range(100)]
    )
    (expected,) = reachable_curve(40, 30, 0.8, [0.8])
    assert 0.2 < expected < 0.95
    assert abs(share.mean() - expected) < 4 * share.std() / 10


def test_a_frozen_decoder_reaches_what_it_has() -> None:
    assert reachable_curve(10, 30, 1.0, LEVELS) == pytest.approx(chance_curve(10, 30, LEVELS))
    # At the paper's sizes the cap of 0.8 hides nearly no feature.
    assert reachable_curve(100, 3200, 0.8, [0.8])[0] > 0.99


def test_bad_input_is_refused() -> None:
    features = random_unit_rows(10, 4, 0)
    simulated = simulate_recovery(features, 5, seed=0, draws=2, thresholds=[0.5])
    with pytest.raises(UserError, match="draws: 1"):
        simulate_recovery(features, 5, seed=0, draws=1)
    with pytest.raises(UserError, match=r"threshold: 0\.8 was not simulated"):
        simulated.counts()
    with pytest.raises(UserError, match="observed: 11 of 10"):
        count_and_chance(11, n_features=10, d_in=4, d_sae=5)
    with pytest.raises(UserError, match="simulation: of 10 features, the count is of 12"):
        count_and_chance(1, n_features=12, d_in=4, d_sae=5, simulation=simulated)
    with pytest.raises(UserError, match="tau"):
        reachable_curve(4, 5, 1.5)
