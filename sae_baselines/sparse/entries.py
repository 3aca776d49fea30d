"""Where a batch of latents is not zero, and the sums over those places."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from sae_baselines.sparse import kernels


@dataclass(frozen=True, eq=False)
class Entries:
    """Positions in a ``[batch, d_sae]`` matrix, sorted by row, then by latent.

    Attributes:
        rows: int64 ``[n]``, ascending.
        cols: int64 ``[n]``, latents; ascending within a row, none twice.
        n_rows: Batch size.
        d_sae: Number of latents.
    """

    rows: torch.Tensor
    cols: torch.Tensor
    n_rows: int
    d_sae: int

    @classmethod
    def from_keys(cls, keys: torch.Tensor, n_rows: int, d_sae: int) -> "Entries":
        """From ascending flat positions ``row * d_sae + col``."""
        rows = torch.div(keys, d_sae, rounding_mode="floor")
        return cls(rows, keys - rows * d_sae, n_rows, d_sae)

    def __len__(self) -> int:
        return self.rows.shape[0]

    @cached_property
    def row_starts(self) -> torch.Tensor:
        """int64 ``[n_rows]``: the first entry of each row."""
        return _starts(self.rows, self.n_rows)

    @cached_property
    def by_latent(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Order that sorts entries by latent, and the first entry of each latent in it."""
        cols, order = torch.sort(self.cols, stable=True)
        return order, _starts(cols, self.d_sae)

    def to_coo(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` at these places as a coalesced sparse ``[batch, d_sae]`` tensor."""
        return torch.sparse_coo_tensor(
            torch.stack([self.rows, self.cols]),
            values,
            (self.n_rows, self.d_sae),
            check_invariants=False,
            is_coalesced=True,
        )


def _starts(sorted_ids: torch.Tensor, n: int) -> torch.Tensor:
    return torch.searchsorted(sorted_ids, torch.arange(n, device=sorted_ids.device))


def sum_at(index: torch.Tensor, values: torch.Tensor, length: int) -> torch.Tensor:
    """Sums of the values of each index, float64 ``[length]``."""
    sums = torch.zeros(length, dtype=torch.float64, device=values.device)
    return sums.index_add_(0, index, values.double())


def gather_sum(
    table: torch.Tensor,
    index: torch.Tensor,
    starts: torch.Tensor,
    weights: torch.Tensor,
    *,
    rows: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Weighted sums of rows of a table, one sum per bag of entries.

    Args:
        table: ``[m, d]``.
        index: int64 ``[n]``, rows of ``table``.
        starts: int64 ``[r]``, ascending: bag j is ``index[starts[j] : starts[j + 1]]``.
        weights: ``[n]``, in the dtype of ``table``.
        rows: int64 ``[n]``, the bag of each entry; for the gradient in ``weights``.
        out_dtype: Of the result; None means that of ``table``.

    Returns:
        ``[r, d]``; differentiable in ``weights``. An empty bag sums to 0.
    """
    out_dtype = table.dtype if out_dtype is None else out_dtype
    wanted = torch.is_grad_enabled() and weights.requires_grad
    ours = kernels.available(table) and out_dtype in kernels.DTYPES
    if not ours or (wanted and rows is None):
        sums = F.embedding_bag(index, table, starts, mode="sum", per_sample_weights=weights)
        return sums.to(out_dtype)
    table, weights = table.contiguous(), weights.contiguous()
    if wanted:
        assert rows is not None
        return kernels.weighted_sum(table, index, starts, weights, rows, out_dtype)
    return kernels.gather_sum(table, index, starts, weights, out_dtype)
