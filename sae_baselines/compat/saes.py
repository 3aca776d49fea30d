"""What is private, or overridden, of SAELens' SAE classes and of torch's modules and tensors.

tests/compat/test_saes.py has a contract per name, whose failure says what moved.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import (
    AbsTopKTrainingSAE,
    BatchTopKTrainingSAE,
    GatedTrainingSAE,
    JumpReLUTrainingSAE,
    MatchingPursuitTrainingSAE,
    MatryoshkaBatchTopKTrainingSAE,
    StandardTrainingSAE,
    TopKTrainingSAE,
)

# SAELens lists its architectures nowhere else.
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

# The straight-through estimators and the loss of JumpReLU, applied at entries.
from sae_lens.saes.jumprelu_sae import JumpReLU, Step, calculate_pre_act_loss
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig

# The decoding of the TopK family with rescaled activations.
from sae_lens.saes.topk_sae import act_times_W_dec
from torch import Tensor, nn

from sae_baselines.errors import UserError

__all__ = [
    "SAE_CLASS_REGISTRY",
    "SAE_TRAINING_CLASS_REGISTRY",
    "JumpReLU",
    "Step",
    "act_times_W_dec",
    "calculate_pre_act_loss",
]

# What a mixin over a training class derives from: the class for type checkers, nothing else.
if TYPE_CHECKING:
    SAEMixin = TrainingSAE[Any]
    ConfigMixin = TrainingSAEConfig
else:
    SAEMixin = ConfigMixin = object

# Classes whose encoders are known here; any other is asked whether its decoder reaches in.
OF_SAELENS = {
    AbsTopKTrainingSAE,
    BatchTopKTrainingSAE,
    GatedTrainingSAE,
    JumpReLUTrainingSAE,
    MatchingPursuitTrainingSAE,
    MatryoshkaBatchTopKTrainingSAE,
    StandardTrainingSAE,
    TopKTrainingSAE,
}
# Encoders that are linear in x with bias b_enc: the shortcut of bias_gradient is theirs.
LINEAR_ENCODERS = {
    StandardTrainingSAE.encode_with_hidden_pre,
    TopKTrainingSAE.encode_with_hidden_pre,
    JumpReLUTrainingSAE.encode_with_hidden_pre,
}
# Sparsity penalties weighted by decoder norms: see frozen_encoder.
NORM_PENALTIES = {
    StandardTrainingSAE.calculate_aux_loss,
    JumpReLUTrainingSAE.calculate_aux_loss,
    GatedTrainingSAE.calculate_aux_loss,
}

# Methods that are overridden or relied on: the class that has them, and what for.
OVERRIDDEN: dict[str, tuple[type[Any], str]] = {
    "initialize_weights": (TrainingSAE, "the seeded start, and freezing"),
    "training_forward_pass": (TrainingSAE, "one training step"),
    "encode_with_hidden_pre": (TrainingSAE, "the sparse encoder and the cheap bias gradient"),
    "process_sae_in": (TrainingSAE, "x - b_dec, what an encoder multiplies"),
    "calculate_aux_loss": (TrainingSAE, "losses at entries; a decoder held constant"),
    "process_state_dict_for_saving": (TrainingSAE, "rows saved projected, a pending start"),
    "process_state_dict_for_saving_inference": (TrainingSAE, "exports without our buffers"),
    "fold_activation_norm_scaling_factor": (TrainingSAE, "a pending start is not folded"),
    "fold_W_dec_norm": (TrainingSAE, "a pending start is not folded"),
    "fold_and_get_W_dec_norm": (TrainingSAE, "a pending start is not folded"),
    "calculate_topk_aux_loss": (TopKTrainingSAE, "the auxiliary loss over dead latents"),
    "update_topk_threshold": (BatchTopKTrainingSAE, "the threshold from entries"),
    "_iterable_decode": (MatryoshkaBatchTopKTrainingSAE, "a reconstruction per prefix"),
    "get_training_architecture_details": (TrainingSAEConfig, "what exports say of us"),
    "get_inference_config_class": (TrainingSAEConfig, "exports are the base's"),
}


@contextmanager
def shadow(module: nn.Module, **others: Any) -> Iterator[None]:
    """Make ``module.name`` answer with another tensor, or function, inside the block.

    Lets SAELens' own code run unchanged on, say, a detached W_dec. Parameters and buffers
    live in tables of their own that attribute look-up consults last, so an entry in the
    instance dictionary hides them without touching them.
    """
    attributes = vars(module)
    attributes.update(others)
    try:
        yield
    finally:
        for name in others:
            del attributes[name]


def own_parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    """A parameter of the module itself, and not what `shadow` shows in its place."""
    return module._parameters.get(name)


def has_own(module: nn.Module, name: str) -> bool:
    """Whether a weight is the module's; the tied encoder of matching pursuit is a property."""
    return name in module._parameters or name in module._buffers


