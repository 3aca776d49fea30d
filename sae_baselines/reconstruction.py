"""How well an SAE reconstructs."""

import math
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.saes.sae import TrainingSAE

_ROWS_PER_CHUNK = 1024


@torch.no_grad()
def explained_variance(
    sae: SAE[Any] | TrainingSAE[Any], activations: torch.Tensor
) -> tuple[float, float, int]:
    """EV, mean L0 and number of alive latents of an SAE.

    Args:
        sae: An inference SAE; or a training SAE, which encodes as it trains (a BatchTopK one
            picks the best of each chunk of 1,024 rows).
        activations: ``[n, d_in]``, as the SAE takes them.

    Returns:
        EV as the paper defines it (Notation), mean L0, latents that fired at least once. NaN
        where the SAE reconstructs NaN.
    """
    mean = activations.double().mean(dim=0).to(sae.device)
    residual = variance = active = 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=sae.device)
    for first in range(0, activations.shape[0], _ROWS_PER_CHUNK):
        x = activations[first : first + _ROWS_PER_CHUNK].to(sae.device)
        acts = sae.encode(x)
        error = x.double() - sae.decode(acts).double()
        residual += float(error.pow(2).sum())
        variance += float((x.double() - mean).pow(2).sum())
        firing = (acts.to_dense() if acts.is_sparse else acts) != 0
        active += float(firing.sum())
        fired |= firing.any(dim=0)
    ev = 1.0 - residual / variance if variance > 0 else math.nan
    return ev, active / activations.shape[0], int(fired.sum())
