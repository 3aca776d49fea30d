"""Spurious correlation removal and targeted probe perturbation: one SAEBench evaluation."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from sae_lens import SAE

from sae_baselines.evals.measured import HIGHER, LOWER, Direction, Measured, from_mapping
from sae_baselines.evals.option_checks import (
    block_problems,
    name_problems,
    positive_problems,
    size_problems,
    validated,
    written_sizes,
)
from sae_baselines.evals.suite import Extras, Subject, Suite, SuiteCall, config_defaults
from sae_baselines.evals.suites.seed_cache import run_on_seed_cache

_PER_CALL = ("model_name", "llm_dtype", "llm_batch_size", "random_seed", "perform_scr")
_PAIRS = "column1_vals_lookup"
_SIZES = (
    "train_set_size",
    "test_set_size",
    "context_length",
    "probe_train_batch_size",
    "probe_test_batch_size",
    "probe_epochs",
    "sae_batch_size",
)


class _ScrAndTpp(Suite):
    """What both have in common.

    The language model's probes are trained while caches are filled and are then part of every
    score, so caches are kept as one piece for each seed. TPP draws examples of other classes at
    random each time, SCR only the order of examples.
    """

    warm_up = True
    scr: ClassVar[bool]

    def defaults(self) -> dict[str, Any]:
        from sae_bench.evals.scr_and_tpp.eval_config import (  # noqa: PLC0415
            ScrAndTppEvalConfig,
        )

        found = config_defaults(ScrAndTppEvalConfig, _PER_CALL)
        pairs = found.pop(_PAIRS)
        if self.scr:
            # Lists, as YAML has them.
            found[_PAIRS] = {key: [list(pair) for pair in each] for key, each in pairs.items()}
        return found

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        from sae_bench.evals.scr_and_tpp.eval_config import (  # noqa: PLC0415
            ScrAndTppEvalConfig,
        )
        from sae_bench.evals.scr_and_tpp.eval_output import ScrMetrics  # noqa: PLC0415
        from sae_bench.evals.scr_and_tpp.main import COLUMN2_VALS_LOOKUP  # noqa: PLC0415

        yield from block_problems(subject)
        config, refused = validated(ScrAndTppEvalConfig, options)
        yield from refused
        if config is None:
            return
        names = config.dataset_names
        unknown = list(name_problems("dataset_names", names, COLUMN2_VALS_LOOKUP))
        yield from unknown
        yield from size_problems(
            "n_values", config.n_values, subject, written_sizes(ScrMetrics)
        )
        yield from positive_problems(config, *_SIZES)
        if self.scr and not unknown:
            yield from _pair_problems(config)

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        from sae_bench.evals.scr_and_tpp.eval_config import (  # noqa: PLC0415
            ScrAndTppEvalConfig,
        )
        from sae_bench.evals.scr_and_tpp.main import run_eval  # noqa: PLC0415

        config = ScrAndTppEvalConfig(
            **call.options,
            perform_scr=self.scr,
            **call.config,
        )
        run_on_seed_cache(run_eval, config, sae, call)
        folder = call.output / self.name
        (folder / call.expected.name).replace(call.expected)
        folder.rmdir()
        return Extras(notes=self.notes(json.loads(call.expected.read_text(encoding="utf-8"))))

    def notes(self, payload: Mapping[str, Any]) -> list[str]:
        """What a reader of the scores must know."""
        del payload
        return []


class Scr(_ScrAndTpp):
    """SAEBench's ``scr``: one task for each pair of classes."""

    name = "scr"
    summary = "how well ablating latents removes a spurious correlation from a biased probe"
    primary = ("scr_metric_threshold_20",)
    scr = True

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
        found = list(_higher({**metrics, **absent}))
        n = _test_examples(config)
        for detail in payload["eval_result_details"]:
            found += _higher(detail, task=_pair(detail), n=n)
        return found


class Tpp(_ScrAndTpp):
    """SAEBench's ``tpp``: one task for each dataset, and rows for its classes."""

    name = "tpp"
    summary = "how well ablating latents disturbs the probe of one class and no other"
    primary = ("tpp_threshold_20_total_metric",)
    scr = False

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        del extras
        n = _test_examples(payload["eval_config"])
        found = list(_targeted(payload["eval_result_metrics"]["tpp_metrics"]))
        for detail in payload["eval_result_details"]:
            task = detail["dataset_name"].removesuffix("_tpp_results")
            found += _targeted(detail, task=task, n=n)
        for dataset, by_class in payload["eval_result_unstructured"].items():
            for each, metrics in by_class.items():
                named = {f"class_{key}": value for key, value in metrics.items()}
                found += _targeted(named, task=f"{dataset}/{each}", n=n)
        return found


def _higher(
    values: Mapping[str, Any], task: str = "", n: int | None = None
) -> Iterable[Measured]:
    return from_mapping(values, dict.fromkeys(values, HIGHER), task=task, n=n)


def _targeted(
    values: Mapping[str, Any], task: str = "", n: int | None = None
) -> Iterable[Measured]:
    """The class that was meant should suffer, the others should not."""
    directions: dict[str, Direction] = {
        key: LOWER if key.endswith("_unintended_diff_only") else HIGHER for key in values
    }
    return from_mapping(values, directions, task=task, n=n)


def _pair(detail: Mapping[str, Any]) -> str:
    """``dataset/first_second`` of SAEBench's ``dataset_scr_first_second_results``."""
    dataset, _, pair = detail["dataset_name"].removesuffix("_results").rpartition("_scr_")
    return f"{dataset}/{pair}"


def _test_examples(config: Mapping[str, Any]) -> int:
    """Examples on which each probe is tested: a quarter from each of four quadrants."""
    return 4 * (int(config["test_set_size"]) // 4)


def _pair_problems(config: Any) -> Iterable[str]:
    from sae_bench.sae_bench_utils.dataset_info import dataset_metadata  # noqa: PLC0415

    for dataset in config.dataset_names:
        pairs = config.column1_vals_lookup.get(dataset)
        if not pairs:
            yield f"{_PAIRS}: has no pairs for {dataset}; give some or leave it out"
            continue
        known = dataset_metadata[dataset.split("_class_set")[0]]["column1_mapping"]
        for pair in pairs:
            yield from name_problems(f"{_PAIRS}.{dataset}", pair, known)
