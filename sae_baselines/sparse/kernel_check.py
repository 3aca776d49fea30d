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
    # Fixed numbers, not random ones: the run's random state is not touched.
    def numbers(*shape: int) -> torch.Tensor:
        n = torch.Size(shape).numel()
        return torch.sin(torch.arange(n, dtype=torch.float64) ** 2).view(shape)

    def close(ours: torch.Tensor, truth: torch.Tensor) -> bool:
        return torch.allclose(ours.double().cpu(), truth, rtol=1e-5, atol=1e-5)

    # Bags of 0, 1, many and a few entries, over a width that is no power of two.
    table, grad, weights = numbers(37, 67), numbers(5, 67), numbers(50)
    index = (torch.arange(50) * 7) % 37
    starts = torch.tensor([0, 0, 1, 44, 47])
    rows = torch.searchsorted(starts, torch.arange(50), right=True) - 1
    sums = torch.zeros(5, 67, dtype=torch.float64)
    sums.index_add_(0, rows, weights[:, None] * table[index])
    dots = (table[index] * grad[rows]).sum(dim=1)
    lower = numbers(67) / 2
    lower[0] = -2.0
    keys = (table.float() > lower.float()).view(-1).nonzero().squeeze(1)

    on = {
        name: value.float().to(device)
        for name, value in (("t", table), ("g", grad), ("w", weights), ("l", lower))
    }
    index, starts, rows = index.to(device), starts.to(device), rows.to(device)
    bags = (on["t"], index, starts, on["w"], torch.float32)
    found, values = kernels.compact_above(on["t"], on["l"])
    return {
        "gather_sum": close(kernels.gather_sum(*bags), sums),
        "gather_sum_transposed": close(kernels.gather_sum_transposed(*bags), sums.T),
        "weight_gradient": close(kernels.weight_gradient(on["t"], index, rows, on["g"]), dots),
        "compact_above": torch.equal(found.cpu(), keys)
        and torch.equal(values.cpu(), table.float().view(-1)[keys]),
    }
