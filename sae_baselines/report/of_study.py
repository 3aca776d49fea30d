"""The report of a study folder."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sae_baselines.errors import UserError
from sae_baselines.evals.results import current_results
from sae_baselines.evals.settings import stored_spec
from sae_baselines.evals.spec import eval_spec_to_dict
from sae_baselines.evals.store import EvalStore
from sae_baselines.evals.store import Failure as FailedEvaluation
from sae_baselines.evals.study import load_study, measurements, published_record
from sae_baselines.places import data_without_places, without_places
from sae_baselines.provenance import hardware, versions
from sae_baselines.report.build import Report, build_report
from sae_baselines.report.context import Failure, Note, ReportContext
from sae_baselines.report.write import write_report
from sae_baselines.study.spec import spec_to_dict


def report(study: str | Path) -> Report:
    """Compare members over seeds, give verdicts, and write the report of a study.

    Args:
        study: Evaluated study folder; ``report.md``, ``report.html``, ``verdicts.csv`` and
            ``figures/`` are written to it.

    Raises:
        UserError: No folder, study or results there, or a table that is not what it should be
            or not that of the records.
    """
    folder = Path(study)
    if not folder.is_dir():
        raise UserError(f"study: there is no folder {study}")
    built = report_of_study(folder)
    write_report(built, folder)
    return built


def report_of_study(study: str | Path) -> Report:
    """Build the report of a study from its ``results.csv`` and records.

    Args:
        study: Study folder.

    Raises:
        UserError: No study or no results there, or a table that is not what it should be or
            not that of the records.
    """
    study = Path(study)
    return build_report(current_results(study), study_context(study))


def study_context(study: Path) -> ReportContext:
    """What the rows do not say: spec, versions, machines, notes, failures."""
    spec, record = load_study(study)
    evals = stored_spec(study)
    store = EvalStore(study)
    records = store.records()
    widths = {m["d_sae"] for _, _, m in measurements(study)}
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
        evals=data_without_places(eval_spec_to_dict(evals)) if evals else {},
        commands=_commands(records),
        notes=[
            Note(r["suite"], r["name"], without_places(text))
            for r in records
            for text in r["notes"]
        ],
        failures=[_failure(f) for f in store.failures()],
        suites=["panel", *evals.suites] if evals else ["panel"],
        primary=evals.primary_metrics if evals else [],
        margins=dict(evals.margins) if evals else {},
        published=data_without_places(published_record(study) or {}),
        folder=folder,
    )


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
