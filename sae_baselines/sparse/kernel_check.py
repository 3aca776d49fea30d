"""Do the Triton kernels work on this device? Asked once, before they are trusted."""

from typing import Any

import torch

from sae_baselines.errors import one_line


@torch.no_grad()
def failure(kernels: Any, device: torch.device) -> str | None:
    """Run each kernel on a small problem and compare it with torch in float64.

    A missing compiler or driver, or a GPU on which a kernel goes wrong, is found here and not
    in a training run.

    Args:
        kernels: The module sae_baselines.sparse.kernels.
        device: Where.

    Returns:
        What went wrong, in one line; None if nothing did.
    """
    try:
        wrong = [name for name, ok in _results(kernels, device).items() if not ok]
    except Exception as error:
        # Whatever Triton raises, from a compiler's message to a driver's: the answer is no.
        return f"{type(error).__name__}: {one_line(error, 200)}"
    return f"{', '.join(wrong)} differ from torch" if wrong else None


def _results(kernels: Any, device: torch.device) -> dict[str, bool]:
    results: dict[str, bool] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for name, ok in _results_in(kernels, device, dtype).items():
            results[name] = results.get(name, True) and ok
    return results


def _results_in(kernels: Any, device: torch.device, dtype: torch.dtype) -> dict[str, bool]:
    # Fixed numbers, not random ones: the run's random state is not touched.
    def numbers(*shape: int) -> torch.Tensor:
        n = torch.Size(shape).numel()
        return torch.sin(torch.arange(n, dtype=torch.float64) ** 2).view(shape).to(dtype)

    def close(ours: torch.Tensor, truth: torch.Tensor) -> bool:
        # Added up in float32, whatever the dtype of what is added.
        return torch.allclose(ours.double().cpu(), truth, rtol=1e-5, atol=1e-5)

    # Bags of 0, 1, many and a few entries, over a width that is no power of two.
    table, grad, weights = numbers(37, 67), numbers(5, 67), numbers(50)
    index = (torch.arange(50) * 7) % 37
    starts = torch.tensor([0, 0, 1, 44, 47])
    rows = torch.searchsorted(starts, torch.arange(50), right=True) - 1
    sums = torch.zeros(5, 67, dtype=torch.float64)
    sums.index_add_(0, rows, weights.double()[:, None] * table.double()[index])
    dots = (table.double()[index] * grad.double()[rows]).sum(dim=1)
    lower = numbers(67) / 2
    lower[0] = -2.0
    keys = (table > lower).view(-1).nonzero().squeeze(1)

    there = [t.to(device) for t in (table, index, starts, weights)]
    found, values = kernels.compact_above(there[0], lower.to(device))
    gradient = kernels.weight_gradient(there[0], there[1], rows.to(device), grad.to(device))
    transposed = kernels.gather_sum_transposed(*there, torch.float32)
    return {
        "gather_sum": close(kernels.gather_sum(*there, torch.float32), sums),
        "gather_sum_transposed": close(transposed, sums.T),
        "weight_gradient": close(gradient, dots),
        "compact_above": torch.equal(found.cpu(), keys)
        and torch.equal(values.cpu(), table.view(-1)[keys]),
    }
