"""Bringing every member to its target L0 at the end of training, the same way for all.

BatchTopK exports as JumpReLU with a running average of training thresholds that lags behind
(seen: L0 59 for a target of 32 after 200 steps), so that its inference L0 is not its k. Here
the threshold is set from held-out activations instead. A JumpReLU SAE's thresholds are
multiplied by one common factor. Standard and gated SAEs are steered during training, and
what is left is taken up by one number added to b_enc (b_gate) of every latent. A gate only
selects; b_enc also adds to what is active, so a standard SAE that ended further than 25 %
from its target is left as it is, and the panel says so. TopK has its L0 by construction.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import GatedTrainingSAE, JumpReLUTrainingSAE, StandardTrainingSAE
from sae_lens.saes.sae import TrainingSAE

from sae_baselines.controls.latents import Score, chunks, cut_above, wanted_active

_NEAR_ENOUGH = 0.25


@dataclass(frozen=True)
class Calibration:
    """What calibration did.

    Attributes:
        method: ``threshold``, ``threshold_factor``, ``b_enc_shift``, ``b_gate_shift`` or
            ``none``.
        before: The learned threshold; 1 for a factor, 0 for a shift.
        after: The calibrated threshold, the factor or the shift.
        l0_before: Mean L0 on these activations before a factor or a shift; what the SAE was
            trained for, up to what training data it has overfitted. A BatchTopK SAE is trained
            at its k whatever its running threshold says.
    """

    method: str
    before: float | None = None
    after: float | None = None
    l0_before: float | None = None


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
    wanted = wanted_active(activations, l0)
    if hasattr(sae, "topk_threshold"):
        return _set_threshold(sae, activations, wanted)
    if isinstance(sae, JumpReLUTrainingSAE):
        return _scale_thresholds(sae, activations, wanted)
    if isinstance(sae, StandardTrainingSAE):
        return _shift_bias(
            sae, activations, wanted, "b_enc", _pre_activations, _NEAR_ENOUGH * l0
        )
    if isinstance(sae, GatedTrainingSAE):
        return _shift_bias(sae, activations, wanted, "b_gate", _gate_of_active)
    return Calibration("none")


def _set_threshold(sae: Any, activations: torch.Tensor, wanted: int) -> Calibration:
    before = float(sae.topk_threshold)
    after = cut_above(sae, activations, wanted, _pre_activations)
    sae.topk_threshold = torch.clamp(after, min=0).to(sae.topk_threshold)
    return Calibration("threshold", before, float(sae.topk_threshold))


def _scale_thresholds(sae: Any, activations: torch.Tensor, wanted: int) -> Calibration:
    def ratio(sae: Any, x: torch.Tensor) -> torch.Tensor:
        pre = _pre_activations(sae, x)
        # A zero threshold cannot be scaled: its latent fires or not whatever the factor.
        high = torch.finfo(pre.dtype).max
        ratio = torch.where(sae.threshold > 0, pre / sae.threshold, high)
        return torch.where(pre > 0, ratio, 0)

    before = _l0(sae, activations, ratio, above=1)
    factor = cut_above(sae, activations, wanted, ratio)
    if not 0 < float(factor) < 1e6:
        return Calibration("none", l0_before=before)
    sae.threshold.data.mul_(factor)
    return Calibration("threshold_factor", 1.0, float(factor), before)


def _l0(sae: Any, activations: torch.Tensor, score: Score, above: float = 0) -> float:
    active = sum(int((score(sae, x) > above).sum()) for x in chunks(sae, activations))
    return active / activations.shape[0]


def _shift_bias(
    sae: Any,
    activations: torch.Tensor,
    wanted: int,
    bias: str,
    score: Score,
    near: float = math.inf,
) -> Calibration:
    """Add one number to a bias of every latent, if L0 is not further off than ``near``."""
    before = _l0(sae, activations, score)
    if abs(before - wanted / activations.shape[0]) > near:
        return Calibration("none", l0_before=before)
    cut = cut_above(sae, activations, wanted, score)
    if not torch.isfinite(cut):
        # Not that many latents have a magnitude at all.
        return Calibration("none", l0_before=before)
    getattr(sae, bias).data.sub_(cut)
    return Calibration(f"{bias}_shift", 0.0, -float(cut), before)


def _pre_activations(sae: Any, x: torch.Tensor) -> torch.Tensor:
    return sae.encode_with_hidden_pre(x)[1]


def _gate_of_active(sae: Any, x: torch.Tensor) -> torch.Tensor:
    gate = sae.process_sae_in(x) @ sae.W_enc + sae.b_gate
    return torch.where(_pre_activations(sae, x) > 0, gate, -torch.inf)
