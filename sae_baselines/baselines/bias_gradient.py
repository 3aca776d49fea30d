"""The gradient of b_dec through the encoder, without a [batch, d_in] product.

SAELens computes ``hidden_pre = (x - b_dec) @ W_enc + b_enc``. Autograd then forms the
gradient of the whole input, ``g @ W_enc.T`` of shape [batch, d_in], only to sum it over the
batch for b_dec. The sum can go first: ``-(g.sum(0) @ W_enc.T)``, and ``g.sum(0)`` is the
gradient of b_enc. So b_dec is detached in the input, and a term of value zero that carries
this gradient is added to b_enc. Forward values are SAELens' own, bit for bit.
"""

from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE
from torch import Tensor

from sae_baselines.compat.saes import LINEAR_ENCODERS, SAEMixin, own_parameter, shadow
from sae_baselines.sparse.products import bias_through_encoder


def has_linear_encoder(sae_class: type[TrainingSAE[Any]]) -> bool:
    """Whether the class encodes with one of SAELens' own linear encoders, unchanged."""
    return (
        sae_class.encode_with_hidden_pre in LINEAR_ENCODERS
        and sae_class.process_sae_in is TrainingSAE.process_sae_in
    )


class CheapBiasGradientMixin(SAEMixin):
    """Same forward as the base class, cheaper gradient of b_dec."""

    # Whether the shortcut is taken.
    has_cheap_bias_gradient: bool = True

    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        b_dec = own_parameter(self, "b_dec")
        b_enc = own_parameter(self, "b_enc")
        if (
            b_dec is None
            or b_enc is None
            or not self.has_cheap_bias_gradient
            or not self.cfg.apply_b_dec_to_input
            or not torch.is_grad_enabled()
            or not b_dec.requires_grad
            or torch.compiler.is_compiling()
        ):
            return super().encode_with_hidden_pre(x)  # type: ignore[misc]
        zero = bias_through_encoder(b_dec, self.W_enc)
        with shadow(self, b_dec=b_dec.detach(), b_enc=b_enc + zero):
            return super().encode_with_hidden_pre(x)  # type: ignore[misc]
