"""Suites that cache everything about the language model in one go, for each seed."""

from typing import Any

import torch
from sae_lens import SAE

from sae_baselines.evals.caches import all_or_nothing
from sae_baselines.evals.suite import SuiteCall


def run_on_seed_cache(run_eval: Any, config: Any, sae: SAE[Any], call: SuiteCall) -> None:
    """Run one of SAEBench's ``run_eval`` functions on a cache of its seed.

    Args:
        run_eval: SAEBench's, of a suite that takes ``artifacts_path``.
        config: Its config.
        sae: The SAE.
        call: Where and how.
    """
    # SAEBench switches gradients on and off for the whole process.
    with torch.enable_grad(), all_or_nothing(call.cache / f"seed_{call.seed}") as artifacts:
        run_eval(
            config,
            [(call.name, sae)],
            call.subject.device,
            str(call.output),
            force_rerun=True,
            artifacts_path=str(artifacts),
        )
