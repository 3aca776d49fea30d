"""The Triton kernels behind kernels.py. Importing this module needs triton.

Offsets into matrices are int64 throughout: ``[73_728, 4_096]`` and larger matrices are close
to, or beyond, what 32 bits count. Sums are float32 and taken in one fixed order, without
atomics, so that results repeat to the last bit.

What changes from step to step (how many entries, where a slice of them starts) is not
specialised on: a step must not stop to compile a kernel that differs in an alignment.
"""

# A jitted function called from another is typed as if it never returned.
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

_ENTRY_ARGS = ["index", "starts", "weights", "n"]


@triton.jit
def _bag_sum(
    table, index, weights, begin, end, cols, d, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Sum over entries begin..end of weight * table[index, cols], ``[BLOCK_D]``."""
    total = tl.zeros([BLOCK_D], tl.float32)
    for first in range(begin, end, BLOCK_N):
        entries = first + tl.arange(0, BLOCK_N).to(tl.int64)
        inside = entries < end
        rows = tl.load(index + entries, mask=inside, other=0)
        weight = tl.load(weights + entries, mask=inside, other=0.0).to(tl.float32)
        here = inside[:, None] & (cols < d)[None, :]
        tile = tl.load(table + (rows[:, None] * d + cols[None, :]), mask=here, other=0.0)
        total += tl.sum(weight[:, None] * tile.to(tl.float32), axis=0)
    return total


@triton.jit
def _bag_edges(starts, bag, n, r):
    begin = tl.load(starts + bag, mask=bag < r, other=0)
    last = tl.load(starts + (bag + 1), mask=bag + 1 < r, other=n)
    return begin, tl.where(bag < r, last, begin)


@triton.jit(do_not_specialize=_ENTRY_ARGS)
def gather_sum(
    out, table, index, starts, weights, n, r, d, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """``out[bag, cols]``, one program per bag and BLOCK_D columns."""
    bag = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin, end = _bag_edges(starts, bag, n, r)
    total = _bag_sum(table, index, weights, begin, end, cols, d, BLOCK_N, BLOCK_D)
    tl.store(out + (bag * d + cols), total.to(out.dtype.element_ty), mask=cols < d)


@triton.jit(do_not_specialize=_ENTRY_ARGS)
def gather_sum_transposed(
    out,
    table,
    index,
    starts,
    weights,
    n,
    r,
    d,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``out[cols, bags]``, one program per BLOCK_R bags and BLOCK_D columns.

    Bags are summed one after the other and collected in a tile, which is what makes the
    transposed write contiguous.
    """
    first_bag = tl.program_id(0).to(tl.int64) * BLOCK_R
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    place = tl.arange(0, BLOCK_R)
    tile = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for i in range(0, BLOCK_R):
        begin, end = _bag_edges(starts, first_bag + i, n, r)
        total = _bag_sum(table, index, weights, begin, end, cols, d, BLOCK_N, BLOCK_D)
        tile = tl.where((place == i)[:, None], total[None, :], tile)
    bags = first_bag + place
    here = (bags < r)[:, None] & (cols < d)[None, :]
    offsets = cols.to(tl.int64)[None, :] * r + bags[:, None]
    tl.store(out + offsets, tile.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["index", "rows", "n"])
def weight_gradient(
    out, table, index, rows, grad, n, d, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """``out[entries]``, one program per BLOCK_N entries."""
    entries = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = entries < n
    of_table = tl.load(index + entries, mask=inside, other=0)[:, None] * d
    of_grad = tl.load(rows + entries, mask=inside, other=0)[:, None] * d
    # Added up per column first: one reduction across threads at the end, not one per block.
    total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for first in range(0, d, BLOCK_D):
        cols = first + tl.arange(0, BLOCK_D)
        here = inside[:, None] & (cols < d)[None, :]
        a = tl.load(table + (of_table + cols[None, :]), mask=here, other=0.0)
        b = tl.load(grad + (of_grad + cols[None, :]), mask=here, other=0.0)
        total += a.to(tl.float32) * b.to(tl.float32)
    dots = tl.sum(total, axis=1)
    tl.store(out + entries, dots.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _tile_above(block, lower, tile, n_tiles, cols, BLOCK: tl.constexpr):
    """Row and columns of a tile, its values, and 1 where they are not <= lower, else 0."""
    row = (tile // n_tiles).to(tl.int64)
    col = (tile % n_tiles) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(block + (row * cols + col), mask=col < cols, other=0.0)
    bounds = tl.load(lower + col.to(tl.int64), mask=col < cols, other=0.0)
    # A NaN is not below anything; what lies outside the block is 0 <= 0.
    found = tl.where(values.to(tl.float32) <= bounds.to(tl.float32), 0, 1)
    return row, col, values, found


@triton.jit
def count_above(counts, block, lower, n_tiles, cols, BLOCK: tl.constexpr):
    """``counts[tile]``; tiles are numbered along rows, so in ascending flat position."""
    tile = tl.program_id(0)
    _, _, _, found = _tile_above(block, lower, tile, n_tiles, cols, BLOCK)
    tl.store(counts + tile.to(tl.int64), tl.sum(found, axis=0))


@triton.jit(do_not_specialize=["first"])
def write_above(
    positions, kept, ends, block, lower, n_tiles, cols, width, first, BLOCK: tl.constexpr
):
    """Positions and values of what `count_above` counted, given the cumulated counts."""
    tile = tl.program_id(0)
    end = tl.load(ends + tile.to(tl.int64))
    begin = tl.load(ends + (tile.to(tl.int64) - 1), mask=tile > 0, other=0)
    if end > begin:
        row, col, values, found = _tile_above(block, lower, tile, n_tiles, cols, BLOCK)
        at = begin + (tl.cumsum(found, axis=0) - 1)
        tl.store(positions + at, row * width + first + col, mask=found > 0)
        tl.store(kept + at, values, mask=found > 0)
