"""Sparse probing on the datasets that SAEBench takes from the Hub."""

from collections.abc import Iterable, Mapping
from typing import Any

from sae_lens import SAE

from sae_baselines.compat.saebench import saebench
from sae_baselines.evals.measured import Measured
from sae_baselines.evals.metrics import accuracies
from sae_baselines.evals.suite import (
    Extras,
    SeedCachedSuite,
    Subject,
    SuiteCall,
    name_problems,
    size_problems,
)
from sae_baselines.evals.versions import Requirement

_SUFFIX = "_results"
# Balanced over two columns, so that a quarter of the size is drawn from each quadrant.
_QUADRANTS = ("LabHC/bias_in_bios", "canrager/amazon_reviews_mcauley_1and5")
_SENTIMENT = "_sentiment"


class SparseProbing(SeedCachedSuite):
    """SAEBench's ``sparse_probing``."""

    name = "sparse_probing"
    summary = "accuracy of probes on the few latents that best tell a class from others"
    primary = ("sae_top_1_test_accuracy", "sae_top_5_test_accuracy")
    metrics = accuracies("Sparse probing")
    requirements = (
        Requirement(
            "datasets",
            ">=3.1,<4",
            "datasets 4 runs no loading scripts, which one of its datasets needs",
        ),
        # jaxtyping's checks are what fails.
        Requirement(
            "beartype",
            ">=0.14,<0.18",
            "from 0.18 on it rejects the calls of SAEBench's own probe training",
            moot_with="JAXTYPING_DISABLE",
        ),
    )
    evaluation = "sparse_probing"
    config_name = "SparseProbingEvalConfig"
    sizes = ("probe_train_set_size", "probe_test_set_size")
    positive = (*sizes, "context_length", "sae_batch_size")

    def option_problems(self, subject: Subject, config: Any) -> Iterable[str]:
        known = saebench("chosen_classes_per_dataset")
        yield from name_problems("dataset_names", config.dataset_names, known)
        written = saebench("SparseProbingSaeMetrics")
        yield from size_problems("k_values", config.k_values, subject, written)
        yield from super().option_problems(subject, config)

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        self.run_on_seed_cache(self.config(call.options, **call.config), sae, call)
        return Extras()

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        del extras
        config = payload["eval_config"]
        # SAEBench writes -1 for the probe on all latents, which it then leaves out.
        skip = {"sae_test_accuracy"} if config["lower_vram_usage"] else set()

        def kept(values: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in values.items() if name not in skip}

        rows: list[Measured] = []
        for category in ("sae", "llm"):
            rows += self.numbers(kept(payload["eval_result_metrics"][category]))
        classes: list[Measured] = []
        for detail in payload["eval_result_details"]:
            key = detail["dataset_name"]
            dataset = key.removesuffix(_SUFFIX)
            n = _test_examples(dataset, config["probe_test_set_size"])
            rows += self.numbers(kept(detail), dataset, n)
            for metric, by_class in kept(payload["eval_result_unstructured"][key]).items():
                classes += [
                    self.number(f"class_{metric}", value, f"{dataset}/{name}", n)
                    for name, value in by_class.items()
                ]
        return rows + classes


def _test_examples(dataset: str, size: int) -> int:
    """Examples on which each probe of a dataset is tested, half of them of the class."""
    parts = 4 if dataset.startswith(_QUADRANTS) and not dataset.endswith(_SENTIMENT) else 2
    return parts * (size // parts)
