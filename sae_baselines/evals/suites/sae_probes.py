"""Sparse probing on the 113 datasets that come with sae-probes: no Hub is needed for data."""

import json
import math
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE

from sae_baselines.compat.saebench import saebench
from sae_baselines.compat.saebench_nulls import observed_datasets
from sae_baselines.evals.measured import Measured
from sae_baselines.evals.metrics import (
    PCA,
    PERMUTED_LABELS,
    PROBES,
    RANDOM_LATENTS,
    accuracies,
    null_name,
)
from sae_baselines.evals.nulls import firing_first, no_loss_of_score
from sae_baselines.evals.pca import coordinates
from sae_baselines.evals.store import CHOSEN, FLOORS, drop_half_written, fingerprint
from sae_baselines.evals.suite import (
    PROBES_ON_RANDOM,
    Extras,
    Needs,
    SAEBenchSuite,
    Subject,
    SuiteCall,
    means_over_tasks,
    name_problems,
    size_problems,
)
from sae_baselines.evals.versions import Requirement
from sae_baselines.files import write_atomically

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
    on_random_model = PROBES_ON_RANDOM
    on_transcoders = None
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

        def see(dataset: str, activations: Any) -> None:
            if call.options[FLOORS]:
                with no_loss_of_score():
                    _keep_nulls(results, dataset, activations, call)

        with observed_datasets(see):
            self.run_eval(config, sae, call, force_rerun=True)
        _check_datasets(call.payload)
        sizes = saebench("get_dataset_sizes")()
        tested = {name: _test_examples(sizes[name]) for name in config.dataset_names}
        notes = []
        if call.subject.llm_dtype != "float32":
            notes.append(
                f"{self.name}: the language model ran in float32, as sae-probes has no other"
            )
        chosen = {name: _chosen(results, name, call) for name in config.dataset_names}
        return Extras({"test_examples": tested, CHOSEN: chosen}, notes)

    def floors(self, sae: SAE[Any], call: SuiteCall) -> list[Measured]:
        results, activations = _folders(sae, call)
        names, hook = call.options["dataset_names"], call.subject.hook_name
        missing = [name for name in names if not _nulls_file(results, name).exists()]
        of_model = [name for name in names if not _dense_file(call, name).exists()]
        device = call.subject.device
        if missing or of_model:
            ensure = saebench("ensure_dataset_activations")
            every = [name for name in names if name in {*missing, *of_model}]
            ensure(call.subject.model_name, every, [hook], activations, device=device)
        for name in missing:
            found = saebench("generate_sae_activations")(
                sae=sae,
                setting=call.options["setting"],
                dataset=name,
                hook_name=hook,
                model_name=call.subject.model_name,
                num_train=None,
                frac=None,
                seed=call.seed,
                model_cache_path=activations,
                device=device,
            )
            _keep_nulls(results, name, found, call)
        for name in of_model:
            _keep_dense(name, activations, call)
        sizes = saebench("get_dataset_sizes")()
        rows = []
        for name in names:
            for file in (_nulls_file(results, name), _dense_file(call, name)):
                values = json.loads(file.read_text(encoding="utf-8"))
                rows += self.numbers(values, name, _test_examples(sizes[name]))
        return means_over_tasks(rows)

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
    options = {name: value for name, value in call.options.items() if name != FLOORS}
    conditions = [options, call.seed, call.subject, metadata.version("sae-probes")]
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


def _nulls_file(results: Path, dataset: str) -> Path:
    return results / FLOORS / f"{dataset}.json"


def _keep_nulls(results: Path, dataset: str, activations: Any, call: SuiteCall) -> None:
    """Train sae-probes' own probes on what can tell nothing, and write what they score.

    Latents drawn at random of those that fire in the training set, in place of the k that tell
    the classes best; and training labels permuted before these are chosen. Both are tested on
    the real labels.
    """
    n = len(activations.y_train)
    draw = np.random.default_rng([call.seed, *dataset.encode()])
    firing = (activations.X_train != 0).any(0)
    drawn = firing_first(firing, torch.as_tensor(draw.permutation(len(firing))))
    permuted = activations.y_train[torch.as_tensor(draw.permutation(n))]
    told = saebench("get_sorted_indices")(
        activations.X_train, permuted, saebench("mean_act_normalization")
    )
    values = {}
    for kind, order, labels in (
        (RANDOM_LATENTS, drawn, activations.y_train),
        (PERMUTED_LABELS, told, permuted),
    ):
        scores = _probes(activations._replace(y_train=labels), order, call)
        values |= {
            null_name(f"sae_top_{k}_test_{metric}", kind): value
            for (k, metric), value in scores.items()
        }
    _write(_nulls_file(results, dataset), values)


def _probes(activations: Any, order: torch.Tensor, call: SuiteCall) -> dict[Any, float]:
    """What sae-probes' probes score on the first k columns, by k and metric.

    Args:
        activations: sae-probes' ``X_train``, ``X_test``, ``y_train``, ``y_test``.
        order: Of columns.
        call: Its options name the numbers k.
    """
    values = {}
    for k in call.options["ks"]:
        found = saebench("find_best_reg")(
            X_train=activations.X_train[:, order[:k]],
            y_train=activations.y_train,
            X_test=activations.X_test[:, order[:k]],
            y_test=activations.y_test,
            penalty=call.options["reg_type"],
            seed=call.seed,
        ).metrics
        values[k, "accuracy"] = found.test_acc
        values[k, "auc"] = found.test_auc
        values[k, "f1"] = found.test_f1
    return values


def _dense_file(call: SuiteCall, dataset: str) -> Path:
    return call.cache / f"pca_seed_{call.seed}" / f"{dataset}.json"


def _keep_dense(dataset: str, activations: Path, call: SuiteCall) -> None:
    """Train the same probes on as many principal components of the model's activations.

    They are those of the training set; of them sae-probes chooses as it does of latents. No
    SAE changes what they score, so it is kept for all.
    """
    size = saebench("get_dataset_sizes")()[dataset]
    X_train, y_train, X_test, y_test = saebench("get_xy_traintest")(
        min(size - _LEAST_TEST, _MOST_TRAINING),
        dataset,
        call.subject.hook_name,
        model_name=call.subject.model_name,
        model_cache_path=activations,
        seed=call.seed,
    )
    data = saebench("Activations")(
        *coordinates(X_train, X_train, X_test), torch.tensor(y_train), torch.tensor(y_test)
    )
    order = saebench("get_sorted_indices")(
        data.X_train, data.y_train, saebench("mean_act_normalization")
    )
    scores = _probes(data, order, call)
    values = {PCA.format(k, metric): value for (k, metric), value in scores.items()}
    _write(_dense_file(call, dataset), values)


def _write(path: Path, values: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(values))


def _chosen(results: Path, dataset: str, call: SuiteCall) -> list[int]:
    """The latents that tell a dataset's classes best, best first: as many as the largest k.

    Those of a smaller k are the first of them. sae-probes lists them in its own files, which
    SAEBench reads without these.
    """
    path = saebench("get_save_metrics_path")(
        dataset,
        call.subject.hook_name,
        call.options["reg_type"],
        call.subject.model_name,
        results / f"{call.name}_custom_sae",
        setting=call.options["setting"],
    )
    entries = json.loads(Path(path).read_text(encoding="utf-8"))
    return max((entry["indices"] for entry in entries), key=len)


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
