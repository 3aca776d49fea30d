"""Which ground-truth features a dictionary has found (paper, Notation and Section 3).

A feature's recovery is the largest cosine it has with any decoder row: signed, and one row may
be the best of several features. It is *recovered* where that exceeds 0.8.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from statsmodels.stats.proportion import proportion_confint

from sae_baselines.errors import UserError

RECOVERED_ABOVE = 0.8
# 0.00, 0.01, ... 1.00; division keeps 0.8 the float that 0.8 is.
THRESHOLDS: tuple[float, ...] = tuple(i / 100 for i in range(101))
# Cosines held in memory at a time.
_CELLS = 8_000_000


@torch.no_grad()
def best_cosine(W_dec: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """max_j cos(f_i, d_j) for each feature: signed, many-to-one (paper, Notation).

    Computed in float64, so that no device's reduced-precision products move a feature over
    the threshold.

    Args:
        W_dec: ``[d_sae, d_in]``, any norms; rows of norm zero have no direction and are left
            out.
        features: ``[n_features, d_in]``, any norms but zero.

    Returns:
        float64 ``[n_features]`` on the CPU.

    Raises:
        UserError: Shapes that do not fit, a value that is not finite, a feature of norm zero,
            or a decoder without any direction.
    """
    rows, directions = _checked(W_dec, features)
    best = [(chunk @ rows.T).amax(dim=1) for chunk in directions.split(_step(rows))]
    return torch.cat(best).clamp(-1.0, 1.0).cpu()


def recovery_curve(best: ArrayLike, thresholds: ArrayLike = THRESHOLDS) -> np.ndarray:
    """Share of features whose best cosine exceeds each threshold.

    Args:
        best: ``[n_features]`` from `best_cosine`.
        thresholds: ``[n_thresholds]``.

    Returns:
        ``[n_thresholds]`` in [0, 1].

    Raises:
        UserError: No feature, or a best cosine that is NaN.
    """
    found = np.sort(_best(best))
    below = np.searchsorted(found, np.asarray(thresholds, dtype=np.float64), side="right")
    return 1.0 - below / len(found)


def recovered_count(best: ArrayLike, threshold: float = RECOVERED_ABOVE) -> int:
    """Features whose best cosine exceeds the threshold: the paper's count.

    Args:
        best: ``[n_features]`` from `best_cosine`.
        threshold: Cosine; equality does not count.

    Raises:
        UserError: No feature, or a best cosine that is NaN.
    """
    return int((_best(best) > threshold).sum())


@torch.no_grad()
def one_to_one(
    W_dec: torch.Tensor, features: torch.Tensor, threshold: float = RECOVERED_ABOVE
) -> tuple[int, int]:
    """Recovery that does not count one latent twice.

    Two features at less than arccos(threshold) from one row are both recovered by it. The
    first number is the size of the largest matching in which every feature has a latent of
    its own above the threshold; the second, how many latents are above it with any feature
    (several may be on one feature). SAELens' uniqueness and MCC answer neither: they take
    absolute cosines and know no threshold.

    Args:
        W_dec: ``[d_sae, d_in]``.
        features: ``[n_features, d_in]``.
        threshold: Cosine; equality does not count.

    Returns:
        Matched features, and latents that recover at least one.

    Raises:
        UserError: As `best_cosine`.
    """
    rows, directions = _checked(W_dec, features)
    pairs, first = [], 0
    for chunk in directions.split(_step(rows)):
        pairs.append((chunk @ rows.T > threshold).nonzero().cpu() + torch.tensor([first, 0]))
        first += len(chunk)
    feature, latent = torch.cat(pairs).T.numpy()
    graph = csr_array(
        (np.ones(len(feature), dtype=np.int8), (feature, latent)),
        shape=(len(directions), len(rows)),
    )
    matched = maximum_bipartite_matching(graph, perm_type="column")
    return int((matched >= 0).sum()), len(np.unique(latent))


def recovery_by_frequency(
    best: ArrayLike,
    firing_probability: ArrayLike,
    bins: int | Sequence[float] = 20,
    *,
    threshold: float = RECOVERED_ABOVE,
    level: float = 0.95,
) -> pd.DataFrame:
    """Recovered share against how often a feature fires (the paper's Figure 3).

    The Wilson intervals take features as independent draws given the SAE; they hold no
    variation between training seeds.

    Args:
        best: ``[n_features]`` from `best_cosine`.
        firing_probability: ``[n_features]`` in [0, 1]; nominal or observed.
        bins: Number of log-spaced bins over the positive probabilities, or their edges,
            ascending. A bin holds its lower edge, the last one both.
        threshold: Cosine; equality does not count.
        level: Coverage.

    Returns:
        One row per bin: ``low, high, centre, n, recovered, share, share_low, share_high,
        mean_best_cosine``; NaN where a bin is empty. Features that never fire are in a first
        row with ``low = high = centre = 0``, there only if there are any. One common
        probability gives one bin.

    Raises:
        UserError: Lengths that differ, a value out of range, or edges that are not positive
            and ascending or do not hold every positive probability.
    """
    found = _best(best)
    p = np.asarray(firing_probability, dtype=np.float64)
    if p.shape != found.shape:
        raise UserError(
            f"firing_probability: shape {p.shape} beside {found.shape} best cosines; "
            "give one per feature"
        )
    if not ((p >= 0) & (p <= 1)).all():
        raise UserError("firing_probability: has values outside [0, 1]; give probabilities")
    edges = _edges(p[p > 0], bins)
    table = []
    if (p == 0).any():
        table.append(_bin(found[p == 0], 0.0, 0.0, threshold, level))
    which = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, len(edges) - 2)
    table += [
        _bin(found[(p > 0) & (which == i)], edges[i], edges[i + 1], threshold, level)
        for i in range(len(edges) - 1)
    ]
    return pd.DataFrame(table)


def _bin(
    found: np.ndarray, low: float, high: float, threshold: float, level: float
) -> dict[str, float]:
    n, recovered = len(found), int((found > threshold).sum())
    ends = np.full(2, np.nan)
    if n:
        ends = np.array(proportion_confint(recovered, n, 1 - level, method="wilson"))
    return {
        "low": low,
        "high": high,
        "centre": float(np.sqrt(low * high)),
        "n": n,
        "recovered": recovered,
        "share": recovered / n if n else np.nan,
        "share_low": float(ends[0]),
        "share_high": float(ends[1]),
        "mean_best_cosine": float(found.mean()) if n else np.nan,
    }


def _edges(p: np.ndarray, bins: int | Sequence[float]) -> np.ndarray:
    if isinstance(bins, int):
        if bins < 1:
            raise UserError(f"bins: {bins} is not a number of bins; use 1 or more")
        if p.size == 0:
            return np.array([1.0])  # no bin
        if p.min() == p.max():
            return np.array([p.min(), p.max()])
        edges = np.geomspace(p.min(), p.max(), bins + 1)
        edges[0], edges[-1] = p.min(), p.max()  # geomspace rounds
        return edges
    edges = np.asarray(bins, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (edges[0] > 0 and (np.diff(edges) > 0).all()):
        raise UserError(f"bins: {bins!r} are not edges; give positive, ascending numbers")
    if p.size and (p.min() < edges[0] or p.max() > edges[-1]):
        raise UserError(
            f"bins: edges {edges[0]:g} to {edges[-1]:g} leave out probabilities between "
            f"{p.min():g} and {p.max():g}; widen them"
        )
    return edges


def _best(best: ArrayLike) -> np.ndarray:
    found = np.asarray(best, dtype=np.float64)
    if found.ndim != 1 or not found.size:
        raise UserError(f"best: shape {found.shape}; give one best cosine per feature")
    if np.isnan(found).any():
        raise UserError("best: has NaN; a recovery of NaN is no recovery, check the decoder")
    return found


def _step(rows: torch.Tensor) -> int:
    return max(1, _CELLS // len(rows))


def _checked(W_dec: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows and unit features in float64 on one device."""
    if W_dec.ndim != 2 or features.ndim != 2 or W_dec.shape[1] != features.shape[1]:
        raise UserError(
            f"W_dec: shape {tuple(W_dec.shape)} beside features {tuple(features.shape)}; "
            "give [d_sae, d_in] and [n_features, d_in]"
        )
    # Apple's GPUs have no float64.
    device = "cpu" if W_dec.device.type == "mps" else W_dec.device
    rows = _unit(W_dec, "W_dec", device)
    directions = _unit(features, "features", device)
    if not len(rows):
        raise UserError("W_dec: every row is zero; a decoder without directions finds nothing")
    if len(directions) < len(features) or not len(features):
        raise UserError("features: some have norm zero, or there are none; drop these rows")
    return rows, directions


def _unit(x: torch.Tensor, name: str, device: torch.device | str) -> torch.Tensor:
    x = x.detach().to(device).to(torch.float64)
    if not torch.isfinite(x).all():
        raise UserError(f"{name}: has NaN or infinity; did training diverge?")
    largest = x.abs().amax(dim=1, keepdim=True) if x.numel() else x[:, :1]
    some = largest[:, 0] > 0
    # By the largest entry first: squares of very small or large ones leave float64.
    x = x[some] / largest[some]
    return x / x.norm(dim=1, keepdim=True)
