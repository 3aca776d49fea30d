"""Random baselines for sparse autoencoders.

Importing this package registers, for every SAELens training architecture, its
frozen-decoder, soft-frozen-decoder and frozen-encoder baselines, and the paper's synthetic data
for `sae_lens.synthetic`. What a study needs is imported when it is first asked for.
"""

from typing import TYPE_CHECKING

from sae_baselines.baselines import (
    baseline_architectures,
    register_all,
    register_baselines,
)
from sae_baselines.lazy import lazy_names
from sae_baselines.study.synthetic.generator import register_generators
from sae_baselines.version import __version__

if TYPE_CHECKING:
    from sae_baselines.drift import DriftTracker
    from sae_baselines.evals.registry import register_suite
    from sae_baselines.hub import publish
    from sae_baselines.pipeline import check, control, evaluate, train
    from sae_baselines.report import report
    from sae_baselines.results import load_results
    from sae_baselines.stats import verdicts
    from sae_baselines.study.build import fair_options

__all__ = [
    "DriftTracker",
    "__version__",
    "baseline_architectures",
    "check",
    "control",
    "evaluate",
    "fair_options",
    "load_results",
    "publish",
    "register_baselines",
    "register_suite",
    "report",
    "train",
    "verdicts",
]

__getattr__ = lazy_names(
    __name__,
    {
        "DriftTracker": f"{__name__}.drift",
        "check": f"{__name__}.pipeline",
        "control": f"{__name__}.pipeline",
        "evaluate": f"{__name__}.pipeline",
        "fair_options": f"{__name__}.study.build",
        "load_results": f"{__name__}.results",
        "publish": f"{__name__}.hub",
        "register_suite": f"{__name__}.evals.registry",
        "report": f"{__name__}.report",
        "train": f"{__name__}.pipeline",
        "verdicts": f"{__name__}.stats",
    },
)

register_all()
register_generators()
