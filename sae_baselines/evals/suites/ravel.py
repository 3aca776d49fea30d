"""SAEBench's RAVEL: latents that change one attribute of an entity and leave the others."""

import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from typing_extensions import override

from sae_baselines.errors import UserError
from sae_baselines.evals.caches import all_or_nothing
from sae_baselines.evals.measured import HIGHER, Direction, Measured, from_mapping
from sae_baselines.evals.option_checks import positive_problems, validated
from sae_baselines.evals.suite import Extras, Subject, Suite, SuiteCall, config_defaults
from sae_baselines.evals.versions import version_problems

_PER_CALL = ("model_name", "llm_dtype", "llm_batch_size", "random_seed", "artifact_dir")
# The first scores something else in place of the SAE; the second does nothing.
_NOT_OFFERED = ("train_mdas", "force_dataset_recompute")
_RESID_POST = re.compile(r"blocks\.\d+\.hook_resid_post")
_DIRECTIONS: dict[str, Direction] = {
    "disentanglement_score": HIGHER,
    "cause_score": HIGHER,
    "isolation_score": HIGHER,
}
# Attributes have another word for what they add to the aggregate.
_OF_AN_ATTRIBUTE = {"disentangle_score": "disentanglement_score"}


class Ravel(Suite):
    """SAEBench's ``ravel``.

    What the language model knows is found out once, drawing nothing, and kept in the cache;
    the seed is set anew for every SAE: no warm-up is needed. ``llm_batch_size`` is also the
    batch of the masks' training, so it changes scores.
    """

    name = "ravel"
    summary = "swapping latents changes one attribute of an entity and leaves the others"
    primary = ("disentanglement_score",)

    def defaults(self) -> dict[str, Any]:
        from sae_bench.evals.ravel.eval_config import RAVELEvalConfig  # noqa: PLC0415

        return config_defaults(RAVELEvalConfig, (*_PER_CALL, *_NOT_OFFERED))

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        from sae_bench.evals.ravel.eval_config import RAVELEvalConfig  # noqa: PLC0415
        from sae_bench.evals.ravel.main import LLM_NAME_MAP  # noqa: PLC0415

        yield from (str(each) for each in version_problems() if self.name in each.suites)
        if _short_name(subject.model_name) is None:
            yield (
                f"model: {subject.model_name!r} is unknown to SAEBench's RAVEL; it runs on "
                f"{' and '.join(LLM_NAME_MAP)}"
            )
        if subject.local_model is not None:
            yield (
                "model: RAVEL loads the language model from the Hub by its name, not from a "
                "folder; leave the folder out"
            )
        if not _RESID_POST.fullmatch(subject.hook_name):
            yield (
                f"hook_name: {subject.hook_name!r}: RAVEL replaces what leaves the block, "
                "whatever the SAE was trained on; train on blocks.<layer>.hook_resid_post"
            )
        config, refused = validated(RAVELEvalConfig, options)
        yield from refused
        if config is None:
            return
        yield from _option_problems(config, subject.llm_batch_size)

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        from sae_bench.evals.ravel.eval_config import RAVELEvalConfig  # noqa: PLC0415
        from sae_bench.evals.ravel.main import run_eval  # noqa: PLC0415

        # SAEBench publishes this path, so it is below the working directory.
        artifacts = call.work / "artifacts"
        artifacts.unlink(missing_ok=True)
        with all_or_nothing(call.cache / "knowledge") as folder, torch.enable_grad():
            artifacts.symlink_to(folder, target_is_directory=True)
            # A fresh one, since SAEBench renames the model in it.
            config = RAVELEvalConfig(
                model_name=str(_short_name(call.subject.model_name)),
                llm_dtype=call.subject.llm_dtype,
                llm_batch_size=call.subject.llm_batch_size,
                random_seed=call.seed,
                artifact_dir=artifacts.name,
                **call.options,
            )
            run_eval(
                config,
                [(call.name, sae)],
                call.subject.device,
                str(call.output),
                force_rerun=True,
                artifacts_path="unused",
            )
        shutil.rmtree(Path("unused"), ignore_errors=True)
        _check_scored(json.loads(call.expected.read_text(encoding="utf-8")), call.subject)
        return Extras()

    @override
    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        found = list(from_mapping(payload["eval_result_metrics"]["ravel"], _DIRECTIONS))
        for attributes in payload["eval_result_unstructured"].values():
            for task, scores in attributes.items():
                values = {_OF_AN_ATTRIBUTE.get(k) or k: score for k, score in scores.items()}
                found += from_mapping(values, _DIRECTIONS, task=task)
        return found


def _short_name(model_name: str) -> str | None:
    """SAEBench's name of the model, which may go by its name on the Hub; None if unknown."""
    from sae_bench.evals.ravel.main import LLM_NAME_MAP  # noqa: PLC0415

    names = {name: short for short, full in LLM_NAME_MAP.items() for name in (short, full)}
    return names.get(model_name)


def _check_scored(payload: Mapping[str, Any], subject: Subject) -> None:
    """SAEBench drops what does not fill a batch, and makes NaN of nothing."""
    unscored = [
        attribute
        for attributes in payload["eval_result_unstructured"].values()
        for attribute, scores in attributes.items()
        if not all(map(math.isfinite, scores.values()))
    ]
    if unscored:
        raise UserError(
            f"suites.ravel: {', '.join(unscored)}: the language model knows too few entities "
            "to fill batches with pairs of both kinds; lower llm_batch_size: "
            f"{subject.llm_batch_size}, or leave these out of entity_attribute_selection"
        )


def _option_problems(config: Any, batch: int) -> Iterable[str]:
    yield from positive_problems(
        config,
        "top_n_entities",
        "top_n_templates",
        "num_pairs_per_attribute",
        "num_epochs",
        "n_generated_tokens",
    )
    if not 0 < config.train_test_split < 1:
        yield f"train_test_split: {config.train_test_split} is not between 0 and 1"
        return
    pairs = 2 * config.num_pairs_per_attribute
    trained = int(pairs * config.train_test_split)
    if min(trained, pairs - trained) < batch:
        yield (
            f"llm_batch_size: {batch}: SAEBench drops batches that are not full, and has "
            f"{trained} pairs to train and {pairs - trained} to test; lower it"
        )
    if config.full_dataset_downsample is not None:
        yield (
            "full_dataset_downsample: it is drawn by the first SAE alone, whose score would "
            "differ for that; leave it out and lower top_n_entities"
        )
    if not config.entity_attribute_selection:
        yield "entity_attribute_selection: is empty; leave it out for the default"
    for entity, attributes in config.entity_attribute_selection.items():
        if len(set(attributes)) < 2 or len(set(attributes)) < len(attributes):
            yield (
                f"entity_attribute_selection: {entity}: give at least two attributes, each once"
            )
