"""SAEBench's MDL suite, which does not run as shipped."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from sae_lens import SAE
from typing_extensions import override

from sae_baselines.compat.saebench import mdl_defects, runnable_mdl
from sae_baselines.evals.measured import LOWER, Measured
from sae_baselines.evals.metrics import Metric
from sae_baselines.evals.suite import Extras, OnRandomModel, SAEBenchSuite, Subject, SuiteCall
from sae_baselines.files import size_text
from sae_baselines.study.memory import memory_of

# Context that SAEs are usually trained on; the SAE's own decides.
_USUAL_CONTEXT = 128
_CAVEAT = (
    "mdl: SAEBench's bins span 0 to at least 100 whatever the activations, and an inactive "
    "latent is quantised to the middle of the first bin; with smaller activations the "
    "description length is the entropy of which latents are on, and mse_loss says nothing "
    "about the SAE"
)


class Mdl(SAEBenchSuite):
    """SAEBench's ``mdl``: bits that describe which latents are on, and how strongly.

    As shipped it needs a package that SAEBench does not require, reads a global variable that
    only its command line sets, and moves tensors to CUDA. With ``shim: true`` all three are
    supplied from outside; no number is computed differently. A Python loop over latents, each
    of which looks at all of them, makes it slow for wide SAEs.
    """

    name = "mdl"
    summary = "bits needed to describe the activations of the latents"
    # Nothing is shorter to describe than latents that are never on.
    primary = ()
    metrics = (Metric("description_length", LOWER, unit="bits", favours=("dead", "random")),)
    local_data = ("dataset_name",)
    config_name = "MDLEvalConfig"
    on_random_model = OnRandomModel(
        "refused",
        "Bits are counted at the model's own activations, and those of two models have no "
        "common error to be described at.",
    )
    per_call = ("model_name", "random_seed", "llm_dtype")
    # It is never read: the SAE's own context is used.
    not_offered = ("context_length",)
    own = {"shim": True}

    def defaults(self) -> dict[str, Any]:
        return {
            **super().defaults(),
            # As SAEBench's command line sets them: its dataclass has values of k that are
            # applied to the check of the error but not to the description.
            "k_values": [None],
            "num_bins_values": [8, 16, 32, 64],
            "mse_epsilon_threshold": 0.2,
            # Its square is the number of prompts held at once: 64 would mean 34 GB for each
            # copy of the activations of 16 000 latents.
            "sae_batch_size": 16,
        }

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        if options["shim"] is False and find_spec("sae_bench") is not None:
            yield from mdl_defects(subject.device)
        wrong = list(self.problems_of_file(subject, options))
        yield from wrong
        if any(problem.startswith("sae_batch_size") for problem in wrong):
            return
        size = options["sae_batch_size"]
        # Activations, a copy of them, and which are positive.
        needed = 3 * 4 * size**2 * _USUAL_CONTEXT * subject.d_sae
        there = memory_of(subject.device)
        if there is not None and needed > there:
            yield (
                f"sae_batch_size: {size} needs about {size_text(needed)} for "
                f"{subject.d_sae} latents, there are {size_text(there)}; half of it needs a "
                "quarter"
            )

    @override
    def problems_of_file(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        del subject
        if not isinstance(options["shim"], bool):
            yield f"shim: {options['shim']!r} is neither true nor false"
        size = options["sae_batch_size"]
        if not isinstance(size, int) or size < 1:
            yield f"sae_batch_size: {size!r} is not a positive number of prompts"
        for option in ("k_values", "num_bins_values"):
            values = options[option]
            if not isinstance(values, list) or not values:
                yield f"{option}: {values!r} is not a list with at least one value"
                continue
            for value in values:
                if value is None and option == "k_values":
                    continue
                if not isinstance(value, int) or value < 1:
                    yield f"{option}: {value!r} is not a positive whole number"

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        given = {name: value for name, value in call.config.items() if name in self.per_call}
        config = self.config(call.options, **given)
        device = call.subject.device
        # SAEBench turns gradients off and leaves them so.
        with torch.no_grad(), runnable_mdl(config, device, call.options["shim"]) as main:
            main.run_eval(config, [(call.name, sae)], device, str(call.output))
        return Extras(notes=[_CAVEAT])

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        del extras
        results: list[dict[str, Any]] = payload["eval_results"]
        # SAEBench's `pick_minimum_viable`, which it does not call; without the shortest of all
        # where none is viable, which an SAE that reconstructs nothing would win.
        viable = [result for result in results if result["within_threshold"]]
        best = min(viable or results, key=lambda result: result["description_length"])
        rows = self._rows(best, "")
        why = ""
        if not viable:
            why = "with no number of bins is the error below mse_epsilon_threshold"
        if best["description_length"] == 0:
            why = "0 bits: no latent fired"
        if why:
            rows[0] = replace(rows[0], value=math.nan, missing=why)
        for result in results:
            k = "" if result["k"] is None else f"_k_{result['k']}"
            rows += self._rows(result, f"bins_{result['num_bins']}{k}")
        return rows

    def _rows(self, result: Mapping[str, Any], task: str) -> list[Measured]:
        names = ("description_length", "mse_loss", "within_threshold")
        return [self.number(name, float(result[name]), task) for name in names]
