"""Recovery against brute force, and what must not change it."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.synthetic import feature_uniqueness
from scipy.optimize import linear_sum_assignment

from sae_baselines.errors import UserError
from sae_baselines.study.synthetic import recovery
from sae_baselines.study.synthetic.recovery import (
    THRESHOLDS,
    best_cosine,
    one_to_one,
    recovered_count,
    recovery_by_frequency,
    recovery_curve,
)
from tests.helpers import random_unit_rows


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """One pair, by the law of cosines."""
    a, b = a.double() / a.double().norm(), b.double() / b.double().norm()
    return float(1 - (a - b).pow(2).sum() / 2)


def _brute(W_dec: torch.Tensor, features: torch.Tensor) -> list[float]:
    rows = [row for row in W_dec if row.norm() > 0]
    return [max(_cosine(f, row) for row in rows) for f in features]


@settings(max_examples=30)
@given(
    n=st.integers(2, 12), m=st.integers(1, 9), count=st.integers(1, 9), seed=st.integers(0, 999)
)
def test_best_cosine_is_the_signed_maximum_over_all_pairs(
    n: int, m: int, count: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(m, n, generator=generator)
    features = torch.randn(count, n, generator=generator)
    assert best_cosine(W_dec, features).tolist() == pytest.approx(
        _brute(W_dec, features), abs=1e-9
    )


@settings(max_examples=30)
@given(
    seed=st.integers(0, 999), scale=st.floats(1e-30, 1e30), feature_scale=st.floats(1e-30, 1e30)
)
def test_norms_and_the_order_of_rows_do_not_matter(
    seed: int, scale: float, feature_scale: float
) -> None:
    W_dec, features = random_unit_rows(9, 6, seed), random_unit_rows(7, 6, seed + 1)
    plain = best_cosine(W_dec, features)
    torch.testing.assert_close(
        best_cosine(W_dec.flip(0) * scale, features * feature_scale), plain, rtol=0, atol=2e-7
    )


def test_a_direction_pointing_the_other_way_recovers_nothing() -> None:
    feature = torch.tensor([[0.6, 0.8, 0.0]])
    assert best_cosine(-feature, feature).item() == pytest.approx(-1.0)
    assert best_cosine(torch.cat([-feature, feature]), feature).item() == pytest.approx(1.0)


def test_one_latent_may_recover_two_features() -> None:
    features = torch.tensor([[1.0, 0.5], [1.0, -0.5]])
    W_dec = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    best = best_cosine(W_dec, features)
    assert recovered_count(best) == 2
    assert one_to_one(W_dec, features) == (1, 1)


def test_chunks_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    W_dec, features = random_unit_rows(40, 8, 0), random_unit_rows(33, 8, 1)
    whole = best_cosine(W_dec, features), one_to_one(W_dec, features, 0.5)
    monkeypatch.setattr(recovery, "_CELLS", 7 * 40)
    torch.testing.assert_close(best_cosine(W_dec, features), whole[0], rtol=0, atol=1e-15)
    assert one_to_one(W_dec, features, 0.5) == whole[1]


def test_rows_of_norm_zero_are_left_out() -> None:
    features = random_unit_rows(5, 4, 0)
    # Both rows point away from every feature, so that a zero row's cosine of 0 would win.
    W_dec = -features.sum(dim=0, keepdim=True)
    features = features[(features @ W_dec.T)[:, 0] < -0.1]
    padded = torch.cat([torch.zeros(2, 4), W_dec])
    assert len(features) > 0
    assert torch.equal(best_cosine(padded, features), best_cosine(W_dec, features))
    assert best_cosine(padded, features).max() < 0


@pytest.mark.parametrize(
    ("W_dec", "features", "field"),
    [
        (torch.tensor([[float("nan"), 1.0]]), torch.eye(2), "W_dec: has NaN"),
        (torch.tensor([[float("inf"), 1.0]]), torch.eye(2), "W_dec: has NaN or infinity"),
        (torch.eye(2), torch.tensor([[1.0, float("nan")]]), "features: has NaN"),
        (torch.zeros(3, 2), torch.eye(2), "every row is zero"),
        (torch.eye(2), torch.zeros(1, 2), "features: some have norm zero"),
        (torch.eye(2), torch.zeros(0, 2), "or there are none"),
        (torch.eye(3), torch.eye(2), r"W_dec: shape \(3, 3\) beside features \(2, 2\)"),
    ],
)
def test_what_has_no_recovery_is_refused(
    W_dec: torch.Tensor, features: torch.Tensor, field: str
) -> None:
    with pytest.raises(UserError, match=field):
        best_cosine(W_dec, features)


@given(best=st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_the_curve_counts_strictly_above(best: list[float]) -> None:
    curve = recovery_curve(best)
    brute = [sum(b > t for b in best) / len(best) for t in THRESHOLDS]
    assert curve.tolist() == pytest.approx(brute, abs=1e-12)
    assert recovered_count(best) == sum(b > 0.8 for b in best)
    assert curve[THRESHOLDS.index(0.8)] * len(best) == pytest.approx(recovered_count(best))


def test_exactly_the_threshold_is_not_recovered() -> None:
    assert recovered_count([0.8, np.nextafter(0.8, 1)]) == 1
    with pytest.raises(UserError, match="NaN"):
        recovered_count([0.9, float("nan")])


@settings(max_examples=40)
@given(m=st.integers(1, 7), count=st.integers(1, 7), seed=st.integers(0, 999))
def test_one_to_one_is_the_best_assignment(m: int, count: int, seed: int) -> None:
    W_dec, features = random_unit_rows(m, 3, seed), random_unit_rows(count, 3, seed + 1)
    above = np.array([[_cosine(f, d) > 0.6 for d in W_dec] for f in features])
    rows, columns = linear_sum_assignment(above, maximize=True)
    matched, recovering = one_to_one(W_dec, features, 0.6)
    assert matched == above[rows, columns].sum()
    assert recovering == above.any(axis=0).sum()
    assert matched <= min(recovering, recovered_count(best_cosine(W_dec, features), 0.6))


def test_saelens_uniqueness_has_no_sign_and_no_threshold() -> None:
    features = random_unit_rows(6, 20, 0)
    # Perfectly unique for SAELens, nothing recovered for the paper.
    assert feature_uniqueness(-features, features) == 1.0
    assert one_to_one(-features, features) == (0, 0)


class TestByFrequency:
    best = np.array([0.9, 0.1, 0.95, 0.85, 0.2, 0.3])
    p = np.array([1e-4, 2e-4, 1e-1, 5e-2, 3e-3, 1e-3])

    def test_bins_hold_every_feature_once(self) -> None:
        table = recovery_by_frequency(self.best, self.p, 3)
        assert table["n"].tolist() == [2, 2, 2]
        assert table["recovered"].tolist() == [1, 0, 2]
        assert table["low"].iloc[0] == 1e-4
        assert table["high"].iloc[-1] == 1e-1
        assert table["centre"].tolist() == pytest.approx([10**-3.5, 10**-2.5, 10**-1.5])
        assert table["mean_best_cosine"].tolist() == pytest.approx([0.5, 0.25, 0.9])

    def test_intervals_are_wilsons(self) -> None:
        table = recovery_by_frequency(self.best, self.p, 3, level=0.9)
        for row in table.to_dict("records"):
            z = 1.6448536269514722
            share, n = row["recovered"] / row["n"], row["n"]
            middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
            half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
            assert (row["share_low"], row["share_high"]) == pytest.approx(
                (middle - half, middle + half)
            )

    def test_empty_bins_have_no_share(self) -> None:
        table = recovery_by_frequency(self.best, self.p, [1e-5, 5e-5, 1.0])
        assert table["n"].tolist() == [0, 6]
        assert np.isnan(
            table.loc[0, ["share", "share_low", "mean_best_cosine"]].astype(float)
        ).all()

    def test_features_that_never_fire_have_a_row_of_their_own(self) -> None:
        p = self.p.copy()
        p[:2] = 0
        table = recovery_by_frequency(self.best, p, 2)
        assert table.loc[0, ["low", "high", "n", "recovered"]].tolist() == [0, 0, 2, 1]
        assert table["n"].tolist() == [2, 2, 2]

    def test_one_common_probability_is_one_bin(self) -> None:
        table = recovery_by_frequency(self.best, np.full(6, 0.00625), 20)
        assert len(table) == 1
        assert table.loc[0, ["n", "recovered"]].tolist() == [6, 3]
        assert table.loc[0, "centre"] == pytest.approx(0.00625)

    @given(p=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=40), bins=st.integers(1, 12))
    def test_no_feature_is_lost_at_an_edge(self, p: list[float], bins: int) -> None:
        table = recovery_by_frequency(np.linspace(0, 1, len(p)), p, bins)
        assert table["n"].sum() == len(p)

    @pytest.mark.parametrize(
        ("p", "bins", "message"),
        [
            (np.ones(3), 3, "one per feature"),
            (np.full(6, 1.5), 3, r"outside \[0, 1\]"),
            (np.full(6, np.nan), 3, r"outside \[0, 1\]"),
            (np.full(6, 0.1), 0, "bins: 0"),
            (np.full(6, 0.1), [0.5, 0.2], "ascending"),
            (np.full(6, 0.1), [0.2, 0.5], "widen"),
        ],
    )
    def test_bad_input_is_refused(self, p: np.ndarray, bins: int, message: str) -> None:
        with pytest.raises(UserError, match=message):
            recovery_by_frequency(self.best, p, bins)


def test_devices_and_dtypes_give_the_same_counts() -> None:
    features = random_unit_rows(50, 10, 0, torch.float64)
    W_dec = random_unit_rows(60, 10, 1, torch.float64)
    exact = best_cosine(W_dec, features)
    assert exact.dtype == torch.float64
    for pair in itertools.product((torch.float32, torch.float64), repeat=2):
        found = best_cosine(W_dec.to(pair[0]), features.to(pair[1]))
        torch.testing.assert_close(found, exact, rtol=0, atol=2e-7)
    # bfloat16 rows are other directions, but they are compared in float64.
    rounded = W_dec.bfloat16()
    assert torch.equal(best_cosine(rounded, features), best_cosine(rounded.double(), features))
