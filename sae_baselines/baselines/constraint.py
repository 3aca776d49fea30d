"""What a constraint is, and the list of them.

A constraint is one file: its config fields, its mixin over SAELens' training classes, its facts
(a subclass of `Constraint`), and at the end one call of `register_constraint`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sae_lens.saes.sae import TrainingSAE
from torch import Tensor, nn

from sae_baselines.baselines.seeded_start import SeededStartConfig, SeededStartMixin

Side = Literal["decoder", "encoder"]
VECTORS: dict[Side, str] = {"decoder": "decoder rows", "encoder": "encoder columns"}

# Cosines do not see the positive factors that SAELens folds into rows, only their rounding.
_ROUNDING = {"float32": 1e-6, "float16": 1e-6, "bfloat16": 2e-5}


@dataclass(frozen=True)
class Promise:
    """What a constraint promises of an SAE's weights, in words and as a bound.

    Each direction of ``side`` has at least the cosine ``least`` with its start.
    """

    text: str
    side: Side
    least: float


class Constraint:
    """What a baseline fixes, and everything that the package knows of it.

    Attributes:
        name: First part of its architectures' names, ``frozen_decoder``.
        frozen: What is not trained, for tables.
        learned: What is trained, for tables.
        rank: Its place in lists.
        config_mixin: Config dataclass that is put before the base's.
        sae_mixin: Class that is put before the base's training class.
        options: Fields of ``config_mixin`` that are its own: ``tau``.
        defaults: Fields whose default it changes, where a base has them.
        refused: Bases that it has no baseline of, and why.
        holds: The side whose directions it holds near their start instead of freezing them.
        survives_whitening: Whether its promise outlives SAELens' folding of a whitening.
    """

    name: ClassVar[str]
    frozen: ClassVar[str]
    learned: ClassVar[str]
    rank: ClassVar[int] = 100
    config_mixin: ClassVar[type[Any]] = SeededStartConfig
    sae_mixin: ClassVar[type[Any]] = SeededStartMixin
    options: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[Mapping[str, Any]] = {}
    refused: ClassVar[Mapping[str, str]] = {}
    holds: ClassVar[Side | None] = None
    keeps_encoder: ClassVar[bool] = False
    survives_whitening: ClassVar[bool] = True

    def mixins(self, base_class: type[TrainingSAE[Any]]) -> tuple[type[Any], ...]:
        """What is put before a base's training class, outermost first."""
        del base_class
        return (self.sae_mixin,)

    def why_not(self, base: str) -> str | None:
        """Why it has no baseline of a base; None where it has one."""
        return self.refused.get(base)

    def promise(self, options: Mapping[str, Any], precision: str) -> Promise | None:
        """What must hold of a finished SAE's weights; None if that cannot be said.

        ``options`` are fields of its config; ``precision`` is ``float32``, ``float16`` or
        ``bfloat16``, whichever holds the weights.
        """
        del options, precision
        return None

    def in_words(self, options: Mapping[str, Any]) -> str:
        """What is fixed and what learned, for one SAE."""
        del options
        return f"frozen: {self.frozen}; learned: {self.learned}"

    def of_directions(self, directions: str, options: Mapping[str, Any]) -> str:
        """The same for a card: what became of ``directions`` (in words) that were drawn."""
        del options
        part, _, _ = self.frozen.partition(" ")
        return f"`{part}` frozen at {directions}; learned: {self.learned}."


# Kept by a reload of this module.
CONSTRAINTS: dict[str, Constraint] = globals().get("CONSTRAINTS", {})


def register_constraint(constraint: Constraint) -> None:
    """Add a constraint; `register_baselines` then makes its baselines.

    Raises:
        ValueError: The name is another constraint's.
    """
    known = CONSTRAINTS.get(constraint.name)
    if known is not None and type(known).__module__ != type(constraint).__module__:
        raise ValueError(
            f"constraint: {constraint.name!r} is registered already, by "
            f"{type(known).__module__}; give yours another name"
        )
    CONSTRAINTS[constraint.name] = constraint
    ordered = sorted(CONSTRAINTS.items(), key=lambda item: item[1].rank)
    CONSTRAINTS.clear()
    CONSTRAINTS.update(ordered)


def held_side(constraint: str | None) -> Side:
    """The side whose directions a cap is of; the decoder's where nothing is recorded."""
    known = CONSTRAINTS.get(str(constraint))
    return "decoder" if known is None or known.holds is None else known.holds


def stays(side: Side, precision: str) -> Promise:
    """The promise of a frozen side."""
    text = f"{VECTORS[side]} where they started (cosine 1 within rounding)"
    return Promise(text, side, 1 - _ROUNDING[precision])


def freeze_(module: nn.Module, name: str) -> None:
    """Turn a parameter into a buffer: saved and moved with the module, invisible to optimisers.

    A buffer is not in ``module.parameters()``, so no gradient is computed for it, no
    optimiser keeps state for it, weight decay and gradient clipping do not see it, and
    ``module.requires_grad_(True)`` does not reach it. Its place in the state dict stays.

    Raises:
        ValueError: If ``module`` has no parameter of that name.
    """
    parameters = dict(module.named_parameters(recurse=False))
    if name not in parameters:
        raise ValueError(
            f"{type(module).__name__} has no parameter {name!r} to freeze; it has "
            f"{', '.join(parameters)}"
        )
    delattr(module, name)
    module.register_buffer(name, parameters[name].detach())


def assert_frozen(module: nn.Module, name: str) -> None:
    """Stop if somebody asked for gradients of a frozen tensor directly.

    Raises:
        RuntimeError: If the tensor requires a gradient.
    """
    tensor: Tensor = getattr(module, name)
    if tensor.requires_grad:
        raise RuntimeError(
            f"{name} of {type(module).__name__} is frozen, but requires_grad was set on it. "
            f"Call .requires_grad_(False) on it, or train another architecture"
        )


class SeededMixin(SeededStartMixin):
    """Without a sparse step it trains as SAELens' own class does, bit for bit."""

    has_cheap_bias_gradient: bool

    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.has_cheap_bias_gradient = getattr(self.cfg, "sparse_step", False)


class Seeded(Constraint):
    """The base itself, from the start of its baselines: what a panel trains."""

    name = "seeded"
    frozen = "nothing"
    learned = "everything"
    sae_mixin = SeededMixin
    defaults: ClassVar[Mapping[str, Any]] = {"sparse_step": False}


SEEDED = Seeded()
