"""Registering twins with SAELens, and finding them by name."""

import sys
from typing import Any

from sae_lens import register_sae_training_class
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class

from sae_baselines.baselines.factory import (
    FROZEN_DECODER,
    FROZEN_ENCODER,
    SEEDED,
    SOFT_FROZEN_DECODER,
    SPARSE,
    Baseline,
    Constraint,
    make_baseline,
)
from sae_baselines.errors import did_you_mean
from sae_baselines.sparse import SPARSE_STEPS

DEFAULT_BASE = "batchtopk"
CONSTRAINTS: dict[str, Constraint] = {
    c.name: c for c in (FROZEN_DECODER, SOFT_FROZEN_DECODER, FROZEN_ENCODER)
}

# A tied encoder is the decoder transposed, so freezing either freezes both; what is left to
# compare is the frozen dictionary (frozen_decoder) and the soft-frozen one.
_WITHOUT: dict[str, dict[str, str]] = {
    "matching_pursuit": {
        "frozen_encoder": "its encoder is its decoder transposed, so a frozen encoder is the "
        "frozen decoder; use frozen_decoder_matching_pursuit"
    }
}

_baselines: dict[str, Baseline] = {}


def register_baselines(base: str) -> list[str]:
    """Register the baselines of a training architecture known to SAELens.

    Adds ``<constraint>_<base>`` for each constraint, and ``seeded_<base>``: the base itself,
    unconstrained, with the seeded start of its baselines; for SAELens' main architectures
    also ``sparse_<base>``: the same with the sparse training step. For ``batchtopk`` the bare
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
    unconstrained = [SEEDED, SPARSE] if has_sparse_step(base) else [SEEDED]
    for constraint in (*CONSTRAINTS.values(), *unconstrained):
        if constraint.name in _WITHOUT.get(base, {}):
            continue
        full = f"{constraint.name}_{base}"
        bare = base == DEFAULT_BASE and constraint not in unconstrained
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
        baseline = make_baseline(name, constraint, base, base_class, base_config, __name__)
        register_sae_training_class(registered, baseline.sae_class, baseline.config_class)
        _baselines[registered] = _baselines[name] = baseline
    module = sys.modules[__name__]
    for cls in (_baselines[registered].sae_class, _baselines[registered].config_class):
        setattr(module, cls.__name__, cls)


def register_all() -> None:
    """Register the baselines of every training architecture SAELens has at the moment."""
    for base in base_architectures():
        register_baselines(base)


def base_architectures() -> list[str]:
    """Training architectures known to SAELens that are not twins of ours."""
    return [
        name
        for name, (cls, _) in SAE_TRAINING_CLASS_REGISTRY.items()
        if not hasattr(cls, "baseline_constraint")
    ]


def has_sparse_step(base: str) -> bool:
    """Whether twins of a registered base can train on active entries only."""
    return get_sae_training_class(base)[0] in SPARSE_STEPS


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
    for base, missing in _WITHOUT.items():
        for constraint, why in missing.items():
            if name == f"{constraint}_{base}":
                raise ValueError(f"architecture: {name!r} does not exist: {why}")
    raise ValueError(_unknown("architecture", name, list(_baselines)))


def baseline_name(constraint: str, base: str) -> str:
    """Registered name of ``constraint`` on ``base``; also of ``"seeded"`` and ``"sparse"``.

    Raises:
        ValueError: On an unknown constraint or base, naming the nearest known ones.
    """
    if constraint not in (SEEDED.name, SPARSE.name, *CONSTRAINTS):
        raise ValueError(_unknown("constraint", constraint, list(CONSTRAINTS)))
    if base not in base_architectures():
        raise ValueError(_unknown("architecture", base, base_architectures()))
    return get_baseline(f"{constraint}_{base}").name


def _unknown(field: str, value: str, known: list[str]) -> str:
    return f"{field}: {value!r} is unknown; {did_you_mean(value, known)}"
