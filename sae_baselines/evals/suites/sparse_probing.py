"""Sparse probing on the datasets that SAEBench takes from the Hub."""

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from sae_lens import SAE

from sae_baselines.compat.saebench import saebench
from sae_baselines.compat.saebench_nulls import observed_classes
from sae_baselines.evals.measured import Measured
from sae_baselines.evals.metrics import (
    PCA,
    PERMUTED_LABELS,
    RANDOM_LATENTS,
    accuracies,
    null_name,
)
from sae_baselines.evals.nulls import FLOORS_FILE, firing_first, no_loss_of_score
from sae_baselines.evals.pca import coordinates
from sae_baselines.evals.store import FLOORS
from sae_baselines.evals.suite import (
    PROBES_ON_RANDOM,
    Extras,
    SeedCachedSuite,
    Subject,
    SuiteCall,
    from_seed,
    means_over_tasks,
    name_problems,
    size_problems,
)
from sae_baselines.evals.versions import Requirement
from sae_baselines.files import write_atomically

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
    on_random_model = PROBES_ON_RANDOM
    on_transcoders = None
    sizes = ("probe_train_set_size", "probe_test_set_size")
    positive = (*sizes, "context_length", "sae_batch_size")

    def option_problems(self, subject: Subject, config: Any) -> Iterable[str]:
        known = saebench("chosen_classes_per_dataset")
        yield from name_problems("dataset_names", config.dataset_names, known)
        written = saebench("SparseProbingSaeMetrics")
        yield from size_problems("k_values", config.k_values, subject, written)
        yield from super().option_problems(subject, config)

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        names = iter(call.options["dataset_names"])
        nulls: dict[str, dict[str, float]] = {}

        def see(train: Any, test: Any, activations: Any) -> None:
            if call.options[FLOORS]:
                name = next(names)
                with no_loss_of_score():
                    values = _nulls(name, train, test, call)
                    nulls[name] = {**values, **_dense(name, activations, call)}

        with observed_classes(see):
            self.run_on_seed_cache(self.config(call.options, **call.config), sae, call)
        if nulls:
            write_atomically(call.work / FLOORS_FILE, json.dumps(nulls))
        return Extras()

    def floors(self, sae: SAE[Any], call: SuiteCall) -> list[Measured]:
        options, file = call.options, call.work / FLOORS_FILE
        nulls = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        sae = sae.to(dtype=saebench("str_to_dtype")(call.subject.llm_dtype))
        encode = saebench("get_sae_meaned_activations")
        folder = call.cache / f"seed_{call.seed}" / self.evaluation
        folder = folder / call.subject.model_name / call.subject.hook_name
        rows = []
        for name in options["dataset_names"]:
            if name not in nulls:
                read = torch.load(folder / f"{name}_activations.pt".replace("/", "_"))
                parts = read["train"], read["test"]
                train, test = (encode(part, sae, options["sae_batch_size"]) for part in parts)
                values = _nulls(name, train, test, call)
                nulls[name] = {**values, **_dense(name, parts, call)}
            n = _test_examples(name, options["probe_test_set_size"])
            rows += self.numbers(nulls[name], name, n)
        return means_over_tasks(rows)

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


def _nulls(dataset: str, train: Any, test: Any, call: SuiteCall) -> dict[str, float]:
    """What SAEBench's own probes score on what can tell nothing, means over classes.

    Latents drawn at random of those that fire in the training set, in place of the k that tell
    a class best; and training examples exchanged between classes. Tests are the real ones.

    Args:
        dataset: Its name, by which numbers are drawn.
        train: Class to ``[examples, d_sae]``.
        test: The same for testing.
        call: Seed and options.
    """
    fit = saebench("train_probe_on_activations")
    values = {}
    # SAEBench's own draws stay as they are.
    with from_seed(zlib.crc32(f"{call.seed} {dataset}".encode())), torch.no_grad():
        every = torch.cat(list(train.values()))
        firing = (every != 0).any(0)
        drawn = firing_first(firing, torch.randperm(len(firing)).to(firing.device))
        mixed = every[torch.randperm(len(every)).to(every.device)]
        sizes = [len(latents) for latents in train.values()]
        permuted = dict(zip(train, mixed.split(sizes), strict=True))
        for k in call.options["k_values"]:
            some = [{c: x[:, drawn[:k]] for c, x in part.items()} for part in (train, test)]
            for kind, (_, by_class) in (
                (RANDOM_LATENTS, fit(*some)),
                (PERMUTED_LABELS, fit(permuted, test, select_top_k=k)),
            ):
                name = null_name(f"sae_top_{k}_test_accuracy", kind)
                values[name] = sum(by_class.values()) / len(by_class)
    return values


def _dense(dataset: str, activations: Any, call: SuiteCall) -> dict[str, float]:
    """What SAEBench's own probes score on as many principal components of the activations.

    No SAE changes it, so it is kept. Components are of all classes' training examples, and the
    k that tell a class best are chosen as latents are.

    Args:
        dataset: Its name.
        activations: Class to ``[examples, context, d_in]``, of training and of test.
        call: Seed, options, cache.
    """
    path = call.cache / f"seed_{call.seed}" / "pca" / f"{dataset.replace('/', '_')}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    fit = saebench("train_probe_on_activations")
    parts = [saebench("create_meaned_model_activations")(part) for part in activations]
    every = torch.cat(list(parts[0].values()))
    found = iter(coordinates(every, *(x for part in parts for x in part.values())))
    train, test = ({name: next(found) for name in part} for part in parts)
    values = {}
    with from_seed(zlib.crc32(f"{call.seed} {dataset} pca".encode())), torch.no_grad():
        for k in call.options["k_values"]:
            _, by_class = fit(train, test, select_top_k=k)
            values[PCA.format(k, "accuracy")] = sum(by_class.values()) / len(by_class)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(values))
    return values


def _test_examples(dataset: str, size: int) -> int:
    """Examples on which each probe of a dataset is tested, half of them of the class."""
    parts = 4 if dataset.startswith(_QUADRANTS) and not dataset.endswith(_SENTIMENT) else 2
    return parts * (size // parts)
