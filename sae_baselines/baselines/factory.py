"""Constraint x SAELens training class -> a training class of its own."""

from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

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
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEConfig, TrainingSAE, TrainingSAEConfig

from sae_baselines.baselines.bias_gradient import (
    CheapBiasGradientMixin,
    has_linear_encoder,
)
from sae_baselines.baselines.frozen_decoder import (
    FrozenDecoderConfig,
    FrozenDecoderMixin,
)
from sae_baselines.baselines.frozen_encoder import (
    ConstantDecoderPenaltyMixin,
    FrozenEncoderConfig,
    FrozenEncoderMixin,
    selection_depends_on_decoder,
)
from sae_baselines.baselines.l0_steering import (
    SPARSITY_COEFFICIENTS,
    L0SteeringConfig,
    L0SteeringMixin,
)
from sae_baselines.baselines.seeded_start import SeededStartConfig, SeededStartMixin
from sae_baselines.baselines.soft_frozen_decoder import (
    SoftFrozenDecoderConfig,
    SoftFrozenDecoderMixin,
)
from sae_baselines.sparse import SPARSE_STEPS, SparseStepConfig

_OF_SAELENS = {
    AbsTopKTrainingSAE,
    BatchTopKTrainingSAE,
    GatedTrainingSAE,
    JumpReLUTrainingSAE,
    MatchingPursuitTrainingSAE,
    MatryoshkaBatchTopKTrainingSAE,
    StandardTrainingSAE,
    TopKTrainingSAE,
}
# Sparsity penalties weighted by decoder norms: see constraints/frozen_encoder.py.
_NORM_PENALTIES = {
    StandardTrainingSAE.calculate_aux_loss,
    JumpReLUTrainingSAE.calculate_aux_loss,
    GatedTrainingSAE.calculate_aux_loss,
}


@dataclass(frozen=True)
class Constraint:
    """What a twin fixes.

    Attributes:
        name: ``frozen_decoder``, ``soft_frozen_decoder`` or ``frozen_encoder``; ``seeded``
            for the twin that fixes nothing but the start, ``sparse`` for the same with a
            sparse training step.
        frozen: What is not trained, for tables.
        learned: What is trained, for tables.
    """

    name: str
    frozen: str
    learned: str
    config_mixin: type[Any]
    sae_mixin: type[Any]


SEEDED = Constraint("seeded", "nothing", "everything", SeededStartConfig, SeededStartMixin)
SPARSE = Constraint(
    "sparse", "nothing", "everything (on active entries)", SeededStartConfig, SeededStartMixin
)
FROZEN_DECODER = Constraint(
    "frozen_decoder",
    "W_dec",
    "W_enc, biases, thresholds",
    FrozenDecoderConfig,
    FrozenDecoderMixin,
)
SOFT_FROZEN_DECODER = Constraint(
    "soft_frozen_decoder",
    "W_dec up to cos(row, start) >= tau",
    "everything inside the cap",
    SoftFrozenDecoderConfig,
    SoftFrozenDecoderMixin,
)
FROZEN_ENCODER = Constraint(
    "frozen_encoder",
    "W_enc (and r_mag of the gated SAE)",
    "W_dec, biases, thresholds",
    FrozenEncoderConfig,
    FrozenEncoderMixin,
)


@dataclass(frozen=True)
class Baseline:
    """A generated architecture."""

    name: str
    constraint: Constraint
    base: str
    sae_class: type[TrainingSAE[Any]]
    config_class: type[TrainingSAEConfig]


