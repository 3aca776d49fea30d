"""The two matrix products of an SAE at given entries, with gradients at those entries only.

With A the ``[batch, d_sae]`` activations and P = x @ W_enc the product before biases, both
known or wanted only at some entries (b, l):

- decoding is a weighted sum of the rows of W_dec that are active in b;
- the gradient of P at (b, l) belongs to column l of W_enc, times x[b];
- the gradient of W_dec[l] is a sum over the rows b in which l is active.

All three are `gather_sum`s. Nothing of size ``[batch, d_sae]`` is formed.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from sae_baselines.sparse import kernels
from sae_baselines.sparse.entries import Entries, gather_sum, sum_at

# Latents whose W_enc gradient is formed at a time, before it is transposed into place.
_CHUNK_BYTES = {"cpu": 8 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 256 * 2**20


def pick(vector: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``vector[index]``, whose gradient is added up in float64.

    A latent may be active in every row of a batch; adding its gradients one by one in
    float32 loses digits that stock's sum over a column keeps, and in bfloat16 stands still.

    Args:
        vector: ``[d_sae]``.
        index: int64 ``[n]``.
    """
    return _Pick.apply(vector, index)


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vector: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.of = vector.shape[0], vector.dtype
        return vector.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, *grads: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        (index,) = ctx.saved_tensors
        length, dtype = ctx.of
        return sum_at(index, grad, length).to(dtype), None


def encoder_product(
    product: torch.Tensor,
    entries: Entries,
    x: torch.Tensor,
    W_enc: torch.Tensor,
    b_dec: torch.Tensor | None,
) -> torch.Tensor:
    """Make known values of ``x @ W_enc`` differentiable in W_enc and in the b_dec inside x.

    Args:
        product: ``[n]``, the values at ``entries``; returned as they are.
        entries: Where.
        x: ``[batch, d_in]``, what was multiplied (b_dec already subtracted), no gradient.
        W_enc: ``[d_in, d_sae]``.
        b_dec: ``[d_in]`` if x contains ``- b_dec``, else None.

    Returns:
        ``[n]``.
    """
    return _EncoderProduct.apply(W_enc, b_dec, x, product, entries)


class _EncoderProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        W_enc: torch.Tensor,
        b_dec: torch.Tensor | None,
        x: torch.Tensor,
        product: torch.Tensor,
        entries: Entries,
    ) -> torch.Tensor:
        ctx.save_for_backward(W_enc, x)
        ctx.entries = entries
        ctx.b_dec_dtype = None if b_dec is None else b_dec.dtype
        return product.clone()

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, *grads: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        W_enc, x = ctx.saved_tensors
        entries: Entries = ctx.entries
        grad_W_enc = grad_b_dec = None
        if ctx.needs_input_grad[0]:
            grad_W_enc = _encoder_gradient(grad, entries, x, W_enc)
        if ctx.b_dec_dtype is not None and ctx.needs_input_grad[1]:
            # b_dec enters every row alike, so the sum over rows can go first.
            wide = torch.promote_types(W_enc.dtype, torch.float32)
            per_latent = sum_at(entries.cols, grad, entries.d_sae).to(wide)
            grad_b_dec = -(W_enc.to(wide) @ per_latent).to(ctx.b_dec_dtype)
        return grad_W_enc, grad_b_dec, None, None, None


def _encoder_gradient(
    grad: torch.Tensor, entries: Entries, x: torch.Tensor, W_enc: torch.Tensor
) -> torch.Tensor:
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
    values: torch.Tensor, entries: Entries, W_dec: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """``acts @ W_dec`` for activations that are ``values`` at ``entries`` and 0 elsewhere.

    Args:
        values: ``[n]``.
        entries: Where.
        W_dec: ``[d_sae, d_in]``.
        dtype: Of the multiplication and of the result (autocast's, or W_dec's).

    Returns:
        ``[batch, d_in]``, differentiable in ``values`` and W_dec.
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
        ctx: Any,
        product: torch.Tensor,
        W_dec: torch.Tensor,
        values: torch.Tensor,
        entries: Entries,
    ) -> torch.Tensor:
        ctx.save_for_backward(values)
        ctx.entries = entries
        ctx.W_dec_dtype = W_dec.dtype
        return product.view_as(product)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, *grads: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        grad_W_dec = None
        if ctx.needs_input_grad[1]:
            (values,) = ctx.saved_tensors
            entries: Entries = ctx.entries
            order, starts = entries.by_latent
            grad_W_dec = gather_sum(
                grad.contiguous(),
                entries.rows[order],
                starts,
                values[order].to(grad.dtype),
                out_dtype=ctx.W_dec_dtype,
            )
        return grad, grad_W_dec, None, None
