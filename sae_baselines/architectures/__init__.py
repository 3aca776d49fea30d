"""Constraint + SAELens training class -> baseline class, config and registration."""

from sae_baselines.architectures.registry import (
    CONSTRAINTS,
    base_architectures,
    baseline_architectures,
    get_twin,
    has_sparse_step,
    register_all,
    register_baselines,
    twin_name,
)

__all__ = [
    "CONSTRAINTS",
    "base_architectures",
    "baseline_architectures",
    "get_twin",
    "has_sparse_step",
    "register_all",
    "register_baselines",
    "twin_name",
]
