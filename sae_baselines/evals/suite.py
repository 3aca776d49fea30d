"""What a suite is: everything that is known of one evaluation, and how it is run."""

import contextlib
import dataclasses
import json
import math
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # pyright: ignore[reportPrivateImportUsage]
from pydantic import ValidationError
from sae_lens import SAE

from sae_baselines.compat.saebench import CONFIGURATIONS, main_of, saebench
from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.evals.measured import Measured
from sae_baselines.evals.metrics import Metric, find
from sae_baselines.evals.store import FLOORS, all_or_nothing, local_path
from sae_baselines.evals.versions import Requirement, version_problems
from sae_baselines.study.redraw import RandomModel

# Of files of text, which no name on the Hub ends in.
_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".txt", ".arrow", ".zst", ".gz")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Subject:
    """What the SAEs of one call have in common, known before any is evaluated.

    Attributes:
        model_name: Name of the language model as recorded in the SAEs.
        hook_name: Hook of the SAEs.
        d_in: Width of the hook.
        d_sae: Number of latents (the smallest of the SAEs).
        device: Torch device.
        llm_dtype: "float32", "bfloat16" or "float16".
        llm_batch_size: Prompts in one forward pass of the language model.
        local_model: Folder the language model is loaded from; None for the Hub.
        centred: Whether the SAEs read a model whose writing weights are centred.
        drawn: The random model that they read, if it is one.
        hook_name_out: Where they write, if they are transcoders.
    """

    model_name: str
    hook_name: str
    d_in: int
    d_sae: int
    device: str
    llm_dtype: str
    llm_batch_size: int
    local_model: Path | None = None
    centred: bool = False
    drawn: RandomModel | None = None
    hook_name_out: str | None = None

    @property
    def weights_of(self) -> str:
        """Name of the language model whose weights are loaded."""
        return self.model_name if self.drawn is None else self.drawn.of


@dataclass(frozen=True)
class OnRandomModel:
    """What a suite's scores say of an SAE of a language model with random weights.

    Attributes:
        use: Scores get a "verdict" against the trained SAE's, are only "shown", or the suite is
            "refused": its number would mean nothing.
        says: Why, and what may be concluded, in a sentence.
    """

    use: Literal["verdict", "shown", "refused"]
    says: str


# Of accuracies of probes on latents.
PROBES_ON_RANDOM = OnRandomModel(
    "verdict",
    "Probes on its latents find what tokens and their mixing by random weights carry alone; "
    "only what is above that needs anything that the model has learned.",
)


