"""Constraint x SAELens training class -> a training class of its own, known to SAELens."""

import importlib
import pkgutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any

from sae_lens import JumpReLUTrainingSAE, register_sae_training_class
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import SAEConfig, TrainingSAE, TrainingSAEConfig

from sae_baselines.baselines.bias_gradient import CheapBiasGradientMixin, has_linear_encoder
from sae_baselines.baselines.checkpoint import register_checkpoint
from sae_baselines.baselines.constraint import CONSTRAINTS, SEEDED, Constraint
from sae_baselines.baselines.l0_control import L0ControlConfig, L0ControlMixin
from sae_baselines.baselines.l0_steering import (
    SPARSITY_COEFFICIENTS,
    L0SteeringConfig,
    L0SteeringMixin,
)
from sae_baselines.compat.saes import SAE_TRAINING_CLASS_REGISTRY
from sae_baselines.errors import did_you_mean
from sae_baselines.sparse import SPARSE_STEPS, SparseStepConfig

DEFAULT_BASE = "batchtopk"

# Every file of this folder that ends in `register_constraint` has a constraint.
for _module in pkgutil.iter_modules([str(Path(__file__).parent)]):
    importlib.import_module(f"sae_baselines.baselines.{_module.name}")


@dataclass(frozen=True)
class Baseline:
    """A generated architecture."""

    name: str
    constraint: Constraint
    base: str
    sae_class: type[TrainingSAE[Any]]
    config_class: type[TrainingSAEConfig]


_baselines: dict[str, Baseline] = {}


def make_baseline(
    name: str,
    constraint: Constraint,
    base: str,
    base_class: type[TrainingSAE[Any]],
    base_config: type[TrainingSAEConfig],
) -> Baseline:
    """Compose a constraint with a SAELens training class; its architecture is ``name``."""
    steered = _needs_steering(base_config)
    # Another class's losses are not known here, so only SAELens' own have a sparse step.
    sparse_step = SPARSE_STEPS.get(base_class)
    configs = [constraint.config_mixin, *([L0SteeringConfig] if steered else [])]
    mixins: list[type[Any]] = [*constraint.mixins(base_class)]
    if steered or issubclass(base_class, JumpReLUTrainingSAE):
        # Before the sparse step, which may try a batch twice.
        configs.insert(1, L0ControlConfig)
        mixins.append(L0ControlMixin)
    if sparse_step is not None:
        configs.append(SparseStepConfig)
        mixins.append(sparse_step)
    if has_linear_encoder(base_class):
        mixins.append(CheapBiasGradientMixin)
    # Anything else would let a steered base and its plain config fall apart.
    if steered:
        mixins.append(L0SteeringMixin)
    configs.append(base_config)
    stem = "".join(part.title() for part in f"{constraint.name}_{base}".split("_"))

    def get_training_architecture_details(self: Any) -> dict[str, Any]:
        parent: Any = super(config_class, self)
        details = parent.get_training_architecture_details()
        return {"constraint": constraint.name, "base_architecture": base, **details}

    def get_inference_config_class(self: Any) -> type[SAEConfig]:
        stock = TrainingSAEConfig.get_inference_config_class
        if base_config.get_inference_config_class is stock:
            # SAELens looks its own name up; a baseline exports as its base does.
            return get_sae_class(base)[1]
        return base_config.get_inference_config_class(self)

    known = _field_names(configs)
    config_class = make_dataclass(
        f"{stem}TrainingSAEConfig",
        [
            (name, type(value), field(default=value))
            for name, value in constraint.defaults.items()
            if name in known
        ],
        bases=tuple(configs),
        namespace={
            "__doc__": f"{constraint.name} baseline of {base_config.__name__} (see both).",
            "architecture": classmethod(lambda _cls: name),
            "get_inference_config_class": get_inference_config_class,
            "get_training_architecture_details": get_training_architecture_details,
        },
        kw_only=True,
    )
    config_class.__module__ = __name__
    namespace: dict[str, Any] = {
        "__doc__": f"{constraint.name} baseline of {base_class.__name__}.",
        "__module__": __name__,
        "baseline_constraint": constraint.name,
        "baseline_base": base,
    }
    sae_class: Any = type(f"{stem}TrainingSAE", (*mixins, base_class), namespace)
    return Baseline(name, constraint, base, sae_class, config_class)


def _field_names(config_classes: Iterable[type[Any]]) -> set[str]:
    return {f.name for config_class in config_classes for f in fields(config_class)}


def _needs_steering(base_config: type[TrainingSAEConfig]) -> bool:
    """A base with a coefficient, and neither a k nor a target of its own."""
    names = _field_names([base_config])
    has_coefficient = any(f"{key}_coefficient" in names for key in SPARSITY_COEFFICIENTS)
    return has_coefficient and not names & {"k", "target_l0"}


