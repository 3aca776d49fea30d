import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_baselines.baselines import covariance_of, sample_directions

seeds = st.integers(0, 2**32)


def covariance_with(spectrum: list[float], seed: int = 0) -> torch.Tensor:
    """A covariance with these eigenvalues in random directions."""
    d = len(spectrum)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    return (q * torch.tensor(spectrum, dtype=torch.float64)) @ q.T


@given(seed=seeds, d_sae=st.integers(1, 40), d_in=st.integers(1, 20))
def test_rows_are_unit_float32_and_a_function_of_the_seed(
    seed: int, d_sae: int, d_in: int
) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    rows = sample_directions(d_sae, d_in, seed=seed)
    torch.manual_seed(2)
    torch.randn(17)
    np.random.seed(2)
    assert torch.equal(rows, sample_directions(d_sae, d_in, seed=seed))
    assert rows.shape == (d_sae, d_in)
    assert rows.dtype == torch.float32
    assert rows.device.type == "cpu"
    norm = rows.double().norm(dim=1)
    torch.testing.assert_close(norm, torch.ones_like(norm), rtol=0, atol=3e-7)


def test_sampling_does_not_touch_the_global_generators() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    sample_directions(30, 4, seed=9)
    assert torch.equal(torch.get_rng_state(), state)


def test_different_seeds_give_unrelated_rows() -> None:
    a = sample_directions(200, 64, seed=0)
    b = sample_directions(200, 64, seed=1)
    # Independent unit rows in 64 dimensions: the cosine has a standard deviation of 1/8.
    cos = (a @ b.T).abs()
    assert cos.max() < 0.8
    assert not torch.equal(a, b)


def test_the_rows_of_a_seed_are_the_same_in_every_release() -> None:
    rows = sample_directions(2, 3, seed=0)
    wanted = [
        [-0.12662299, -0.01365399, -0.99185693],
        [0.69665325, -0.19251746, 0.69109428],
    ]
    torch.testing.assert_close(rows, torch.tensor(wanted), rtol=0, atol=1e-7)


def test_iso_moments_are_those_of_the_uniform_sphere() -> None:
    n, d = 40_000, 6
    rows = sample_directions(n, d, seed=11).double()
    # Five standard errors everywhere.
    assert rows.mean(dim=0).abs().max() < 5 * (1 / d / n) ** 0.5
    second = rows.T @ rows / n
    fourth = 3 / (d * (d + 2))
    spread = (fourth - 1 / d**2) ** 0.5
    off_diagonal = (1 / (d * (d + 2))) ** 0.5
    error = second - torch.eye(d, dtype=torch.float64) / d
    assert error.diagonal().abs().max() < 5 * spread / n**0.5
    assert (error - error.diagonal().diag()).abs().max() < 5 * off_diagonal / n**0.5
    measured = (rows**4).mean(dim=0)
    torch.testing.assert_close(
        measured, torch.full((d,), fourth, dtype=torch.float64), rtol=0.05, atol=0
    )


def test_iso_has_no_preferred_half_space_along_any_direction() -> None:
    n, d = 40_000, 6
    rows = sample_directions(n, d, seed=12)
    probe = torch.nn.functional.normalize(
        torch.randn(50, d, generator=torch.Generator().manual_seed(0)), dim=1
    )
    share = (rows @ probe.T > 0).double().mean(dim=0)
    assert (share - 0.5).abs().max() < 5 * 0.5 / n**0.5


def test_no_row_is_drawn_twice_across_the_blocks_of_a_wide_dictionary() -> None:
    rows = sample_directions(20_000, 3, seed=4)
    assert len(torch.unique(rows, dim=0)) == 20_000
    norm = rows.double().norm(dim=1)
    torch.testing.assert_close(norm, torch.ones_like(norm), rtol=0, atol=3e-7)


def test_cov_directions_have_the_statistics_of_normalised_gaussians() -> None:
    covariance = covariance_with([50.0, 10.0, 3.0, 1.0, 0.1])
    n = 40_000
    rows = sample_directions(n, 5, seed=3, scheme="cov", covariance=covariance).double()
    # The reference takes another root (Cholesky) and another generator (torch's).
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(400_000, 5, generator=generator, dtype=torch.float64)
    reference = draws @ torch.linalg.cholesky(covariance).T
    reference = reference / reference.norm(dim=1, keepdim=True)
    wanted = reference.T @ reference / len(reference)
    measured = rows.T @ rows / n
    # An entry of a unit row's outer product has a standard deviation of at most 1/2.
    assert (measured - wanted).abs().max() < 5 * 0.5 * (1 / n + 1 / 400_000) ** 0.5
    # And the covariance is far from one that this tolerance could not tell from iso.
    assert (wanted - torch.eye(5, dtype=torch.float64) / 5).abs().max() > 0.1
    assert rows.mean(dim=0).abs().max() < 5 * (1 / n) ** 0.5