def make_baseline(
    name: str,
    constraint: Constraint,
    base: str,
    base_class: type[TrainingSAE[Any]],
    base_config: type[TrainingSAEConfig],
    module: str,
) -> Baseline:
    """Compose a constraint with a SAELens training class.

    Args:
        name: What ``architecture()`` answers.
        constraint: What to fix.
        base: Registered name of the base architecture.
        base_class: Its training class.
        base_config: Its config dataclass.
        module: Where the classes are to be found again (for pickle).
    """
    steered = _needs_steering(base_config)
    # Anything else would let a steered base and its plain config fall apart.
    config_mixins = [constraint.config_mixin, *([L0SteeringConfig] if steered else [])]
    # Another class's losses are not known here, so only SAELens' own have a sparse step.
    sparse_step = None if constraint is SEEDED else SPARSE_STEPS.get(base_class)
    if sparse_step is not None:
        config_mixins.append(SparseStepConfig)
    stem = "".join(part.title() for part in constraint.name.split("_"))
    base_stem = "".join(part.title() for part in base.split("_"))

    config_class = make_dataclass(
        f"{stem}{base_stem}TrainingSAEConfig",
        _pinned_fields(constraint, base_config),
        bases=(*config_mixins, base_config),
        namespace={
            "__doc__": f"{constraint.name} twin of {base_config.__name__} (see both).",
            "__module__": module,
            "architecture": classmethod(lambda _cls: name),
            "get_inference_config_class": _inference_config_class(base, base_config),
        },
        kw_only=True,
    )
    config_class.__module__ = module
    _add_details(config_class, constraint.name, base)

    mixins: list[type[Any]] = [constraint.sae_mixin]
    if constraint.sae_mixin is not SeededStartMixin:
        mixins.append(SeededStartMixin)
    if constraint is FROZEN_ENCODER and base_class.calculate_aux_loss in _NORM_PENALTIES:
        mixins.append(ConstantDecoderPenaltyMixin)
    if sparse_step is not None:
        mixins.append(sparse_step)
    if constraint is not SEEDED and has_linear_encoder(base_class):
        mixins.append(CheapBiasGradientMixin)
    if steered:
        mixins.append(L0SteeringMixin)
    namespace: dict[str, Any] = {
        "__doc__": f"{constraint.name} twin of {base_class.__name__}.",
        "__module__": module,
        "baseline_constraint": constraint.name,
        "baseline_base": base,
    }
    sae_class = type(f"{stem}{base_stem}TrainingSAE", (*mixins, base_class), namespace)
    if constraint is FROZEN_ENCODER and base_class not in _OF_SAELENS:
        sae_class.__init__ = _checked_init(sae_class, base)
    return Baseline(name, constraint, base, sae_class, config_class)


def _needs_steering(base_config: type[TrainingSAEConfig]) -> bool:
    """A base with a coefficient, and neither a k nor a target of its own."""
    names = {f.name for f in fields(base_config)}
    has_coefficient = any(f"{key}_coefficient" in names for key in SPARSITY_COEFFICIENTS)
    return has_coefficient and not names & {"k", "target_l0"}


def _pinned_fields(
    constraint: Constraint, base_config: type[TrainingSAEConfig]
) -> list[tuple[str, type, Any]]:
    names = {f.name for f in fields(base_config)}
    if constraint is FROZEN_ENCODER and "rescale_acts_by_decoder_norm" in names:
        return [("rescale_acts_by_decoder_norm", bool, field(default=False))]
    return []


def _inference_config_class(base: str, base_config: type[TrainingSAEConfig]) -> Any:
    def get_inference_config_class(self: Any) -> type[SAEConfig]:
        stock = TrainingSAEConfig.get_inference_config_class
        if base_config.get_inference_config_class is stock:
            # SAELens looks its own name up; a twin exports as its base does.
            return get_sae_class(base)[1]
        return base_config.get_inference_config_class(self)

    return get_inference_config_class


def _add_details(config_class: type[Any], constraint: str, base: str) -> None:
    def get_training_architecture_details(self: Any) -> dict[str, Any]:
        parent_class: Any = super(config_class, self)
        parent = parent_class.get_training_architecture_details()
        return {"constraint": constraint, "base_architecture": base, **parent}

    config_class.get_training_architecture_details = get_training_architecture_details


def _checked_init(sae_class: type[Any], base: str) -> Any:
    def init(self: Any, cfg: Any, use_error_term: bool = False) -> None:
        parent: Any = super(sae_class, self)
        parent.__init__(cfg, use_error_term)
        if self.device.type != "meta" and selection_depends_on_decoder(self):
            raise ValueError(
                f"architecture: frozen_encoder_{base} would not be a frozen encoder: what "
                f"{base!r} encodes depends on its decoder (rescaling W_dec changes it)"
            )

    return init
