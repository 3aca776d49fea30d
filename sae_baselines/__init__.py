"""Random baselines for sparse autoencoders.

Importing this package registers, for every SAELens training architecture, its
frozen-decoder, soft-frozen-decoder and frozen-encoder twins, and the paper's synthetic data
for `sae_lens.synthetic`.
"""

from sae_baselines.baselines import (
    baseline_architectures,
    register_all,
    register_baselines,
)
from sae_baselines.study.synthetic.generator import register_generators
from sae_baselines.version import __version__

__all__ = ["__version__", "baseline_architectures", "register_baselines"]

register_all()
register_generators()
