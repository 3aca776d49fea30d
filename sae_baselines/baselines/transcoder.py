"""Training classes for transcoders, which SAELens loads and does not train.

A transcoder reads activations at one hook and writes those at another, with an optional affine
skip beside its latents: ``y = acts(x) @ W_dec + W_skip x + b_dec``. Each class here is SAELens'
own training class of the same base, given three things: a decoder as wide as the output, the
skip, and batches that hold input and output side by side, ``[batch, d_in + d_out]``, which is
what lets SAELens' trainers train it unchanged. In a step the base sees what the skip leaves of
the output as its target, and the input where it encodes; its losses are its own.

Scaling, starts and what the field does: docs/transcoders.md.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUSkipTranscoderConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    JumpReLUTranscoderConfig,
    SkipTranscoderConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    TranscoderConfig,
    register_sae_training_class,
)
from sae_lens.saes.sae import SAEConfig, TrainStepInput, TrainStepOutput
from torch import Tensor, nn
from typing_extensions import override

from sae_baselines.baselines.checkpoint import register_checkpoint
from sae_baselines.baselines.directions import covariance_of
from sae_baselines.compat.saes import (
    OF_SAELENS,
    SAE_TRAINING_CLASS_REGISTRY,
    ConfigMixin,
    SAEMixin,
    shadow,
)
from sae_baselines.errors import UserError
from sae_baselines.sparse import SPARSE_STEPS, active_latents

SkipStart = Literal["least_squares", "zero"]
# Directions of the input that vary less than this share of the largest are none: rounding.
_RANK = 1e-10


@dataclass(frozen=True)
class PairStart:
    """What inputs and outputs say of a transcoder's start, float64 on the CPU.

    Attributes:
        mean_in: ``[d_in]``.
        mean_out: ``[d_out]``.
        skip: ``[d_out, d_in]``: the least-squares map of inputs, less their mean, to outputs.
        input_scale: Makes the mean squared norm of inputs, less their mean, d_in.
        output_scale: The same of outputs.
    """

    mean_in: Tensor
    mean_out: Tensor
    skip: Tensor
    input_scale: float
    output_scale: float

    @classmethod
    def of(cls, pairs: Tensor, d_in: int) -> "PairStart":
        """Of ``[n, d_in + d_out]`` inputs and outputs side by side, raw.

        Raises:
            UserError: No more pairs than inputs are wide, or a side that does not vary.
        """
        if pairs.shape[0] <= d_in:
            raise UserError(
                f"pairs: {pairs.shape[0]} of them say too little of an affine map of {d_in} "
                "inputs; give more"
            )
        covariance = covariance_of(pairs)
        of_input, of_output = covariance[:d_in, :d_in], covariance[d_in:, d_in:]
        sizes = [float(torch.trace(c)) for c in (of_input, of_output)]
        for side, size in zip(("inputs", "outputs"), sizes, strict=True):
            if not size > 0:
                raise UserError(f"pairs: the {side} do not vary; use another hook")
        mean = pairs.double().mean(dim=0).cpu()
        inverse = torch.linalg.pinv(of_input, rtol=_RANK, hermitian=True)
        widths = d_in, pairs.shape[1] - d_in
        scales = [math.sqrt(width / size) for width, size in zip(widths, sizes, strict=True)]
        return cls(mean[:d_in], mean[d_in:], covariance[d_in:, :d_in] @ inverse, *scales)

    def predict(self, inputs: Tensor) -> Tensor:
        """The affine map alone, ``[n, d_out]``: what needs no latents."""
        skip, shift = self.skip.to(inputs), (self.mean_out - self.skip @ self.mean_in)
        return inputs @ skip.T + shift.to(inputs)


@dataclass(kw_only=True)
class TranscoderTrainingConfig(ConfigMixin):
    """Config fields of every transcoder.

    Args:
        d_out: Width of the output.
        skip: An affine skip beside the latents, trained with them.
        skip_start: Where the skip starts once `TranscoderMixin.set_start` is called.
        input_scale: Inputs are multiplied by this before the encoder (> 0). Folded into the
            weights of what is exported, as the next.
        output_scale: Outputs are multiplied by this before the loss (> 0).
        shuffled_pairs: The null of the pairing: each input is trained towards the output of the
            batch's next one, which in a shuffled batch is another token's; a skip starts at 0.
        hook_name_out: Where outputs are taken; goes to the metadata.
        apply_b_dec_to_input: Must be False: b_dec is in the space of outputs.
        normalize_activations: Must be ``none``: input and output have a scale each.
    """

    d_out: int
    skip: bool = False
    skip_start: SkipStart = "least_squares"
    input_scale: float = 1.0
    output_scale: float = 1.0
    shuffled_pairs: bool = False
    hook_name_out: str | None = None
    apply_b_dec_to_input: bool = False

    def __post_init__(self) -> None:
        if self.d_out < 1:
            raise ValueError(f"d_out: {self.d_out} is no width; use that of the output hook")
        for name in ("input_scale", "output_scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: {value} is not a positive number; use e.g. 1.0")
        if self.skip_start not in ("least_squares", "zero"):
            raise ValueError(
                f"skip_start: {self.skip_start!r} is unknown; use least_squares or zero"
            )
        if self.apply_b_dec_to_input:
            raise ValueError(
                "apply_b_dec_to_input: True is not possible with a transcoder, whose b_dec is "
                "in the space of outputs; use False"
            )
        if self.normalize_activations != "none":
            raise ValueError(
                f"normalize_activations: {self.normalize_activations!r} would scale input and "
                "output by one factor; use 'none' with input_scale and output_scale"
            )
        super().__post_init__()
        if self.hook_name_out is not None:
            self.metadata.hook_name_out = self.hook_name_out

    def get_inference_config_class(self) -> type[SAEConfig]:
        return JumpReLUSkipTranscoderConfig if self.skip else JumpReLUTranscoderConfig


class TranscoderMixin(SAEMixin):
    """Makes a transcoder of one of SAELens' training classes."""

    cfg: Any  # TranscoderTrainingConfig and the base's
    b_enc: nn.Parameter
    W_skip: nn.Parameter
    # The input of the step that is running.
    _read: Tensor | None = None

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        cfg, where = self.cfg, {"dtype": self.dtype, "device": self.device}
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_out, **where))
        norm = 1.0 if cfg.decoder_init_norm is None else cfg.decoder_init_norm
        rows = nn.functional.normalize(torch.randn(cfg.d_sae, cfg.d_out, **where), dim=1)
        self.W_dec = nn.Parameter(norm * rows)
        columns = nn.functional.normalize(torch.randn(cfg.d_in, cfg.d_sae, **where), dim=0)
        self.W_enc = nn.Parameter(columns)
        if cfg.skip:
            self.W_skip = nn.Parameter(torch.zeros(cfg.d_out, cfg.d_in, **where))

    @torch.no_grad()
    def set_start(self, start: PairStart) -> None:
        """Start biases and skip from data, in place; directions and scales stay.

        b_dec is the mean output (with a skip from least squares: less what that makes of the
        mean input), b_enc what makes the mean input 0, as ``x - b_dec`` does in an SAE. Give
        the config the scales of ``start`` for outputs and inputs of the usual size.

        Raises:
            UserError: A ``cov`` start still waits for its directions.
        """
        if getattr(self, "start_is_pending", False):
            raise UserError(
                "init_scheme: 'cov' waits for activations, so there is no encoder to centre "
                "yet; give the covariance of input and output as init_covariance_path"
            )
        cfg, shift = self.cfg, start.mean_out
        if cfg.skip and cfg.skip_start == "least_squares" and not cfg.shuffled_pairs:
            shift = shift - start.skip @ start.mean_in
            self.W_skip.data.copy_(start.skip * (cfg.output_scale / cfg.input_scale))
        self.b_dec.data.copy_(shift * cfg.output_scale)
        centre = (cfg.input_scale * start.mean_in).to(self.W_enc.device)
        self.b_enc.data.copy_(-(centre @ self.W_enc.double()))

    def _sides(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Input and output of ``[..., d_in + d_out]``; an input alone has no output."""
        d_in, width = self.cfg.d_in, self.cfg.d_in + self.cfg.d_out
        if x.shape[-1] not in (d_in, width):
            raise ValueError(
                f"activations: width {x.shape[-1]} is neither that of inputs, {d_in}, nor of "
                f"inputs and outputs side by side, {width}"
            )
        return x[..., :d_in], x[..., d_in:] if x.shape[-1] == width else None

    @override
    def process_sae_in(self, sae_in: Tensor) -> Tensor:
        x = self._sides(sae_in)[0] if self._read is None else self._read
        x = self.hook_sae_input(x.to(self.dtype))
        return x if self.cfg.input_scale == 1 else x * self.cfg.input_scale

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        x, y = self._sides(step_input.sae_in)
        if y is None:
            raise ValueError(
                f"activations: width {x.shape[-1]} has no outputs; train on inputs and outputs "
                "side by side"
            )
        if self.cfg.shuffled_pairs:
            y = y.roll(1, dims=0)
        y = y.to(self.dtype) * self.cfg.output_scale
        skip = self._skip(x) if self.cfg.skip else None
        # Reconstructing what the skip leaves is the same loss, with the same gradients.
        left = y if skip is None else y - skip
        with shadow(self, _read=x):
            output = super().training_forward_pass(replace(step_input, sae_in=left))
        out = output.sae_out if skip is None else output.sae_out + skip
        return replace(output, sae_in=y, sae_out=out)

    def skip_output(self, x: Tensor) -> Tensor | float:
        """What the skip adds to raw outputs, ``[n, d_out]`` of raw inputs; 0 without one."""
        return self._skip(x) / self.cfg.output_scale if self.cfg.skip else 0.0

    def _skip(self, x: Tensor) -> Tensor:
        """In units of scaled outputs."""
        return (x.to(self.dtype) * self.cfg.input_scale) @ self.W_skip.T

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        out = super().decode(feature_acts)
        # Raw outputs, but for the loss.
        return out if self._read is not None else out / self.cfg.output_scale

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[..., d_out]`` of raw inputs, or of inputs and outputs side by side."""
        x, _ = self._sides(x)
        return super().forward(x) + self.skip_output(x)

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        read, write = self.cfg.input_scale, self.cfg.output_scale
        folded = {"W_enc": read, "W_dec": 1 / write, "b_dec": 1 / write, "W_skip": read / write}
        for name, factor in folded.items():
            if name in state_dict and factor != 1:
                state_dict[name] = state_dict[name] * factor  # not in place: it is the SAE's


@dataclass(kw_only=True)
class TopKTranscoderConfig(TranscoderTrainingConfig, TopKTrainingSAEConfig):
    """TopK; SAELens has no such inference class, so it is exported with a threshold.

    Args:
        topk_threshold_lr: As of a BatchTopK.
    """

    topk_threshold_lr: float = 0.01

    @override
    @classmethod
    def architecture(cls) -> str:
        return "transcoder_topk"


class TopKTranscoder(TranscoderMixin, TopKTrainingSAE):
    """k latents per token in training, and a JumpReLU with their mean threshold after it."""

    topk_threshold: Tensor

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        zero = torch.tensor(0.0, dtype=torch.double, device=self.W_dec.device)
        self.register_buffer("topk_threshold", zero)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        output = super().training_forward_pass(step_input)
        self._note_threshold(output.feature_acts.detach())
        return output

    @torch.no_grad()
    def _note_threshold(self, acts: Tensor) -> None:
        """Average over steps of the least activation of a token, averaged over tokens."""
        latents = active_latents(acts)
        if latents is None:
            dense = acts.to_dense()
            least = dense.masked_fill(dense <= 0, torch.inf).amin(dim=-1)
        else:
            least = torch.full((acts.shape[0],), torch.inf, device=acts.device)
            values = latents.values.detach().float()
            least.scatter_reduce_(0, latents.entries.rows, values, "amin")
        least = least[least.isfinite()]
        if len(least):
            step = least.double().mean() - self.topk_threshold
            self.topk_threshold = self.topk_threshold + self.cfg.topk_threshold_lr * step

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        threshold = state_dict.pop("topk_threshold").item()
        state_dict["threshold"] = torch.full_like(self.b_enc.detach(), threshold)


@dataclass(kw_only=True)
class BatchTopKTranscoderConfig(TranscoderTrainingConfig, BatchTopKTrainingSAEConfig):
    """BatchTopK."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "transcoder_batchtopk"


class BatchTopKTranscoder(TranscoderMixin, BatchTopKTrainingSAE):
    """k latents per token on average over a batch."""


@dataclass(kw_only=True)
class JumpReLUTranscoderTrainingConfig(TranscoderTrainingConfig, JumpReLUTrainingSAEConfig):
    """JumpReLU."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "transcoder_jumprelu"


class JumpReLUTrainingTranscoder(TranscoderMixin, JumpReLUTrainingSAE):
    """A threshold per latent."""


@dataclass(kw_only=True)
class StandardTranscoderConfig(TranscoderTrainingConfig, StandardTrainingSAEConfig):
    """ReLU and an L1 penalty."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "transcoder_standard"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return SkipTranscoderConfig if self.skip else TranscoderConfig


class StandardTranscoder(TranscoderMixin, StandardTrainingSAE):
    """ReLU and an L1 penalty."""


_TRANSCODERS: tuple[tuple[type[Any], type[Any], type[Any]], ...] = (
    (StandardTranscoder, StandardTranscoderConfig, StandardTrainingSAE),
    (TopKTranscoder, TopKTranscoderConfig, TopKTrainingSAE),
    (JumpReLUTrainingTranscoder, JumpReLUTranscoderTrainingConfig, JumpReLUTrainingSAE),
    (BatchTopKTranscoder, BatchTopKTranscoderConfig, BatchTopKTrainingSAE),
)
TRANSCODERS = tuple(config.architecture() for _, config, _ in _TRANSCODERS)

for _class, _config, _base in _TRANSCODERS:
    # Kept by a reload of this module.
    if _config.architecture() not in SAE_TRAINING_CLASS_REGISTRY:
        register_sae_training_class(_config.architecture(), _class, _config)
        register_checkpoint(_config.architecture(), _class, _config)
    SPARSE_STEPS[_class] = SPARSE_STEPS[_base]
    OF_SAELENS.add(_class)


def is_transcoder(architecture: str) -> bool:
    """Whether a base architecture reads at one hook and writes at another."""
    known = SAE_TRAINING_CLASS_REGISTRY.get(architecture)
    return known is not None and issubclass(known[0], TranscoderMixin)
