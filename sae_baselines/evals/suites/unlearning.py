"""SAEBench's unlearning: clamping latents until the model forgets biology, and only that."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sae_lens import SAE

from sae_baselines.compat.saebench import saebench
from sae_baselines.evals.measured import HIGHER, Measured
from sae_baselines.evals.metrics import Margin, Metric
from sae_baselines.evals.store import all_or_nothing, hash_of_files, local_path
from sae_baselines.evals.suite import Extras, OnRandomModel, SAEBenchSuite, Subject, SuiteCall

_CORPUS = "forget_corpus"
# SAEBench's function for prompts knows these alone.
_MODELS = ("gemma-2-2b-it", "gemma-2-9b-it")
# Where SAEBench looks, below the working directory.
_CORPUS_AT = Path("sae_bench/evals/unlearning/data/bio-forget-corpus.jsonl")
_FORGOTTEN = "wmdp-bio"
_FORM = "https://huggingface.co/datasets/cais/wmdp-corpora"


class Unlearning(SAEBenchSuite):
    """SAEBench's ``unlearning``, for instruction-tuned Gemma 2.

    The questions that the language model can answer are found once and kept in the cache. That
    draws from another generator than the SAE's part does, and the order of what is drawn does
    not matter to the score: no warm-up is needed.
    """

    name = "unlearning"
    summary = "clamping latents makes the model fail at biology and at nothing else"
    primary = ("unlearning_score",)
    metrics = (
        Metric(
            "unlearning_score",
            HIGHER,
            margin=Margin(0.02, "2 points of accuracy lost on the text to be forgotten."),
            unit="fraction",
            depends="edits",
        ),
        Metric("*", depends="edits"),
    )
    evaluation = "unlearning"
    config_name = "UnlearningEvalConfig"
    on_random_model = OnRandomModel(
        "refused",
        "A random model has learned nothing that it could forget.",
    )
    # Without it SAEBench has nothing to make a score of.
    not_offered = ("save_metrics",)
    own = {_CORPUS: "bio-forget-corpus.jsonl"}
    positive = ("dataset_size", "seq_len")

    def conditions(self, options: Mapping[str, Any]) -> dict[str, Any]:
        corpus = local_path(options[_CORPUS])
        return {_CORPUS: None if corpus is None else hash_of_files(corpus)}

    def resolve(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {**options, _CORPUS: str(Path(options[_CORPUS]).resolve())}

    def subject_problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        if _short_name(subject.model_name) not in _MODELS:
            yield (
                f"model: {subject.model_name!r}: SAEBench has prompts for "
                f"{' and '.join(_MODELS)} alone; train SAEs on one of them"
            )
        if subject.local_model is not None:
            yield (
                "model: SAEBench's unlearning loads its model by a short name, from the Hub "
                "alone; leave the local folder out"
            )
        if not Path(options[_CORPUS]).is_file():
            yield (
                f"{_CORPUS}: {options[_CORPUS]} is not a file; ask for bio-forget-corpus.jsonl "
                f"at {_FORM} (gated) and give its path"
            )

    def option_problems(self, subject: Subject, config: Any) -> Iterable[str]:
        yield from super().option_problems(subject, config)
        if _FORGOTTEN not in config.dataset_names or len(set(config.dataset_names)) < 2:
            yield (
                f"dataset_names: {config.dataset_names} must have {_FORGOTTEN}, to be "
                "forgotten, and another, to be kept"
            )
        for option in ("retain_thresholds", "n_features_list", "multipliers"):
            if not getattr(config, option):
                yield f"{option}: is empty; leave it out for the default"
        for threshold in config.retain_thresholds:
            if "e" in str(threshold):
                yield (
                    f"retain_thresholds: SAEBench cannot read {threshold} back from the name "
                    "of its file; use 0.0001 or more"
                )
        for option, only in (
            ("intervention_method", "clamp_feature_activation"),
            ("target_metric", "correct"),
        ):
            if getattr(config, option) != only:
                yield f"{option}: SAEBench can do {only} alone; leave it out"

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        given = {**call.config, "model_name": _short_name(call.subject.model_name)}
        config = self.config(call.options, **given)
        # SAEBench makes the score of every file it finds and redoes none of the sparsities.
        artifacts = call.work / "artifacts"
        shutil.rmtree(artifacts, ignore_errors=True)
        of_model = artifacts / "unlearning" / config.model_name
        of_model.mkdir(parents=True)
        _link(call.work / _CORPUS_AT, Path(call.options[_CORPUS]))
        with all_or_nothing(call.cache / "questions") as questions:
            _link(of_model / "data", questions)
            # SAEBench turns gradients off and leaves them so.
            more: dict[str, Any] = {"force_rerun": True, "artifacts_path": str(artifacts)}
            self.run_eval(config, sae, call, grad=False, **more)
        metrics = of_model / f"{call.name}_custom_sae" / "results/metrics"
        return Extras({"sweep": saebench("get_metrics_df")(metrics).to_dict("records")})

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        rows = self.numbers(payload["eval_result_metrics"]["unlearning"])
        for point in extras.get("sweep", []):
            accuracies = dict(point)
            task = "_".join(
                f"{name}{accuracies.pop(name)}"
                for name in ("multiplier", "n_features", "retain_thres")
            )
            del accuracies["layer"]
            rows += self.numbers(accuracies, task)
        return rows


def _short_name(model_name: str) -> str:
    return model_name.removeprefix("google/")


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target, target_is_directory=target.is_dir())
