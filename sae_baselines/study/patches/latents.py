"""Which latents fire on which patches."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from sae_lens import SAE

_ROWS_PER_CHUNK = 1024

# A latent is rare if it fires on a smaller share of patches than this, and at least once
# (paper, Appendix G).
RARE = 1e-3
PERCENTILES = (100, 75, 50, 25)


@dataclass(frozen=True)
class Firing:
    """How often each latent fires on held-out patches.

    Attributes:
        count: int64 ``[d_sae]``, patches.
        photographs: int64 ``[d_sae]``, photographs with at least one of them.
        n_patches: Patches in all.
        n_photographs: Photographs in all.
    """

    count: torch.Tensor
    photographs: torch.Tensor
    n_patches: int
    n_photographs: int

    @property
    def rare(self) -> torch.Tensor:
        """Indices of rare latents, ascending."""
        fires = (self.count > 0) & (self.count < RARE * self.n_patches)
        return fires.nonzero().flatten()

    def summary(self) -> dict[str, Any]:
        """What tables say."""
        return asdict(
            FiringSummary(
                dead=int((self.count == 0).sum()),
                rare=len(self.rare),
                rare_patches=_median(self.count[self.rare]),
                rare_photographs=_median(self.photographs[self.rare]),
                rare_on_one_photograph=_share(self.photographs[self.rare] == 1),
                n_patches=self.n_patches,
                n_photographs=self.n_photographs,
            )
        )


@dataclass(frozen=True)
class FiringSummary:
    """Firing in a few numbers.

    Attributes:
        dead: Latents that fire on no held-out patch.
        rare: Rare latents.
        rare_patches: Median over rare latents of the patches they fire on; None without any.
        rare_photographs: Median of the photographs they fire on.
        rare_on_one_photograph: Share of rare latents that fire on one photograph only.
        n_patches: Held-out patches.
        n_photographs: Held-out photographs.
    """

    dead: int
    rare: int
    rare_patches: float | None
    rare_photographs: float | None
    rare_on_one_photograph: float | None
    n_patches: int
    n_photographs: int


def _median(values: torch.Tensor) -> float | None:
    return float(np.median(values.numpy())) if len(values) else None


def _share(values: torch.Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None


@torch.no_grad()
def firing(sae: SAE[Any], rows: torch.Tensor, photos: torch.Tensor) -> Firing:
    """Count.

    Args:
        sae: Inference SAE.
        rows: ``[n, d_in]`` activations, raw.
        photos: int64 ``[n]``, the photograph of each row.
    """
    names, index = torch.unique(photos, return_inverse=True)
    count = torch.zeros(sae.cfg.d_sae, dtype=torch.int64)
    seen = torch.zeros(len(names), sae.cfg.d_sae, dtype=torch.bool)
    for part, fires in _encoded(sae, rows, lambda acts: acts > 0):
        count += fires.sum(dim=0)
        for photo in index[part].unique():
            seen[photo] |= fires[index[part] == photo].any(dim=0)
    return Firing(count, seen.sum(dim=0), len(rows), len(names))


@torch.no_grad()
def activations_of(sae: SAE[Any], rows: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Activations of some latents on every row, float32 CPU ``[n, latents]``.

    Args:
        sae: Inference SAE.
        rows: ``[n, d_in]``, raw.
        latents: Their indices.
    """
    chosen = latents.to(sae.device)
    return torch.cat([a for _, a in _encoded(sae, rows, lambda acts: acts[:, chosen].float())])


def _encoded(sae: SAE[Any], rows: torch.Tensor, keep: Callable[[torch.Tensor], torch.Tensor]):
    for first in range(0, len(rows), _ROWS_PER_CHUNK):
        part = slice(first, first + _ROWS_PER_CHUNK)
        yield part, keep(sae.encode(rows[part].to(sae.device))).cpu()


def choose(latents: torch.Tensor, n: int, seed: list[int]) -> torch.Tensor:
    """``n`` of these latents, or all if there are fewer; ``seed`` decides, not looks."""
    order = np.random.default_rng(seed).permutation(len(latents))[:n]
    return latents[torch.from_numpy(np.sort(order))]


def at_percentiles(activations: torch.Tensor) -> list[int]:
    """Rows at the 100th, 75th, 50th and 25th percentile of the positive activations.

    The nearest activation there is; of equal ones the first.

    Args:
        activations: ``[n]`` of one latent, at least one of them positive.

    Returns:
        Row numbers, one per `PERCENTILES`.
    """
    positive = activations[activations > 0]
    values = activations.numpy()
    wanted = np.percentile(positive.numpy(), PERCENTILES, method="nearest")
    return [int(np.flatnonzero(values == value)[0]) for value in wanted]
