"""The report of a study folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_baselines.evals.results import load_results
from sae_baselines.evals.settings import stored_spec
from sae_baselines.evals.store import EvalStore
from sae_baselines.evals.study import load_study, measurements
from sae_baselines.panel.spec import spec_to_dict
from sae_baselines.provenance import hardware, versions
from sae_baselines.report.build import Report, build_report
from sae_baselines.report.context import Failure, ReportContext


def report_of_study(study: str | Path) -> Report:
    """Build the report of a study from its ``results.csv`` and records.

    Args:
        study: Study folder.

    Raises:
        UserError: No study or no results there, or a table that is not what it should be.
    """
    study = Path(study)
    return build_report(load_results(study), study_context(study))


def study_context(study: Path) -> ReportContext:
    """What the rows do not say: spec, versions, machines, notes, failures."""
    spec, record = load_study(study)
    evals = stored_spec(study)
    store = EvalStore(study)
    records = store.records()
    widths = {m["d_sae"] for _, m in measurements(study).values()}
    by_name = {r["name"]: r["facts"] for r in records}
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
        spec={**spec_to_dict(spec), "spec_hash": record.get("spec_hash")},
        versions=_versions(record, records),
        hardware=_hardware(record, records),
        commands=[
            f"sae-baselines train panel.yaml --out {folder}",
            f"sae-baselines eval {folder} --config panel.yaml",
            f"sae-baselines report {folder}",
        ],
        notes=_notes(records),
        failures=[
            Failure(
                suite=f.suite,
                member=by_name.get(f.name, {}).get("member", f.name.rpartition(".")[2]),
                reason=f.reason,
                panel=by_name.get(f.name, {}).get("panel", f.name.rpartition(".")[0]),
            )
            for f in store.failures()
        ],
        suites=["panel", *evals.suites] if evals else ["panel"],
        primary=evals.primary_metrics if evals else [],
        margins=dict(evals.margins) if evals else {},
        folder=folder,
    )


def _notes(records: list[dict[str, Any]]) -> list[str]:
    """Notes of all evaluations; one that many members share is said once."""
    said: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for note in record["notes"]:
            said.setdefault((record["suite"], note), []).append(record["name"])
    return [
        f"{suite}, {names[0] if len(names) == 1 else f'{len(names)} SAEs'}: {note}"
        for (suite, note), names in said.items()
    ]


def _versions(
    record: Mapping[str, Any], records: list[dict[str, Any]]
) -> dict[str, dict[str, str]]:
    found = {"train": dict(record.get("versions", {}))}
    if records:
        found["eval"] = dict(records[-1]["versions"])
    found["report"] = versions()
    return found


def _hardware(record: Mapping[str, Any], records: list[dict[str, Any]]) -> dict[str, str]:
    found = {"train": _machine(record.get("hardware", {}))}
    if records:
        found["eval"] = _machine(records[-1]["hardware"])
    found["report"] = _machine(hardware())
    return found


def _machine(facts: Mapping[str, Any]) -> str:
    parts = [f"{facts.get('cpu_count')} cores", f"{facts.get('machine')}"]
    return ", ".join([*parts, str(facts["gpu"])] if facts.get("gpu") else parts)
