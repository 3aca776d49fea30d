"""Steering a sparsity coefficient to a target L0 during training.

Standard and gated SAEs (and any base whose sparsity is only a coefficient) reach whatever
L0 their coefficient leads to, and it leads a frozen twin elsewhere than a trained SAE. Here
the coefficient is multiplied by a factor that a proportional-integral controller on
log(L0 / target) moves; trained member and baselines use the same controller. The integral
waits while L0 is on its way to the target by itself: biases move by about one learning rate
a step, and a frozen encoder, which has only biases, would otherwise be overshot by far
(measured: down to 1.2 for a target of 6).
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor

from sae_baselines.baselines.l0_control import mean_l0
from sae_baselines.compat.saes import ConfigMixin, PreciseBuffersMixin

# Keys of SAELens' get_coefficients() that are sparsity penalties.
SPARSITY_COEFFICIENTS = ("l0", "l1")

# The integral waits if the target will be reached within this many steps at today's slope.
_HORIZON = 200

_STATE = "l0_steering_state"


@dataclass(kw_only=True)
class L0SteeringConfig(ConfigMixin):
    """Config fields of bases that have a sparsity coefficient and no target of their own.

    Args:
        target_l0: Mean number of active latents to steer to; None leaves the coefficient as
            SAELens schedules it.
        l0_steering_rate: Integral gain: change of log(coefficient) per step per unit of
            log(L0 / target).
        l0_steering_gain: Proportional gain on log(L0 / target).
    """

    target_l0: float | None = None
    l0_steering_rate: float = 0.01
    l0_steering_gain: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_l0 is not None and not 0 < self.target_l0 < self.d_sae:
            raise ValueError(
                f"target_l0: {self.target_l0} is out of range; use a value above 0 and below "
                f"d_sae={self.d_sae}"
            )
        for name in ("l0_steering_rate", "l0_steering_gain"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative; use a value >= 0")


class L0SteeringMixin(PreciseBuffersMixin):
    """Multiplies the sparsity coefficient by a steered factor."""

    cfg: L0SteeringConfig
    # [3] float64: integral part of log factor, smoothed L0, its change of log per step
    l0_steering_state: Tensor

    def initialize_weights(self) -> None:
        super().initialize_weights()
        state = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64, device=self.device)
        self.register_precise_buffer(_STATE, state)

    @property
    def l0_coefficient_factor(self) -> float:
        """What the configured sparsity coefficient is currently multiplied by."""
        log_factor, smoothed, _ = self.l0_steering_state.tolist()
        return math.exp(log_factor + self.cfg.l0_steering_gain * self._error(smoothed))

    def _error(self, l0: float) -> float:
        assert self.cfg.target_l0 is not None
        if l0 < 0:
            return 0.0  # nothing measured yet
        ratio = max(l0, 1e-3 * self.cfg.target_l0) / self.cfg.target_l0
        return max(-2.0, min(2.0, math.log(ratio)))

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        if self.cfg.target_l0 is None or getattr(self.cfg, "l0_control", 0.0):
            return super().training_forward_pass(step_input)
        factor = self.l0_coefficient_factor
        steered = {
            name: value * factor if name in SPARSITY_COEFFICIENTS else value
            for name, value in step_input.coefficients.items()
        }
        output = super().training_forward_pass(replace(step_input, coefficients=steered))
        self._observe(output.feature_acts)
        output.metrics["l0_coefficient_factor"] = factor
        return output

    @torch.no_grad()
    def _observe(self, feature_acts: Tensor) -> None:
        l0 = float(mean_l0(feature_acts))
        log_factor, before, slope = self.l0_steering_state.tolist()
        smoothed = l0 if before < 0 else 0.9 * before + 0.1 * l0
        if before > 0 and smoothed > 0:
            slope = 0.95 * slope + 0.05 * math.log(smoothed / before)
        error = self._error(smoothed)
        arriving = slope * error < 0 and abs(error) < _HORIZON * abs(slope)
        if not arriving:
            log_factor += self.cfg.l0_steering_rate * error
        state = torch.tensor([log_factor, smoothed, slope], dtype=torch.float64)
        self.l0_steering_state.copy_(state)

    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        state_dict.pop(_STATE, None)
