"""The paper's explained variance in one pass."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformer_lens import HookedTransformer

from sae_baselines.evals.variance import explained_variance
from sae_baselines.reconstruction import RunningVariance
from tests.evals.tiny_hub import CONTEXT, D_MODEL, MODEL, tiny_sae


def direct(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    x, x_hat = x.double(), x_hat.double()
    return float(1 - (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    shift=st.floats(-1e4, 1e4),
    scale=st.floats(1e-3, 1e3),
)
def test_batches_make_no_difference(
    seed: int, sizes: list[int], shift: float, scale: float
) -> None:
    n = sum(sizes) + 2
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=generator, dtype=torch.float64) * scale + shift
    x_hat = x + torch.randn(n, 5, generator=generator, dtype=torch.float64) * scale / 3
    total, first = RunningVariance(), 0
    for size in [*sizes, 2]:
        total.add(x[first : first + size], x_hat[first : first + size])
        first += size
    assert total.n == n
    assert total.explained_variance == pytest.approx(direct(x, x_hat), abs=1e-6)


def test_a_shift_of_mean_is_no_variance() -> None:
    """Where SAEBench's formula goes wrong: adding a constant must change nothing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 8, generator=generator)
    x_hat = x + 0.5 * torch.randn(500, 8, generator=generator)
    values = []
    for shift in (0.0, 3.0, 30.0):
        total = RunningVariance()
        total.add(x + shift, x_hat + shift)
        values.append(total.explained_variance)
    assert values[1:] == pytest.approx([values[0]] * 2, abs=1e-5)
    assert values[0] == pytest.approx(0.75, abs=0.02)


def test_without_variance_there_is_no_number() -> None:
    total = RunningVariance()
    assert math.isnan(total.explained_variance)
    total.add(torch.ones(4, 3), torch.zeros(4, 3))
    assert math.isnan(total.explained_variance)


@pytest.mark.usefixtures("tiny_hub")
def test_heads_side_by_side_are_one_width() -> None:
    """An SAE on hook_z reshapes for itself, which must not happen twice."""
    hook = "blocks.0.attn.hook_z"
    sae: Any = tiny_sae(hook_name=hook)
    sae.cfg.reshape_activations = "hook_z"
    sae.turn_on_forward_pass_hook_z_reshaping()
    model = HookedTransformer.from_pretrained_no_processing(MODEL, device="cpu")
    tokens = torch.randint(5, 50, (2, CONTEXT), generator=torch.Generator().manual_seed(0))
    ev, n = explained_variance(model, sae, hook, [tokens], set())
    with torch.no_grad():
        x = model.run_with_cache(tokens, names_filter=[hook])[1][hook].flatten(-2, -1)
        x = x.reshape(-1, D_MODEL)
        x_hat = sae.decode(sae.encode(x))
    assert n == tokens.numel()
    assert ev == pytest.approx(direct(x, x_hat), abs=1e-6)
