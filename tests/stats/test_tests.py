"""TOST, Holm, power and margins against independent computations."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from sae_baselines.errors import UserError
from sae_baselines.stats import Margin, margin_for, t_interval, tost
from sae_baselines.stats.decision import holm
from sae_baselines.stats.power import MOST_SEEDS, seeds_to_differ, seeds_to_match

SEEDS = st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=8).map(np.array)


@settings(deadline=None)
@given(SEEDS, st.floats(0.001, 0.2))
def test_tost_is_the_larger_of_two_one_sided_tests(d: np.ndarray, margin: float) -> None:
    if d.std() < 1e-9:
        return
    low = stats.ttest_1samp(d, -margin, alternative="greater")[1]
    high = stats.ttest_1samp(d, margin, alternative="less")[1]
    p = tost(d, margin)
    assert p == pytest.approx(max(low, high), rel=1e-6, abs=1e-12)  # type: ignore[type-var]
    if abs(p - 0.05) > 1e-6:
        assert (p < 0.05) == t_interval(d, 0.9).inside(margin)


def test_tost_without_spread() -> None:
    assert tost(np.zeros(3), 0.01) == 0
    assert tost(np.full(3, 0.02), 0.01) == 1


@pytest.mark.parametrize("m", [1, 2, 5, 12])
def test_holm_against_statsmodels(m: int) -> None:
    p = np.random.default_rng(m).uniform(size=m) ** 3
    p[: m // 3] = p[-1]  # ties
    wanted: Any = multipletests(p, method="holm")[1]
    np.testing.assert_allclose(holm(list(p)), wanted, rtol=1e-12)


def test_holm_known_answer() -> None:
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.9]), [0.09, 0.04, 0.09, 0.9])
    assert len(holm([])) == 0


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8))
def test_holm_grows_with_its_p_values(pairs: list[tuple[float, float]]) -> None:
    """What `against_random` relies on."""
    less = holm([p for p, _ in pairs])
    more = holm([max(p, q) for p, q in pairs])
    assert (more >= less - 1e-12).all()


def test_seeds_to_differ_by_simulation() -> None:
    n = seeds_to_differ(1.0, 1.0, alpha=0.05)
    assert n == 10  # the textbook's number for effect size 1, two-sided 5 %, power 80 %
    d = np.random.default_rng(0).normal(1.0, 1.0, size=(20_000, n))
    found = (stats.ttest_1samp(d, 0, axis=1)[1] < 0.05).mean()  # type: ignore[operator]
    assert 0.79 < found < 0.84


def test_seeds_to_match_by_simulation() -> None:
    n = seeds_to_match(0.005, 0.01, 0.02, alpha=0.05)
    assert n is not None
    d = np.random.default_rng(0).normal(0.005, 0.01, size=(4000, n))
    found = np.mean([t_interval(row, 0.9).inside(0.02) for row in d])
    assert 0.78 < found < 0.9
    fewer = np.mean([t_interval(row[:-1], 0.9).inside(0.02) for row in d])
    assert fewer < 0.82


@pytest.mark.parametrize("alpha", [0.05, 0.005])
@pytest.mark.parametrize("effect", [0.3, 1, 4, 8, 20, 50, 200, 1e5])
def test_power_is_a_number_far_out(effect: float, alpha: float) -> None:
    n = seeds_to_differ(effect, 1.0, alpha=alpha)
    assert n is None or 2 <= n <= MOST_SEEDS
    if effect >= 1:
        assert n is not None


def test_power_answers() -> None:
    assert seeds_to_differ(0.01, 1.0, alpha=0.05) is None
    assert seeds_to_differ(100.0, 1.0, alpha=0.05, at_least=7) == 7
    assert seeds_to_differ(-1.0, 1.0, alpha=0.05) == seeds_to_differ(1.0, 1.0, alpha=0.05)
    assert seeds_to_match(0.03, 0.01, 0.02, alpha=0.05) is None
    assert seeds_to_match(0.0, 1.0, 0.02, alpha=0.05) is None
    assert seeds_to_differ(1.0, 1.0, alpha=0.05, at_least=MOST_SEEDS + 1) is None


@pytest.mark.parametrize(
    ("suite", "metric", "value"),
    [
        ("core", "explained_variance", 0.02),
        ("panel", "explained_variance", 0.02),
        ("core", "ce_loss_score", 0.01),
        ("core", "kl_div_score", 0.01),
        ("sparse_probing", "sae_top_1_test_accuracy", 0.01),
        ("sparse_probing", "sae_top_2_test_accuracy", 0.01),
        ("sparse_probing_sae_probes", "sae_top_5_test_accuracy", 0.01),
        ("sparse_probing_sae_probes", "sae_top_1_test_auc", 0.01),
        ("ravel", "disentanglement_score", 0.02),
        ("autointerp", "autointerp_score", 0.02),
        ("absorption", "mean_absorption_fraction_score", 0.02),
        ("scr", "scr_metric_threshold_20", 0.02),
        ("tpp", "tpp_threshold_20_total_metric", 0.02),
        ("meta_structure", "decoder_fraction_variance_explained", 0.02),
    ],
)
def test_default_margins(suite: str, metric: str, value: float) -> None:
    margin = margin_for(suite, metric)
    assert margin is not None
    assert margin.value == value
    assert margin.why.endswith(".")


def test_margins_of_the_user() -> None:
    own = {"core/explained_variance": 0.05, "ravel/*": Margin(0.1, "Because."), "mse": 3}
    found = margin_for("core", "explained_variance", own)
    assert found == Margin(0.05, "Set by the user.")
    assert margin_for("panel", "explained_variance", own) == margin_for(
        "panel", "explained_variance"
    )
    assert margin_for("ravel", "cause_score", own) == Margin(0.1, "Because.")
    assert margin_for("core", "mse", own) == Margin(3, "Set by the user.")
    assert margin_for("core", "mse") is None


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_margin_must_be_positive(value: float) -> None:
    with pytest.raises(UserError, match="positive number"):
        Margin(value, "")
