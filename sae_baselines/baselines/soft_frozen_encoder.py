"""Soft-Frozen Encoder: encoder directions of a transcoder within a cap of their start.

Of transcoders alone. There, encoder and decoder are two draws in two spaces, so a cap around
either asks a question of its own. An SAE starts with one set of directions on both sides, and
the paper caps it where it writes.

Norms of encoder columns, biases, thresholds and the decoder are learned. Decoder norms may
scale pre-activations before the selection (TopK family): the encoder's own norms, which are
learned too, do the same, so no direction is let out of its cap by it.
"""

from typing import Any

from torch import Tensor

from sae_baselines.baselines.constraint import register_constraint
from sae_baselines.baselines.soft_frozen import SoftFrozen, SoftFrozenMixin
from sae_baselines.baselines.transcoder import is_transcoder


class SoftFrozenEncoderMixin(SoftFrozenMixin):
    """Holds the columns of W_enc."""

    held = "W_enc"
    W_enc: Any
    W_enc_start: Tensor

    def held_rows(self) -> Tensor:
        return self.W_enc.data.T


class SoftFrozenEncoder(SoftFrozen):
    """What latents fire on stays near a random start."""

    name = "soft_frozen_encoder"
    frozen = "W_enc up to cos(column, start) >= tau"
    rank = 4
    sae_mixin = SoftFrozenEncoderMixin
    holds = "encoder"

    def why_not(self, base: str) -> str | None:
        if is_transcoder(base):
            return None
        return (
            "an SAE's encoder starts as its decoder transposed, and its cap is the decoder's; "
            f"use soft_frozen_decoder_{base}, or a transcoder"
        )


register_constraint(SoftFrozenEncoder())
