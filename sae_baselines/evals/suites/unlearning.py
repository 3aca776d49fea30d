"""SAEBench's unlearning: clamping latents until the model forgets biology, and only that."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE

from sae_baselines.evals.caches import all_or_nothing
from sae_baselines.evals.local_data import hash_of_files, local_path
from sae_baselines.evals.measured import HIGHER, Measured, from_mapping
from sae_baselines.evals.option_checks import positive_problems, validated
from sae_baselines.evals.suite import Extras, Subject, Suite, SuiteCall, config_defaults

_PER_CALL = ("model_name", "llm_dtype", "llm_batch_size", "random_seed")
# Without it SAEBench has nothing to make a score of.
_NOT_OFFERED = ("save_metrics",)
_CORPUS = "forget_corpus"
# SAEBench's function for prompts knows these alone.
_MODELS = ("gemma-2-2b-it", "gemma-2-9b-it")
# Where SAEBench looks, below the working directory.
_CORPUS_AT = Path("sae_bench/evals/unlearning/data/bio-forget-corpus.jsonl")
_FORGOTTEN = "wmdp-bio"
_FORM = "https://huggingface.co/datasets/cais/wmdp-corpora"


class Unlearning(Suite):
    """SAEBench's ``unlearning``, for instruction-tuned Gemma 2.

    The questions that the language model can answer are found once and kept in the cache. That
    draws from another generator than the SAE's part does, and the order of what is drawn does
    not matter to the score: no warm-up is needed.
    """

    name = "unlearning"
    summary = "clamping latents makes the model fail at biology and at nothing else"
    primary = ("unlearning_score",)

    def defaults(self) -> dict[str, Any]:
        from sae_bench.evals.unlearning.eval_config import (  # noqa: PLC0415
            UnlearningEvalConfig,
        )

        given = config_defaults(UnlearningEvalConfig, (*_PER_CALL, *_NOT_OFFERED))
        return {**given, _CORPUS: "bio-forget-corpus.jsonl"}

    def conditions(self, options: Mapping[str, Any]) -> dict[str, Any]:
        corpus = local_path(options[_CORPUS])
        return {_CORPUS: None if corpus is None else hash_of_files(corpus)}

    def resolve(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {**options, _CORPUS: str(Path(options[_CORPUS]).resolve())}

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        from sae_bench.evals.unlearning.eval_config import (  # noqa: PLC0415
            UnlearningEvalConfig,
        )

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
        config, refused = validated(UnlearningEvalConfig, _theirs(options))
        yield from refused
        if config is None:
            return
        yield from positive_problems(config, "dataset_size", "seq_len")
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
        from sae_bench.evals.unlearning.eval_config import (  # noqa: PLC0415
            UnlearningEvalConfig,
        )
        from sae_bench.evals.unlearning.main import get_metrics_df, run_eval  # noqa: PLC0415

        config = UnlearningEvalConfig(
            model_name=_short_name(call.subject.model_name),
            llm_dtype=call.subject.llm_dtype,
            llm_batch_size=call.subject.llm_batch_size,
            random_seed=call.seed,
            **_theirs(call.options),
        )
        # SAEBench makes the score of every file it finds and redoes none of the sparsities.
        artifacts = call.work / "artifacts"
        shutil.rmtree(artifacts, ignore_errors=True)
        of_model = artifacts / "unlearning" / config.model_name
        of_model.mkdir(parents=True)
        _link(call.work / _CORPUS_AT, Path(call.options[_CORPUS]))
        # SAEBench turns gradients off and leaves them so.
        with all_or_nothing(call.cache / "questions") as questions, torch.no_grad():
            _link(of_model / "data", questions)
            run_eval(
                config,
                [(call.name, sae)],
                call.subject.device,
                str(call.output),
                force_rerun=True,
                artifacts_path=str(artifacts),
            )
        sweep = get_metrics_df(of_model / f"{call.name}_custom_sae" / "results/metrics")
        return Extras({"sweep": sweep.to_dict("records")})

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        score = payload["eval_result_metrics"]["unlearning"]
        found = list(from_mapping(score, {"unlearning_score": HIGHER}))
        for point in extras.get("sweep", []):
            accuracies = dict(point)
            task = "_".join(
                f"{name}{accuracies.pop(name)}"
                for name in ("multiplier", "n_features", "retain_thres")
            )
            del accuracies["layer"]
            found += from_mapping(accuracies, {}, task=task)
        return found


def _short_name(model_name: str) -> str:
    return model_name.removeprefix("google/")


def _theirs(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != _CORPUS}


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target, target_is_directory=target.is_dir())
