"""Sums, products and searches at entries on CUDA, by Triton kernels (triton_kernels.py).

What they have over torch's operators: sums leave bfloat16 tables in float32, or already
transposed; results repeat bit for bit; finding entries needs no mask of the matrix's size.

Every function takes contiguous float32, bfloat16 or float16 tensors on one device (mixed
dtypes are fine) and int64 indices, and raises ValueError on anything else. Values of indices
are not checked, as that would stop the device: they must be valid, or the result is not.
"""

import importlib
import os
import sys
import warnings
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from sae_baselines.sparse.kernel_check import failure

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Entries summed at a time; the loads of one round are in flight together.
_BLOCK_N = 8
# Bags per program of a transposed sum: 8 float32 values fill a sector of memory, and more
# would not fit the registers.
_BLOCK_R = 8
_MOST_COLUMNS = 512
_MOST_COLUMNS_IN_TILE = 256
_MOST_SEARCHED = 2048

# Devices on which the kernels have been tried, and whether they may be used.
_trusted: dict[torch.device, bool] = {}


def available(tensor: torch.Tensor) -> bool:
    """Whether the kernels can take this tensor.

    True for float32, bfloat16 and float16 tensors on an NVIDIA device of the Ampere generation
    or later where triton is installed and every kernel passes a check (kernel_check.py, once
    per process and device), and on CPU in Triton's interpreter
    (``TRITON_INTERPRET=1`` from the start of the process; slow, for tests).
    """
    if tensor.dtype not in DTYPES:
        return False
    if tensor.is_cuda:
        return torch.version.hip is None and _can_run(tensor.device)
    return (
        tensor.device.type == "cpu"
        and "TRITON_INTERPRET" in os.environ
        and _kernels() is not None
        and _interpreted()
    )


def _can_run(device: torch.device) -> bool:
    if device not in _trusted:
        recent = torch.cuda.get_device_capability(device) >= (8, 0)
        _trusted[device] = recent and _kernels() is not None and not _interpreted()
        # Trusted for the length of the check itself, which runs them.
        if _trusted[device] and (reason := failure(sys.modules[__name__], device)):
            _trusted[device] = False
            warnings.warn(
                f"Triton kernels are off on {device} ({reason}); torch's operators are used",
                stacklevel=2,
            )
    return _trusted[device]


@cache
def _kernels() -> Any:
    """The module of kernels; None without triton. Imported when first needed."""
    try:
        return importlib.import_module("sae_baselines.sparse.triton_kernels")
    except ImportError:
        return None


def _interpreted() -> bool:
    kernels = _kernels()
    return not isinstance(kernels.gather_sum, kernels.triton.JITFunction)


