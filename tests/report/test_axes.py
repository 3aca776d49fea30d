"""One member that failed does not hide the others."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_baselines.report.axes import beyond, limits


def test_a_far_row_is_left_out_and_pointed_at() -> None:
    rows = [[0.63, 0.64], [0.7, 0.71], [0.32, 0.33], [-229.0, -131.0], [0.54]]
    low, high = limits(rows)
    assert -1 < low < 0.32
    assert 0.71 < high < 1
    assert [beyond(row, (low, high)) for row in rows] == [0, 0, 0, -1, 0]
    assert beyond([5.0], (low, high)) == 1


def test_far_rows_on_both_sides() -> None:
    bounds = limits([[0.1], [0.2], [0.3], [100.0], [-90.0]])
    assert [beyond([v], bounds) for v in (0.1, 0.3, 100.0, -90.0)] == [0, 0, 1, -1]


def test_what_must_be_visible_is() -> None:
    low, high = limits([[5.0, 5.1], [5.2]], [0.0, -0.02, 0.02])
    assert low < -0.02
    assert high > 5.2


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=3), min_size=1, max_size=6))
def test_rows_of_one_scale_are_all_there_or_pointed_at(rows: list[list[float]]) -> None:
    bounds = limits(rows)
    for row in rows:
        inside = all(bounds[0] <= v <= bounds[1] for v in row)
        assert inside or any(not bounds[0] <= v <= bounds[1] for v in row)
    assert bounds[0] < bounds[1]
    assert sum(beyond(row, bounds) == 0 for row in rows) >= min(2, len(rows))


@pytest.mark.parametrize("rows", [[[math.nan]], [[1.0]], [[1.0], [1.0]]])
def test_degenerate_rows(rows: list[list[float]]) -> None:
    low, high = limits(rows, [0.0])
    assert low < high
