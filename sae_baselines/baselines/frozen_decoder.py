"""Frozen Decoder: random decoder directions, never trained (paper, Section 4.1)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput

from sae_baselines.baselines.frozen import assert_frozen, freeze_
from sae_baselines.baselines.seeded_start import SeededStartConfig

_SAEBase = TrainingSAE[Any] if TYPE_CHECKING else object


@dataclass(kw_only=True)
class FrozenDecoderConfig(SeededStartConfig):
    """Frozen decoder: no fields beyond the start's."""


class FrozenDecoderMixin(_SAEBase):
    """Keeps W_dec as a buffer, so that encoder, biases and thresholds alone are trained."""

    def initialize_weights(self) -> None:
        super().initialize_weights()
        freeze_(self, "W_dec")

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        assert_frozen(self, "W_dec")
        return super().training_forward_pass(step_input)
