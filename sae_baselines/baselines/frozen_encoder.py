"""Frozen Encoder: random encoder vectors, never trained (paper, Section 4.1).

"The contexts that trigger a latent are fixed at the start": which latents fire, and how
they rank, is a function of frozen W_enc, the biases and the threshold. Two SAELens
mechanisms would let learned weights leak into that choice, and are closed here:

- ``rescale_acts_by_decoder_norm=True`` (default of the TopK family) multiplies
  pre-activations by the learned decoder norm before the selection. The frozen encoder
  trains with False.
- ``r_mag`` of the gated SAE is a learned gain of each encoder vector. It stays frozen at 0.

A third leak runs the other way: sparsity penalties weigh each latent by its decoder norm.
A trained encoder makes that a matter of scale, but a frozen one cannot compensate, and the
decoder escapes the penalty by shrinking to nothing while every latent goes on firing
(measured: L0 29 for a target of 8, explained variance 0). With a frozen encoder the
decoder is a constant in the auxiliary losses of the standard, JumpReLU and gated SAE, so
that the penalty acts on the biases and thresholds, which are what it may train, and the
decoder is trained by the reconstruction. (For the gated SAE this is also how its paper,
arXiv 2404.16014, defines the auxiliary reconstruction: with a frozen copy of the decoder.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput

from sae_baselines.baselines.constraint import (
    Constraint,
    Promise,
    assert_frozen,
    freeze_,
    register_constraint,
    stays,
)
from sae_baselines.baselines.seeded_start import SeededStartConfig, SeededStartMixin
from sae_baselines.compat.saes import NORM_PENALTIES, OF_SAELENS, SAEMixin, shadow


@dataclass(kw_only=True)
class FrozenEncoderConfig(SeededStartConfig):
    """Frozen encoder: no fields beyond the start's; one of SAELens' is pinned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self, "rescale_acts_by_decoder_norm", False):
            raise ValueError(
                "rescale_acts_by_decoder_norm: True is not possible with a frozen encoder: the "
                "learned decoder norms would change which latents are selected; use False"
            )


class FrozenEncoderMixin(SeededStartMixin):
    """Keeps W_enc (and the gated SAE's r_mag) as buffers; decoder and biases are trained."""

    def initialize_weights(self) -> None:
        super().initialize_weights()
        freeze_(self, "W_enc")
        if hasattr(self, "r_mag"):
            freeze_(self, "r_mag")

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        assert_frozen(self, "W_enc")
        if hasattr(self, "r_mag"):
            assert_frozen(self, "r_mag")
        return super().training_forward_pass(step_input)


class ConstantDecoderPenaltyMixin(SAEMixin):
    """Auxiliary losses without a gradient to W_dec (standard, JumpReLU and gated bases)."""

    def calculate_aux_loss(self, *args: Any, **kwargs: Any) -> Any:
        with shadow(self, W_dec=self.W_dec.detach()):
            return super().calculate_aux_loss(*args, **kwargs)  # type: ignore[misc]


class CheckedSelectionMixin(SAEMixin):
    """Refuses a third party's base whose selection would drift through its decoder."""

    baseline_base: str

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        if self.device.type != "meta" and selection_depends_on_decoder(self):
            base = self.baseline_base
            raise ValueError(
                f"architecture: frozen_encoder_{base} would not be a frozen encoder: what "
                f"{base!r} encodes depends on its decoder (rescaling W_dec changes it)"
            )


@torch.no_grad()
def selection_depends_on_decoder(sae: TrainingSAE[Any], n_samples: int = 8) -> bool:
    """Whether rescaling decoder rows changes what ``sae`` encodes of random activations.

    Used once on third-party architectures, whose code is not known here. The decoder is
    restored bit for bit.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_samples, sae.cfg.d_in, generator=generator) * sae.cfg.d_in**0.5
    x = x.to(sae.device, sae.dtype)
    before = sae.encode(x).to_dense()
    kept = sae.W_dec.detach().clone()
    scale = 0.5 + torch.rand(sae.cfg.d_sae, 1, generator=generator)
    sae.W_dec.data.mul_(scale.to(sae.W_dec))
    after = sae.encode(x).to_dense()
    sae.W_dec.data.copy_(kept)
    return not torch.equal(before, after)


class FrozenEncoder(Constraint):
    """One of SAELens' fields is pinned; the mixins depend on the base's losses and encoder."""

    name = "frozen_encoder"
    frozen = "W_enc (and r_mag of the gated SAE)"
    learned = "W_dec, biases, thresholds"
    rank = 3
    config_mixin = FrozenEncoderConfig
    sae_mixin = FrozenEncoderMixin
    defaults: ClassVar[Mapping[str, Any]] = {"rescale_acts_by_decoder_norm": False}
    # A tied encoder is the decoder transposed, so freezing either freezes both; what is left
    # to compare is the frozen dictionary (frozen_decoder) and the soft-frozen one.
    refused: ClassVar[Mapping[str, str]] = {
        "matching_pursuit": "its encoder is its decoder transposed, so a frozen encoder is the "
        "frozen decoder; use frozen_decoder_matching_pursuit"
    }

    def mixins(self, base_class: type[TrainingSAE[Any]]) -> tuple[type[Any], ...]:
        checked = () if base_class in OF_SAELENS else (CheckedSelectionMixin,)
        penalised = base_class.calculate_aux_loss in NORM_PENALTIES
        return (
            *checked,
            self.sae_mixin,
            *((ConstantDecoderPenaltyMixin,) if penalised else ()),
        )

    def promise(self, options: Mapping[str, Any], precision: str) -> Promise:
        del options
        return stays("encoder", precision)


register_constraint(FrozenEncoder())
