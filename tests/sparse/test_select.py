"""The search for entries against torch.topk on the whole matrix."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.saes.topk_sae import TopK

from sae_baselines.sparse import select
from sae_baselines.sparse.select import Found, NotSparseError, above, batch_top_k, top_k_per_row

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@dataclass(frozen=True)
class Problem:
    """An encoder's product, bias and norm, and how it is cut into blocks."""

    x: torch.Tensor
    W_enc: torch.Tensor
    b_enc: torch.Tensor
    norm: torch.Tensor | None
    block_bytes: int
    min_rows: int

    @property
    def product(self) -> torch.Tensor:
        return self.x @ self.W_enc

    @property
    def values(self) -> torch.Tensor:
        """What is ranked, ``[batch, d_sae]``, rounded as SAELens' encoder rounds it."""
        pre = self.product + self.b_enc
        return pre if self.norm is None else pre * self.norm

    @contextmanager
    def in_blocks(self) -> Iterator[None]:
        with mock.patch.multiple(
            select, _BLOCK_BYTES={"cpu": self.block_bytes}, _MIN_ROWS=self.min_rows
        ):
            yield

    def search(
        self, n_selected: int, floor: float | None, **options: Any
    ) -> tuple[Found | None, float]:
        with self.in_blocks():
            return batch_top_k(
                self.x, self.W_enc, self.b_enc, self.norm, n_selected, floor, **options
            )


@st.composite
def problems(draw: st.DrawFn, dtype: torch.dtype, style: str) -> Problem:
    """``grid``: small integers, so that sums are exact in any order and ties are frequent.

    ``wide``: one input, so that there is no sum, and magnitudes from denormal to huge.
    """
    batch, d_sae = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def integers(most: int, *shape: int) -> torch.Tensor:
        return torch.randint(-most, most + 1, shape, generator=generator).double()

    def wide(exponent: int, *shape: int) -> torch.Tensor:
        powers = (
            2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1
        ) * exponent
        signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
        return signs * torch.exp2(powers)

    scale = 1.0
    if style == "grid":
        d_in = draw(st.integers(1, 6))
        most = draw(st.sampled_from([1, 3]))
        x, W_enc = integers(most, batch, d_in), integers(most, d_in, d_sae)
        bias = integers(draw(st.sampled_from([0, 3])), d_sae)
        norm = torch.exp2(integers(draw(st.sampled_from([0, 1, 3])), d_sae))
        scale = 2.0 ** draw(st.sampled_from([0, 0, 30, -40]))
        trouble = draw(st.sampled_from(["", "", "zero rows", "negative", "equal", "positive"]))
        if trouble == "zero rows":
            x[::2] = 0
        elif trouble == "negative":
            x, W_enc, bias = x.abs(), -W_enc.abs(), -bias.abs()
        elif trouble == "positive":
            x, W_enc, bias = x.abs(), W_enc.abs(), bias.abs() + 1
        elif trouble == "equal":
            x[:], W_enc[:] = 1, 1
            bias[:], norm[:] = 0, 1
    else:
        exponent = draw(st.sampled_from([1, 10, 40, 60]))
        x, W_enc = wide(exponent, batch, 1), wide(exponent, 1, d_sae)
        bias = wide(exponent, d_sae) * draw(st.sampled_from([0.0, 1.0]))
        norm = wide(draw(st.sampled_from([1, 20])), d_sae).abs()
    with_norm = draw(st.booleans())
    return Problem(
        (x * scale).to(dtype),
        W_enc.to(dtype),
        (bias * scale).to(dtype),
        norm.to(dtype) if with_norm else None,
        draw(st.sampled_from([1, 64, 300, 2**20])),
        draw(st.sampled_from([1, 3, 256])),
    )


