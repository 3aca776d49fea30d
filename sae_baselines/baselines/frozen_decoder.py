"""Frozen Decoder: random decoder directions, never trained (paper, Section 4.1)."""

from collections.abc import Mapping
from typing import Any

from sae_lens.saes.sae import TrainStepInput, TrainStepOutput

from sae_baselines.baselines.constraint import (
    Constraint,
    Promise,
    assert_frozen,
    freeze_,
    register_constraint,
    stays,
)
from sae_baselines.baselines.seeded_start import SeededStartMixin


class FrozenDecoderMixin(SeededStartMixin):
    """Keeps W_dec as a buffer, so that encoder, biases and thresholds alone are trained."""

    def initialize_weights(self) -> None:
        super().initialize_weights()
        freeze_(self, "W_dec")

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        assert_frozen(self, "W_dec")
        return super().training_forward_pass(step_input)


class FrozenDecoder(Constraint):
    """Nothing but the start's config fields."""

    name = "frozen_decoder"
    frozen = "W_dec"
    learned = "W_enc, biases, thresholds"
    rank = 1
    sae_mixin = FrozenDecoderMixin

    def promise(self, options: Mapping[str, Any], precision: str) -> Promise:
        del options
        return stays("decoder", precision)


register_constraint(FrozenDecoder())
