import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sae_baselines.baselines import cosine_to_start, project_to_cap_
from sae_baselines.baselines.cap import validate_tau
from tests.helpers import angles, cosines, random_unit_rows

taus = st.one_of(
    st.sampled_from([0.8, 1.0, 0.0, -0.5, 0.999999, -0.999]),
    st.floats(-0.999, 1.0, allow_nan=False),
)
seeds = st.integers(0, 2**31 - 1)


def rows_around(start: torch.Tensor, seed: int) -> torch.Tensor:
    """Rows everywhere on the sphere: near the start, near its antipode, in between, and
    with norms from 1e-6 to 1e6."""
    n, d = start.shape
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    spread = 10 ** (torch.rand(n, 1, generator=generator, dtype=torch.float64) * 8 - 6)
    sign = (torch.rand(n, 1, generator=generator) < 0.5).double() * 2 - 1
    rows = sign * start.double() + spread * noise
    norm = 10 ** (torch.rand(n, 1, generator=generator, dtype=torch.float64) * 12 - 6)
    return rows / rows.norm(dim=1, keepdim=True) * norm


def nearest_in_float64(rows: torch.Tensor, start: torch.Tensor, tau: float) -> torch.Tensor:
    """Closed form: turn each row towards its start, in their common plane, until it is in."""
    w, s = rows.double(), start.double()
    s = s / s.norm(dim=1, keepdim=True)
    theta = angles(w, s)
    wanted = theta.clamp(max=math.acos(tau))
    tangent = w / w.norm(dim=1, keepdim=True) - torch.cos(theta)[:, None] * s
    tangent = tangent - (tangent * s).sum(1, keepdim=True) * s
    tangent = torch.nn.functional.normalize(tangent, dim=1)
    out = torch.cos(wanted)[:, None] * s + torch.sin(wanted)[:, None] * tangent
    return out * w.norm(dim=1, keepdim=True)


@given(d=st.integers(1, 40), seed=seeds, tau=taus, double=st.booleans())
@example(d=1, seed=0, tau=0.8, double=False)
@example(d=2, seed=0, tau=-0.999, double=False)
def test_every_row_ends_inside_its_cap(d: int, seed: int, tau: float, double: bool) -> None:
    start = random_unit_rows(16, d, seed)
    rows = rows_around(start, seed + 1).to(torch.float64 if double else torch.float32)
    project_to_cap_(rows, start, tau)
    assert cosines(rows, start).min() >= tau - 1e-6


@given(d=st.integers(1, 40), seed=seeds, tau=taus)
def test_the_norm_of_every_row_is_kept(d: int, seed: int, tau: float) -> None:
    start = random_unit_rows(16, d, seed)
    rows = rows_around(start, seed + 1).float()
    norm = rows.double().norm(dim=1)
    project_to_cap_(rows, start, tau)
    torch.testing.assert_close(rows.double().norm(dim=1), norm, rtol=1e-6, atol=0)


@given(d=st.integers(2, 40), seed=seeds, tau=taus)
def test_rows_inside_are_untouched_bit_for_bit_and_the_rest_is_counted(
    d: int, seed: int, tau: float
) -> None:
    start = random_unit_rows(32, d, seed)
    rows = rows_around(start, seed + 1).float()
    before = rows.clone()
    moved = project_to_cap_(rows, start, tau)
    cos = cosines(before, start)
    assert torch.equal(rows[cos >= tau], before[cos >= tau])
    assert moved.dtype == torch.int64
    assert moved.shape == ()
    # Rows within float32 rounding of the edge may be counted either way.
    assert int((cos < tau - 1e-6).sum()) <= int(moved) <= int((cos < tau).sum())
    changed = (rows != before).any(dim=1)
    assert int(changed.sum()) <= int(moved)


@given(d=st.integers(2, 40), seed=seeds, tau=taus)
def test_the_projection_is_the_nearest_point_by_angle(d: int, seed: int, tau: float) -> None:
    start = random_unit_rows(16, d, seed)
    rows = rows_around(start, seed + 1).float()
    before = rows.clone()
    project_to_cap_(rows, start, tau)
    # The least angle from w to {v: angle(v, s) <= acos(tau)} is angle(w, s) - acos(tau).
    least = (angles(before, start) - math.acos(tau)).clamp(min=0)
    outside = cosines(before, start) < tau - 1e-6  # not within rounding of the edge
    turned = angles(rows, before)
    # Within 1e-6 rad of the antipode every way to the edge is taken to be as short as the
    # other, which is wrong by up to twice that; elsewhere float32 rounding is all there is.
    allowed = torch.where(angles(before, -start) < 2e-6, 3e-6, 1e-6)
    error = turned - least
    assert (error <= allowed).all()
    assert (error[outside] >= -1e-6).all()


