"""What an SAE's latents do on given activations, and the cut that gives them a wanted L0."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from sae_lens import SAE

from sae_baselines.controls.source import rebuilt
from sae_baselines.reconstruction import sides

_ROWS_PER_CHUNK = 1024

Score = Callable[[Any, torch.Tensor], torch.Tensor]


def chunks(sae: Any, activations: torch.Tensor) -> Iterator[torch.Tensor]:
    """Rows of ``[n, d_in]`` activations on the SAE's device, some at a time."""
    for first in range(0, activations.shape[0], _ROWS_PER_CHUNK):
        yield activations[first : first + _ROWS_PER_CHUNK].to(sae.device)


def wanted_active(activations: torch.Tensor, l0: float) -> int:
    """How many (activation, latent) pairs are active at this mean L0; at least one."""
    return max(1, round(l0 * activations.shape[0]))


def cut_above(sae: Any, activations: torch.Tensor, n: int, score: Score) -> torch.Tensor:
    """A cut that exactly the n largest scores (over activations and latents) are above.

    Args:
        sae: Handed to ``score``.
        activations: ``[n_activations, d_in]``.
        n: How many scores to leave above the cut.
        score: From the SAE and ``[rows, d_in]`` to ``[rows, d_sae]``.

    Returns:
        A scalar; -inf if fewer than n scores are finite.
    """
    best = torch.zeros(0, device=sae.device)
    for x in chunks(sae, activations):
        scores = score(sae, x).flatten()
        # What is below the n-th best so far can never come back.
        if best.numel() >= n:
            scores = scores[scores > best.min()]
        best = torch.cat([best, scores])
        if best.numel() > n:
            best = best.topk(n, sorted=False).values
    return torch.nextafter(best.min(), torch.full_like(best.min(), -torch.inf))


def flat_copy(sae: SAE[Any]) -> SAE[Any]:
    """An SAE on the same weights for activations ``[n, d_in]``, heads of hook_z flattened.

    Always another object: normalisation leaves statistics of its last input in the SAE.
    """
    return rebuilt(sae, dict(sae.state_dict()), reshape_activations="none")


@torch.no_grad()
def firing_rates(sae: SAE[Any], activations: torch.Tensor) -> torch.Tensor:
    """Share of ``[n, d_in]`` activations that each latent is active on, ``[d_sae]``; for a
    transcoder `reconstruction.sides`."""
    flat, activations = flat_copy(sae), sides(sae, activations)[0]
    count = torch.zeros(sae.cfg.d_sae, dtype=torch.int64)
    for x in chunks(flat, activations):
        count += (flat.encode(x) != 0).sum(dim=0)
    return (count.double() / len(activations)).float()


def measured_l0(sae: SAE[Any], activations: torch.Tensor) -> float:
    """Mean number of active latents on ``[n, d_in]`` activations."""
    return float(firing_rates(sae, activations).double().sum())
