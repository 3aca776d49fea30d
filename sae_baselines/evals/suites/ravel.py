"""SAEBench's RAVEL: latents that change one attribute of an entity and leave the others."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from sae_lens import SAE
from typing_extensions import override

from sae_baselines.compat.saebench import saebench
from sae_baselines.compat.saebench_nulls import Edits, observed_edits
from sae_baselines.errors import UserError
from sae_baselines.evals.measured import HIGHER, Measured
from sae_baselines.evals.metrics import RANDOM_LATENTS, Margin, Metric, with_floors
from sae_baselines.evals.nulls import Nulls, NullsInRun
from sae_baselines.evals.store import all_or_nothing
from sae_baselines.evals.suite import (
    Extras,
    OnRandomModel,
    Subject,
    SuiteCall,
    resid_post_problems,
)
from sae_baselines.evals.versions import Requirement
from sae_baselines.files import checksum_of, write_atomically

_MARGIN = Margin(0.02, "2 points of a 0 to 1 score whose spread in the paper is 0.05.")
# Attributes have another word for what they add to the aggregate.
_OF_AN_ATTRIBUTE = {"disentangle_score": "disentanglement_score"}
_IDENTITY = "identity"
_NULLS = {
    RANDOM_LATENTS: "as many latents at random in place of the learned ones",
    _IDENTITY: "nothing swapped, the model left alone",
}


class Ravel(NullsInRun):
    """SAEBench's ``ravel``.

    What the language model knows is found out once, drawing nothing, and kept in the cache;
    the seed is set anew for every SAE: no warm-up is needed. ``llm_batch_size`` is also the
    batch of the masks' training, so it changes scores.
    """

    name = "ravel"
    summary = "swapping latents changes one attribute of an entity and leaves the others"
    primary = ("disentanglement_score",)
    metrics = (
        *with_floors(
            Metric(primary[0], HIGHER, "RAVEL disentanglement", _MARGIN, "fraction", "edits"),
            _NULLS,
        ),
        *with_floors(
            Metric("cause_score", HIGHER, "RAVEL cause", _MARGIN, "fraction", "edits"), _NULLS
        ),
        # An edit without effect leaves everything else as it is; a dead SAE's are all the same,
        # since SAEBench puts what it decodes in place of what it read.
        *with_floors(
            Metric(
                "isolation_score",
                HIGHER,
                "RAVEL isolation",
                _MARGIN,
                "fraction",
                "edits",
                favours=("dead", "random"),
            ),
            _NULLS,
        ),
        Metric("*", margin=_MARGIN, unit="fraction", depends="edits"),
    )
    requirements = (
        Requirement(
            "transformers",
            "<5",
            "in transformers 5 decoder layers return a tensor, of which SAEBench's RAVEL takes "
            "the first row for the hidden states",
        ),
    )
    evaluation = "ravel"
    config_name = "RAVELEvalConfig"
    on_random_model = OnRandomModel(
        "refused",
        "It edits what a model knows of cities and people, and a random model knows nothing.",
    )
    per_call = (*NullsInRun.per_call, "artifact_dir")
    # The first scores something else in place of the SAE; the second does nothing.
    not_offered = ("train_mdas", "force_dataset_recompute")
    positive = (
        "top_n_entities",
        "top_n_templates",
        "num_pairs_per_attribute",
        "num_epochs",
        "n_generated_tokens",
    )

    def subject_problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        del options
        yield from self.own_version_problems()
        if _short_name(subject.model_name) is None:
            yield (
                f"model: {subject.model_name!r} is unknown to SAEBench's RAVEL; it runs on "
                f"{' and '.join(saebench('LLM_NAME_MAP'))}"
            )
        if subject.local_model is not None:
            yield (
                "model: RAVEL loads the language model from the Hub by its name, not from a "
                "folder; leave the folder out"
            )
        yield from resid_post_problems(
            subject, "RAVEL replaces what leaves the block, whatever the SAE"
        )

    def option_problems(self, subject: Subject, config: Any) -> Iterable[str]:
        yield from super().option_problems(subject, config)
        yield from _problems(config, subject.llm_batch_size)

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        # SAEBench publishes this path, so it is below the working directory.
        artifacts = call.work / "artifacts"
        artifacts.unlink(missing_ok=True)
        short = str(_short_name(call.subject.model_name))
        with all_or_nothing(call.cache / "knowledge") as folder:
            artifacts.symlink_to(folder, target_is_directory=True)
            # A fresh config, since SAEBench renames the model in it.
            given = {**call.config, "model_name": short, "artifact_dir": artifacts.name}
            config = self.config(call.options, **given)
            nulls = Nulls(call)
            looking = observed_edits(nulls_of_edits(nulls, config, call.cache))
            with looking if nulls.wanted else nullcontext():
                self.run_eval(config, sae, call, force_rerun=True, artifacts_path="unused")
        shutil.rmtree(Path("unused"), ignore_errors=True)
        _check_scored(call.payload, call.subject)
        nulls.leave(_over_entities(nulls.rows, config.entity_attribute_selection))
        return Extras()

    @override
    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        rows = self.numbers(payload["eval_result_metrics"]["ravel"])
        for attributes in payload["eval_result_unstructured"].values():
            for task, scores in attributes.items():
                values = {_OF_AN_ATTRIBUTE.get(k) or k: score for k, score in scores.items()}
                rows += self.numbers(values, task)
        return rows


def nulls_of_edits(nulls: Nulls, config: Any, cache: Path) -> Callable[[Edits], None]:
    """What is done with the pairs of one attribute after the other."""
    selection = config.entity_attribute_selection
    tasks = iter(f"{entity}_{name}" for entity, names in selection.items() for name in names)

    def score(edits: Edits) -> None:
        task = next(tasks)
        with nulls.aside():
            # Training leaves latents at 0 that no pair changes: to draw those would change
            # nothing either.
            mask = edits.mask.cpu()
            moved = mask.nonzero().flatten()
            drawn = moved[torch.randperm(len(moved))[: int((mask > 0).sum())]]
            other = torch.zeros_like(mask).index_fill(0, drawn, 1.0)
            nulls.add(RANDOM_LATENTS, _scores(*edits.again(other)), task)
        with nulls.aside():
            nulls.add(_IDENTITY, _scores(*_alone(edits, cache)), task)

    return score


def _scores(cause: float, isolation: float) -> dict[str, float]:
    return {
        "cause_score": cause,
        "isolation_score": isolation,
        "disentanglement_score": (cause + isolation) / 2,
    }


def _alone(edits: Edits, cache: Path) -> tuple[float, float]:
    """What the model left alone scores, which is the same for every SAE on the same pairs."""
    file = cache / f"alone_{checksum_of(edits.pairs)[:16]}.json"
    if not file.exists():
        write_atomically(file, json.dumps(edits.again(None)))
    cause, isolation = json.loads(file.read_text(encoding="utf-8"))
    return cause, isolation


def _over_entities(
    rows: Sequence[Measured], selection: Mapping[str, Sequence[str]]
) -> Iterator[Measured]:
    """Aggregates as SAEBench's, means over entities of means over attributes; then the rows."""
    found = {(row.metric, row.task): row.value for row in rows}
    for metric in dict.fromkeys(row.metric for row in rows):
        means = [
            mean(found[metric, f"{entity}_{name}"] for name in names)
            for entity, names in selection.items()
        ]
        yield Measured(metric, mean(means))
    yield from rows


def _short_name(model_name: str) -> str | None:
    """SAEBench's name of the model, which may go by its name on the Hub; None if unknown."""
    known = saebench("LLM_NAME_MAP").items()
    return {name: short for short, full in known for name in (short, full)}.get(model_name)


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


def _problems(config: Any, batch: int) -> Iterable[str]:
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
