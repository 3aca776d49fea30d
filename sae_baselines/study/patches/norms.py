"""Norms of patch activations: whether a few of them swamp the rest."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sae_baselines.study.patches.store import row_norms

logger = logging.getLogger("sae_baselines")

# Above this many times the median norm, a patch is called an outlier.
OUTLIER = 5.0


@dataclass(frozen=True)
class Norms:
    """Norms of held-out patches, before any are left out.

    Attributes:
        median: Median norm.
        p99: 99th percentile.
        largest: Largest norm.
        outliers: Share of patches with a norm above `OUTLIER` medians.
        variance_of_top_percent: Share of the total variance that the 1 % of patches with the
            largest norms has; near 0.01 where norms are alike.
        largest_at: Row and column of the grid position with the largest median norm.
        position_ratio: That position's median norm over the overall median.
        dropped: Share of patches left out (``max_norm_ratio``).
    """

    median: float
    p99: float
    largest: float
    outliers: float
    variance_of_top_percent: float
    largest_at: tuple[int, int]
    position_ratio: float
    dropped: float


def norms_of(rows: np.ndarray, grid: int, dropped: float) -> Norms:
    """Describe the norms of patches.

    Args:
        rows: ``[crops * grid * grid, d_in]``.
        grid: Patches per side.
        dropped: Share of them left out.
    """
    norms = row_norms(rows)
    median = float(np.median(norms))
    x = torch.from_numpy(np.array(rows, dtype=np.float32)).double()
    deviation = (x - x.mean(dim=0)).pow(2).sum(dim=1).numpy()
    top = np.argsort(norms)[-max(1, len(norms) // 100) :]
    by_place = np.median(norms.reshape(-1, grid * grid), axis=0)
    place = int(by_place.argmax())
    return Norms(
        median=median,
        p99=float(np.quantile(norms, 0.99)),
        largest=float(norms.max()),
        outliers=float((norms > OUTLIER * median).mean()),
        variance_of_top_percent=float(deviation[top].sum() / deviation.sum()),
        largest_at=(place // grid, place % grid),
        position_ratio=float(by_place[place] / median),
        dropped=dropped,
    )


def within(norms: np.ndarray, limit: float | None) -> np.ndarray:
    """Indices of the rows whose norm is at most ``limit``; all of them without one."""
    return np.arange(len(norms)) if limit is None else np.flatnonzero(norms <= limit)


def warn(norms: Norms, max_norm_ratio: float | None) -> None:
    """Say so if outliers are there and nobody has dealt with them."""
    if norms.outliers and max_norm_ratio is None:
        logger.warning(
            "%.2f %% of patches have more than %g times the median norm, and the largest 1 %% "
            "of norms have %.0f %% of the variance; such artefact tokens swamp explained "
            "variance: set max_norm_ratio (e.g. %g) to leave them out",
            100 * norms.outliers,
            OUTLIER,
            100 * norms.variance_of_top_percent,
            OUTLIER,
        )


def sentence(facts: dict[str, Any]) -> str:
    """The norms in words, from a stored `Norms`."""
    row, column = facts["largest_at"]
    return (
        f"Norms of held-out patches: median {facts['median']:.3g}, 99th percentile "
        f"{facts['p99']:.3g}, largest {facts['largest']:.3g}; {100 * facts['outliers']:.2f} % "
        f"are above {OUTLIER:g} medians. The 1 % with the largest norms have "
        f"{100 * facts['variance_of_top_percent']:.1f} % of the variance. Position "
        f"({row}, {column}) of the grid has the largest median norm, "
        f"{facts['position_ratio']:.2f} of the overall median. Left out: "
        f"{100 * facts['dropped']:.2f} % of patches."
    )
