"""Holding the L0 of training batches at its target: one move of all thresholds a step.

A penalty leads to its own L0. SAELens' quadratic one (JumpReLU) has its minimum below the
target, by 1 + CV^2 of L0 over tokens, and a threshold moves by about one learning rate a step,
so that members of a panel end at different L0s, none of them the target's. Here all thresholds
of a JumpReLU are multiplied by one factor before each step, and all biases of a standard SAE
(gates of a gated one) shifted by one number; what tells latents apart is left to gradients.
The same for every member, as the batch's own threshold is in a BatchTopK.

A shift of biases alone is undone by the encoder. ReLU subtracts from every active value, so the
loss asks all latents for more; encoders grow, biases are shifted after them, and the SAE gets
worse at the L0 that is held (measured: benchmarks/recipes). So what all active values are asked
for in common is taken from those next to 0, whose number is the L0: the gradient along which it
does not change.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor

from sae_baselines.compat.saes import ConfigMixin, PreciseBuffersMixin, shadow
from sae_baselines.sparse import active_latents

logger = logging.getLogger("sae_baselines")

# What a JumpReLU's thresholds go back to their mean by before each step, unless told otherwise.
THRESHOLD_RETURN = 0.03

_STATE = "l0_control_state"
# A batch further from its target than this factor counts as this far.
_FARTHEST = 10.0
# Thresholds and biases also move by what was needed on average: encoders grow, and a control by
# the last batch's L0 alone would stay behind. It is learned within this many e-folds of the
# target, so that the way there does not count, at this share of the gain's square (a quarter
# is critical damping where L0 falls as 1 / threshold; it falls faster).
_NEAR = 0.5
_DRIFT_SHARE = 0.125
# What a bias is shifted by is in units of a mean over about this many steps.
_SMOOTHING = 0.1
# Of the mean threshold. One that is lower, such as SAELens' 0 after a step that went too far,
# could not be multiplied back, and would pull the (geometric) mean of all others down.
_LEAST = 0.01
# An L0 of the last batch this far from the target, either way, is no noise of batches.
_MISSED = 1.25
# Active values up to this share of their mean are next to 0.
_NEXT_TO_ZERO = 0.25


@dataclass(kw_only=True)
class L0ControlConfig(ConfigMixin):
    """Config field of bases with a threshold or a bias per latent.

    Args:
        l0_control: Gain of the control. Before each step thresholds are multiplied by
            (L0 of the last batch / target_l0) to this power; biases are lowered by this times
            the logarithm of that ratio, in units of the mean active value, and gradients of a
            standard or gated SAE are those at constant L0. The drift that remains is learned
            and taken off too. 0 leaves L0 to the penalty, as SAELens does; sae_baselines'
            studies use 0.1.
        threshold_return: Share of the way back to their common (geometric) mean that a
            JumpReLU's thresholds go before each step while L0 is controlled. One that no batch
            reaches has no gradient, and Adam moves the others by about a learning rate each,
            whatever their gradients (measured: benchmarks/recipes). 1 is one threshold for
            all latents, 0 leaves each where gradients move it.
    """

    l0_control: float = 0.0
    threshold_return: float = THRESHOLD_RETURN

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold_return <= 1:
            raise ValueError(
                f"threshold_return: {self.threshold_return} is out of range; use a share from "
                f"0 to 1, e.g. {THRESHOLD_RETURN}"
            )
        if not 0 <= self.l0_control <= 1:
            raise ValueError(
                f"l0_control: {self.l0_control} is out of range; use a value from 0 (none) to "
                "1, e.g. 0.1"
            )
        target = getattr(self, "target_l0", None)
        if self.l0_control and not (target is not None and 0 < target < self.d_sae):
            raise ValueError(
                f"target_l0: {target} is nothing that l0_control could hold; use a value above "
                f"0 and below d_sae={self.d_sae}, or l0_control=0"
            )


class L0ControlMixin(PreciseBuffersMixin):
    """Moves all thresholds, or biases, before each step."""

    cfg: Any  # L0ControlConfig and the base's, which has target_l0
    threshold: Tensor
    b_enc: Tensor
    b_gate: Tensor
    activation_fn: Callable[[Tensor], Tensor]
    # [3] float64: L0 of the last batch and the mean active value, -1 before there is one, and
    # the drift
    l0_control_state: Tensor

    def initialize_weights(self) -> None:
        super().initialize_weights()
        if self.cfg.l0_control:
            state = torch.tensor([-1.0, -1.0, 0.0], dtype=torch.float64, device=self.device)
            self.register_precise_buffer(_STATE, state)

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        if not self.cfg.l0_control:
            return super().training_forward_pass(step_input)
        # Not after the forward pass: its backward pass reads the thresholds again.
        self._move_all()
        with self._at_constant_l0():
            output = super().training_forward_pass(step_input)
        self._note(output.feature_acts)
        return output

    @torch.no_grad()
    def _move_all(self) -> None:
        l0, unit, drift = self.l0_control_state
        move = torch.where(l0 < 0, 0.0, self.cfg.l0_control * self._log_ratio(l0) + drift)
        if hasattr(self, "threshold"):
            threshold = self.threshold.data
            threshold.clamp_(min=_LEAST * threshold.mean())
            logs = threshold.clamp(min=torch.finfo(threshold.dtype).tiny).log()
            back = torch.where(l0 < 0, 0.0, self.cfg.threshold_return) * (logs.mean() - logs)
            threshold.mul_((move + back).exp().to(threshold.dtype))
        else:
            bias = self.b_gate if hasattr(self, "b_gate") else self.b_enc
            bias.data.sub_((move * unit.clamp(min=0)).to(bias.dtype))

    @contextmanager
    def _at_constant_l0(self) -> Iterator[None]:
        """Gradients of active values as if their number could not change.

        Not for thresholds, which values jump over; for gates see `calculate_aux_loss`.
        """
        if hasattr(self, "threshold") or hasattr(self, "b_gate"):
            yield
            return
        activation_fn = self.activation_fn
        with shadow(self, activation_fn=lambda pre: at_constant_number(activation_fn(pre))):
            yield

    def _gate_values(self, gate: Tensor) -> Tensor:
        """Of the sparse step of a gated SAE."""
        gate = torch.relu(gate)
        return at_constant_number(gate) if self.cfg.l0_control else gate

    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        losses: Any = super().calculate_aux_loss
        inputs = (step_input, feature_acts, hidden_pre, sae_out)
        dense_gate = hasattr(self, "b_gate") and active_latents(feature_acts) is None
        if not (self.cfg.l0_control and dense_gate):
            return losses(*inputs)
        # SAELens computes the gate in here. What is taken from each value is taken from its
        # bias, which the inactive ones do not pass on.
        centred = step_input.sae_in - self.b_dec * self.cfg.apply_b_dec_to_input
        gate = torch.relu(centred @ self.W_enc + self.b_gate)
        level = level_of(gate)
        with shadow(self, b_gate=self.b_gate - (level - level.detach())):
            return losses(*inputs)

    def _log_ratio(self, l0: Tensor) -> Tensor:
        ratio = l0 / self.cfg.target_l0
        return ratio.clamp(1 / _FARTHEST, _FARTHEST).log()

    @torch.no_grad()
    def _note(self, acts: Tensor) -> None:
        l0 = mean_l0(acts)
        _, before, drift = self.l0_control_state
        mean = acts.sum().double() / (l0 * acts.shape[:-1].numel()).clamp(min=1)
        now = torch.where(before < 0, mean, before + _SMOOTHING * (mean - before))
        unit = torch.where(l0 > 0, now, before)
        error = self._log_ratio(l0)
        learned = _DRIFT_SHARE * self.cfg.l0_control**2 * error
        drift = drift + torch.where(error.abs() < _NEAR, learned, 0.0)
        self.l0_control_state.copy_(torch.stack([l0, unit, drift]))

    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        state = state_dict.pop(_STATE, None)
        # A study has its own record of it.
        if state is not None and not getattr(self.cfg.metadata, "sae_baselines", None):
            self._tell(float(state[0]))

    def _tell(self, l0: float) -> None:
        target = self.cfg.target_l0
        if l0 >= 0 and not target / _MISSED <= l0 <= target * _MISSED:
            logger.warning(
                "l0_control: the last training batch had an L0 of %.3g, not target_l0=%g. It "
                "needs some 300 steps, and as many latents that can fire: train longer, or use "
                "a target_l0 that it can be held at",
                l0,
                target,
            )


def at_constant_number(acts: Tensor) -> Tensor:
    """The same activations; their gradient keeps the number of positive ones.

    Raising all pre-activations by one number changes how many are positive. That part of a
    gradient, its sum over the positive ones, is subtracted again in equal parts from those
    that are next to 0.

    Args:
        acts: Activations of any shape, none negative.
    """
    if not (torch.is_grad_enabled() and acts.requires_grad):
        return acts
    level = level_of(acts)
    return acts - (acts > 0) * (level - level.detach())


def level_of(acts: Tensor) -> Tensor:
    """Mean of the activations next to 0, a scalar; 0 without any."""
    with torch.no_grad():
        active = acts > 0
        mean = acts.sum() / active.sum().clamp(min=1)
        near = active & (acts <= _NEXT_TO_ZERO * mean)
        share = near.to(acts.dtype) / near.sum().clamp(min=1)
    return (acts * share).sum()


def mean_l0(acts: Tensor) -> Tensor:
    """Mean number of active latents of ``[..., d_sae]`` training activations, a scalar."""
    latents = active_latents(acts)
    active = torch.count_nonzero(acts if latents is None else latents.values)
    return active.double() / acts.shape[:-1].numel()
