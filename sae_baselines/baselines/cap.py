"""Projection of decoder rows onto a spherical cap (paper, Section 4.1, Soft-Frozen Decoder)."""

import math

import torch
from torch import Tensor

# Rows whose float32 cosine is below tau by no more than this are left alone, so that a row
# sitting on the edge of the cap is not rewritten by rounding at every step. Together with
# the rounding of the projection itself it stays within the promised tau - 1e-6.
_EDGE_SLACK = 2e-7
# A row whose cosine is above tau by no more than this counts as held by its cap.
AT_EDGE = 1e-3
_ROWS_PER_CHUNK = 4096
# On a CPU a chunk is read several times, and should stay in a cache.
_CHUNK_BYTES = {"cpu": 2**22}
_CHUNK_BYTES_ELSEWHERE = 2**28
# Rows this far from both poles, of ordinary length, need no care to be turned accurately.
_CLEAR_SINE = 0.5
_ORDINARY_NORM = (1e-12, 1e12)


def validate_tau(tau: float) -> None:
    """Refuse a cap that is empty or everything.

    Raises:
        ValueError: If ``tau`` is not in (-1, 1].
    """
    if not (isinstance(tau, int | float) and -1.0 < tau <= 1.0):
        raise ValueError(f"tau: {tau!r} is out of range; use a cosine in (-1, 1], e.g. 0.8")


