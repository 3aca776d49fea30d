"""Spurious correlation removal and targeted probe perturbation: one SAEBench evaluation."""

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any, ClassVar

from sae_lens import SAE

from sae_baselines.compat.saebench import saebench
from sae_baselines.compat.saebench_nulls import other_ablations
from sae_baselines.evals.measured import HIGHER, LOWER, Measured
from sae_baselines.evals.metrics import RANDOM_LATENTS, Margin, Metric, with_floors
from sae_baselines.evals.nulls import Nulls, NullsInRun
from sae_baselines.evals.suite import (
    Extras,
    OnRandomModel,
    SeedCachedSuite,
    Subject,
    SuiteCall,
    name_problems,
    size_problems,
)

# What is ablated without effect disturbs nothing.
_FOR_NOTHING = ("dead", "random")
_PAIRS = "column1_vals_lookup"
_SCR = Margin(
    0.02,
    "2 points of bias removed (0 to 1); the suite is among the noisiest over seeds "
    "(arXiv 2605.18229), so matching takes many of them.",
)
_TPP = Margin(0.02, "2 points of targeted accuracy change; noisy over seeds, as SCR.")
# Latents that the null ablates, as in the primary metrics: one number of the seven that
# SAEBench ablates costs a seventh.
_N_OF_NULL = 20
_SHUFFLED_ATTRIBUTES, _SHUFFLED_CLASSES = "shuffled_attributes", "shuffled_classes"
_AT_RANDOM = {RANDOM_LATENTS: "as many latents at random"}
_SCR_NULLS = {_SHUFFLED_ATTRIBUTES: "latents of the other attribute", **_AT_RANDOM}
_TPP_NULLS = {_SHUFFLED_CLASSES: "latents of other classes", **_AT_RANDOM}


class _ScrAndTpp(NullsInRun, SeedCachedSuite):
    """What both have in common.

    The language model's probes are trained while caches are filled and are then part of every
    score, so caches are kept as one piece for each seed. TPP draws examples of other classes at
    random each time, SCR only the order of examples.
    """

    evaluation = "scr_and_tpp"
    config_name = "ScrAndTppEvalConfig"
    on_random_model = OnRandomModel(
        "shown",
        "Its probes are trained on the random model's own activations, where classes differ in "
        "their tokens alone: how well those can be ablated is not how well concepts can.",
    )
    per_call = (*SeedCachedSuite.per_call, "perform_scr")
    sizes = ("train_set_size", "test_set_size")
    positive = (
        *sizes,
        "context_length",
        "probe_train_batch_size",
        "probe_test_batch_size",
        "probe_epochs",
        "sae_batch_size",
    )
    scr: ClassVar[bool]
    shuffled: ClassVar[str]

    def defaults(self) -> dict[str, Any]:
        options = super().defaults()
        pairs = options.pop(_PAIRS)
        if self.scr:
            # Lists, as YAML has them.
            options[_PAIRS] = {
                key: [list(p) for p in several] for key, several in pairs.items()
            }
        return options

    def option_problems(self, subject: Subject, config: Any) -> Iterable[str]:
        known = saebench("COLUMN2_VALS_LOOKUP")
        unknown = list(name_problems("dataset_names", config.dataset_names, known))
        yield from unknown
        yield from size_problems("n_values", config.n_values, subject, saebench("ScrMetrics"))
        yield from super().option_problems(subject, config)
        if self.scr and not unknown:
            yield from _pair_problems(config)

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        config = self.config(call.options, perform_scr=self.scr, **call.config)
        nulls = Nulls(call)
        n = min(config.n_values, key=lambda n: abs(n - _N_OF_NULL))
        looking = other_ablations(n, nulls.aside)
        with looking if nulls.wanted else nullcontext([]) as found:
            self.run_on_seed_cache(config, sae, call)
        folder = call.output / self.name
        (folder / call.expected.name).replace(call.expected)
        folder.rmdir()
        if nulls.wanted:
            payload = call.payload
            examples = _test_examples(payload["eval_config"])
            for detail, other in zip(payload["eval_result_details"], found, strict=True):
                task = self.task_of(detail)
                nulls.add(self.shuffled, other.exchanged, task, examples)
                nulls.add(RANDOM_LATENTS, other.random, task, examples)
        nulls.leave()
        return Extras(notes=self.notes(call.payload))

    def task_of(self, detail: Mapping[str, Any]) -> str:
        """Task of one of SAEBench's results."""
        return detail["dataset_name"].removesuffix("_tpp_results")

    def notes(self, payload: Mapping[str, Any]) -> list[str]:
        """What a reader of the scores must know."""
        del payload
        return []


