"""Running tests of behaviour with both ways to compute a training step."""

from collections.abc import Iterator, Sequence

import pytest
import torch

from sae_baselines.sparse import step


@pytest.fixture(scope="module", autouse=True, params=["dense step", "sparse step"])
def either_step(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test of the module twice; small SAEs are too dense to be sparse by themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "MAX_DENSITY", 0.0 if request.param == "dense step" else 1.0)
        yield request.param


def in_one_step(members: Sequence[str]) -> pytest.MarkDecorator:
    """Of a test that trains every member for long: the first in dense steps, others in sparse.

    That both steps compute the same is what tests/sparse holds. Members between the first and
    the last are for the thorough tests.
    """
    steps = [
        pytest.param(
            member,
            "sparse step" if i else "dense step",
            marks=[pytest.mark.thorough] if 0 < i < len(members) - 1 else [],
        )
        for i, member in enumerate(members)
    ]
    return pytest.mark.parametrize(("member", "either_step"), steps, indirect=["either_step"])


# Of a test that takes long: its dense steps are for the thorough tests.
sparse_first = pytest.mark.parametrize(
    "either_step",
    ["sparse step", pytest.param("dense step", marks=pytest.mark.thorough)],
    indirect=True,
)


def is_close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Equal up to float32 rounding of sums over d_in or the batch (as small as in tests)."""
    ours, theirs = ours.detach(), theirs.detach()
    scale = float(theirs.abs().max()) if theirs.numel() else 0.0
    return torch.allclose(ours, theirs, rtol=2e-6, atol=2e-6 * scale)