def gather_sum(
    table: torch.Tensor,
    index: torch.Tensor,
    starts: torch.Tensor,
    weights: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """Weighted sums of rows of a table, one sum per bag of entries, added up in float32.

    Args:
        table: ``[m, d]``.
        index: int64 ``[n]``, rows of ``table``.
        starts: int64 ``[r]``, ascending from 0: bag j is ``index[starts[j] : starts[j + 1]]``.
        weights: ``[n]``.
        out_dtype: Of the result.

    Returns:
        ``[r, d]``, no gradient (see `weighted_sum`). An empty bag sums to 0.
    """
    d, r = _check_bags(table, index, starts, weights, out_dtype), starts.shape[0]
    out = table.new_empty((r, d), dtype=out_dtype)
    if out.numel():
        block = _block(d, _MOST_COLUMNS)
        grid = (r, -(-d // block))
        args = (out, table, index, starts, weights, index.shape[0], r, d)
        warps = _warps(block, table)
        _launch("gather_sum", grid, args, BLOCK_N=_BLOCK_N, BLOCK_D=block, num_warps=warps)
    return out


def gather_sum_transposed(
    table: torch.Tensor,
    index: torch.Tensor,
    starts: torch.Tensor,
    weights: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """`gather_sum` written as ``[d, r]``, contiguous, without a copy."""
    d, r = _check_bags(table, index, starts, weights, out_dtype), starts.shape[0]
    out = table.new_empty((d, r), dtype=out_dtype)
    if out.numel():
        block = _block(d, _MOST_COLUMNS_IN_TILE)
        grid = (-(-r // _BLOCK_R), -(-d // block))
        args = (out, table, index, starts, weights, index.shape[0], r, d)
        blocks = {"BLOCK_R": _BLOCK_R, "BLOCK_N": _BLOCK_N, "BLOCK_D": block}
        _launch("gather_sum_transposed", grid, args, **blocks, num_warps=_warps(block, table))
    return out


def weight_gradient(
    table: torch.Tensor,
    index: torch.Tensor,
    rows: torch.Tensor,
    grad: torch.Tensor,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Gradient of the weights of a `gather_sum`: ``table[index[i]] . grad[rows[i]]``.

    Args:
        table: ``[m, d]``.
        index: int64 ``[n]``, rows of ``table``.
        rows: int64 ``[n]``, rows of ``grad``: the bag of each entry.
        grad: ``[r, d]``, gradient of the sums.
        out_dtype: Of the result; products are added up in float32.

    Returns:
        ``[n]``.
    """
    _check_floats(table=table, grad=grad)
    _check_matrix(table=table, grad=grad)
    _check_vectors(table.device, index=index, rows=rows)
    _check_dtype(out_dtype)
    if grad.device != table.device or grad.shape[1] != table.shape[1]:
        raise ValueError(
            f"grad is {_described(grad)}; give it the columns and device of table,"
            f" {_described(table)}"
        )
    _check_same_length(index=index, rows=rows)
    n, d = index.shape[0], table.shape[1]
    out = table.new_empty(n, dtype=out_dtype)
    if d == 0:
        return out.zero_()
    if n:
        args = (out, table, index, rows, grad, n, d)
        blocks = {"BLOCK_N": _BLOCK_N, "BLOCK_D": _block(d, _MOST_COLUMNS_IN_TILE)}
        _launch("weight_gradient", (-(-n // _BLOCK_N),), args, **blocks)
    return out


def weighted_sum(
    table: torch.Tensor,
    index: torch.Tensor,
    starts: torch.Tensor,
    weights: torch.Tensor,
    rows: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """`gather_sum` with a gradient, for ``weights`` alone.

    Args:
        table: ``[m, d]``, no gradient.
        index: As for `gather_sum`.
        starts: As for `gather_sum`.
        weights: As for `gather_sum`; differentiable once.
        rows: int64 ``[n]``, the bag of each entry.
        out_dtype: Of the result.

    Raises:
        ValueError: If ``table`` wants a gradient, or as for every function here.
    """
    if table.requires_grad and torch.is_grad_enabled():
        raise ValueError("table requires a gradient, which is not computed here; detach it")
    return _WeightedSum.apply(weights, table, index, starts, rows, out_dtype)


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weights: torch.Tensor,
        table: torch.Tensor,
        index: torch.Tensor,
        starts: torch.Tensor,
        rows: torch.Tensor,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        ctx.save_for_backward(table, index, rows)
        ctx.weights_dtype = weights.dtype
        return gather_sum(table, index, starts, weights, out_dtype)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, *grads: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        table, index, rows = ctx.saved_tensors
        # A loss that is a plain sum hands down an expanded scalar.
        gradient = weight_gradient(table, index, rows, grad.contiguous(), ctx.weights_dtype)
        return gradient, None, None, None, None, None


def compact_above(
    block: torch.Tensor, lower: torch.Tensor, *, width: int | None = None, first: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and values of what is not ``<= lower`` in its column; every NaN is found.

    The host waits for the device once, to learn how many there are.

    Args:
        block: ``[rows, cols]``.
        lower: ``[cols]``. Compared in float32, to which all three dtypes convert exactly.
        width: Columns of the matrix that ``block`` is a part of; None means ``cols``.
        first: Which of those columns is the first of ``block``.

    Returns:
        int64 ``[n]`` flat positions ``row * width + first + col``, ascending, and the values
        there ``[n]``, in the dtype of ``block``.
    """
    _check_floats(block=block, lower=lower)
    _check_matrix(block=block)
    rows, cols = block.shape
    if lower.shape != (cols,) or lower.device != block.device or not lower.is_contiguous():
        raise ValueError(
            f"lower is {_described(lower)}; give a contiguous vector with one bound per"
            f" column of block, {_described(block)}"
        )
    width = cols if width is None else width
    if first < 0 or first + cols > width:
        raise ValueError(
            f"width is {width}, first is {first}: {cols} columns do not fit; width must be at"
            " least first + the columns of block"
        )
    if block.numel() == 0:
        return block.new_empty(0, dtype=torch.int64), block.new_empty(0)
    searched = _block(cols, _MOST_SEARCHED)
    n_tiles = -(-cols // searched)
    grid = (rows * n_tiles,)
    counts = block.new_empty(grid, dtype=torch.int32)
    _launch("count_above", grid, (counts, block, lower, n_tiles, cols), BLOCK=searched)
    ends = counts.cumsum(0, dtype=torch.int64)
    n = int(ends[-1])
    positions = block.new_empty(n, dtype=torch.int64)
    kept = block.new_empty(n)
    args = (positions, kept, ends, block, lower, n_tiles, cols, width, first)
    _launch("write_above", grid, args, BLOCK=searched)
    return positions, kept


def _block(length: int, most: int) -> int:
    """A power of two for ``tl.arange``: enough for ``length``, up to ``most``."""
    return min(most, max(64, 1 << (length - 1).bit_length()))


def _warps(block: int, table: torch.Tensor) -> int:
    """As many as read one row of a block in loads of 16 bytes: sums then stay in a thread."""
    return max(1, block * table.element_size() // (16 * 32))


def _launch(name: str, grid: tuple[int, ...], args: tuple[Any, ...], **options: int) -> None:
    out = args[0]
    # Triton launches on the current device, whatever its arguments are on. Its default for
    # fusing a multiplication and an addition changes between versions; sums should not.
    with torch.cuda.device(out.device) if out.is_cuda else nullcontext():
        getattr(_kernels(), name)[grid](*args, enable_fp_fusion=True, **options)


def _check_bags(
    table: torch.Tensor,
    index: torch.Tensor,
    starts: torch.Tensor,
    weights: torch.Tensor,
    out_dtype: torch.dtype,
) -> int:
    _check_floats(table=table, weights=weights)
    _check_matrix(table=table)
    _check_vectors(table.device, index=index, starts=starts)
    _check_dtype(out_dtype)
    if weights.device != table.device or not weights.is_contiguous():
        raise ValueError(
            f"weights is {_described(weights)}; make it contiguous, on {table.device}"
        )
    _check_same_length(index=index, weights=weights)
    return table.shape[1]


def _check_floats(**tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        if not available(tensor):
            raise ValueError(
                f"{name} is {_described(tensor)}, which the Triton kernels do not take; use"
                " float32, bfloat16 or float16 on a CUDA device (Ampere or later, with triton"
                " installed), or torch's own operators"
            )


def _check_matrix(**tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or not tensor.is_contiguous():
            raise ValueError(f"{name} is {_described(tensor)}; give a contiguous matrix")


def _check_vectors(device: torch.device, **tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        right = tensor.dtype == torch.int64 and tensor.device == device
        if not right or tensor.ndim != 1 or not tensor.is_contiguous():
            raise ValueError(
                f"{name} is {_described(tensor)}; give a contiguous int64 vector on {device}"
            )


def _check_same_length(**tensors: torch.Tensor) -> None:
    (a, first), (b, second) = tensors.items()
    if first.shape != second.shape:
        raise ValueError(
            f"{a} is {_described(first)} but {b} is {_described(second)}; give one of each per"
            " entry"
        )


def _check_dtype(out_dtype: torch.dtype) -> None:
    if out_dtype not in DTYPES:
        raise ValueError(f"out_dtype is {out_dtype}; use float32, bfloat16 or float16")


def _described(tensor: torch.Tensor) -> str:
    layout = "" if tensor.is_contiguous() else ", not contiguous"
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}{layout}"