def register_baselines(base: str) -> list[str]:
    """Register the baselines of a training architecture known to SAELens.

    Adds ``<constraint>_<base>`` for each constraint, and ``seeded_<base>``: the base itself,
    unconstrained, with the seeded start of its baselines. For ``batchtopk`` the bare
    constraint names are added too (the paper's main architecture). Calling it again is
    harmless.

    Args:
        base: A name given to SAELens' `register_sae_training_class`.

    Returns:
        The names that the base has now.

    Raises:
        ValueError: If SAELens does not know ``base``, if it is itself a baseline, or if
            another package has registered one of the names.
    """
    if base not in SAE_TRAINING_CLASS_REGISTRY:
        raise ValueError(_unknown("architecture", base, base_architectures()))
    base_class, base_config = SAE_TRAINING_CLASS_REGISTRY[base]
    if hasattr(base_class, "baseline_constraint"):
        raise ValueError(f"architecture: {base!r} is a baseline already; name its base instead")
    names = []
    for constraint in (*CONSTRAINTS.values(), SEEDED):
        if constraint.why_not(base) is not None:
            continue
        full = f"{constraint.name}_{base}"
        bare = base == DEFAULT_BASE and constraint is not SEEDED
        name = constraint.name if bare else full
        for registered in dict.fromkeys((name, full)):
            _register(registered, name, constraint, base, base_class, base_config)
        names.append(name)
    return names


def _register(
    registered: str,
    name: str,
    constraint: Constraint,
    base: str,
    base_class: type[Any],
    base_config: type[Any],
) -> None:
    known = SAE_TRAINING_CLASS_REGISTRY.get(registered)
    if known is not None:
        if getattr(known[0], "baseline_base", None) != base:
            raise ValueError(
                f"architecture: {registered!r} is already registered with SAELens by "
                f"{known[0].__module__}; sae_baselines cannot use the name"
            )
        # A reload of this package: the classes that SAELens knows stay the valid ones.
        _baselines.setdefault(registered, Baseline(name, constraint, base, *known))
    elif name in _baselines:
        baseline = _baselines[registered] = _baselines[name]
        register_sae_training_class(registered, baseline.sae_class, baseline.config_class)
    else:
        baseline = make_baseline(name, constraint, base, base_class, base_config)
        register_sae_training_class(registered, baseline.sae_class, baseline.config_class)
        _baselines[registered] = _baselines[name] = baseline
    baseline = _baselines[registered]
    register_checkpoint(registered, baseline.sae_class, baseline.config_class)
    module = sys.modules[__name__]  # where pickle looks for them
    for cls in (baseline.sae_class, baseline.config_class):
        setattr(module, cls.__name__, cls)


def register_all() -> None:
    """Register the baselines of every training architecture SAELens has at the moment."""
    for base in base_architectures():
        register_baselines(base)


def base_architectures() -> list[str]:
    """Training architectures known to SAELens that are no baselines of ours."""
    return [
        name
        for name, (cls, _) in SAE_TRAINING_CLASS_REGISTRY.items()
        if not hasattr(cls, "baseline_constraint")
    ]


def baseline_architectures() -> dict[str, Baseline]:
    """Every registered name of a baseline, with what is behind it."""
    return {n: b for n, b in _baselines.items() if b.constraint.name in CONSTRAINTS}


def get_baseline(name: str) -> Baseline:
    """The baseline behind a registered name.

    Raises:
        ValueError: If there is none; names the nearest ones, or why it does not exist.
    """
    if name in _baselines:
        return _baselines[name]
    for constraint in CONSTRAINTS.values():
        for base in base_architectures():
            bare = base == DEFAULT_BASE and name == constraint.name
            why = constraint.why_not(base)
            if (bare or name == f"{constraint.name}_{base}") and why is not None:
                raise ValueError(f"architecture: {name!r} does not exist: {why}")
    if name in (old := _old_names()):
        raise ValueError(
            f"architecture: {name!r} does not exist: it is {old[name]} with sparse_step=True"
        )
    raise ValueError(_unknown("architecture", name, list(_baselines)))


def baseline_name(constraint: str, base: str) -> str:
    """Registered name of ``constraint`` on ``base``; also of ``"seeded"``.

    Raises:
        ValueError: On an unknown constraint or base, naming the nearest known ones.
    """
    if constraint not in (SEEDED.name, *CONSTRAINTS):
        raise ValueError(_unknown("constraint", constraint, list(CONSTRAINTS)))
    if base not in base_architectures():
        raise ValueError(_unknown("architecture", base, base_architectures()))
    return get_baseline(f"{constraint}_{base}").name


def parse_name(architecture: str) -> tuple[Constraint, str] | None:
    """Constraint and base in a training architecture's name, registered here or not.

    Also of what 0.1.0-dev called ``sparse_<base>``: `SEEDED` with its sparse step. None for
    the name of anything but a baseline.
    """
    architecture = _old_names().get(architecture, architecture)
    for constraint in CONSTRAINTS.values():
        if architecture.startswith(constraint.name):
            base = architecture.removeprefix(constraint.name).removeprefix("_")
            return constraint, base or DEFAULT_BASE
    if architecture.startswith(f"{SEEDED.name}_"):
        return SEEDED, architecture.removeprefix(f"{SEEDED.name}_")
    return None


def _old_names() -> dict[str, str]:
    """Names that exports made before still have."""
    known = {base: get_sae_training_class(base)[0] for base in base_architectures()}
    return {
        f"sparse_{b}": f"{SEEDED.name}_{b}" for b, cls in known.items() if cls in SPARSE_STEPS
    }


def _unknown(field: str, value: str, known: list[str]) -> str:
    return f"{field}: {value!r} is unknown; {did_you_mean(value, known)}"
