"""Where a batch of latents is not zero, and the two matrix products of an SAE there.

With A the ``[batch, d_sae]`` activations and P = x @ W_enc the product before biases, both
known or wanted only at some entries (b, l):

- decoding is a weighted sum of the rows of W_dec that are active in b;
- the gradient of P at (b, l) belongs to column l of W_enc, times x[b];
- the gradient of W_dec[l] is a sum over the rows b in which l is active.

All three are `gather_sum`s. Nothing of size ``[batch, d_sae]`` is formed, and gradients are
computed at these entries only.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_baselines.sparse import kernels

# Latents whose W_enc gradient is formed at a time, before it is transposed into place.
_CHUNK_BYTES = {"cpu": 8 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 256 * 2**20


@dataclass(frozen=True, eq=False)
class Entries:
    """Positions in a ``[batch, d_sae]`` matrix, sorted by row, then by latent; none twice.

    ``rows`` and ``cols`` (latents) are int64 ``[n]``, ``n_rows`` is the batch size.
    """

    rows: Tensor
    cols: Tensor
    n_rows: int
    d_sae: int

    @classmethod
    def from_keys(cls, keys: Tensor, n_rows: int, d_sae: int) -> "Entries":
        """From ascending flat positions ``row * d_sae + col``."""
        rows = torch.div(keys, d_sae, rounding_mode="floor")
        return cls(rows, keys - rows * d_sae, n_rows, d_sae)

    def __len__(self) -> int:
        return self.rows.shape[0]

    @cached_property
    def row_starts(self) -> Tensor:
        """int64 ``[n_rows]``: the first entry of each row."""
        return _starts(self.rows, self.n_rows)

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor]:
        """Order that sorts entries by latent, and the first entry of each latent in it."""
        cols, order = torch.sort(self.cols, stable=True)
        return order, _starts(cols, self.d_sae)

    def to_coo(self, values: Tensor) -> Tensor:
        """``values`` at these places as a coalesced sparse ``[batch, d_sae]`` tensor."""
        return torch.sparse_coo_tensor(
            torch.stack([self.rows, self.cols]),
            values,
            (self.n_rows, self.d_sae),
            check_invariants=False,
            is_coalesced=True,
        )


def _starts(sorted_ids: Tensor, n: int) -> Tensor:
    return torch.searchsorted(sorted_ids, torch.arange(n, device=sorted_ids.device))


def sum_at(index: Tensor, values: Tensor, length: int) -> Tensor:
    """Sums of the values of each index, float64 ``[length]``."""
    sums = torch.zeros(length, dtype=torch.float64, device=values.device)
    return sums.index_add_(0, index, values.double())


def per_row(entries: Entries, values: Tensor) -> Tensor:
    """Sum of entries in each row, ``[batch]``; added up in float32 at least, as torch.sum."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    return wide.new_zeros(entries.n_rows).index_add(0, entries.rows, wide).to(values.dtype)