def largest(k: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Columns of the k largest of each row, as SAELens' TopK chooses them."""
    return lambda values: torch.topk(values, k, dim=-1, sorted=False).indices


def keys_of(found: Found) -> torch.Tensor:
    entries = found.entries
    keys = entries.rows * entries.d_sae + entries.cols
    assert (keys.diff() > 0).all()
    return keys


def check_product(found: Found, problem: Problem) -> None:
    wanted = problem.product.flatten()[keys_of(found)]
    assert found.product.dtype == problem.x.dtype
    assert torch.equal(found.product.nan_to_num(7.0), wanted.nan_to_num(7.0))


def best(values: torch.Tensor, n: int) -> tuple[torch.Tensor, bool]:
    """Keys of the n largest positive values, first rows first among equals; whether equals
    straddle the cut."""
    flat = values.flatten()
    order = torch.sort(flat, descending=True, stable=True).indices
    order = order[flat[order] > 0]
    tied = 0 < n < len(order) and bool(flat[order[n - 1]] == flat[order[n]])
    return order[:n].sort().values, tied


def floors(values: torch.Tensor, n: int) -> list[float | None]:
    """Guesses, good and bad ones."""
    positive = values[values > 0].double().sort(descending=True).values
    cut = float(positive[min(n, len(positive)) - 1]) if n and len(positive) else 1.0
    finite = cut if math.isfinite(cut) else 1.0
    return [
        *(None, 0.0, 1e-38, 1e-30, 1e30, math.inf),
        *(cut, 0.5 * finite, 0.999999 * finite, 1.000001 * finite, 1.01 * finite),
    ]


@pytest.mark.parametrize("style", ["grid", "wide"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=50)
@given(data=st.data())
def test_batch_top_k_is_the_top_k_of_the_matrix_whatever_the_floor(
    dtype: torch.dtype, style: str, data: st.DataObject
) -> None:
    problem = data.draw(problems(dtype, style))
    values = problem.values
    total = values.numel()
    n = data.draw(st.sampled_from(sorted({0, 1, 2, total // 7, total // 2, total})))
    n = min(n, total)
    floor = data.draw(st.sampled_from(floors(values, n)))
    if bool(values.isnan().any()):
        return  # inf - inf among the wide ones; see the test of NaN
    keys, tied = best(values, n)

    found, next_floor = problem.search(n, floor)
    assert next_floor >= 0
    assert (found is None) == tied
    if found is not None:
        assert torch.equal(keys_of(found), keys)
        check_product(found, problem)

    found, _ = problem.search(n, floor, first_of_ties=True)
    assert found is not None
    assert torch.equal(keys_of(found), keys)

    # The floor for the next step is a guess as good as any.
    again, _ = problem.search(n, next_floor, first_of_ties=True)
    assert again is not None
    assert torch.equal(keys_of(again), keys)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    share=st.sampled_from([0.01, 0.1, 0.4]),
    block_bytes=st.sampled_from([1, 3000, 2**20]),
    guess=st.sampled_from([None, 0.3, 1.0, 3.0]),
)
def test_on_random_numbers_only_rounding_decides_what_is_near_the_cut(
    dtype: torch.dtype,
    seed: int,
    scale: float,
    share: float,
    block_bytes: int,
    guess: float | None,
) -> None:
    """Blocks round their sums differently, so the truth is float64 with an error bound."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    x, W_enc, b_enc = normal(24, 16) * scale, normal(16, 80), normal(80) * scale
    norm = normal(80).exp()
    problem = Problem(x, W_enc, b_enc, norm, block_bytes, 3)
    exact_values = ((x.double() @ W_enc.double()) + b_enc.double()) * norm.double()
    size = ((x.double().abs() @ W_enc.double().abs()) + b_enc.double().abs()) * norm.double()
    error = (16 + 4) * torch.finfo(dtype).eps * size

    n = int(share * exact_values.numel())
    cut = float(exact_values.flatten().topk(n).values[-1])
    found, _ = problem.search(n, None if guess is None else guess * cut, first_of_ties=True)
    assert found is not None
    assert len(found.entries) == n
    chosen = torch.zeros(exact_values.numel(), dtype=torch.bool)
    chosen[keys_of(found)] = True
    chosen = chosen.view_as(exact_values)
    # Nothing chosen is surely below something left out.
    surely_at_least = (exact_values - error)[~chosen].max()
    assert ((exact_values + error)[chosen] >= surely_at_least).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=25)
@given(data=st.data())
def test_nan_is_found_wherever_it_comes_from(dtype: torch.dtype, data: st.DataObject) -> None:
    problem = data.draw(problems(dtype, "grid"))
    tensors = [problem.x, problem.W_enc, problem.b_enc]  # a norm that is NaN never gets here
    victim = data.draw(st.sampled_from(range(len(tensors))))
    tensors[victim].view(-1)[0] = math.nan
    n = data.draw(st.integers(1, problem.values.numel()))
    floor = data.draw(st.sampled_from([None, 0.0, 1.0, 1e30, math.inf]))
    with pytest.raises(NotSparseError):
        problem.search(n, floor)


@pytest.mark.parametrize("floor", [None, 0.0, 2.0, math.inf])
@pytest.mark.parametrize("n", [1, 3, 8])
def test_infinite_values_are_ranked_as_such(n: int, floor: float | None) -> None:
    x = torch.tensor([[1.0], [math.inf], [2.0], [-math.inf]])
    W_enc = torch.tensor([[1.0, -1.0, 0.5, -2.0]])
    problem = Problem(x, W_enc, torch.tensor([0.0, 9.0, 0.25, -9.0]), None, 1, 1)
    keys, tied = best(problem.values, n)
    found, next_floor = problem.search(n, floor, first_of_ties=True)
    assert found is not None
    assert torch.equal(keys_of(found), keys)
    again, _ = problem.search(n, next_floor)
    assert (again is None) == tied


def test_a_sequence_of_batches_whose_scale_jumps_is_searched_exactly() -> None:
    """The floor of one batch is the next one's guess, however wrong."""
    g = torch.Generator().manual_seed(0)
    floor = None
    for scale in (1.0, 1.1, 1000.0, 1e-6, 0.0, -1.0, 1.0, 1e-30, 1e6):
        x = scale * torch.randn(16, 1, generator=g)
        if scale < 0:
            x = -x.abs()
        W_enc = torch.randn(1, 64, generator=g)
        if scale < 0:
            W_enc = W_enc.abs()
        problem = Problem(x, W_enc, torch.zeros(64), None, 256, 1)
        found, floor = problem.search(100, floor)
        assert found is not None
        assert torch.equal(keys_of(found), best(problem.values, 100)[0])


def test_a_search_that_selects_nothing_finds_nothing() -> None:
    problem = Problem(torch.ones(3, 2), torch.ones(2, 5), torch.ones(5), None, 1, 1)
    found, _ = problem.search(0, None)
    assert found is not None
    assert len(found.entries) == 0


@pytest.mark.parametrize("style", ["grid", "wide"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=25)
@given(data=st.data())
def test_top_k_per_row_chooses_what_the_activation_of_saelens_does(
    dtype: torch.dtype, style: str, data: st.DataObject
) -> None:
    problem = data.draw(problems(dtype, style))
    values = problem.values
    if bool(values.isnan().any()):
        return
    k = data.draw(st.integers(1, values.shape[1]))

    def finish(product: torch.Tensor) -> torch.Tensor:
        pre = product + problem.b_enc
        return pre if problem.norm is None else pre * problem.norm

    with problem.in_blocks():
        found = top_k_per_row(problem.x, problem.W_enc, finish, largest(k))
    wanted = TopK(k)(values).flatten().nonzero().squeeze(1)
    assert torch.equal(keys_of(found), wanted)
    check_product(found, problem)


def test_top_k_per_row_drops_what_relu_makes_zero_unless_told() -> None:
    x, W_enc = torch.tensor([[1.0]]), torch.tensor([[3.0, -1.0, 0.0, -2.0]])
    arguments = (x, W_enc, lambda product: product, largest(3))
    assert top_k_per_row(*arguments).entries.cols.tolist() == [0]
    assert top_k_per_row(*arguments, negative_too=True).entries.cols.tolist() == [0, 1, 2]


def test_top_k_per_row_keeps_nan() -> None:
    x = torch.tensor([[1.0], [math.nan], [2.0]])
    W_enc = torch.tensor([[1.0, 2.0, 3.0]])
    found = top_k_per_row(x, W_enc, lambda product: product, largest(2))
    assert found.entries.rows.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.product.isnan().tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize("style", ["grid", "wide"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=25)
@given(data=st.data())
def test_above_finds_every_entry_above_its_bound_and_every_nan(
    dtype: torch.dtype, style: str, data: st.DataObject
) -> None:
    problem = data.draw(problems(dtype, style))
    if data.draw(st.booleans()):
        problem.x[0, 0] = math.nan
    product = problem.product
    lower = -problem.b_enc
    wanted = ((product > lower) | product.isnan()).flatten().nonzero().squeeze(1)
    with problem.in_blocks():
        found = above(problem.x, problem.W_enc, lower, len(wanted))
        assert torch.equal(keys_of(found), wanted)
        check_product(found, problem)
        if len(wanted) > 0:
            with pytest.raises(NotSparseError, match="dense"):
                above(problem.x, problem.W_enc, lower, len(wanted) - 1)
