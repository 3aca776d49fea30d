"""The tidy results table of a study.

Columns:
    panel: Panel (architecture, L0 and seed); "" for an SAE that is not of one.
    member: Member of the panel.
    constraint: "trained", a constraint, a control ("random:cov"), or "unknown".
    architecture: Base architecture.
    l0: Target L0.
    seed: Training seed.
    suite: SAEBench suite, or "panel" for this package's own held-out measurement.
    metric: SAEBench's key where it is SAEBench's number.
    direction: 1 higher is better, -1 lower is better, 0 neither (never compared).
    task: Probing dataset, attribute, class, latent; empty for the suite's aggregate.
    value: The number; empty where it could not be computed.
    n: Units behind the value (tokens, examples, latents), where known.
    versions: Packages the value depends on, "name=version; ...".
"""

import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sae_baselines.errors import UserError
from sae_baselines.evals.measured import HIGHER, NEITHER, Direction, Measured
from sae_baselines.evals.registry import get_suite, suite_names
from sae_baselines.evals.spec import DECISIVE
from sae_baselines.evals.store import EvalStore, Result
from sae_baselines.evals.study import measurements, study_targets, training_versions
from sae_baselines.files import write_atomically
from sae_baselines.results.columns import COLUMNS
from sae_baselines.study.folder import STUDY_FILE

RESULTS_FILE = "results.csv"
PANEL_SUITE = "panel"

_TEXT = ("panel", "member", "constraint", "architecture", "suite", "metric", "task", "versions")
_KEY = ("panel", "member", "architecture", "l0", "seed", "suite", "metric", "task")

# The panel's own measurement: name there, name here, direction.
_PANEL: tuple[tuple[str, str, Direction], ...] = (
    ("explained_variance", "explained_variance", HIGHER),
    ("l0", "l0", NEITHER),
    ("alive", "alive", NEITHER),
    ("ce_recovered", "ce_recovered", HIGHER),
    ("ce_loss_clean", "ce_loss_clean", NEITHER),
    ("ce_loss_with_sae", "ce_loss_with_sae", NEITHER),
    ("cos_to_start_mean", "cos_to_start_mean", NEITHER),
    ("cos_to_start_min", "cos_to_start_min", NEITHER),
)
_VERSIONS = ("sae-baselines", *DECISIVE)


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
    table = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    table = table.sort_values(list(_KEY), kind="stable", ignore_index=True)
    return check(table)


def write_results(root: str | Path) -> pd.DataFrame:
    """Collect and write ``results.csv``; returns the table."""
    table = collect(root)
    text = io.StringIO()
    # 17 digits: what is read back is what was computed.
    table.to_csv(text, index=False, float_format="%.17g", lineterminator="\n")
    write_atomically(Path(root) / RESULTS_FILE, text.getvalue())
    return table


def load_results(root: str | Path) -> pd.DataFrame:
    """``results.csv`` of a study, checked against its schema.

    Raises:
        UserError: No such file, or it does not have the schema.
    """
    path = Path(root) if str(root).endswith(".csv") else Path(root) / RESULTS_FILE
    if not path.exists():
        raise UserError(f"results: {path} is not there; run sae-baselines eval first")
    types: dict[str, Any] = dict.fromkeys(_TEXT, "string")
    try:
        reader: Any = pd.read_csv
        table = reader(
            path,
            dtype=types,
            keep_default_na=False,
            na_values={"value": [""], "l0": [""], "n": [""]},
            float_precision="round_trip",
        )
    except (ValueError, OSError) as error:
        raise UserError(f"results: {path} cannot be read: {error}") from error
    for column in _TEXT:
        if column in table:
            table[column] = table[column].astype(object)
    return check(table)


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


def check(table: pd.DataFrame) -> pd.DataFrame:
    """Raise unless the table has the documented schema.

    Raises:
        UserError: The first thing that is wrong.
    """
    if tuple(table.columns) != COLUMNS:
        raise UserError(f"results: columns are {', '.join(table.columns)}; see the schema")
    types = {"direction": "int64", "seed": "int64", "value": "float64", "l0": "float64"}
    table = table.astype(types)
    table["n"] = table["n"].astype("Int64")
    for column in ("member", "constraint", "architecture", "suite", "metric", "versions"):
        if bool((table[column] == "").any()):
            raise UserError(f"results: an empty {column}")
    odd = sorted(set(table["direction"]) - {-1, 0, 1})
    if odd:
        raise UserError(f"results: direction {odd[0]} is none of 1, -1, 0")
    twice = table.duplicated(list(_KEY))
    if bool(twice.any()):
        row = table[twice].iloc[0]
        raise UserError(
            f"results: {row['suite']}/{row['metric']} {row['task']} of {row['panel']} "
            f"{row['member']} is there twice"
        )
    known: dict[tuple[str, str], int] = {}
    cells = zip(table["suite"], table["metric"], table["direction"], strict=True)
    for suite, metric, direction in cells:
        if known.setdefault((suite, metric), direction) != direction:
            raise UserError(f"results: {suite}/{metric} has rows of different direction")
    return table


def _panel_rows(root: Path) -> Iterable[dict[str, Any]]:
    for sae, folder, measured in measurements(root):
        facts = sae.to_dict()
        versions = _versions(training_versions(folder))
        for source, metric, direction in _PANEL:
            value = measured.get(source)
            if value is None:
                continue
            n = int(measured["n_tokens"]) if metric in ("explained_variance", "l0") else None
            yield {
                **facts,
                "suite": PANEL_SUITE,
                "metric": metric,
                "direction": direction,
                "task": "",
                "value": float(value),
                "n": n,
                "versions": versions,
            }


def _rows(result: Result) -> Iterable[dict[str, Any]]:
    facts = result.record["facts"]
    versions = _versions(result.record["versions"])
    for row in get_suite(result.suite).rows(result.payload, result.record["extras"]):
        yield {**facts, **_columns(row), "suite": result.suite, "versions": versions}


def _columns(row: Measured) -> dict[str, Any]:
    return {
        "metric": row.metric,
        "direction": row.direction,
        "task": row.task,
        "value": row.value if math.isfinite(row.value) else math.nan,
        "n": row.n,
    }


def _versions(found: Mapping[str, str]) -> str:
    return "; ".join(f"{name}={found[name]}" for name in _VERSIONS if name in found)


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
