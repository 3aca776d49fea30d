"""The training step on active entries only, exact and without ``[batch, d_sae]`` matrices."""

from sae_baselines.sparse.bases import SPARSE_STEPS
from sae_baselines.sparse.step import SparseStepConfig, active_latents

__all__ = ["SPARSE_STEPS", "SparseStepConfig", "active_latents"]
