"""Bringing every member to its target L0 at the end of training, the same way for all.

BatchTopK exports as JumpReLU with a running average of training thresholds that lags behind
(seen: L0 59 for a target of 32 after 200 steps), so that its inference L0 is not its k. Here
the threshold is set from held-out activations instead. A JumpReLU SAE's thresholds are
multiplied by one common factor. TopK has its L0 by construction, and standard and gated
SAEs have no threshold to set: they are steered during training.
"""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE

_ROWS_PER_CHUNK = 1024


@dataclass(frozen=True)
class Calibration:
    """What calibration did.

    Attributes:
        method: ``threshold``, ``threshold_factor`` or ``none``.
        before: The learned threshold (a factor of 1 for ``threshold_factor``).
        after: The calibrated one.
    """

    method: str
    before: float | None = None
    after: float | None = None


@torch.no_grad()
def calibrate(sae: TrainingSAE[Any], activations: torch.Tensor, l0: float) -> Calibration:
    """Set thresholds so that the exported SAE has mean L0 ``l0`` on these activations.

    Args:
        sae: A trained SAE with activation normalisation folded in (after ``fit``).
        activations: ``[n, d_in]`` held-out activations, raw.
        l0: Target mean number of active latents.

    Returns:
        What was done.
    """
    wanted = max(1, round(l0 * activations.shape[0]))
    if hasattr(sae, "topk_threshold"):
        return _set_threshold(sae, activations, wanted)
    if isinstance(sae._parameters.get("threshold"), torch.nn.Parameter):
        return _scale_thresholds(sae, activations, wanted)
    return Calibration("none")


def _set_threshold(sae: Any, activations: torch.Tensor, wanted: int) -> Calibration:
    before = float(sae.topk_threshold)
    lowest = _nth_largest(sae, activations, wanted, lambda pre: pre)
    # JumpReLU fires above its threshold, so the last wanted activation must be above it.
    after = torch.nextafter(lowest, torch.zeros_like(lowest)) if lowest > 0 else lowest * 0
    sae.topk_threshold = after.to(sae.topk_threshold)
    return Calibration("threshold", before, float(after))


def _scale_thresholds(sae: Any, activations: torch.Tensor, wanted: int) -> Calibration:
    threshold = sae.threshold.data

    def ratio(pre: torch.Tensor) -> torch.Tensor:
        # A zero threshold cannot be scaled: its latent fires or not whatever the factor.
        high = torch.finfo(pre.dtype).max
        ratio = torch.where(threshold > 0, pre / threshold, (pre > 0) * high)
        return torch.where(pre > 0, ratio, 0)

    lowest = _nth_largest(sae, activations, wanted, ratio)
    factor = torch.nextafter(lowest, torch.zeros_like(lowest))
    if not 0 < float(factor) < 1e6:
        return Calibration("none")
    sae.threshold.data.mul_(factor)
    return Calibration("threshold_factor", 1.0, float(factor))


def _nth_largest(sae: Any, activations: torch.Tensor, n: int, score: Any) -> torch.Tensor:
    """The n-th largest positive score over all activations and latents (0 if fewer)."""
    best = torch.zeros(0, device=sae.device)
    for first in range(0, activations.shape[0], _ROWS_PER_CHUNK):
        x = activations[first : first + _ROWS_PER_CHUNK].to(sae.device)
        scores = score(sae.encode_with_hidden_pre(x)[1]).flatten()
        # What is below the n-th best so far can never come back.
        floor = best.min() if best.numel() >= n else 0.0
        best = torch.cat([best, scores[scores > floor]])
        if best.numel() > n:
            best = best.topk(n, sorted=False).values
    if best.numel() < n:
        return torch.zeros((), device=sae.device)
    return best.min()
