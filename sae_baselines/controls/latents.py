"""What an SAE's latents do on given activations."""

from typing import Any

import torch
from sae_lens import SAE

from sae_baselines.controls.cut import chunks
from sae_baselines.controls.source import rebuilt


def flat_copy(sae: SAE[Any]) -> SAE[Any]:
    """An SAE on the same weights for activations ``[n, d_in]``, heads of hook_z flattened.

    Always another object: normalisation leaves statistics of its last input in the SAE.
    """
    return rebuilt(sae, dict(sae.state_dict()), reshape_activations="none")


@torch.no_grad()
def firing_rates(sae: SAE[Any], activations: torch.Tensor) -> torch.Tensor:
    """Share of ``[n, d_in]`` activations that each latent is active on, ``[d_sae]``."""
    flat = flat_copy(sae)
    count = torch.zeros(sae.cfg.d_sae, dtype=torch.int64)
    for x in chunks(flat, activations):
        count += (flat.encode(x) != 0).sum(dim=0)
    return (count.double() / len(activations)).float()


def measured_l0(sae: SAE[Any], activations: torch.Tensor) -> float:
    """Mean number of active latents on ``[n, d_in]`` activations."""
    return float(firing_rates(sae, activations).double().sum())
