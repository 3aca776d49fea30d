"""Which entries of ``x @ W_enc`` matter, found block by block.

The product is formed in blocks of latents (or of rows, for a top-k per row) that fit a
cache, so that ``[batch, d_sae]`` never exists. What is returned are the entries and the
values of the product there, exactly those that a search of the whole matrix would give.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_baselines.sparse import kernels
from sae_baselines.sparse.products import Entries, pick

# A block of the product: small enough for a CPU's last cache, large enough for its product
# to run at full speed. An accelerator wants few launches instead.
_BLOCK_BYTES = {"cpu": 24 * 2**20}
_BLOCK_BYTES_ELSEWHERE = 512 * 2**20
_MIN_ROWS = 256

# Candidates of a batch-top-k, in units of what it selects: more are cut down on the way.
_TOO_MANY = 4
# What the next step's floor is set to have; the surplus absorbs what a step changes.
_WANTED = 1.75
_SAMPLE_ROWS = 64
# Below this a product with a decoder norm may leave the range of normal numbers.
_SMALLEST_FLOOR = 1e-30


class NotSparseError(Exception):
    """The sparse step cannot, or should not, do this batch; stock's dense step does it."""


@dataclass(frozen=True, eq=False)
class Found:
    """Entries, and the product ``x @ W_enc`` there, ``[n]``, in the dtype it was formed in."""

    entries: Entries
    product: Tensor


@dataclass(frozen=True, eq=False)
class PreActivation:
    """Stock's ``(product + b_enc) * norm`` (``[d_sae]``; None is 1), rounded in its order."""

    b_enc: Tensor
    norm: Tensor | None = None

    def __call__(self, product: Tensor) -> Tensor:
        values = product + self.b_enc
        return values if self.norm is None else values * self.norm

    def at(self, product: Tensor, cols: Tensor) -> Tensor:
        """The same at entries in these columns."""
        norm = None if self.norm is None else pick(self.norm, cols)
        return PreActivation(pick(self.b_enc, cols), norm)(product)

    def lower_bound(self, floor: float) -> Tensor:
        """What the product exceeds wherever the pre-activation is >= floor (> 0 if it is 0)."""
        if floor < _SMALLEST_FLOOR:
            return -self.b_enc  # product + bias rounds to something positive only if it is
        bias = self.b_enc.double()
        at = floor if self.norm is None else floor / self.norm.double()
        # Rounding of the sum and of the product, in the coarsest precision involved.
        eps = torch.finfo(self.b_enc.dtype).eps
        lower = at - bias - 8 * eps * (at + bias.abs())
        return lower.to(torch.promote_types(self.b_enc.dtype, torch.float32))


def _block_bytes(device: torch.device) -> int:
    return _BLOCK_BYTES.get(device.type, _BLOCK_BYTES_ELSEWHERE)