@dataclass(frozen=True)
class SuiteCall:
    """One run of a suite on one SAE. All paths are absolute.

    Attributes:
        subject: Model, hook, device.
        options: The suite's options, complete (`Suite.defaults` with the user's changes).
        seed: For SAEBench's ``random_seed`` and for suites that forget to set one; python,
            numpy and torch are seeded with it before every run.
        name: Unique, file-safe name to give SAEBench for the SAE; its JSON is then
            ``{name}_custom_sae_eval_results.json``.
        output: Empty folder where SAEBench must leave exactly that file.
        cache: Folder shared by all SAEs with the same model, hook, options and versions, for
            what does not depend on the SAE (activations, probes on the model itself).
        work: Scratch folder of this SAE alone, also the working directory during the run.
            Kept when a run is interrupted, so that it can continue; removed when it succeeded.
    """

    subject: Subject
    options: Mapping[str, Any]
    seed: int
    name: str
    output: Path
    cache: Path
    work: Path

    @property
    def config(self) -> dict[str, Any]:
        """Fields that SAEBench's configs take from the call."""
        return {
            "model_name": self.subject.model_name,
            "llm_dtype": self.subject.llm_dtype,
            "llm_batch_size": self.subject.llm_batch_size,
            "random_seed": self.seed,
        }

    @property
    def expected(self) -> Path:
        """Where SAEBench's JSON must be after the run."""
        return self.output / f"{self.name}_custom_sae_eval_results.json"

    @property
    def payload(self) -> dict[str, Any]:
        """SAEBench's JSON, after the run."""
        return json.loads(self.expected.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Extras:
    """What an adapter measured besides SAEBench's JSON.

    Attributes:
        values: Plain data for the record next to SAEBench's JSON; `Suite.rows` reads it.
        notes: Sentences for the log and the report.
    """

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Needs:
    """What a suite needs of the machine.

    Attributes:
        model: Whether it runs the language model.
        data: Whether it loads datasets from the Hub (unless they are cached).
        judge: Whether it asks a language model behind an API.
        as_sae_says: Whether it loads the model with the options that the SAE's config names;
            the others of SAEBench 0.6 always read it unprocessed.
    """

    model: bool = True
    data: bool = True
    judge: bool = False
    as_sae_says: bool = False


class Suite(ABC):
    """One evaluation: what it measures, what it needs, how it is run.

    Make it known with `register_suite`.

    Attributes:
        name: Name in commands, folders and tables.
        summary: What it measures, in a line.
        primary: Metrics that verdicts are made of unless the user chooses others; few, since
            every one more makes each verdict harder to earn.
        metrics: What is known of its metrics; the first whose name matches counts.
        needs: Of the machine.
        requirements: Versions of packages, besides those that every suite needs.
        warm_up: Whether a throwaway SAE must run first. SAEBench's first SAE finds cold caches
            and draws random numbers while they are filled, so its score differs from what the
            same SAE gets later; after a warm-up every SAE is scored alike.
        local_data: Options that may name a local dataset instead of one of the Hub's.
        n_of: What the counts behind its values are of, unless a row says otherwise.
        seeded: Whether a seed changes its scores.
        on_random_model: What may be concluded from SAEs of a model with random weights.
        on_transcoders: Why it cannot run on transcoders; None where it can: it reads latents
            or the decoder, and puts nothing in the place of what is read.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    primary: ClassVar[tuple[str, ...]]
    metrics: ClassVar[tuple[Metric, ...]] = ()
    needs: ClassVar[Needs] = Needs()
    requirements: ClassVar[tuple[Requirement, ...]] = ()
    warm_up: ClassVar[bool] = False
    local_data: ClassVar[tuple[str, ...]] = ()
    n_of: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = True
    on_random_model: ClassVar[OnRandomModel] = OnRandomModel(
        "refused", "Nobody has said what its scores mean on a model with random weights."
    )

    on_transcoders: ClassVar[str | None] = (
        "it puts reconstructions, or edits along decoder directions, in the place of what is "
        "read"
    )

    @abstractmethod
    def defaults(self) -> dict[str, Any]:
        """Options with their default values: SAEBench's config fields, and our own."""

    @abstractmethod
    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        """Why the suite cannot run here; each reason one sentence with the remedy.

        Called before any work and by ``doctor``; must be cheap (no model, no download).
        """

    def problems_of_file(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        """Those of its problems that are so on every machine: known before SAEs are trained."""
        versions = self.own_version_problems()
        problems = [*self.transcoder_problems(subject), *self.problems(subject, options)]
        return [p for p in problems if p not in versions]

    def transcoder_problems(self, subject: Subject) -> Iterable[str]:
        """Why transcoders cannot be evaluated with it."""
        if subject.hook_name_out is not None and self.on_transcoders is not None:
            yield (
                f"hook_name_out: these are transcoders, which write at "
                f"{subject.hook_name_out} and not where they read; {self.on_transcoders}. "
                "Leave the suite out"
            )

    def data_problems(self, options: Mapping[str, Any]) -> Iterable[str]:
        """Datasets that are neither here nor can be on the Hub."""
        for option in self.local_data:
            value = options[option]
            if local_path(value) is not None:
                continue
            try:
                validate_repo_id(value)
            except HFValidationError:
                is_name = False
            else:
                is_name = Path(value).suffix not in _SUFFIXES
            if not is_name:
                yield (
                    f"{option}: {value!r} is neither a file or folder here nor a name on the "
                    "Hub; give a path that is there, or owner/name"
                )

    def datasets(self, options: Mapping[str, Any]) -> Iterable[str]:
        """What it loads from the Hub through `datasets`, whose cache may hold it.

        Returns:
            ``owner/name``, or ``owner/name/configuration``; nothing where it loads otherwise.
        """
        named = (options.get(option) for option in self.local_data)
        return [name for name in named if isinstance(name, str) and local_path(name) is None]

    @abstractmethod
    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        """Run SAEBench's ``run_eval`` unchanged on one SAE.

        Args:
            sae: A fresh copy on ``call.subject.device``, float32; may be modified.
            call: Where and how.

        Raises:
            Exception: Whatever SAEBench raises; the caller reports it and goes on.
        """

    def floors(self, sae: SAE[Any], call: SuiteCall) -> list[Measured]:
        """Nulls of its metrics (`Metric.floors`) on the same SAE, data and seed.

        Called after `run`, seeded alike, or alone for a result that was made without: what does
        not depend on the SAE is in ``call.cache``, what `run` left for it in ``call.work``. A
        suite that has floors has the option ``floors``.

        Args:
            sae: A fresh copy, as for `run`.
            call: As for `run`.
        """
        del sae, call
        return []

    @property
    def has_floors(self) -> bool:
        """Whether it measures any."""
        return type(self).floors is not Suite.floors

    @abstractmethod
    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        """Every number of a result: aggregates first, then tasks.

        Args:
            payload: SAEBench's JSON.
            extras: `Extras.values` of the same run.
        """

    def scores(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        """Its rows and those of its floors, without what a dead SAE gets for nothing."""
        rows = [
            *self.rows(payload, extras),
            *(self.number(*row) for row in extras.get(FLOORS) or ()),
        ]
        if extras.get("fired", True):
            return rows
        return [
            dataclasses.replace(row, value=math.nan, missing="no latent fired")
            if (known := self.metric(row.metric)) and "dead" in known.favours
            else row
            for row in rows
        ]

    def metric(self, name: str) -> Metric | None:
        """What is known of one of its metrics."""
        return find(self.metrics, name)

    def numbers(
        self, values: Mapping[str, Any], task: str = "", n: int | None = None, n_of: str = ""
    ) -> list[Measured]:
        """Rows of a dictionary of metrics, with their directions; None and texts are left out.

        Args:
            values: Metric to number.
            task: Task of all of them.
            n: Units behind all of them.
            n_of: What n counts, if not what it mostly counts here.
        """
        return [
            self.number(name, float(value), task, n, n_of)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]

    def number(
        self, name: str, value: float, task: str = "", n: int | None = None, n_of: str = ""
    ) -> Measured:
        """A row, with the metric's direction."""
        known = self.metric(name) or Metric(name)
        n_of = "" if n is None else n_of or self.n_of
        return Measured(name, value, known.direction, task, n, n_of)

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults with the user's changes.

        Raises:
            UserError: An option that does not exist.
        """
        known = {**self.defaults(), **({FLOORS: True} if self.has_floors else {})}
        for option in given:
            if option not in known:
                hint = did_you_mean(option, sorted(known))
                raise UserError(f"suites.{self.name}: {option!r} is not an option; {hint}")
            for value in _numbers_in(given[option]):
                if not math.isfinite(value):
                    raise UserError(f"suites.{self.name}: {option}: {value} is not finite")
        complete = {**known, **given}
        if not isinstance(complete.get(FLOORS, True), bool):
            raise UserError(
                f"suites.{self.name}: {FLOORS}: {complete[FLOORS]!r} is neither true nor false"
            )
        return complete

    def deciding(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those options that scores depend on: floors change none."""
        return {name: value for name, value in options.items() if name != FLOORS}

    def conditions(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What scores depend on besides options, versions, device, model and local data."""
        del options
        return {}

    def resolve(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options with local files made absolute, as a run has another working directory.

        What is recorded are the options as they were given.
        """
        return dict(options)

    def disk(self, subject: Subject, options: Mapping[str, Any]) -> float:
        """Least bytes that it writes to the cache of activations, where they are many."""
        del subject, options
        return 0.0

    def requests(self, options: Mapping[str, Any]) -> int:
        """Most requests to a judge that one SAE costs."""
        del options
        return 0

    def reads_what_the_sae_reads(self, subject: Subject) -> bool:
        """Whether it gives the SAEs the activations that they were trained on."""
        return not (self.needs.model and subject.centred) or self.needs.as_sae_says

    def own_version_problems(self) -> list[str]:
        """Packages of `requirements` that keep it from running."""
        return list(map(str, version_problems(self.requirements)))


class SAEBenchSuite(Suite):
    """A suite whose options are fields of one of SAEBench's config dataclasses.

    Attributes:
        evaluation: SAEBench's folder of it.
        config_name: Its config dataclass.
        per_call: Fields that are set per call.
        not_offered: Fields that are nobody's to set.
        own: Options that are no fields, with their defaults.
        positive: Fields that must be positive.
    """

    evaluation: ClassVar[str]
    config_name: ClassVar[str]
    per_call: ClassVar[tuple[str, ...]] = (
        "model_name",
        "llm_dtype",
        "llm_batch_size",
        "random_seed",
    )
    not_offered: ClassVar[tuple[str, ...]] = ()
    own: ClassVar[Mapping[str, Any]] = {}
    positive: ClassVar[tuple[str, ...]] = ()

    def defaults(self) -> dict[str, Any]:
        config_class = saebench(self.config_name)
        hidden = {*self.per_call, *self.not_offered}
        config = config_class()
        fields = [f.name for f in dataclasses.fields(config_class) if f.name not in hidden]
        return {**{name: getattr(config, name) for name in fields}, **self.own}

    def config(self, options: Mapping[str, Any], **more: Any) -> Any:
        """SAEBench's config of the options that are its fields, and of more fields."""
        ours = {*self.own, FLOORS}
        theirs = {name: value for name, value in options.items() if name not in ours}
        return saebench(self.config_name)(**theirs, **more)

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        yield from self.subject_problems(subject, options)
        try:
            config = self.config(options)
        except ValidationError as error:
            for each in error.errors():
                field_name = ".".join(map(str, each["loc"]))
                yield f"{field_name}: {each['input']!r}: {each['msg']}"
            return
        yield from self.option_problems(subject, config)

    def subject_problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        """Why it cannot run on these SAEs, whatever its config."""
        del options
        if not subject.hook_name.startswith("blocks."):
            yield (
                f"hook_name: {subject.hook_name!r} is outside the blocks of the language "
                "model, where SAEBench cannot follow; train on blocks.<layer>.<hook>"
            )

    def option_problems(self, subject: Subject, config: Any) -> Iterable[str]:
        """What is wrong with options that SAEBench's config takes."""
        del subject
        for name in self.positive:
            if getattr(config, name) <= 0:
                yield f"{name}: {getattr(config, name)} is not positive"

    def run_eval(
        self, config: Any, sae: SAE[Any], call: SuiteCall, *, grad: bool = True, **more: Any
    ) -> None:
        """Call SAEBench's ``run_eval``.

        Args:
            config: Its config.
            sae: The SAE.
            call: Where and how.
            grad: Whether gradients are on, which SAEBench switches for the whole process.
            more: Further arguments.
        """
        with torch.set_grad_enabled(grad):
            main_of(self.evaluation).run_eval(
                config, [(call.name, sae)], call.subject.device, str(call.output), **more
            )


class SeedCachedSuite(SAEBenchSuite):
    """A suite whose part that does not depend on the SAE is cached as one piece for each seed.

    If only a part of it were there, SAEBench would draw other random numbers for the rest.
    """

    warm_up = True
    sizes: ClassVar[tuple[str, str]]

    def datasets(self, options: Mapping[str, Any]) -> Iterable[str]:
        for name in options.get("dataset_names", ()):
            # SAEBench has several names for some.
            repo = name.split("_class_set")[0].removesuffix("_sentiment")
            yield from [f"{repo}/{each}" for each in CONFIGURATIONS.get(repo, ())] or [repo]

    def run_on_seed_cache(self, config: Any, sae: SAE[Any], call: SuiteCall) -> None:
        """Run on the cache of the call's seed."""
        with all_or_nothing(call.cache / f"seed_{call.seed}") as artifacts:
            self.run_eval(config, sae, call, force_rerun=True, artifacts_path=str(artifacts))

    def disk(self, subject: Subject, options: Mapping[str, Any]) -> float:
        # Every token of every class of every dataset, in the model's own dtype: two classes at
        # least; most datasets have five.
        rows = 2 * len(options["dataset_names"]) * (sum(options[s] for s in self.sizes) // 2)
        return rows * options["context_length"] * subject.d_in * BYTES[subject.llm_dtype]


@contextlib.contextmanager
def from_seed(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's generators from a seed, and back afterwards."""
    state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(state[0])
            np.random.set_state(state[1])


def means_over_tasks(rows: Sequence[Measured]) -> list[Measured]:
    """Rows of tasks, after one for each metric that is their mean."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row.metric, []).append(row.value)
    means = [Measured(name, sum(each) / len(each)) for name, each in values.items()]
    return [*means, *rows]


def _numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, Mapping):
        yield from _numbers_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers_in(item)


def name_problems(option: str, given: Sequence[Any], known: Collection[Any]) -> Iterator[str]:
    """Names that are unknown, given twice, or missing altogether."""
    if not given:
        yield f"{option}: is empty; leave it out for the default"
    for value in dict.fromkeys(given):
        if value not in known:
            hint = did_you_mean(str(value), [str(name) for name in known])
            yield f"{option}: {value!r} is unknown to SAEBench; {hint}"
        elif given.count(value) > 1:
            yield f"{option}: {value!r} is given twice and would count twice; give it once"


def size_problems(
    option: str, given: Sequence[int], subject: Subject, metrics_class: Any = None
) -> Iterator[str]:
    """Numbers of latents that the SAEs do not have or whose results are not written.

    Args:
        option: Name of the option.
        given: Its value.
        subject: The SAEs.
        metrics_class: SAEBench's dataclass with fields for some sizes: it drops other results
            without a word. None if it has them for all.
    """
    fields = () if metrics_class is None else metrics_class.__dataclass_fields__
    written = {int(n) for name in fields for n in re.findall(r"_(\d+)(?=_|$)", name)}
    if not given:
        yield f"{option}: is empty; leave it out for the default"
    for size in given:
        if not 1 <= size <= subject.d_sae:
            yield (
                f"{option}: {size} is not between 1 and the {subject.d_sae} latents of the "
                "smallest SAE; choose others"
            )
        elif written and size not in written:
            sizes = ", ".join(map(str, sorted(written)))
            yield f"{option}: {size} has no place in SAEBench's results; choose from {sizes}"


def resid_post_problems(subject: Subject, why: str) -> Iterator[str]:
    """A hook that is not the residual stream after a block."""
    if not re.fullmatch(r"blocks\.\d+\.hook_resid_post", subject.hook_name):
        yield (
            f"hook_name: {subject.hook_name!r}: {why} was trained on; train on "
            "blocks.<layer>.hook_resid_post"
        )