def gather_sum(
    table: Tensor,
    index: Tensor,
    starts: Tensor,
    weights: Tensor,
    *,
    rows: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Weighted sums ``[r, d]`` of rows of a table ``[m, d]``, one per bag of entries.

    Bag j is ``index[starts[j] : starts[j + 1]]`` (int64 ``[n]``, ``[r]``); an empty one sums to
    0. ``weights`` ``[n]`` are in the dtype of the table; for a gradient in them ``rows`` names
    the bag of each entry.
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


def pick(vector: Tensor, index: Tensor) -> Tensor:
    """``vector[index]``, ``[n]`` of ``[d_sae]``, whose gradient is added up in float64.

    A latent may be active in every row of a batch; adding its gradients one by one in
    float32 loses digits that stock's sum over a column keeps, and in bfloat16 stands still.
    """
    return _Pick.apply(vector, index)


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vector: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.of = vector.shape[0], vector.dtype
        return vector.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        (index,) = ctx.saved_tensors
        length, dtype = ctx.of
        return sum_at(index, grads[0], length).to(dtype), None


def bias_through_encoder(b_dec: Tensor, W_enc: Tensor) -> Tensor:
    """A term ``[d_sae]`` of value 0 for b_enc, with b_dec's gradient through ``x - b_dec``.

    Summed over the batch first, it needs no ``[batch, d_in]`` gradient of the input.
    """
    through_encoder = -(b_dec @ W_enc.detach())
    return through_encoder - through_encoder.detach()


def encoder_product(
    product: Tensor, entries: Entries, x: Tensor, W_enc: Tensor, b_dec: Tensor | None
) -> Tensor:
    """Make known values of ``x @ W_enc`` differentiable in W_enc and in the b_dec inside x.

    ``product`` ``[n]`` are the values at ``entries``, returned as they are; x ``[batch, d_in]``
    is what was multiplied, without a gradient; b_dec is None if x does not contain ``- b_dec``.
    """
    return _EncoderProduct.apply(W_enc, b_dec, x, product, entries)


class _EncoderProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        W_enc: Tensor,
        b_dec: Tensor | None,
        x: Tensor,
        product: Tensor,
        entries: Entries,
    ) -> Tensor:
        ctx.save_for_backward(W_enc, x)
        ctx.entries = entries
        ctx.b_dec_dtype = None if b_dec is None else b_dec.dtype
        return product.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        W_enc, x = ctx.saved_tensors
        grad_W_enc = grad_b_dec = None
        if ctx.needs_input_grad[0]:
            grad_W_enc = _encoder_gradient(grads[0], ctx.entries, x, W_enc)
        if ctx.b_dec_dtype is not None and ctx.needs_input_grad[1]:
            # b_dec enters every row alike, so the sum over rows can go first.
            wide = torch.promote_types(W_enc.dtype, torch.float32)
            per_latent = sum_at(ctx.entries.cols, grads[0], ctx.entries.d_sae).to(wide)
            grad_b_dec = -(W_enc.to(wide) @ per_latent).to(ctx.b_dec_dtype)
        return grad_W_enc, grad_b_dec, None, None, None


def _encoder_gradient(grad: Tensor, entries: Entries, x: Tensor, W_enc: Tensor) -> Tensor:
    order, starts = entries.by_latent
    rows = entries.rows[order]
    weights = grad[order].to(x.dtype)
    if kernels.available(x):
        return kernels.gather_sum_transposed(x.contiguous(), rows, starts, weights, W_enc.dtype)
    out = torch.empty_like(W_enc)
    d_in, d_sae = W_enc.shape
    budget = _CHUNK_BYTES.get(x.device.type, _CHUNK_BYTES_ELSEWHERE)
    step = max(1, budget // (d_in * x.element_size()))
    firsts = list(range(0, d_sae, step))
    edges = [*starts[firsts].tolist(), len(entries)]
    for i, first in enumerate(firsts):
        here = slice(edges[i], edges[i + 1])
        latents = slice(first, min(first + step, d_sae))
        sums = gather_sum(x, rows[here], starts[latents] - edges[i], weights[here])
        out[:, latents].copy_(sums.T)
    return out


def decoder_product(
    values: Tensor, entries: Entries, W_dec: Tensor, dtype: torch.dtype
) -> Tensor:
    """``acts @ W_dec``, ``[batch, d_in]``, for activations ``values`` ``[n]`` at ``entries``.

    Multiplied and answered in ``dtype`` (autocast's, or W_dec's); differentiable in both.
    """
    table = W_dec.detach().to(dtype)
    out = gather_sum(
        table, entries.cols, entries.row_starts, values.to(dtype), rows=entries.rows
    )
    if W_dec.requires_grad:
        out = _DecoderGradient.apply(out, W_dec, values.detach(), entries)
    return out


class _DecoderGradient(torch.autograd.Function):
    """Identity on the product, which gives W_dec its gradient on the way back."""

    @staticmethod
    def forward(
        ctx: Any, product: Tensor, W_dec: Tensor, values: Tensor, entries: Entries
    ) -> Tensor:
        ctx.save_for_backward(values)
        ctx.entries = entries
        ctx.W_dec_dtype = W_dec.dtype
        return product.view_as(product)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        (grad,) = grads
        if not ctx.needs_input_grad[1]:
            return grad, None, None, None
        (values,) = ctx.saved_tensors
        order, starts = ctx.entries.by_latent
        rows, weights = ctx.entries.rows[order], values[order].to(grad.dtype)
        sums = gather_sum(grad.contiguous(), rows, starts, weights, out_dtype=ctx.W_dec_dtype)
        return grad, sums, None, None