@given(seed=seeds, shape_seed=st.integers(0, 1000), d=st.integers(1, 12))
def test_one_seed_names_one_point_set_before_the_covariance_is_applied(
    seed: int, shape_seed: int, d: int
) -> None:
    spectrum = [2.0**-i for i in range(d)]
    covariance = covariance_with(spectrum, shape_seed)
    iso = sample_directions(20, d, seed=seed).double()
    cov = sample_directions(20, d, seed=seed, scheme="cov", covariance=covariance)
    # The symmetric root, from numpy's SVD of the covariance.
    u, values, _ = np.linalg.svd(covariance.numpy())
    root = torch.from_numpy(u @ np.diag(np.sqrt(values)) @ u.T)
    wanted = torch.nn.functional.normalize(iso @ root, dim=1)
    torch.testing.assert_close(cov.double(), wanted, rtol=0, atol=1e-5)


@given(seed=seeds, scale=st.floats(1e-6, 1e6))
def test_the_scale_of_the_covariance_does_not_matter(seed: int, scale: float) -> None:
    covariance = covariance_with([4.0, 1.0, 0.25, 0.1])
    one = sample_directions(10, 4, seed=seed, scheme="cov", covariance=covariance)
    other = sample_directions(10, 4, seed=seed, scheme="cov", covariance=covariance * scale)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_an_isotropic_covariance_gives_the_iso_rows() -> None:
    covariance = 3 * torch.eye(7, dtype=torch.float64)
    cov = sample_directions(30, 7, seed=2, scheme="cov", covariance=covariance)
    torch.testing.assert_close(cov, sample_directions(30, 7, seed=2), rtol=0, atol=1e-6)


def test_rows_lie_in_the_range_of_a_covariance_that_is_not_of_full_rank() -> None:
    basis = torch.linalg.qr(
        torch.randn(9, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ).Q
    rows = sample_directions(50, 9, seed=0, scheme="cov", covariance=basis @ basis.T).double()
    assert torch.isfinite(rows).all()
    torch.testing.assert_close(rows @ basis @ basis.T, rows, rtol=0, atol=1e-6)


def test_the_covariance_of_float32_activations_is_good_enough() -> None:
    """More dimensions than samples: rounding makes the least eigenvalues negative."""
    x = torch.randn(20, 48, generator=torch.Generator().manual_seed(0))
    covariance = torch.cov(x.T)
    rows = sample_directions(64, 48, seed=0, scheme="cov", covariance=covariance)
    assert torch.isfinite(rows).all()


BAD = {
    "wrong shape": (torch.eye(3), r"\(3, 3\) does not match d_in=4"),
    "a vector": (torch.ones(4), "covariance: shape"),
    "not a number": (torch.full((4, 4), float("nan")), "NaN"),
    "infinite": (torch.diag(torch.tensor([1.0, 1.0, 1.0, float("inf")])), "infinity"),
    "not symmetric": (torch.eye(4) + torch.triu(torch.ones(4, 4)), "not symmetric"),
    "negative": (torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.1])), "positive semi-definite"),
    "zero": (torch.zeros(4, 4), "zero"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_impossible_covariance_is_refused(case: str) -> None:
    covariance, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        sample_directions(5, 4, seed=0, scheme="cov", covariance=covariance)
    assert str(caught.value).startswith("covariance:")


def test_scheme_and_covariance_have_to_go_together() -> None:
    with pytest.raises(ValueError, match=r"init_scheme.*needs a covariance"):
        sample_directions(5, 4, seed=0, scheme="cov")
    with pytest.raises(ValueError, match=r"init_scheme.*takes no covariance"):
        sample_directions(5, 4, seed=0, covariance=torch.eye(4))
    with pytest.raises(ValueError, match=r"init_scheme.*'gauss'.*iso, cov"):
        sample_directions(5, 4, seed=0, scheme="gauss")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"init_seed.*-1"):
        sample_directions(5, 4, seed=-1)


def test_covariance_of_equals_numpys() -> None:
    x = torch.randn(100, 7, generator=torch.Generator().manual_seed(0)) * 3 + 100
    measured = covariance_of(x)
    assert measured.dtype == torch.float64
    wanted = np.cov(x.double().numpy(), rowvar=False)
    np.testing.assert_allclose(measured.numpy(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_covariance_of_other_dtypes_is_computed_in_float64(dtype: torch.dtype) -> None:
    x = (torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 10).to(dtype)
    wanted = np.cov(x.double().numpy(), rowvar=False)
    np.testing.assert_allclose(covariance_of(x).numpy(), wanted, rtol=1e-12)


@pytest.mark.parametrize("shape", [(10,), (1, 4), (2, 3, 4)])
def test_covariance_of_needs_at_least_two_rows(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"activations: shape.*\[n, d_in\]"):
        covariance_of(torch.zeros(shape))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_covariance_of_refuses_what_is_not_finite(bad: float) -> None:
    x = torch.zeros(10, 3)
    x[4, 1] = bad
    with pytest.raises(ValueError, match=r"activations.*NaN or infinity"):
        covariance_of(x)
