"""Sparse probing on the datasets that SAEBench takes from the Hub."""

from collections.abc import Iterable, Mapping
from typing import Any

from sae_lens import SAE

from sae_baselines.evals.measured import HIGHER, NEITHER, Direction, Measured, from_mapping
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

_PER_CALL = ("model_name", "llm_dtype", "llm_batch_size", "random_seed")
_SUFFIX = "_results"
# Balanced over two columns, so that a quarter of the size is drawn from each quadrant.
_QUADRANTS = ("LabHC/bias_in_bios", "canrager/amazon_reviews_mcauley_1and5")
_SENTIMENT = "_sentiment"


class SparseProbing(Suite):
    """SAEBench's ``sparse_probing``.

    What does not depend on the SAE is cached as one piece for each seed: if only a part of it
    were there, SAEBench would draw other random numbers for the rest.
    """

    name = "sparse_probing"
    summary = "accuracy of probes on the few latents that best tell a class from others"
    primary = ("sae_top_1_test_accuracy", "sae_top_5_test_accuracy")
    warm_up = True

    def defaults(self) -> dict[str, Any]:
        from sae_bench.evals.sparse_probing.eval_config import (  # noqa: PLC0415
            SparseProbingEvalConfig,
        )

        return config_defaults(SparseProbingEvalConfig, _PER_CALL)

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        from sae_bench.evals.sparse_probing.eval_config import (  # noqa: PLC0415
            SparseProbingEvalConfig,
        )
        from sae_bench.evals.sparse_probing.eval_output import (  # noqa: PLC0415
            SparseProbingSaeMetrics,
        )
        from sae_bench.sae_bench_utils.dataset_info import (  # noqa: PLC0415
            chosen_classes_per_dataset,
        )

        yield from block_problems(subject)
        config, refused = validated(SparseProbingEvalConfig, options)
        yield from refused
        if config is None:
            return
        yield from name_problems(
            "dataset_names", config.dataset_names, chosen_classes_per_dataset
        )
        written = written_sizes(SparseProbingSaeMetrics)
        yield from size_problems("k_values", config.k_values, subject, written)
        yield from positive_problems(
            config,
            "probe_train_set_size",
            "probe_test_set_size",
            "context_length",
            "sae_batch_size",
        )

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        from sae_bench.evals.sparse_probing.eval_config import (  # noqa: PLC0415
            SparseProbingEvalConfig,
        )
        from sae_bench.evals.sparse_probing.main import run_eval  # noqa: PLC0415

        config = SparseProbingEvalConfig(
            **call.options,
            **call.config,
        )
        run_on_seed_cache(run_eval, config, sae, call)
        return Extras()

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        del extras
        config = payload["eval_config"]
        # SAEBench writes -1 for the probe on all latents, which it then leaves out.
        skip = {"sae_test_accuracy"} if config["lower_vram_usage"] else set()
        found: list[Measured] = []
        for category in ("sae", "llm"):
            found += _numbers(payload["eval_result_metrics"][category], skip)
        classes: list[Measured] = []
        for detail in payload["eval_result_details"]:
            key = detail["dataset_name"]
            dataset = key.removesuffix(_SUFFIX)
            n = _test_examples(dataset, config["probe_test_set_size"])
            found += _numbers(detail, skip, task=dataset, n=n)
            for metric, by_class in payload["eval_result_unstructured"][key].items():
                if metric not in skip:
                    classes += [
                        Measured(
                            f"class_{metric}", value, _direction(metric), f"{dataset}/{each}", n
                        )
                        for each, value in by_class.items()
                    ]
        return found + classes


def _numbers(
    values: Mapping[str, Any], skip: set[str], task: str = "", n: int | None = None
) -> list[Measured]:
    kept = {key: value for key, value in values.items() if key not in skip}
    directions: dict[str, Direction] = {key: _direction(key) for key in kept}
    return list(from_mapping(kept, directions, task=task, n=n))


def _direction(metric: str) -> Direction:
    """The language model's own probes are there for comparison."""
    return HIGHER if metric.startswith("sae_") else NEITHER


def _test_examples(dataset: str, size: int) -> int:
    """Examples on which each probe of a dataset is tested, half of them of the class."""
    parts = 4 if dataset.startswith(_QUADRANTS) and not dataset.endswith(_SENTIMENT) else 2
    return parts * (size // parts)
