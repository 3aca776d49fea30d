"""The distribution of cos(row now, row at the start)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sae_baselines.errors import UserError

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
# Histograms have bins of 0.001.
EDGES = np.linspace(-1.0, 1.0, 2001)
# What the projection onto a cap promises: a row on its edge counts as inside.
EDGE_SLACK = 1e-6
_ROWS_PER_CHUNK = 4096


@dataclass(frozen=True)
class Drift:
    """Where one side of an SAE is, relative to its start.

    Attributes:
        facts: ``n`` rows with a cosine; ``mean``, ``sd``, ``quantiles`` and
            ``share_at_least`` (cosine >= threshold - 1e-6) over these, None if there are
            none; ``unmoved`` rows equal to their start bit for bit; ``zero_norm`` and
            ``not_finite`` rows that have no cosine.
        counts: ``[2000]`` int64, rows in each bin of `EDGES`.
    """

    facts: dict[str, Any]
    counts: np.ndarray


@torch.no_grad()
def cosines(now: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Cosine of each row with its start: float64, exactly 1 for a row that did not move.

    Args:
        now: ``[d_sae, d_in]``, any device and dtype.
        start: ``[d_sae, d_in]``.

    Returns:
        ``[d_sae]`` float64 on the CPU; NaN where a row is zero or not finite.
    """
    out = torch.empty(now.shape[0], dtype=torch.float64)
    for first in range(0, now.shape[0], _ROWS_PER_CHUNK):
        chunk = slice(first, first + _ROWS_PER_CHUNK)
        # Same layout, same order of summation: equal rows have equal sums, and the root of a
        # sum's square is exact, so that their cosine is 1.
        a = now[chunk].detach().double().contiguous()
        b = start[chunk].detach().to(a.device).double().contiguous()
        norms = ((a * a).sum(1) * (b * b).sum(1)).sqrt()
        out[chunk] = ((a * b).sum(1) / norms).clamp(-1.0, 1.0).cpu()
    return out


@torch.no_grad()
def drift_of(now: torch.Tensor, start: torch.Tensor, side: str) -> Drift:
    """Compare rows with where they started.

    Args:
        now: ``[d_sae, d_in]`` decoder rows, or encoder columns as rows.
        start: The same at the start.
        side: ``decoder`` or ``encoder``, for the error.

    Raises:
        UserError: The shapes differ.
    """
    if now.shape != start.shape:
        raise UserError(
            f"start: its {side} is {list(start.shape)}, but the SAE's is {list(now.shape)}; "
            "give the start of this SAE"
        )
    values = cosines(now, start)
    ours = start.to(now.device, now.dtype)
    finite = torch.isfinite(now).all(1) & torch.isfinite(ours).all(1)
    zero = finite & ~((now != 0).any(1) & (ours != 0).any(1))
    defined = values[torch.isfinite(values)].numpy()
    facts: dict[str, Any] = {
        "n": int(defined.size),
        "mean": None,
        "sd": None,
        "quantiles": None,
        "share_at_least": None,
        "unmoved": int((now == ours).all(1).sum()),
        "zero_norm": int(zero.sum()),
        "not_finite": int((~finite).sum()),
    }
    if defined.size:
        levels = np.quantile(defined, QUANTILES)
        facts |= {
            "mean": float(defined.mean()),
            "sd": float(defined.std()),
            "quantiles": {f"{q:g}": float(v) for q, v in zip(QUANTILES, levels, strict=True)},
            "share_at_least": {
                f"{t:g}": float((defined >= t - EDGE_SLACK).mean()) for t in THRESHOLDS
            },
        }
    return Drift(facts, np.histogram(defined, EDGES)[0].astype(np.int64))
