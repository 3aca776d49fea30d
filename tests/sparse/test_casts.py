"""What stock SAELens survives of casting and moving an SAE, its baselines survive."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sae_baselines.compat.saes import SAE_TRAINING_CLASS_REGISTRY
from tests.helpers import (
    BASES,
    CONSTRAINTS,
    SIX_BASES,
    AnySAE,
    activations,
    make_sae,
    step_input,
)

WIDE = 256  # so that four active latents are sparse
_DOUBLE = torch.zeros(1, dtype=torch.float64)
CASTS: dict[str, Callable[[AnySAE], Any]] = {
    "double()": lambda sae: sae.double(),
    "half()": lambda sae: sae.half(),
    "bfloat16()": lambda sae: sae.bfloat16(),
    "float()": lambda sae: sae.float(),
    "type(double)": lambda sae: sae.type(torch.float64),
    "to(float64)": lambda sae: sae.to(torch.float64),
    "to(float16)": lambda sae: sae.to(torch.float16),
    "to(bfloat16)": lambda sae: sae.to(torch.bfloat16),
    "to(float32)": lambda sae: sae.to(torch.float32),
    "to(cpu)": lambda sae: sae.to("cpu"),
    "to(cpu, float64)": lambda sae: sae.to("cpu", dtype=torch.float64),
    "to(tensor)": lambda sae: sae.to(_DOUBLE),
    "cpu()": lambda sae: sae.cpu(),
}


def survived(name: str, casts: list[str], n_dead: int, autocast: bool, **options: Any) -> Any:
    """Whether each cast, training step and forward pass goes through, and the last loss."""
    torch.manual_seed(0)
    sae = make_sae(name, d_sae=WIDE, **options)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    x, dead = activations(16), torch.arange(WIDE) < n_dead
    losses = []

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = sae.training_forward_pass(step_input(sae, x, dead))
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.loss))

    went_through = []
    for cast in casts:
        for act in (lambda cast=cast: CASTS[cast](sae), step, lambda: sae(x)):
            try:
                act()
            except RuntimeError:
                went_through.append(False)
            else:
                went_through.append(True)
    return went_through, losses[-1:], sae


# Those that fell over, of each kind; drawn at random they are rare.
@example("frozen_decoder", "topk", ["double()"], 3, True, False)
@example("frozen_encoder", "batchtopk", ["type(double)"], 200, True, False)
@example("seeded", "matryoshka_batchtopk", ["double()"], 3, True, False)
@settings(max_examples=60, deadline=None)
@given(
    constraint=st.sampled_from([*CONSTRAINTS, "seeded"]),
    base=st.sampled_from([*BASES, "matching_pursuit"]),
    casts=st.lists(st.sampled_from(list(CASTS)), min_size=1, max_size=3),
    n_dead=st.sampled_from([0, 3, 200]),
    sparse_step=st.booleans(),
    autocast=st.booleans(),
)
def test_every_cast_that_stock_survives(
    constraint: str, base: str, casts: list[str], n_dead: int, sparse_step: bool, autocast: bool
) -> None:
    name = f"{constraint}_{base}"
    if name not in SAE_TRAINING_CLASS_REGISTRY:
        return
    options = {"sparse_step": sparse_step} if base in SIX_BASES else {}
    stock, _, _ = survived(base, casts, n_dead, autocast)
    ours, _, _ = survived(name, casts, n_dead, autocast, **options)
    assert [cast for cast in zip(stock, ours, strict=True) if cast == (True, False)] == []


@pytest.mark.usefixtures("other_dtypes")
@pytest.mark.parametrize("cast", ["double()", "to(float64)", "type(double)"])
@pytest.mark.parametrize("n_dead", [3, 200])
@pytest.mark.parametrize("base", ["topk", "batchtopk", "matryoshka_batchtopk"])
def test_a_double_sae_trains_sparsely_as_it_does_densely(
    base: str, n_dead: int, cast: str
) -> None:
    name = f"soft_frozen_decoder_{base}"
    ours, loss, sae = survived(name, [cast], n_dead, False, sparse_step=True)
    assert all(ours)
    assert sae.sparse_state.sparse_steps == 1
    _, dense, _ = survived(name, [cast], n_dead, False, sparse_step=False)
    assert loss == pytest.approx(dense, rel=1e-9)
