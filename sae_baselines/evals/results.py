"""The results table of a study's folder: collected from measurements and suites' files."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sae_baselines.errors import UserError
from sae_baselines.evals.measured import HIGHER, NEITHER, Direction
from sae_baselines.evals.registry import get_suite, suite_names
from sae_baselines.evals.spec import DECISIVE
from sae_baselines.evals.store import EvalStore, Result
from sae_baselines.evals.study import (
    facts_of_member,
    measurements,
    study_targets,
    training_versions,
)
from sae_baselines.results import (
    KEY,
    MEASURED_L0,
    PANEL_SUITE,
    RESULTS_FILE,
    load_results,
    row,
    table_of,
    versions_text,
    write_table,
)
from sae_baselines.study.folder import STUDY_FILE, StudyFolder
from sae_baselines.study.plan import MemberKey
from sae_baselines.study.spec import MemberSpec

# The panel's own measurement: name and direction.
_PANEL: dict[str, Direction] = {
    "explained_variance": HIGHER,
    "l0": NEITHER,
    "alive": NEITHER,
    "ce_recovered": HIGHER,
    "ce_loss_clean": NEITHER,
    "ce_loss_with_sae": NEITHER,
    "cos_to_start_mean": NEITHER,
    "cos_to_start_min": NEITHER,
}
# What is measured of the SAEs of a vision study; `collect` takes no part in it.
_VISION: dict[str, Direction] = {
    "explained_variance": HIGHER,
    "l0": NEITHER,
    "dead": NEITHER,
    "rare": NEITHER,
    "rare_patches": NEITHER,
    "rare_photographs": NEITHER,
    "rare_on_one_photograph": NEITHER,
    "cos_to_start_mean": NEITHER,
}
_COUNT_TOKENS = ("explained_variance", "l0")
_VERSIONS = ("sae-baselines", *DECISIVE)
_VISION_VERSIONS = ("sae-baselines", "sae-lens", "torch", "transformers")


def collect(root: str | Path) -> pd.DataFrame:
    """Every number of a study (or of an `evaluate` folder), checked.

    Args:
        root: Folder with ``evals``, and ``study.yaml`` if it is a study.

    Returns:
        The table; sorted, so that equal results give equal files.

    Raises:
        UserError: Results of one suite were made under different settings, a row is there
            twice, or SAEBench's file was changed.
    """
    root = Path(root)
    rows: list[dict[str, Any]] = []
    if (root / STUDY_FILE).exists():
        rows.extend(_panel_rows(root))
    results = [r for r in EvalStore(root).results() if r.suite in suite_names()]
    _check_settings(results)
    if (root / STUDY_FILE).exists():
        _check_weights(root, results)
    for result in results:
        rows.extend(_rows(result))
    return table_of(rows).sort_values(list(KEY), kind="stable", ignore_index=True)


def write_results(root: str | Path) -> pd.DataFrame:
    """Collect and write ``results.csv``; returns the table."""
    table = collect(root)
    write_table(table, Path(root) / RESULTS_FILE)
    return table


def write_vision_results(
    folder: StudyFolder,
    members: Mapping[MemberKey, MemberSpec],
    measurements: Mapping[MemberKey, Mapping[str, Any]],
) -> Path:
    """Write ``results.csv`` of a vision study; ``n`` counts held-out patches."""
    # Statistics match members by the panel's L0, wherever it is from.
    metrics = {**{("vision", metric): metric for metric in _VISION}, MEASURED_L0: "l0"}
    rows = [
        row(
            facts_of_member(key, members[key].constraint).to_dict(),
            metric,
            float(measured[name]),
            direction=_VISION[name],
            n=measured["n_patches"],
            versions=versions_text(training_versions(folder.member(key)), _VISION_VERSIONS),
        )
        for key, measured in measurements.items()
        for metric, name in metrics.items()
        if measured[name] is not None
    ]
    path = folder.root / RESULTS_FILE
    write_table(table_of(rows), path)
    return path


def current_results(root: str | Path) -> pd.DataFrame:
    """``results.csv``, after making sure that it is what the results in the folder say.

    Where SAEBench's files are not there (a published folder, say) the table is taken as it is.

    Raises:
        UserError: As `load_results` and `collect`.
    """
    store = EvalStore(root)
    records = store.records()
    if not all(store.result_file(r["suite"], r["name"]).exists() for r in records):
        return load_results(root)
    if records and not (Path(root) / RESULTS_FILE).exists():
        return write_results(root)
    table = load_results(root)
    return table if not records or table.equals(collect(root)) else write_results(root)


def _panel_rows(root: Path) -> Iterable[dict[str, Any]]:
    for sae, folder, measured in measurements(root):
        versions = versions_text(training_versions(folder), _VERSIONS)
        for metric, direction in _PANEL.items():
            if measured.get(metric) is not None:
                yield row(
                    sae.to_dict(),
                    (PANEL_SUITE, metric),
                    float(measured[metric]),
                    direction=direction,
                    n=int(measured["n_tokens"]) if metric in _COUNT_TOKENS else None,
                    versions=versions,
                )


def _rows(result: Result) -> Iterable[dict[str, Any]]:
    versions = versions_text(result.record["versions"], _VERSIONS)
    for m in get_suite(result.suite).rows(result.payload, result.record["extras"]):
        yield row(
            result.record["facts"],
            (result.suite, m.metric),
            m.value if math.isfinite(m.value) else math.nan,
            direction=m.direction,
            task=m.task,
            n=m.n,
            versions=versions,
        )


def _check_weights(root: Path, results: list[Result]) -> None:
    """A member that was trained anew must not stand beside its predecessor's scores."""
    hashes = {target.name: target.weights for target in study_targets(root)}
    for result in results:
        if result.name not in hashes:
            raise UserError(
                f"results: {result.suite} of {result.name} is of no member of this study; move "
                f"{EvalStore(root).record_file(result.suite, result.name)} away"
            )
        if hashes[result.name] != result.record["weights"]:
            raise UserError(
                f"results: {result.name} was changed after {result.suite} scored it; run "
                f"sae-baselines eval --suites {result.suite} again"
            )


def _check_settings(results: list[Result]) -> None:
    """Scores made under different options, seeds or versions must not stand side by side."""
    first: dict[str, Result] = {}
    for result in results:
        known = first.setdefault(result.suite, result)
        if result.record["settings"] != known.record["settings"]:
            raise UserError(
                f"results: {result.suite} of {result.name} and of {known.name} were made under "
                "different settings (options, seed, dtype or versions); run sae-baselines eval "
                f"--suites {result.suite} again for all"
            )
