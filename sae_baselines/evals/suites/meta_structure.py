"""SAEBench's meta-structure suite: how well a small SAE explains the decoder."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from sae_lens import SAE

from sae_baselines.errors import one_line
from sae_baselines.evals.measured import LOWER, Measured
from sae_baselines.evals.metrics import Margin, Metric
from sae_baselines.evals.suite import (
    Extras,
    Needs,
    OnRandomModel,
    SAEBenchSuite,
    Subject,
    SuiteCall,
)

_MARGIN = Margin(0.02, "2 points of the decoder's variance explained by the meta-SAE.")
_EXPLAINED = "decoder_fraction_variance_explained"
_CAVEAT = (
    "meta_structure: less variance explained counts as better, but random directions share no "
    "structure by construction: a random decoder that wins here is not therefore interpretable"
)


class MetaStructure(SAEBenchSuite):
    """SAEBench's ``meta_structure``: trains a BatchTopK SAE on the rows of ``W_dec``.

    Needs no language model and no data. SAEBench seeds it on its command line only, so it runs
    on the random state that the caller set.
    """

    name = "meta_structure"
    n_of = "latents"
    on_transcoders = None
    summary = "how much of the decoder's variance a smaller SAE explains"
    # Random directions share no structure, so an SAE without training does best.
    primary = ()
    # SAEBench's README: "higher explained variance means more shared structure between decoder
    # directions". Bussmann et al. 2025 (arXiv 2503.17547, appendix D.1), whose experiment it
    # is, count less shared structure as better: latents that are not made of one another.
    metrics = (
        Metric(
            _EXPLAINED,
            LOWER,
            "Meta-SAE variance explained",
            _MARGIN,
            "fraction",
            favours=("random",),
        ),
        Metric("*", margin=_MARGIN, unit="fraction"),
    )
    needs = Needs(model=False, data=False)
    evaluation = "meta_structure"
    config_name = "MetaStructureEvalConfig"
    on_random_model = OnRandomModel(
        "shown",
        "It reads the decoder alone: what dictionary the text and a random model give. No "
        "score is better for being of another model.",
    )
    per_call = ("random_seed",)
    positive = ("k", "train_steps", "train_batch_size", "eval_batch_size")

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        if find_spec("sae_bench") is None:
            return
        try:
            config = self.config(options)
        except (ValueError, TypeError) as error:
            yield one_line(error)
            return
        yield from self.option_problems(subject, config)
        if not 0 < config.width_ratio <= 1:
            yield f"width_ratio: {config.width_ratio} is not a fraction of the SAE's width"
        if config.k > subject.d_sae:
            yield f"k: {config.k} is more than the {subject.d_sae} latents"

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        # It trains: other suites leave gradients off.
        self.run_eval(self.config(call.options, random_seed=call.seed), sae, call)
        return Extras(notes=[_CAVEAT])

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        del extras
        metrics = dict(payload["eval_result_metrics"]["meta_structure"])
        # Of the machine, not of the SAE.
        del metrics["train_time_seconds"]
        rows = self.numbers(metrics, n=payload["sae_cfg_dict"]["d_sae"])
        explained = metrics[_EXPLAINED]
        why = ""
        if explained == 0:
            why = "the rows of W_dec are all the same"
        elif explained is not None and explained < 0:
            why = f"the meta-SAE explains less than the mean does ({explained:.3g})"
        if why:
            rows = [
                replace(row, value=math.nan, missing=why) if row.metric == _EXPLAINED else row
                for row in rows
            ]
        return rows
