"""Running SAEBench's suites on panels, and the tidy table of their numbers.

SAEBench itself is imported only when a suite runs.
"""

from sae_baselines.evals.metrics import Margin, Metric
from sae_baselines.evals.registry import DEFAULT_SUITES, get_suite, register_suite, suite_names
from sae_baselines.evals.results import collect, write_results
from sae_baselines.evals.run import EvalReport, evaluate
from sae_baselines.evals.spec import EvalSpec, eval_spec_from_dict, load_eval_spec
from sae_baselines.evals.study import study_targets
from sae_baselines.evals.suite import Suite
from sae_baselines.evals.target import Facts, Target, target_of
from sae_baselines.results import load_results

__all__ = [
    "DEFAULT_SUITES",
    "EvalReport",
    "EvalSpec",
    "Facts",
    "Margin",
    "Metric",
    "Suite",
    "Target",
    "collect",
    "eval_spec_from_dict",
    "evaluate",
    "get_suite",
    "load_eval_spec",
    "load_results",
    "register_suite",
    "study_targets",
    "suite_names",
    "target_of",
    "write_results",
]