@torch.no_grad()
def project_to_cap_(
    rows: Tensor, start: Tensor, tau: float, start_norm: Tensor | None = None
) -> Tensor:
    """Move each row, in place, to the nearest point (by angle) of its cap, keeping its norm.

    The cap of row j is {v : cos(v, start_j) >= tau}. Rows inside are untouched bit for bit.
    An antipodal row has no nearest point: it goes to the edge of the cap in a fixed
    direction. A zero row has no direction and a row with NaN or infinity no meaning: both
    are left as they are.

    Arithmetic is float32 (float64 for float64 rows). Afterwards every non-zero row has
    cosine >= tau - 1e-6; rows stored in bfloat16 are rounded after the projection, which
    moves a direction by at most 2**-8 rad: cosine >= tau - 4e-3.

    Args:
        rows: Shape ``[d_sae, d_in]``, floating point, changed in place.
        start: Unit rows of shape ``[d_sae, d_in]`` on the same device.
        tau: Cosine in (-1, 1].
        start_norm: ``[d_sae]`` norms of ``start`` if known; they are one rounding off 1.

    Returns:
        int64 scalar tensor: how many rows were moved.

    Raises:
        ValueError: If the shapes differ or ``tau`` is out of range.
    """
    validate_tau(tau)
    if rows.shape != start.shape or rows.ndim != 2:
        raise ValueError(
            f"rows and start must be equal [d_sae, d_in]; got {tuple(rows.shape)} "
            f"and {tuple(start.shape)}"
        )
    moved = torch.zeros((), dtype=torch.int64, device=rows.device)
    quick = rows.dtype in (torch.float32, torch.float64) and rows.device.type in ("cpu", "cuda")
    if quick and rows.dtype == start.dtype:
        norms = torch.linalg.vector_norm(start, dim=1) if start_norm is None else start_norm
        budget = _CHUNK_BYTES.get(rows.device.type, _CHUNK_BYTES_ELSEWHERE)
        height = max(64, budget // max(1, rows.shape[1] * rows.element_size()))
        for chunk in _chunks(rows, height):
            moved += _project_clear_rows_(rows[chunk], start[chunk], norms[chunk], tau)
    else:
        for chunk in _chunks(rows, _ROWS_PER_CHUNK):
            moved += _project_chunk_(rows[chunk], start[chunk], tau)
    return moved


def _chunks(rows: Tensor, height: int) -> list[slice]:
    return [slice(first, first + height) for first in range(0, rows.shape[0], height)]


def _project_clear_rows_(rows: Tensor, start: Tensor, start_norm: Tensor, tau: float) -> Tensor:
    """Reads rows once, and writes them if some are outside; rows that need care get it."""
    norm = torch.linalg.vector_norm(rows, dim=1).double()
    start_norm = start_norm.double()
    cos = (rows * start).sum(dim=1).double() / (norm * start_norm)
    sine = (1 - cos * cos).clamp(min=0).sqrt()
    ordinary = (norm > _ORDINARY_NORM[0]) & (norm < _ORDINARY_NORM[1])
    outside = (cos >= tau - _EDGE_SLACK).logical_not_()  # NaN is not inside
    clear = outside & ordinary & (sine >= _CLEAR_SINE)
    care = (outside | ~ordinary) & ~clear
    any_clear, any_care = torch.stack([clear.any(), care.any()]).tolist()
    if any_clear:
        # tau s + sqrt(1 - tau^2) t, with t the unit tangent in the plane of row and start: a
        # combination of the row and its start, and of the row alone if it is inside.
        turn = math.sqrt(max(0.0, 1.0 - tau * tau)) / sine
        of_row = torch.where(clear, turn, 1.0)
        of_start = torch.where(clear, norm / start_norm * (tau - turn * cos), 0.0)
        rows.mul_(of_row.to(rows.dtype)[:, None])
        rows.addcmul_(start, of_start.to(rows.dtype)[:, None])
    moved = clear.sum()
    if any_care:
        index = care.nonzero().squeeze(1)
        careful = rows[index]
        moved = moved + _project_chunk_(careful, start[index], tau)
        rows[index] = careful
    return moved


def _project_chunk_(rows: Tensor, start: Tensor, tau: float) -> Tensor:
    compute = torch.promote_types(rows.dtype, torch.float32)
    w = rows.to(compute)
    s = start.to(compute)
    s = s / torch.linalg.vector_norm(s, dim=1, keepdim=True)  # bfloat16 starts are not unit
    scale = w.abs().amax(dim=1, keepdim=True)  # squares of extreme rows leave float32
    w = w / scale
    norm = torch.linalg.vector_norm(w, dim=1)
    # Elementwise products and a tree sum, not a matrix product: TF32 would cost the bound.
    cos = (w * s).sum(dim=1) / norm
    outside = (cos < tau - _EDGE_SLACK) & torch.isfinite(norm) & (norm > 0)
    index = outside.nonzero().squeeze(1)
    if index.numel():
        rows[index] = (_nearest(w[index], s[index], norm[index], tau) * scale[index]).to(
            rows.dtype
        )
    return outside.sum()


def _nearest(w: Tensor, s: Tensor, norm: Tensor, tau: float) -> Tensor:
    unit = w / norm[:, None]
    tangent = unit - (unit * s).sum(dim=1, keepdim=True) * s
    # A second pass removes what cancellation left along s (rows close to antipodal).
    tangent = tangent - (tangent * s).sum(dim=1, keepdim=True) * s
    length = torch.linalg.vector_norm(tangent, dim=1, keepdim=True)
    lost = (length < 1e-6).squeeze(1)
    if lost.any():
        tangent[lost] = _any_tangent(s[lost])
        length = torch.linalg.vector_norm(tangent, dim=1, keepdim=True)
    tangent = tangent / length.clamp(min=torch.finfo(w.dtype).tiny)
    edge = tau * s + math.sqrt(max(0.0, 1.0 - tau * tau)) * tangent
    edge = torch.where(length > 0, edge, s)  # d_in = 1: there is no tangent
    edge = edge / torch.linalg.vector_norm(edge, dim=1, keepdim=True)
    return edge * norm[:, None]


def _any_tangent(s: Tensor) -> Tensor:
    """A fixed direction orthogonal to each row: the axis on which the row is smallest."""
    axis = torch.nn.functional.one_hot(s.abs().argmin(dim=1), s.shape[1]).to(s.dtype)
    return axis - (axis * s).sum(dim=1, keepdim=True) * s


def cosine_to_start(rows: Tensor, start: Tensor) -> Tensor:
    """Cosine of each row with its start, in float64.

    Args:
        rows: Shape ``[d_sae, d_in]``.
        start: Shape ``[d_sae, d_in]``.

    Returns:
        float64 tensor of shape ``[d_sae]``; NaN where either row is zero.
    """
    out = torch.empty(rows.shape[0], dtype=torch.float64, device=rows.device)
    for first in range(0, rows.shape[0], _ROWS_PER_CHUNK):
        chunk = slice(first, first + _ROWS_PER_CHUNK)
        a, b = rows[chunk].detach().double(), start[chunk].detach().double()
        b = b.to(a.device)
        out[chunk] = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return out


def share_at_edge(rows: Tensor, start: Tensor, tau: float) -> float:
    """Share of rows that their cap holds: whose cosine with the start is `AT_EDGE` above tau
    or less.

    Args:
        rows: Shape ``[d_sae, d_in]``.
        start: Shape ``[d_sae, d_in]``.
        tau: Cosine of the cap.
    """
    return float((cosine_to_start(rows, start) <= tau + AT_EDGE).double().mean())
