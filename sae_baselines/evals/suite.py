"""What an adapter to one SAEBench suite must do, and what it is given."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sae_lens import SAE

from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.evals.measured import Measured


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


@dataclass(frozen=True)
class Extras:
    """What an adapter measured besides SAEBench's JSON.

    Attributes:
        values: Plain data for the record next to SAEBench's JSON; `Suite.rows` reads it.
        notes: Sentences for the log and the report.
    """

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Suite(ABC):
    """Adapter to one SAEBench evaluation. SAEBench is imported only inside methods.

    Attributes:
        name: Name in commands, folders and tables.
        summary: What it measures, in a line.
        primary: Metrics that verdicts are made of unless the user chooses others; few, since
            every one more makes each verdict harder to earn.
        warm_up: Whether a throwaway SAE must run first. SAEBench's first SAE finds cold caches
            and draws random numbers while they are filled, so its score differs from what the
            same SAE gets later; after a warm-up every SAE is scored alike.
        local_data: Options that may name a local dataset instead of one of the Hub's.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    primary: ClassVar[tuple[str, ...]]
    warm_up: ClassVar[bool] = False
    local_data: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def defaults(self) -> dict[str, Any]:
        """Options with their default values: SAEBench's config fields, and our own."""

    @abstractmethod
    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        """Why the suite cannot run here; each reason one sentence with the remedy.

        Called before any work and by ``doctor``; must be cheap (no model, no download).
        """

    @abstractmethod
    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        """Run SAEBench's ``run_eval`` unchanged on one SAE.

        Args:
            sae: A fresh copy on ``call.subject.device``, float32; may be modified.
            call: Where and how.

        Raises:
            Exception: Whatever SAEBench raises; the caller reports it and goes on.
        """

    @abstractmethod
    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        """Every number of a result: aggregates first, then tasks.

        Args:
            payload: SAEBench's JSON.
            extras: `Extras.values` of the same run.
        """

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults with the user's changes.

        Raises:
            UserError: An option that does not exist.
        """
        known = self.defaults()
        for option in given:
            if option not in known:
                hint = did_you_mean(option, sorted(known))
                raise UserError(f"suites.{self.name}: {option!r} is not an option; {hint}")
        return {**known, **given}

    def conditions(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What scores depend on besides options, versions, device, model and local data."""
        del options
        return {}

    def resolve(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options with local files made absolute, as a run has another working directory.

        What is recorded are the options as they were given.
        """
        return dict(options)


def config_defaults(config_class: Any, without: Iterable[str]) -> dict[str, Any]:
    """Defaults of one of SAEBench's config dataclasses.

    Args:
        config_class: The (pydantic) dataclass.
        without: Fields that are not the user's: set per call.
    """
    instance = config_class()
    skip = set(without)
    return {
        f.name: getattr(instance, f.name)
        for f in dataclasses.fields(config_class)
        if f.name not in skip
    }
