"""What a report is told besides the results table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae_baselines.stats import Margin


@dataclass(frozen=True)
class Failure:
    """A suite that gave no result.

    Attributes:
        suite: Name of the suite.
        member: Member, or "" for the suite as a whole.
        reason: What was said.
        panel: Panel, or "" for all.
    """

    suite: str
    member: str
    reason: str
    panel: str = ""


@dataclass(frozen=True)
class Note:
    """What an evaluation remarked on.

    Attributes:
        suite: Name of the suite, or "".
        name: The SAE, ``panel.member`` in a study; or "" for all.
        text: The remark.
    """

    suite: str
    name: str
    text: str


@dataclass(frozen=True)
class ReportContext:
    """Everything a report says that is not in its rows.

    Attributes:
        study: Name of the study.
        model: Language model.
        hook: Where activations were taken.
        d_in: Width of the hook.
        d_sae: Number of latents; without it dead latents cannot be counted.
        training_tokens: Tokens each member was trained on.
        l0s: Target L0s.
        seeds: Training seeds.
        spec: The resolved spec, as in study.yaml.
        versions: Stage ("train", "eval", "report") to package to version; several versions
            separated by ", ".
        hardware: Stage to a description of the machine.
        evals: Evaluation settings, complete.
        commands: Commands that were recorded with the results, in order.
        notes: Remarks of the evaluations.
        failures: Suites that gave no result.
        suites: Suites that were asked for.
        primary: Patterns ``suite/metric`` that verdicts are made of; empty for every metric
            with a direction.
        margins: Equivalence margins in place of the defaults; see `stats.margin_for`.
        published: What is recorded of the published SAE that the study is built around, as in
            its ``published/record.json``; empty for other studies.
        folder: Study folder as to be typed after ``sae-baselines report``.
    """

    study: str
    model: str = ""
    hook: str = ""
    d_in: int | None = None
    d_sae: int | None = None
    training_tokens: int | None = None
    l0s: Sequence[float] = ()
    seeds: Sequence[int] = ()
    spec: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    hardware: Mapping[str, str] = field(default_factory=dict)
    evals: Mapping[str, Any] = field(default_factory=dict)
    commands: Sequence[str] = ()
    notes: Sequence[Note] = ()
    failures: Sequence[Failure] = ()
    suites: Sequence[str] = ()
    primary: Sequence[str] = ()
    margins: Mapping[str, float | Margin] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    folder: str = "<study>"