@given(d=st.integers(2, 40), seed=seeds, tau=taus, double=st.booleans())
def test_the_projection_equals_the_closed_form(
    d: int, seed: int, tau: float, double: bool
) -> None:
    dtype = torch.float64 if double else torch.float32
    start = random_unit_rows(16, d, seed, dtype)
    rows = rows_around(start, seed + 1).to(dtype)
    # Towards the poles the plane of row and start, and with it the point, is ill-conditioned
    # in the input itself; the angle is not, and is tested above.
    theta = angles(rows, start)
    clear = (theta.sin() > 0.1) & (cosines(rows, start) < tau - 1e-6)
    rows, start = rows[clear], start[clear]
    assume(len(rows) > 0)
    wanted = nearest_in_float64(rows, start, tau)
    norm = wanted.norm(dim=1, keepdim=True)
    project_to_cap_(rows, start, tau)
    error = ((rows.double() - wanted) / norm).abs().max()
    assert error < 5e-6


@pytest.mark.parametrize("tau", [0.8, 0.3, -0.4])
def test_no_point_of_a_dense_grid_on_the_circle_is_nearer(tau: float) -> None:
    start = random_unit_rows(50, 2, 1)
    rows = random_unit_rows(50, 2, 2)
    before = rows.clone()
    project_to_cap_(rows, start, tau)
    turn = torch.linspace(-math.acos(tau), math.acos(tau), 20_001, dtype=torch.float64)
    s = start.double()
    normal = torch.stack([-s[:, 1], s[:, 0]], dim=1)
    grid = turn.cos()[:, None, None] * s + turn.sin()[:, None, None] * normal
    best = torch.einsum("gnd,nd->gn", grid, before.double()).max(dim=0).values
    ours = cosines(rows, before)
    torch.testing.assert_close(ours, best, rtol=0, atol=1e-6)


def test_no_random_point_of_the_cap_is_nearer_in_three_dimensions() -> None:
    tau = 0.6
    start = random_unit_rows(20, 3, 3)
    rows = random_unit_rows(20, 3, 4)
    before = rows.clone()
    project_to_cap_(rows, start, tau)
    points = random_unit_rows(200_000, 3, 5, torch.float64)
    inside = points @ start.double().T >= tau
    nearness = points @ before.double().T
    best = torch.where(inside, nearness, torch.full_like(nearness, -1)).max(dim=0).values
    ours = cosines(rows, before)
    assert (ours >= best - 1e-6).all()
    # Points this dense lie within about 0.02 rad of the nearest one.
    assert (ours <= best + 0.05).all()


@given(d=st.integers(2, 64), seed=seeds, tau=taus)
def test_projecting_twice_changes_rounding_at_most(d: int, seed: int, tau: float) -> None:
    start = random_unit_rows(16, d, seed)
    rows = rows_around(start, seed + 1).float()
    project_to_cap_(rows, start, tau)
    once = rows.clone()
    project_to_cap_(rows, start, tau)
    change = (rows.double() - once.double()).norm(dim=1) / once.double().norm(dim=1)
    assert change.max() < 1e-6


@pytest.mark.parametrize("d_in", [8, 768])
@pytest.mark.parametrize("tau", [0.8, 1.0, 0.999, -0.5])
def test_rows_on_the_edge_are_not_rewritten_at_every_step(d_in: int, tau: float) -> None:
    start = random_unit_rows(4000, d_in, 0)
    rows = 1.7 * random_unit_rows(4000, d_in, 1)
    project_to_cap_(rows, start, tau)
    assert int(project_to_cap_(rows, start, tau)) < 40


@pytest.mark.parametrize("d_in", [768, 2304, 8192])
@pytest.mark.parametrize("tau", [0.8, 1.0, -0.5])
def test_the_bound_holds_in_the_dimensions_of_language_models(d_in: int, tau: float) -> None:
    start = random_unit_rows(200, d_in, 0)
    rows = random_unit_rows(200, d_in, 1) * 3
    rows[:100] += 2 * start[:100]
    project_to_cap_(rows, start, tau)
    assert cosines(rows, start).min() >= tau - 1e-6