class Scr(_ScrAndTpp):
    """SAEBench's ``scr``: one task for each pair of classes."""

    name = "scr"
    summary = "how well ablating latents removes a spurious correlation from a biased probe"
    primary = ("scr_metric_threshold_20",)
    metrics = (
        *with_floors(
            Metric("scr_*", HIGHER, margin=_SCR, unit="fraction", depends="edits"), _SCR_NULLS
        ),
        Metric("*", margin=_SCR, depends="edits"),
    )
    scr = True
    shuffled = _SHUFFLED_ATTRIBUTES

    def notes(self, payload: Mapping[str, Any]) -> list[str]:
        first = f"scr_metric_threshold_{payload['eval_config']['n_values'][0]}"
        details = payload["eval_result_details"]
        missing = [_pair(detail) for detail in details if detail[first] is None]
        if not missing:
            return []
        return [
            f"scr: {len(missing)} of {len(details)} pairs have no score, since SAEBench found "
            f"neither attribute harder to tell apart: {', '.join(missing)}"
        ]

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        del extras
        config = payload["eval_config"]
        metrics = payload["eval_result_metrics"]["scr_metrics"]
        # No pair has a score: that is a failure, not a metric less.
        absent = {
            key: math.nan
            for key in (f"scr_metric_threshold_{n}" for n in config["n_values"])
            if metrics[key] is None
        }
        rows = self.numbers({**metrics, **absent})
        for detail in payload["eval_result_details"]:
            rows += self.numbers(detail, self.task_of(detail), _test_examples(config))
        return rows

    def task_of(self, detail: Mapping[str, Any]) -> str:
        return _pair(detail)


class Tpp(_ScrAndTpp):
    """SAEBench's ``tpp``: one task for each dataset, and rows for its classes."""

    name = "tpp"
    summary = "how well ablating latents disturbs the probe of one class and no other"
    primary = ("tpp_threshold_20_total_metric",)
    # The class that was meant should suffer, the others should not.
    metrics = (
        *with_floors(
            Metric(
                "*_unintended_diff_only", LOWER, "", _TPP, "fraction", "edits", _FOR_NOTHING
            ),
            _TPP_NULLS,
        ),
        *with_floors(Metric("tpp_*", HIGHER, "", _TPP, "fraction", "edits"), _TPP_NULLS),
        Metric("class_tpp_*", HIGHER, "", _TPP, "fraction", "edits"),
        Metric("*", margin=_TPP, depends="edits"),
    )
    scr = False
    shuffled = _SHUFFLED_CLASSES

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        del extras
        n = _test_examples(payload["eval_config"])
        rows = self.numbers(payload["eval_result_metrics"]["tpp_metrics"])
        for detail in payload["eval_result_details"]:
            rows += self.numbers(detail, self.task_of(detail), n)
        for dataset, by_class in payload["eval_result_unstructured"].items():
            for name, metrics in by_class.items():
                of_class = {f"class_{key}": value for key, value in metrics.items()}
                rows += self.numbers(of_class, f"{dataset}/{name}", n)
        return rows


def _pair(detail: Mapping[str, Any]) -> str:
    """``dataset/first_second`` of SAEBench's ``dataset_scr_first_second_results``."""
    dataset, _, pair = detail["dataset_name"].removesuffix("_results").rpartition("_scr_")
    return f"{dataset}/{pair}"


def _test_examples(config: Mapping[str, Any]) -> int:
    """Examples on which each probe is tested: a quarter from each of four quadrants."""
    return 4 * (int(config["test_set_size"]) // 4)


def _pair_problems(config: Any) -> Iterable[str]:
    for dataset in config.dataset_names:
        pairs = config.column1_vals_lookup.get(dataset)
        if not pairs:
            yield f"{_PAIRS}: has no pairs for {dataset}; give some or leave it out"
            continue
        of_dataset = saebench("dataset_metadata")[dataset.split("_class_set")[0]]
        for pair in pairs:
            known = of_dataset["column1_mapping"]
            yield from name_problems(f"{_PAIRS}.{dataset}", pair, known)
