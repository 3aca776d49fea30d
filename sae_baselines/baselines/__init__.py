"""What a baseline fixes, and the training classes made of it: constraint x SAELens base."""

from sae_baselines.baselines.cap import cosine_to_start, project_to_cap_
from sae_baselines.baselines.covariance_file import load_covariance, save_covariance
from sae_baselines.baselines.directions import covariance_of, sample_directions
from sae_baselines.baselines.registry import (
    CONSTRAINTS,
    base_architectures,
    baseline_architectures,
    baseline_name,
    get_baseline,
    has_sparse_step,
    register_all,
    register_baselines,
)

__all__ = [
    "CONSTRAINTS",
    "base_architectures",
    "baseline_architectures",
    "baseline_name",
    "cosine_to_start",
    "covariance_of",
    "get_baseline",
    "has_sparse_step",
    "load_covariance",
    "project_to_cap_",
    "register_all",
    "register_baselines",
    "sample_directions",
    "save_covariance",
]
