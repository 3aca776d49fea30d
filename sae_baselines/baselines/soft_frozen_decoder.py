"""Soft-Frozen Decoder: decoder directions within a cap of their start (paper, Section 4.1)."""

from typing import Any

from torch import Tensor

from sae_baselines.baselines.constraint import register_constraint
from sae_baselines.baselines.soft_frozen import SoftFrozen, SoftFrozenMixin


class SoftFrozenDecoderMixin(SoftFrozenMixin):
    """Holds the rows of W_dec."""

    held = "W_dec"
    W_dec: Any
    W_dec_start: Tensor

    def held_rows(self) -> Tensor:
        return self.W_dec.data


class SoftFrozenDecoder(SoftFrozen):
    """What latents write stays near a random start."""

    name = "soft_frozen_decoder"
    frozen = "W_dec up to cos(row, start) >= tau"
    rank = 2
    sae_mixin = SoftFrozenDecoderMixin
    holds = "decoder"


register_constraint(SoftFrozenDecoder())
