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
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_baselines.errors import one_line

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


def available(tensor: Tensor) -> bool:
    """Whether the kernels can take this tensor.

    True for float32, bfloat16 and float16 tensors on an NVIDIA device of the Ampere generation
    or later where triton is installed and every kernel passes a check (`failure`, once per
    process and device), and on CPU in Triton's interpreter
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
    table: Tensor, index: Tensor, starts: Tensor, weights: Tensor, out_dtype: torch.dtype
) -> Tensor:
    """Weighted sums ``[r, d]`` of rows of a table ``[m, d]``, added up in float32.

    Bag j is ``index[starts[j] : starts[j + 1]]`` (int64 ``[n]``, ``[r]``, starts ascending from
    0) with ``weights`` ``[n]``; an empty bag sums to 0. No gradient (see `weighted_sum`).
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
    table: Tensor, index: Tensor, starts: Tensor, weights: Tensor, out_dtype: torch.dtype
) -> Tensor:
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
    table: Tensor,
    index: Tensor,
    rows: Tensor,
    grad: Tensor,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Gradient ``[n]`` of a `gather_sum`'s weights: ``table[index[i]] . grad[rows[i]]``.

    ``rows`` (int64 ``[n]``) is the bag of each entry, ``grad`` ``[r, d]`` the gradient of the
    sums; products are added up in float32.
    """
    _check_matrices(table=table, grad=grad)
    _check_vectors(table.device, index=index, rows=rows)
    _check_dtype(out_dtype)
    if grad.device != table.device or grad.shape[1] != table.shape[1]:
        raise _wrong(f"give it the columns and device of table, {_described(table)}", grad=grad)
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
    table: Tensor,
    index: Tensor,
    starts: Tensor,
    weights: Tensor,
    rows: Tensor,
    out_dtype: torch.dtype,
) -> Tensor:
    """`gather_sum` with a gradient, once, for ``weights`` alone.

    ``rows`` is the bag of each entry, int64 ``[n]``.

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
        weights: Tensor,
        table: Tensor,
        index: Tensor,
        starts: Tensor,
        rows: Tensor,
        out_dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(table, index, rows)
        ctx.weights_dtype = weights.dtype
        return gather_sum(table, index, starts, weights, out_dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        table, index, rows = ctx.saved_tensors
        # A loss that is a plain sum hands down an expanded scalar.
        grad = grads[0].contiguous()
        gradient = weight_gradient(table, index, rows, grad, ctx.weights_dtype)
        return gradient, None, None, None, None, None


def compact_above(
    block: Tensor, lower: Tensor, *, width: int | None = None, first: int = 0
) -> tuple[Tensor, Tensor]:
    """What is not ``<= lower`` ``[cols]`` in a block ``[rows, cols]``; every NaN is.

    The block's first column is number ``first`` of ``width`` columns of a matrix. Answers
    int64 ``[n]`` flat positions ``row * width + first + col``, ascending, and the values there.
    Compared in float32, to which all dtypes convert exactly. The host waits for the device
    once, to learn how many there are.
    """
    _check_matrices(block=block)
    _check_floats(lower=lower)
    rows, cols = block.shape
    if lower.shape != (cols,) or lower.device != block.device or not lower.is_contiguous():
        one_each = f"one bound per column of block, {_described(block)}"
        raise _wrong(f"give a contiguous vector with {one_each}", lower=lower)
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


def _warps(block: int, table: Tensor) -> int:
    """As many as read one row of a block in loads of 16 bytes: sums then stay in a thread."""
    return max(1, block * table.element_size() // (16 * 32))


def _launch(name: str, grid: tuple[int, ...], args: tuple[Any, ...], **options: int) -> None:
    out = args[0]
    # Triton launches on the current device, whatever its arguments are on. Its default for
    # fusing a multiplication and an addition changes between versions; sums should not.
    with torch.cuda.device(out.device) if out.is_cuda else nullcontext():
        getattr(_kernels(), name)[grid](*args, enable_fp_fusion=True, **options)


def _check_bags(
    table: Tensor, index: Tensor, starts: Tensor, weights: Tensor, out_dtype: torch.dtype
) -> int:
    """Raises ValueError, or answers how many columns the table has."""
    _check_matrices(table=table)
    _check_floats(weights=weights)
    _check_vectors(table.device, index=index, starts=starts)
    _check_dtype(out_dtype)
    if weights.device != table.device or not weights.is_contiguous():
        raise _wrong(f"make it contiguous, on {table.device}", weights=weights)
    _check_same_length(index=index, weights=weights)
    return table.shape[1]


def _check_floats(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not available(tensor):
            raise ValueError(
                f"{name} is {_described(tensor)}, which the Triton kernels do not take; use"
                " float32, bfloat16 or float16 on a CUDA device (Ampere or later, with triton"
                " installed), or torch's own operators"
            )


def _check_matrices(**tensors: Tensor) -> None:
    _check_floats(**tensors)
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or not tensor.is_contiguous():
            raise _wrong("give a contiguous matrix", **{name: tensor})


def _check_vectors(device: torch.device, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        right = tensor.dtype == torch.int64 and tensor.device == device
        if not right or tensor.ndim != 1 or not tensor.is_contiguous():
            raise _wrong(f"give a contiguous int64 vector on {device}", **{name: tensor})


def _check_same_length(**tensors: Tensor) -> None:
    first, second = tensors.values()
    if first.shape != second.shape:
        raise _wrong("give one of each per entry", **tensors)


def _check_dtype(out_dtype: torch.dtype) -> None:
    if out_dtype not in DTYPES:
        raise ValueError(f"out_dtype is {out_dtype}; use float32, bfloat16 or float16")


def _wrong(remedy: str, **tensors: Tensor) -> ValueError:
    are = " but ".join(f"{name} is {_described(tensor)}" for name, tensor in tensors.items())
    return ValueError(f"{are}; {remedy}")


def _described(tensor: Tensor) -> str:
    layout = "" if tensor.is_contiguous() else ", not contiguous"
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}{layout}"


@torch.no_grad()
def failure(kernels: Any, device: torch.device) -> str | None:
    """What goes wrong when each kernel of this module is run on a small problem; or None.

    Compared with torch in float64. A missing compiler or driver, or a GPU on which a kernel
    goes wrong, is found here, in one line, and not in a training run.
    """
    try:
        right = [_is_right(kernels, device, t) for t in (torch.float32, torch.bfloat16)]
    except Exception as error:
        # Whatever Triton raises, from a compiler's message to a driver's: the answer is no.
        return f"{type(error).__name__}: {one_line(error, 200)}"
    wrong = [name for name in right[0] if not all(results[name] for results in right)]
    return f"{', '.join(wrong)} differ from torch" if wrong else None


def _is_right(kernels: Any, device: torch.device, dtype: torch.dtype) -> dict[str, bool]:
    # Fixed numbers, not random ones: the run's random state is not touched.
    def numbers(*shape: int) -> Tensor:
        n = torch.Size(shape).numel()
        return torch.sin(torch.arange(n, dtype=torch.float64) ** 2).view(shape).to(dtype)

    def close(ours: Tensor, truth: Tensor) -> bool:
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