def version_of(tensor: Tensor) -> int:
    """torch's count of in-place changes; those through ``.data`` are not in it."""
    return tensor._version


def of_this_rank(rows: Tensor, whole: Tensor, name: str = "W_dec") -> tuple[Tensor, Tensor]:
    """Rows that FSDP2 may have split over ranks, and the same rows of a tensor that it has not.

    Raises:
        UserError: Rows themselves are split.
    """
    if not hasattr(rows, "device_mesh"):
        return rows, whole
    # Not in every build of torch.
    from torch.distributed.tensor import DTensor, Replicate  # noqa: PLC0415

    assert isinstance(rows, DTensor)
    mesh, placements = rows.device_mesh, rows.placements
    if any(p.is_shard() and not p.is_shard(dim=0) for p in placements):
        raise UserError(
            f"{name}: is split over ranks as {placements}, but its directions must be in one "
            "piece; shard W_dec along dimension 0 (fully_shard's default), W_enc along 1"
        )
    # Without communication: every rank has the whole of it.
    same = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return rows.to_local(), same.redistribute(placements=placements).to_local()


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2's fully_shard has its parameters: what a forward writes is lost."""
    return any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__)


def has_hooks(module: nn.Module) -> bool:
    """Whether anything looks at the module's inputs, outputs or gradients."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


class LoadingMixin(SAEMixin):
    """Is told what was loaded, alone or inside another module."""

    # How names of entries begin that are no tensors of the module.
    _more_state: str

    def loaded(self, names: set[str], more: dict[str, Tensor]) -> None:
        """Called after loading with the names of own tensors, and with other entries."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # load_state_dict calls this for every module, with whatever prefix.
        own = {k: k.removeprefix(prefix) for k in state_dict if k.startswith(prefix)}
        names = {name for name in own.values() if has_own(self, name)}
        more = {n: state_dict.pop(k) for k, n in own.items() if n.startswith(self._more_state)}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.loaded(names, more)


class PreciseBuffersMixin(SAEMixin):
    """Buffers that keep their precision when the module is cast."""

    _precise: dict[str, torch.dtype] = {}

    def register_precise_buffer(self, name: str, tensor: Tensor) -> None:
        """A buffer that ``.to(bfloat16)`` moves, but does not round."""
        self.register_buffer(name, tensor)
        self._precise = {**self._precise, name: tensor.dtype}

    def moved(self) -> None:
        """Called when the module has been moved or cast."""

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        # Every .to(), .half() and .cuda() ends here, and nowhere else.
        before = {name: self._buffers.get(name) for name in self._precise}
        out = super()._apply(fn, *args, **kwargs)
        for name, dtype in self._precise.items():
            kept, now = before[name], self._buffers.get(name)
            if kept is not None and now is not None and now.dtype != dtype:
                # Casting back would keep the rounding.
                self._buffers[name] = (now if kept.is_meta else kept).to(now.device, dtype)
        self.moved()
        return out