def latent_blocks(x: Tensor, W_enc: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """``(first, last, x @ W_enc[:, first:last])``; each block is valid until the next."""
    batch, d_sae = x.shape[0], W_enc.shape[1]
    widest = max(1, _block_bytes(x.device) // (batch * x.element_size()))
    n_blocks = -(-d_sae // widest)
    width = -(-d_sae // n_blocks)
    buffer = x.new_empty(batch * width)
    for first in range(0, d_sae, width):
        last = min(first + width, d_sae)
        block = buffer[: batch * (last - first)].view(batch, last - first)
        torch.mm(x, W_enc[:, first:last], out=block)
        yield first, last, block


def row_blocks(x: Tensor, W_enc: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """``(first, last, x[first:last] @ W_enc)``; each block is valid until the next."""
    batch, d_sae = x.shape[0], W_enc.shape[1]
    most = max(_MIN_ROWS, _block_bytes(x.device) // (d_sae * x.element_size()))
    n_blocks = -(-batch // most)
    height = -(-batch // n_blocks)
    buffer = x.new_empty(height, d_sae)
    for first in range(0, batch, height):
        last = min(first + height, batch)
        block = buffer[: last - first]
        torch.mm(x[first:last], W_enc, out=block)
        yield first, last, block


def above(x: Tensor, W_enc: Tensor, lower: Tensor, max_entries: int) -> Found:
    """Every entry of the product above the bound ``[d_sae]`` of its latent, and every NaN.

    Raises:
        NotSparseError: If there are more than ``max_entries``.
    """
    d_sae = W_enc.shape[1]
    keys: list[Tensor] = []
    values: list[Tensor] = []
    count = 0
    for first, last, block in latent_blocks(x, W_enc):
        block_keys, block_values = _above_in_block(block, lower[first:last], first, d_sae)
        keys.append(block_keys)
        values.append(block_values)
        count += block_keys.shape[0]
        if count > max_entries:
            raise NotSparseError("dense")
    return _sorted(torch.cat(keys), torch.cat(values), x.shape[0], d_sae)


def _above_in_block(
    block: Tensor, lower: Tensor, first: int, d_sae: int
) -> tuple[Tensor, Tensor]:
    # "not below or equal" instead of "above": a NaN must be found, not lost.
    if kernels.available(block):
        return kernels.compact_above(block, lower.contiguous(), width=d_sae, first=first)
    index = (block <= lower).logical_not_().view(-1).nonzero().squeeze(1)
    rows = torch.div(index, block.shape[1], rounding_mode="floor")
    return rows * (d_sae - block.shape[1]) + index + first, block.view(-1)[index]


def _sorted(keys: Tensor, values: Tensor, n_rows: int, d_sae: int) -> Found:
    keys, order = torch.sort(keys)
    return Found(Entries.from_keys(keys, n_rows, d_sae), values[order])


def top_k_per_row(
    x: Tensor,
    W_enc: Tensor,
    rank: Callable[[Tensor], Tensor],
    choose: Callable[[Tensor], Tensor],
    *,
    negative_too: bool = False,
) -> Found:
    """The largest entries of each row of ``x @ W_enc``.

    ``rank`` goes from the product to what is ranked, ``[rows, d_sae]`` both, ``choose`` from
    that to the columns of its k largest, ``[rows, k]``. All k of a row are kept if
    ``negative_too``, else those that ReLU leaves something of.
    """
    d_sae = W_enc.shape[1]
    keys: list[Tensor] = []
    products: list[Tensor] = []
    for first, last, block in row_blocks(x, W_enc):
        ranked = rank(block)
        cols = choose(ranked)
        rows = torch.arange(first, last, device=x.device)[:, None]
        if negative_too:
            kept = torch.ones_like(cols, dtype=torch.bool)
        else:
            kept = (ranked.gather(1, cols) <= 0).logical_not_()  # a NaN is chosen, and stays
        keys.append((rows * d_sae + cols)[kept])
        products.append(block.gather(1, cols)[kept])
    return _sorted(torch.cat(keys), torch.cat(products), x.shape[0], d_sae)


def top_of_dead(pre: Tensor, k: int, dead: Tensor, d_sae: int) -> Tensor:
    """Columns ``[rows, k]`` of the k largest dead latents of ``pre`` ``[rows, n_dead]``.

    As stock chooses them: it ranks the whole row with everything that is not dead at -inf.
    Where equal values straddle the cut its choice depends on that row, so such rows are
    ranked as stock does it. ``dead``, int64 ``[n_dead]``, says which latents they are.
    """
    if k == pre.shape[1]:
        return torch.arange(k, device=pre.device).expand(pre.shape[0], k)
    top = torch.topk(pre, k + 1, dim=-1, sorted=True)
    cols = top.indices[:, :k]
    tied = (top.values[:, k - 1] == top.values[:, k]).nonzero().squeeze(1)
    if tied.numel():
        place = torch.zeros(d_sae, dtype=torch.int64, device=pre.device)
        place[dead] = torch.arange(dead.shape[0], device=pre.device)
        height = max(1, _block_bytes(pre.device) // (d_sae * pre.element_size()))
        cols = cols.clone()
        for rows in tied.split(height):
            whole = pre.new_full((rows.shape[0], d_sae), -torch.inf)
            whole[:, dead] = pre[rows]
            cols[rows] = place[torch.topk(whole, k, dim=-1, sorted=False).indices]
    return cols


def batch_top_k(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    norm: Tensor | None,
    n_selected: int,
    floor: float | None,
    *,
    first_of_ties: bool = False,
) -> tuple[Found | None, float]:
    """The ``n_selected`` largest positive entries of ``(x @ W_enc + b_enc) * norm``.

    Only entries above a floor are looked at. If there are at least ``n_selected`` of them,
    nothing below the floor can be among the largest, whatever the floor was: that is the
    proof of exactness, checked on every batch. Otherwise the search is repeated over all
    positive entries. The floor is a guess from the step before; None estimates one.

    Returns the entries and a floor for the next step. Where equal values straddle the cut,
    those in the first rows win if ``first_of_ties``; else None: the choice is stock's to make.

    Raises:
        NotSparseError: On NaN, which stock's step must see.
    """
    if n_selected == 0:
        return above(x, W_enc, torch.full_like(b_enc, torch.inf), 0), 0.0
    pre = PreActivation(b_enc, norm)
    if floor is None:
        floor = _estimate_floor(x, W_enc, pre, n_selected)
    found = _candidates(x, W_enc, pre, n_selected, floor)
    if found is None:
        found = _candidates(x, W_enc, pre, n_selected, 0.0)
        assert found is not None
    keys, product, values, floor = found
    n_rows, d_sae = x.shape[0], W_enc.shape[1]
    if values.shape[0] > n_selected:
        wanted = min(values.shape[0], int(_WANTED * n_selected))
        ranked = torch.topk(values, wanted, sorted=True).values
        cut = ranked[n_selected - 1]
        kept = values >= cut
        floor = float(ranked[-1])
        surplus = int(kept.sum()) - n_selected
        if surplus and not first_of_ties:
            return None, floor
        if surplus:
            tied = keys[values == cut].sort().values
            kept &= ~torch.isin(keys, tied[-surplus:])
        keys, product = keys[kept], product[kept]
    return _sorted(keys, product, n_rows, d_sae), 0.9 * floor


def _candidates(
    x: Tensor, W_enc: Tensor, pre: PreActivation, n_selected: int, floor: float
) -> tuple[Tensor, Tensor, Tensor, float] | None:
    """Keys, products and values >= floor; None if they do not prove to be enough."""
    d_sae = W_enc.shape[1]
    keys = torch.empty(0, dtype=torch.int64, device=x.device)
    product = x.new_empty(0)
    values = pre.at(product, keys)
    lower = pre.lower_bound(floor)
    for first, last, block in latent_blocks(x, W_enc):
        more_keys, more = _above_in_block(block, lower[first:last], first, d_sae)
        more_values = pre.at(more, more_keys % d_sae)
        if bool(more_values.isnan().any()):
            raise NotSparseError("not finite")
        # The bound on the product is generous; the exact values decide.
        kept = (more_values <= 0) if floor == 0 else (more_values < floor)
        kept = kept.logical_not_()
        keys = torch.cat([keys, more_keys[kept]])
        product = torch.cat([product, more[kept]])
        values = torch.cat([values, more_values[kept]])
        if values.shape[0] > _TOO_MANY * n_selected:
            # The n-th largest so far is a floor for the n-th largest of all.
            floor = float(torch.topk(values, n_selected, sorted=True).values[-1])
            lower = pre.lower_bound(floor)
            kept = values >= floor
            keys, product, values = keys[kept], product[kept], values[kept]
    if floor > 0 and values.shape[0] < n_selected:
        return None
    return keys, product, values, floor


def _estimate_floor(x: Tensor, W_enc: Tensor, pre: PreActivation, n_selected: int) -> float:
    sample = x[:: max(1, x.shape[0] // _SAMPLE_ROWS)]
    share = sample.shape[0] / x.shape[0]
    values = pre(sample @ W_enc)
    n = max(1, min(values.numel(), int(_WANTED * share * n_selected)))
    return max(0.0, 0.9 * float(torch.topk(values.flatten(), n, sorted=True).values[-1]))
