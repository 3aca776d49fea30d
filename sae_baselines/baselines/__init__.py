"""What a baseline fixes, and the training classes made of it: constraint x SAELens base."""

from sae_baselines.baselines.cap import cosine_to_start, project_to_cap_
from sae_baselines.baselines.constraint import CONSTRAINTS, SEEDED, register_constraint
from sae_baselines.baselines.directions import (
    covariance_of,
    load_covariance,
    sample_directions,
    save_covariance,
)
from sae_baselines.baselines.registry import (
    base_architectures,
    baseline_architectures,
    baseline_name,
    get_baseline,
    parse_name,
    register_all,
    register_baselines,
)

__all__ = [
    "CONSTRAINTS",
    "SEEDED",
    "base_architectures",
    "baseline_architectures",
    "baseline_name",
    "cosine_to_start",
    "covariance_of",
    "get_baseline",
    "load_covariance",
    "parse_name",
    "project_to_cap_",
    "register_all",
    "register_baselines",
    "register_constraint",
    "sample_directions",
    "save_covariance",
]
