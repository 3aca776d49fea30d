"""What a baseline fixes. Knows torch and SAELens' classes, not runners."""

from sae_baselines.constraints.cap import cosine_to_start, project_to_cap_
from sae_baselines.constraints.covariance_file import load_covariance, save_covariance
from sae_baselines.constraints.directions import covariance_of, sample_directions

__all__ = [
    "cosine_to_start",
    "covariance_of",
    "load_covariance",
    "project_to_cap_",
    "sample_directions",
    "save_covariance",
]
