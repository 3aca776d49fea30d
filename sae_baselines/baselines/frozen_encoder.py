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

What else of the encoder is learned is the field ``learned``. The paper says "only the
activation threshold and decoder". With ``threshold`` that is: the thresholds of a JumpReLU,
b_enc of a standard SAE (there it is the threshold), b_gate of a gated one; of the TopK family
nothing, since the k-th largest value is the threshold. Other biases stay at their start. b_dec
is learned where it is added to the output, but the b_dec that SAELens subtracts from the input
would move what triggers a latent: instead the start's is folded into the biases, once, and
``apply_b_dec_to_input`` turned off, so that training, folding and export are SAELens' own. With
``biases`` all biases are learned, at the input too.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from sae_lens import GatedTrainingSAE, StandardTrainingSAE
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from torch import Tensor, nn
from typing_extensions import override

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
from sae_baselines.errors import UserError

Learned = Literal["biases", "threshold"]
LEARNED: tuple[Learned, ...] = ("biases", "threshold")

# Biases that are no threshold, where a base's are not just b_enc.
_NO_THRESHOLD: dict[type[Any], tuple[str, ...]] = {
    StandardTrainingSAE: (),
    GatedTrainingSAE: ("b_mag",),
}


@dataclass(kw_only=True)
class FrozenEncoderConfig(SeededStartConfig):
    """Frozen encoder; one of SAELens' fields is pinned.

    Args:
        learned: What is learned beside the decoder: ``biases`` (and thresholds), or only the
            activation ``threshold`` (paper, Section 4.1).
    """

    learned: Learned = "biases"

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self, "rescale_acts_by_decoder_norm", False):
            raise ValueError(
                "rescale_acts_by_decoder_norm: True is not possible with a frozen encoder: the "
                "learned decoder norms would change which latents are selected; use False"
            )
        if self.learned not in LEARNED:
            raise ValueError(
                f"learned: {self.learned!r} is unknown; use {' or '.join(LEARNED)}"
            )


class FrozenEncoderMixin(SeededStartMixin):
    """Keeps W_enc (and the gated SAE's r_mag) as buffers; decoder and biases are trained."""

    cfg: Any  # FrozenEncoderConfig
    frozen_weights: tuple[str, ...] = ("W_enc",)
    # Whether the start's b_dec is subtracted from the input for good.
    _is_centred = False

    def initialize_weights(self) -> None:
        if self.cfg.learned == "threshold":
            self._is_centred = self.cfg.apply_b_dec_to_input
            self.cfg = copy.copy(self.cfg)  # others may be made of the caller's
            self.cfg.apply_b_dec_to_input = False
        super().initialize_weights()
        names = ["W_enc", *(["r_mag"] if hasattr(self, "r_mag") else [])]
        if self.cfg.learned == "threshold":
            names += next(
                (v for c, v in _NO_THRESHOLD.items() if isinstance(self, c)), ["b_enc"]
            )
        for name in names:
            freeze_(self, name)
        self.frozen_weights = tuple(names)

    @torch.no_grad()
    def set_start_directions(self, directions: Tensor, encoder: Tensor | None = None) -> None:
        super().set_start_directions(directions, encoder)
        if self._is_centred:
            self._fold_start()

    @torch.no_grad()
    def set_start_b_dec(self, b_dec: Tensor) -> None:
        super().set_start_b_dec(b_dec)
        if self._is_centred:
            self._fold_start()

    def _fold_start(self) -> None:
        """Start biases at what the encoder makes of ``- b_dec``."""
        wide = torch.promote_types(self.W_enc.dtype, torch.float32)
        shift = -(self.b_dec.to(wide) @ self.W_enc.to(wide))
        for name in ("b_gate", "b_mag") if hasattr(self, "b_gate") else ("b_enc",):
            getattr(self, name).data.copy_(shift)

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        for name in self.frozen_weights:
            assert_frozen(self, name)
        return super().training_forward_pass(step_input)

    @contextmanager
    def _b_enc_as_parameter(self) -> Iterator[None]:
        """SAELens folds into a b_enc that is a parameter, and leaves any other as it is."""
        if "b_enc" not in self.frozen_weights:
            yield
            return
        with shadow(self, b_enc=nn.Parameter(self.get_buffer("b_enc"), requires_grad=False)):
            yield

    @override
    def fold_activation_whitening(self, *args: Any, **kwargs: Any) -> None:
        with self._b_enc_as_parameter():
            super().fold_activation_whitening(*args, **kwargs)

    @override
    def fold_and_get_W_dec_norm(self) -> Tensor:
        with self._b_enc_as_parameter():
            return super().fold_and_get_W_dec_norm()


class ConstantDecoderPenaltyMixin(SAEMixin):
    """Auxiliary losses without a gradient to W_dec (standard, JumpReLU and gated bases)."""

    def calculate_aux_loss(self, *args: Any, **kwargs: Any) -> Any:
        with shadow(self, W_dec=self.W_dec.detach()):
            return super().calculate_aux_loss(*args, **kwargs)  # type: ignore[misc]


class CheckedSelectionMixin(SAEMixin):
    """Refuses a third party's base whose selection would drift through its decoder."""

    baseline_base: str

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        if cfg.learned == "threshold":
            raise UserError(
                f"learned: 'threshold' is not possible with {self.baseline_base!r}: which of "
                "its biases is a threshold is known of SAELens' own architectures alone; use "
                "'biases'"
            )
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
    learned = "W_dec, thresholds; biases unless learned=threshold"
    rank = 3
    keeps_encoder = True
    config_mixin = FrozenEncoderConfig
    sae_mixin = FrozenEncoderMixin
    options = ("learned",)
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

    def in_words(self, options: Mapping[str, Any]) -> str:
        return f"frozen: {_frozen(options)}; learned: {_learned(options)}"

    def of_directions(self, directions: str, options: Mapping[str, Any]) -> str:
        return f"`W_enc` frozen at {directions}; learned: {_learned(options)}."


def _frozen(options: Mapping[str, Any]) -> str:
    more = ", biases that are no threshold" if _is_paper(options) else ""
    return f"{FrozenEncoder.frozen}{more}"


def _learned(options: Mapping[str, Any]) -> str:
    if _is_paper(options):
        return "W_dec, b_dec at the output, the activation threshold"
    return "W_dec, biases, thresholds"


def _is_paper(options: Mapping[str, Any]) -> bool:
    # Earlier versions had no choice.
    return options.get("learned") == "threshold"


register_constraint(FrozenEncoder())
