"""What a report is told besides the results table, and where a study says it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_WEIGHTS_FILENAME

from sae_baselines.evals.results import Checks
from sae_baselines.evals.spec import primary_of, settings_of
from sae_baselines.evals.store import CHOSEN, EvalStore
from sae_baselines.evals.store import Failure as FailedEvaluation
from sae_baselines.evals.study import load_study, measurements, published_record
from sae_baselines.files import read_json
from sae_baselines.provenance import hardware, versions
from sae_baselines.redact import data_without_places, without_places
from sae_baselines.results import SAEKey
from sae_baselines.stats import Correct, Margin
from sae_baselines.stats.by_rate import Chosen
from sae_baselines.study.contexts import Contexts
from sae_baselines.study.folder import PROVENANCE_FILE
from sae_baselines.study.held_out import VARIANCE_IN_FEW
from sae_baselines.study.identity import WEIGHTS
from sae_baselines.study.latents import Latents
from sae_baselines.study.spec import spec_to_dict
from sae_baselines.study.stability import read_stability


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
        correct: What verdicts are corrected over; see `stats.verdicts`.
        published: What is recorded of the published SAE that the study is built around, as in
            its ``published/record.json``; empty for other studies.
        folder: Study folder as to be typed after ``sae-baselines report``.
        checks: What nothing vouches for in the results.
        latents: By panel and member, what each latent does on held-out text, where it is
            stored.
        chosen: By panel and member, and suite and task, the latents that probes were trained
            on, best first, where that was recorded.
        without_latents: SAEs whose weights are here and of which it is not.
        contexts: By panel and member, text on which latents fire, where it is kept.
        stability: Pairs of SAEs that were held against each other; see
            `study.stability.measure_stability`.
        variance_in_few: See `study.held_out.variance_in_few`; None where it was not recorded.
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
    correct: Correct = "baseline"
    published: Mapping[str, Any] = field(default_factory=dict)
    folder: str = "<study>"
    checks: Checks = field(default_factory=Checks)
    latents: Mapping[SAEKey, Latents] = field(default_factory=dict)
    chosen: Mapping[SAEKey, Chosen] = field(default_factory=dict)
    without_latents: int = 0
    contexts: Mapping[SAEKey, Contexts] = field(default_factory=dict)
    stability: Sequence[Mapping[str, Any]] = ()
    variance_in_few: float | None = None


def study_context(study: Path) -> ReportContext:
    """What the rows do not say: spec, versions, machines, notes, failures."""
    spec, record = load_study(study)
    store = EvalStore(study)
    records = store.records()
    evals = settings_of(study, records)
    there = measurements(study)
    widths = {m["d_sae"] for _, _, m in there}
    latents = {(sae.panel, sae.member): Latents.load(path) for sae, path, _ in there}
    contexts = {(sae.panel, sae.member): Contexts.load(path) for sae, path, _ in there}
    weights = {(sae.panel, sae.member): path / SAE_WEIGHTS_FILENAME for sae, path, _ in there}
    now = {f"{sae.panel}.{sae.member}": m.get(WEIGHTS) for sae, _, m in there}
    # As it was typed, unless that would publish where a home folder is.
    folder = study.name if study.is_absolute() else str(study)
    return ReportContext(
        study=spec.name,
        model=spec.model.recorded_name,
        hook=spec.hook_name,
        d_in=spec.d_in,
        d_sae=widths.pop() if len(widths) == 1 else None,
        training_tokens=spec.training_tokens,
        l0s=spec.l0s,
        seeds=spec.seeds,
        # A report is published: it must not say where a home folder is.
        spec={
            **data_without_places(spec_to_dict(spec)),
            "spec_hash": record.get("spec_hash"),
        },
        versions=_versions(record, records),
        hardware=_hardware(record, records),
        evals=data_without_places(evals),
        commands=_commands(records),
        notes=[
            Note(r["suite"], r["name"], without_places(text))
            for r in records
            for text in r["notes"]
        ],
        failures=[_failure(f) for f in store.failures()],
        suites=["panel", *evals.get("suites", {})],
        primary=primary_of(evals, getattr(spec, "hook_name_out", None) is not None),
        margins=evals.get("margins", {}),
        correct=evals.get("correct", "baseline"),
        published=data_without_places(published_record(study) or {}),
        folder=folder,
        latents={key: found for key, found in latents.items() if found is not None},
        chosen=_chosen(records),
        without_latents=sum(
            found is None and weights[key].exists() for key, found in latents.items()
        ),
        contexts={key: found for key, found in contexts.items() if found is not None},
        stability=[
            pair
            for pair in read_stability(study)
            if pair["weights"] == [now.get(pair["first"]), now.get(pair["second"])]
        ],
        variance_in_few=_variance_in_few(path for sae, path, _ in there if sae.panel),
    )


def _variance_in_few(members: Iterable[Path]) -> float | None:
    """Of the activations that the language model as it is has, the same for all its SAEs."""
    for path in members:
        provenance = read_json(path / PROVENANCE_FILE) or {}
        if VARIANCE_IN_FEW in provenance and "control" not in provenance:
            return float(provenance[VARIANCE_IN_FEW])
    return None


def _chosen(records: list[dict[str, Any]]) -> dict[SAEKey, dict[str, Any]]:
    found: dict[SAEKey, dict[str, Any]] = {}
    for record in records:
        if CHOSEN in record.get("extras", {}):
            key = record["facts"]["panel"], record["facts"]["member"]
            found.setdefault(key, {})[record["suite"]] = record["extras"][CHOSEN]
    return found


def _failure(failed: FailedEvaluation) -> Failure:
    # Without facts the name stands for the member: names cannot be taken apart safely.
    return Failure(
        suite=failed.suite,
        member=failed.facts.get("member") or failed.name,
        reason=without_places(failed.reason),
        panel=failed.facts.get("panel", ""),
    )


def _commands(records: list[dict[str, Any]]) -> list[str]:
    """Each once, where its first result was made."""
    made = sorted((r["created"], r["command"]) for r in records if r.get("command"))
    return list(dict.fromkeys(without_places(command) for _, command in made))


def _versions(
    record: Mapping[str, Any], records: list[dict[str, Any]]
) -> dict[str, dict[str, str]]:
    found = {"train": dict(record.get("versions", {}))}
    if records:
        found["eval"] = _union(r["versions"] for r in records)
    found["report"] = versions()
    return found


def _union(every: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Every version of every package."""
    found: dict[str, set[str]] = {}
    for used in every:
        for package, version in used.items():
            found.setdefault(package, set()).add(version)
    return {package: ", ".join(sorted(several)) for package, several in found.items()}


def _hardware(record: Mapping[str, Any], records: list[dict[str, Any]]) -> dict[str, str]:
    found = {"train": _machine(record.get("hardware", {}))}
    if records:
        found["eval"] = "; ".join(sorted({_machine(r["hardware"]) for r in records}))
    found["report"] = _machine(hardware())
    return found


def _machine(facts: Mapping[str, Any]) -> str:
    parts = [f"{facts.get('cpu_count')} cores", f"{facts.get('machine')}"]
    return ", ".join([*parts, str(facts["gpu"])] if facts.get("gpu") else parts)
