"""SAEBench's RAVEL: latents that change one attribute of an entity and leave the others."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from filelock import FileLock
from sae_lens import SAE
from typing_extensions import override

from sae_baselines.compat.saebench import saebench
from sae_baselines.compat.saebench_nulls import Edits, observed_edits
from sae_baselines.compat.saebench_ravel import (
    any_model,
    own_prompts,
    sources_read_once,
    stopped_when_known,
)
from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.evals.entities import CITIES, NO_CITIES, Entities, entities_of
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
from sae_baselines.files import checksum_of, read_json, sha256_of, write_atomically
from sae_baselines.home import cache_dir
from sae_baselines.study.language_model import hub_name

_MARGIN = Margin(0.02, "2 points of a 0 to 1 score whose spread in the paper is 0.05.")
# Attributes have another word for what they add to the aggregate.
_OF_AN_ATTRIBUTE = {"disentangle_score": "disentanglement_score"}
_IDENTITY, _RECONSTRUCTED = "identity", "reconstructed"
_ANSWERED = "answered.json"
_NULLS = {
    RANDOM_LATENTS: "as many latents at random in place of the learned ones",
    _IDENTITY: "nothing swapped, the model left alone",
    _RECONSTRUCTED: "nothing swapped, what the SAE decodes put in place",
}


class Ravel(NullsInRun):
    """SAEBench's ``ravel``.

    What the language model knows is found out once, drawing nothing, and kept in the cache;
    the seed is set anew for every SAE: no warm-up is needed. ``llm_batch_size`` is also the
    batch of the masks' training, so it changes scores.

    With ``entities`` it runs on any language model, on prompts that are not SAEBench's: their
    scores stand for themselves. What a model answers of them is kept for all studies.
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
    own = {
        # "cities" or a CSV file; None: SAEBench's own prompts.
        "entities": None,
        "n_cities": 300,
        "templates": None,
        "least_entities": 30,
        "shim": True,
    }
    positive = (
        "top_n_entities",
        "top_n_templates",
        "num_pairs_per_attribute",
        "num_epochs",
        "n_generated_tokens",
    )

    def subject_problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        yield from self.own_version_problems()
        wrong = list(_wrong_values(options))
        yield from wrong
        if not wrong:
            try:
                entities = entities_of(options)
            except UserError as error:
                yield str(error)
            else:
                if entities is None:
                    yield from _stock_problems(subject)
                else:
                    yield from _own_problems(entities, options)
        yield from resid_post_problems(
            subject, "RAVEL replaces what leaves the block, whatever the SAE"
        )

    @override
    def problems_of_file(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        return [p for p in super().problems_of_file(subject, options) if p != NO_CITIES]

    def option_problems(self, subject: Subject, config: Any) -> Iterable[str]:
        yield from super().option_problems(subject, config)
        yield from _problems(config, subject.llm_batch_size)

    @override
    def resolve(self, options: Mapping[str, Any]) -> dict[str, Any]:
        named = options["entities"]
        path = named if named in (None, CITIES) else str(Path(named).resolve())
        return {**options, "entities": path}

    @override
    def conditions(self, options: Mapping[str, Any]) -> dict[str, Any]:
        entities = entities_of(options)
        return {} if entities is None else {"entities": entities.checksum}

    @override
    def deciding(self, options: Mapping[str, Any]) -> dict[str, Any]:
        # What is asked is among the conditions, by its contents; the rest changes no score.
        decide = super().deciding(options)
        return {name: value for name, value in decide.items() if name not in self.own}

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        entities = entities_of(call.options)
        if entities is None:
            given = {"model_name": str(_short_name(call.subject.model_name))}
            with all_or_nothing(call.cache / "knowledge") as folder:
                self._score(sae, call, folder, given)
            return Extras()
        name = call.subject.model_name
        given = {
            "model_name": name,
            "entity_attribute_selection": _selection(entities, call.options),
        }
        with any_model(name, call.subject.local_model or hub_name(name)), own_prompts():
            folder = self._ask(sae, call, entities, given)
            answered = read_json(folder / _ANSWERED) or {}
            _check_answered(answered, entities, call)
            self._score(sae, call, folder, given)
        return Extras({"answered": answered}, [_note(answered, entities)])

    def _score(
        self, sae: SAE[Any], call: SuiteCall, folder: Path, given: Mapping[str, Any]
    ) -> None:
        config = self._config(call, folder, given)
        nulls = Nulls(call)
        looking = observed_edits(nulls_of_edits(nulls, config, call.cache))
        with (
            sources_read_once(call.cache / "sources.safetensors"),
            looking if nulls.wanted else nullcontext(),
        ):
            self._run_on(config, sae, call)
        _check_scored(call.payload, call.subject)
        nulls.leave(_over_entities(nulls.rows, config.entity_attribute_selection))

    def _config(self, call: SuiteCall, folder: Path, given: Mapping[str, Any]) -> Any:
        """A fresh one, since SAEBench renames the model in it."""
        # SAEBench publishes this path, so it is below the working directory.
        artifacts = call.work / "artifacts"
        artifacts.unlink(missing_ok=True)
        artifacts.symlink_to(folder, target_is_directory=True)
        more = {**call.config, **given, "artifact_dir": artifacts.name}
        return self.config({k: v for k, v in call.options.items() if k not in more}, **more)

    def _run_on(self, config: Any, sae: SAE[Any], call: SuiteCall) -> None:
        self.run_eval(config, sae, call, force_rerun=True, artifacts_path="unused")
        shutil.rmtree(Path("unused"), ignore_errors=True)

    def _ask(
        self, sae: SAE[Any], call: SuiteCall, entities: Entities, given: Mapping[str, Any]
    ) -> Path:
        """Folder with what the model answers, which is asked once for all SAEs and studies."""
        subject, local = call.subject, call.subject.local_model
        files = [] if local is None else sorted(p for p in local.iterdir() if p.is_file())
        key = {
            "model": subject.model_name,
            "weights": {p.name: sha256_of(p) for p in files},
            "entities": entities.checksum,
            **{name: call.options[name] for name in ("top_n_entities", "n_generated_tokens")},
            **given,
            # Rounding, which an answer may hang on.
            "rounding": [
                subject.llm_dtype,
                subject.llm_batch_size,
                torch.device(subject.device).type,
            ],
            "versions": {
                p: metadata.version(p) for p in ("sae-bench", "transformers", "torch")
            },
        }
        folder = cache_dir() / "ravel" / checksum_of(key)[:16]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"), all_or_nothing(folder):
            if not (folder / _ANSWERED).exists():
                entities.write(folder)
                with stopped_when_known() as prompts:
                    self._run_on(self._config(call, folder, given), sae, call)
                counts = {
                    attribute: _counts([p for p in prompts if p.attribute_type == attribute])
                    for attribute in given["entity_attribute_selection"][entities.kind]
                }
                write_atomically(folder / _ANSWERED, json.dumps(counts))
        return folder

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
        with nulls.aside():
            none = edits.again(torch.zeros_like(edits.mask))
            nulls.add(_RECONSTRUCTED, _scores(*none), task)

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


def _wrong_values(options: Mapping[str, Any]) -> Iterable[str]:
    """Options of ours of another type."""
    for name in ("n_cities", "least_entities"):
        value = options[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield f"{name}: {value!r} is not a positive whole number"
    if not isinstance(options["shim"], bool):
        yield f"shim: {options['shim']!r} is neither true nor false"
    named = options["entities"]
    if named is not None and (not isinstance(named, str) or not named):
        yield f"entities: {named!r} is neither {CITIES} nor a CSV file"


def _stock_problems(subject: Subject) -> Iterable[str]:
    other = f"entities: {CITIES} (or a CSV file) among its options asks prompts of ours"
    if _short_name(subject.model_name) is None:
        yield (
            f"model: {subject.model_name!r} is unknown to SAEBench's RAVEL; it runs on "
            f"{' and '.join(saebench('LLM_NAME_MAP'))}; for any other, {other}"
        )
    if subject.local_model is not None:
        yield (
            "model: RAVEL loads the language model from the Hub by its name, not from a "
            f"folder; leave the folder out; of a folder, {other}"
        )


def _own_problems(entities: Entities, options: Mapping[str, Any]) -> Iterable[str]:
    if not options["shim"]:
        yield (
            "shim: without it SAEBench's RAVEL runs on its own prompts alone; leave out "
            "entities, or shim"
        )
    try:
        _selection(entities, options)
    except UserError as error:
        yield str(error)


def _default_selection() -> dict[str, list[str]]:
    return saebench("RAVELEvalConfig")().entity_attribute_selection


def _selection(entities: Entities, options: Mapping[str, Any]) -> dict[str, list[str]]:
    """What is asked for: by default all that a file has, and of cities what SAEBench asks."""
    field, kind = "entity_attribute_selection", entities.kind
    wanted, default = options[field], _default_selection()
    if wanted == default:
        usual = default["city"] if options["entities"] == CITIES else entities.attributes
        return {kind: list(usual)}
    if not isinstance(wanted, Mapping) or set(wanted) != {kind}:
        raise UserError(f"{field}: {wanted!r} must have {kind!r} alone: {entities.source}")
    for name in wanted[kind]:
        if name not in entities.attributes:
            hint = did_you_mean(name, entities.attributes)
            raise UserError(f"{field}: {name!r} is no attribute of {entities.source}; {hint}")
    return {kind: list(wanted[kind])}


def _counts(prompts: Sequence[Any]) -> dict[str, int]:
    """Of prompts that a model answers."""
    return {
        "entities": len({p.entity_label for p in prompts}),
        "values": len({p.attribute_label for p in prompts}),
        "prompts": len(prompts),
    }


def _check_answered(answered: Mapping[str, Any], entities: Entities, call: SuiteCall) -> None:
    options, batch = call.options, call.subject.llm_batch_size
    least, most = options["least_entities"], options["num_pairs_per_attribute"]
    few = {n: c for n, c in answered.items() if c["entities"] < least or c["values"] < 2}
    if few:
        raise UserError(
            f"suites.ravel: the language model answers {_in_words(few)}, of "
            f"{len(entities.values)} entities ({entities.source}), and needed are {least} "
            f"(least_entities) of two values: leave {', '.join(few)} out of "
            "entity_attribute_selection, or give other templates or more entities"
        )
    edits = {name: min(most, count["prompts"]) for name, count in answered.items()}
    for name, mine in edits.items():
        pairs = mine + min(mine, sum(edits.values()) - mine)
        for problem in _unfilled(pairs, options["train_test_split"], batch):
            raise UserError(f"suites.ravel: {name}: {problem}")


def _in_words(answered: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} of {count['entities']} ({count['values']} values, {count['prompts']} prompts)"
        for name, count in answered.items()
    )


def _note(answered: Mapping[str, Any], entities: Entities) -> str:
    return (
        f"asked of {len(entities.values)} entities ({entities.source}) the language model "
        f"answers {_in_words(answered)}; these are not SAEBench's prompts, with whose scores "
        "these are not to be compared"
    )


def _unfilled(pairs: int, train_test_split: float, batch: int) -> Iterable[str]:
    trained = int(pairs * train_test_split)
    if min(trained, pairs - trained) < batch:
        yield (
            f"llm_batch_size: {batch}: SAEBench drops batches that are not full, and has "
            f"{trained} pairs to train and {pairs - trained} to test; lower it"
        )


def _problems(config: Any, batch: int) -> Iterable[str]:
    if not 0 < config.train_test_split < 1:
        yield f"train_test_split: {config.train_test_split} is not between 0 and 1"
        return
    yield from _unfilled(2 * config.num_pairs_per_attribute, config.train_test_split, batch)
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