@pytest.mark.parametrize("tau", [0.8, 1.0, 0.0, -0.7])
@pytest.mark.parametrize("d_in", [1, 2, 3, 17])
def test_antipodal_rows_go_to_the_edge_reproducibly(d_in: int, tau: float) -> None:
    start = random_unit_rows(10, d_in, 0)
    rows = -2.5 * start
    again = rows.clone()
    assert int(project_to_cap_(rows, start, tau)) == 10
    project_to_cap_(again, start, tau)
    assert torch.equal(rows, again)
    # In one dimension there is no edge: the only other direction is the start itself.
    wanted = tau if d_in > 1 else 1.0
    torch.testing.assert_close(
        cosines(rows, start), torch.full((10,), wanted, dtype=torch.float64), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(rows.norm(dim=1), torch.full((10,), 2.5))


@pytest.mark.parametrize("tau", [0.8, -0.3])
def test_in_one_dimension_only_the_sign_can_be_wrong(tau: float) -> None:
    start = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    rows = torch.tensor([[2.0], [-3.0], [4.0], [-5.0]])
    assert int(project_to_cap_(rows, start, tau)) == 2
    assert rows.squeeze(1).tolist() == [2.0, 3.0, -4.0, -5.0]


def test_tau_one_turns_every_row_onto_its_start() -> None:
    start = random_unit_rows(50, 12, 0)
    rows = random_unit_rows(50, 12, 1) * 7
    project_to_cap_(rows, start, 1.0)
    torch.testing.assert_close(rows, 7 * start, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_without_a_direction_are_left_alone(bad: float) -> None:
    start = random_unit_rows(4, 3, 0)
    rows = torch.stack([torch.zeros(3), -start[1], start[2], torch.tensor([1.0, bad, 2.0])])
    assert int(project_to_cap_(rows, start, 0.8)) == 1
    assert torch.equal(rows[0], torch.zeros(3))
    assert torch.equal(rows[2], start[2])
    np.testing.assert_array_equal(rows[3].numpy(), [1.0, bad, 2.0])
    assert cosines(rows[1:2], start[1:2]).item() >= 0.8 - 1e-6


@pytest.mark.parametrize("norm", [1e-30, 1e-20, 1e20, 1e30])
def test_rows_of_extreme_norm_are_projected_too(norm: float) -> None:
    start = random_unit_rows(50, 8, 0)
    rows = (random_unit_rows(50, 8, 1, torch.float64) * norm).float()
    project_to_cap_(rows, start, 0.8)
    assert cosines(rows, start).min() >= 0.8 - 1e-6
    expected = torch.full((50,), norm, dtype=torch.float64)
    torch.testing.assert_close(rows.double().norm(dim=1), expected, rtol=1e-6, atol=0)


@given(d=st.integers(1, 64), seed=seeds, tau=taus)
def test_bfloat16_rows_stay_within_what_their_rounding_allows(
    d: int, seed: int, tau: float
) -> None:
    start = random_unit_rows(16, d, seed)
    rows = rows_around(start, seed + 1).to(torch.bfloat16)
    before = rows.clone()
    project_to_cap_(rows, start, tau)
    assert rows.dtype == torch.bfloat16
    assert cosines(rows, start).min() >= tau - 4e-3
    inside = cosines(before, start) >= tau
    assert torch.equal(rows[inside], before[inside])
    ratio = rows.double().norm(dim=1) / before.double().norm(dim=1)
    assert (ratio - 1).abs().max() <= 2**-8


def test_more_rows_than_one_chunk_are_all_projected() -> None:
    start = random_unit_rows(9000, 3, 0)
    rows = random_unit_rows(9000, 3, 1)
    outside = int((cosines(rows, start) < 0.8 - 1e-6).sum())
    assert abs(int(project_to_cap_(rows, start, 0.8)) - outside) <= 1
    assert cosines(rows, start).min() >= 0.8 - 1e-6


def test_a_parameter_that_requires_a_gradient_can_be_projected() -> None:
    start = random_unit_rows(8, 5, 0)
    rows = torch.nn.Parameter(-start.clone())
    project_to_cap_(rows, start, 0.8)
    assert rows.requires_grad
    assert cosines(rows, start).min() >= 0.8 - 1e-6


@pytest.mark.parametrize("tau", [-1.0, -1.5, 1.0001, math.nan, math.inf, "0.8", None])
def test_a_tau_that_is_no_cap_is_refused_by_name(tau: Any) -> None:
    with pytest.raises(ValueError, match="tau"):
        validate_tau(tau)


@pytest.mark.parametrize("tau", [-0.999, 0, 0.8, 1, 1.0])
def test_a_tau_that_is_a_cap_is_accepted(tau: float) -> None:
    validate_tau(tau)
    project_to_cap_(torch.ones(2, 3), torch.eye(2, 3), tau)


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        project_to_cap_(torch.ones(2, 3), torch.ones(3, 2), 0.8)
    with pytest.raises(ValueError, match="rows and start"):
        project_to_cap_(torch.ones(3), torch.ones(3), 0.8)


def test_cosine_to_start_matches_numpy_in_float64() -> None:
    rows = random_unit_rows(5000, 6, 0) * 3
    start = random_unit_rows(5000, 6, 1)
    a, b = rows.double().numpy(), start.double().numpy()
    wanted = np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    cos = cosine_to_start(rows, start)
    assert cos.dtype == torch.float64
    np.testing.assert_allclose(cos.numpy(), wanted, rtol=0, atol=1e-15)


def test_cosine_to_start_of_a_zero_row_is_nan() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    cos = cosine_to_start(rows, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert math.isnan(float(cos[0]))
    assert float(cos[1]) == 1.0
