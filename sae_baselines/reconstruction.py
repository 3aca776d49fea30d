"""How well an SAE reconstructs."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.saes.sae import TrainingSAE

_ROWS_PER_CHUNK = 1024

# Of all activations, those that hold most of a sum.
FEW = 0.001


def share_in_few(x: torch.Tensor) -> float:
    """Share of a sum of ``[n]`` non-negative numbers that the greatest `FEW` of them hold; NaN
    where the sum is 0."""
    x = x.double()
    return float(x.topk(max(1, round(FEW * len(x)))).values.sum() / x.sum())


class RunningVariance:
    """1 - E||x - x_hat||^2 / E||x - E[x]||^2 in float64, in one pass (paper, Notation).

    Args:
        shift: Sums are taken around this ``[d_in]``, so that a mean far from zero costs no
            digits; default: the mean of the first batch.
    """

    def __init__(self, shift: torch.Tensor | None = None) -> None:
        self.n = 0
        self.residual = 0.0
        self._square = 0.0
        self._shift = shift
        self._sum: torch.Tensor | None = None

    def add(self, x: torch.Tensor, x_hat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add activations and their reconstructions, both ``[n, d_in]``.

        Returns:
            Of each, float64 ``[n]``: its squared error, its squared distance from the shift.
        """
        x, x_hat = x.double(), x_hat.double()
        if not len(x):
            return x.new_zeros(0), x.new_zeros(0)
        if self._shift is None:
            self._shift = x.mean(dim=0)
        self.n += len(x)
        error = (x - x_hat).pow(2)
        self.residual += float(error.sum())
        shifted = x - self._shift.to(x.device)
        far = shifted.pow(2)
        self._square += float(far.sum())
        total = shifted.sum(dim=0)
        self._sum = total if self._sum is None else self._sum + total
        return error.sum(dim=-1), far.sum(dim=-1)

    @property
    def variance(self) -> float:
        """Sum over activations of ||x - E[x]||^2; NaN without any."""
        if self._sum is None:
            return math.nan
        return self._square - float(self._sum.pow(2).sum()) / self.n

    @property
    def explained_variance(self) -> float:
        """NaN without activations or without variance."""
        variance = self.variance
        return 1 - self.residual / variance if variance > 0 else math.nan


def d_out_of(cfg: Any) -> int | None:
    """Width of what a transcoder writes; None for the config of an SAE."""
    return getattr(cfg, "d_out", None)


def inputs(sae: Any, activations: torch.Tensor) -> torch.Tensor:
    """What it reads, ``[n, d_in]``: of `sides`, or of activations that are nothing else."""
    if activations.shape[-1] == sae.cfg.d_in:
        return activations
    return sides(sae, activations)[0]


def sides(sae: Any, activations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What is read, and what is to be written, of ``[n, d_in]`` activations.

    An SAE's are the same; a transcoder's stand side by side, ``[n, d_in + d_out]``.
    """
    d_in, d_out = sae.cfg.d_in, d_out_of(sae.cfg)
    if d_out is None:
        return activations, activations
    if activations.shape[-1] != d_in + d_out:
        raise ValueError(
            f"activations: width {activations.shape[-1]} is not that of a transcoder's inputs "
            f"and outputs side by side, {d_in} + {d_out}"
        )
    return activations[..., :d_in], activations[..., d_in:]


def skip_of(sae: Any, x: torch.Tensor) -> torch.Tensor | float:
    """What the skip of a transcoder adds to its decoded latents; 0 without one.

    Args:
        sae: Stock, or a training class of `baselines.transcoder`.
        x: Inputs ``[n, d_in]``.
    """
    if hasattr(sae, "skip_output"):
        return sae.skip_output(x)
    W_skip = getattr(sae, "W_skip", None)
    return 0.0 if W_skip is None else x.to(W_skip.dtype) @ W_skip.T


@dataclass(frozen=True)
class Reconstruction:
    """An SAE on held-out activations.

    Attributes:
        explained_variance: As the paper defines it (Notation); NaN where the SAE reconstructs
            NaN.
        l0: Mean number of active latents.
        alive: Latents that fired at least once.
        ev_median_token: Median over activations of 1 - ||x - x_hat||^2 / ||x - E[x]||^2, each
            with its own distance from the mean, where the paper's EV divides sums.
        error_in_few: Share of all squared error that the `FEW` worst activations hold.
    """

    explained_variance: float
    l0: float
    alive: int
    ev_median_token: float
    error_in_few: float


@torch.no_grad()
def reconstruction(
    sae: SAE[Any] | TrainingSAE[Any], activations: torch.Tensor
) -> Reconstruction:
    """How well an SAE reconstructs activations.

    Args:
        sae: An inference SAE; or a training SAE, which encodes as it trains (a BatchTopK one
            picks the best of each chunk of 1,024 rows).
        activations: ``[n, d_in]``, as the SAE takes them; for a transcoder `sides`, whose
            output is what is explained.
    """
    total = RunningVariance(sides(sae, activations)[1].double().mean(dim=0))
    active = 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=sae.device)
    each = []
    for first in range(0, activations.shape[0], _ROWS_PER_CHUNK):
        x, y = sides(sae, activations[first : first + _ROWS_PER_CHUNK].to(sae.device))
        acts = sae.encode(x)
        each.append(torch.stack(total.add(y, sae.decode(acts) + skip_of(sae, x))).cpu())
        firing = (acts.to_dense() if acts.is_sparse else acts) != 0
        active += float(firing.sum())
        fired |= firing.any(dim=0)
    errors, far = torch.cat(each, dim=1)
    return Reconstruction(
        total.explained_variance,
        active / activations.shape[0],
        int(fired.sum()),
        float((1 - errors / far).median()),
        share_in_few(errors),
    )


def explained_variance(
    sae: SAE[Any] | TrainingSAE[Any], activations: torch.Tensor
) -> tuple[float, float, int]:
    """EV, mean L0 and number of live latents of a `reconstruction`; its arguments."""
    found = reconstruction(sae, activations)
    return found.explained_variance, found.l0, found.alive
