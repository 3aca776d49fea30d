"""Sparse probing on the 113 datasets that come with sae-probes: no Hub is needed for data."""

import math
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sae_lens import SAE

from sae_baselines.compat.saebench import saebench
from sae_baselines.evals.measured import Measured
from sae_baselines.evals.metrics import PROBES, accuracies
from sae_baselines.evals.store import drop_half_written, fingerprint
from sae_baselines.evals.suite import (
    Extras,
    Needs,
    SAEBenchSuite,
    Subject,
    SuiteCall,
    name_problems,
    size_problems,
)
from sae_baselines.evals.versions import Requirement

_CHOICES = {"reg_type": ("l1", "l2"), "setting": ("normal",)}
# What sae-probes does with a dataset (its get_xy_traintest and num_train).
_MOST_EXAMPLES = 5000
_MOST_TRAINING = 1024
_LEAST_TEST = 100


class SaeProbes(SAEBenchSuite):
    """SAEBench's ``sparse_probing_sae_probes``.

    Every random number in it has a seed of its own, so no warm-up is needed. It never redoes a
    dataset whose file is there, and files go by the SAE's name: here they go by its weights, in
    its own scratch folder, and only what no SAE can change is shared.
    """

    name = "sparse_probing_sae_probes"
    summary = "accuracy of probes on a few latents, on up to 113 binary datasets"
    primary = ("sae_top_1_test_accuracy", "sae_top_5_test_accuracy")
    metrics = accuracies("SAE-probes", PROBES)
    needs = Needs(data=False)  # its datasets come with the package
    requirements = (Requirement("sae-probes", ">=0.4,<0.5", "SAEBench 0.6 calls this one"),)
    evaluation = "sparse_probing_sae_probes"
    config_name = "SparseProbingSaeProbesEvalConfig"
    per_call = ("model_name", "random_seed", "results_path", "model_cache_path")

    def option_problems(self, subject: Subject, config: Any) -> Iterable[str]:
        yield from name_problems("dataset_names", config.dataset_names, saebench("DATASETS"))
        yield from size_problems("ks", config.ks, subject)
        for option, known in {**_CHOICES, "baseline_method": saebench("METHODS")}.items():
            value = getattr(config, option)
            if value not in known:
                yield f"{option}: {value!r} does not work here; choose from {', '.join(known)}"
        if config.binarize:
            yield "binarize: SAEBench does not find the results of true; use false"

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        results, activations = _folders(sae, call)
        config = self.config(
            call.options,
            model_name=call.subject.model_name,
            random_seed=call.seed,
            # SAEBench publishes both, so they are below the working directory.
            results_path=str(results.relative_to(call.work)),
            model_cache_path=str(activations.relative_to(call.work)),
        )
        self.run_eval(config, sae, call, force_rerun=True)
        _check_datasets(call.payload)
        sizes = saebench("get_dataset_sizes")()
        tested = {name: _test_examples(sizes[name]) for name in config.dataset_names}
        notes = []
        if call.subject.llm_dtype != "float32":
            notes.append(
                f"{self.name}: the language model ran in float32, as sae-probes has no other"
            )
        return Extras({"test_examples": tested}, notes)

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        rows = [
            *self._latents(payload["sae_metrics_by_k"]),
            *self.numbers(payload["eval_result_metrics"]["llm"]),
        ]
        for detail in payload["eval_result_details"]:
            task = detail["dataset_name"]
            n = extras.get("test_examples", {}).get(task)
            rows += self._latents(detail["sae_metrics_by_k"], task, n)
            model = {key: value for key, value in detail.items() if key.startswith("llm_")}
            rows += self.numbers(model, task, n)
        return rows

    def _latents(
        self, by_k: Mapping[str, Any] | None, task: str = "", n: int | None = None
    ) -> list[Measured]:
        """SAEBench has fields for some k only; this has all."""
        return [
            self.number(f"sae_top_{k}_{metric}", value, task, n)
            for k, metrics in (by_k or {}).items()
            for metric, value in metrics.items()
        ]


def _folders(sae: SAE[Any], call: SuiteCall) -> tuple[Path, Path]:
    """Where sae-probes writes about this SAE, and where it keeps activations.

    Both are in ``call.work``. In the first, the folder of the language model's own probes leads
    to ``call.cache``; so does the second.
    """
    conditions = [dict(call.options), call.seed, call.subject, metadata.version("sae-probes")]
    results = call.work / "probes" / fingerprint(sae, *conditions)
    baselines = call.cache / f"probes_seed_{call.seed}"
    activations = call.cache / "activations"
    links = {
        results / f"baseline_results_{call.subject.model_name}": baselines,
        call.work / "activations": activations,
    }
    for link, target in links.items():
        target.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target.absolute(), target_is_directory=True)
    for folder in (results, baselines, activations):
        drop_half_written(folder)
    return results, call.work / "activations"


def _check_datasets(payload: Mapping[str, Any]) -> None:
    """SAEBench averages over the files that it finds, whatever they are."""
    config = payload["eval_config"]
    asked = sorted(config["dataset_names"])
    found = sorted(detail["dataset_name"] for detail in payload["eval_result_details"])
    if found != asked:
        differ = ", ".join(sorted(set(found) ^ set(asked)))
        raise RuntimeError(f"{len(found)} datasets for {len(asked)} asked for: {differ}")
    if not config["include_llm_baseline"]:
        return
    single = [detail["llm_test_accuracy"] for detail in payload["eval_result_details"]]
    mean = payload["eval_result_metrics"]["llm"]["llm_test_accuracy"]
    if None in single or not math.isclose(mean, sum(single) / len(single), abs_tol=1e-9):
        raise RuntimeError("the language model's accuracy is not the mean of its datasets'")


def _test_examples(size: int) -> int:
    n_train = min(size - _LEAST_TEST, _MOST_TRAINING)
    return min(size, _MOST_EXAMPLES) - n_train - 1
