"""The tidy results table: its one schema, how rows are made, checked, read and written.

Columns:
    panel: Panel (architecture, L0 and seed); "" for an SAE that is not of one.
    member: Member of the panel.
    constraint: "trained", a constraint, a control ("random:cov"), "published" or "unknown".
    architecture: Base architecture.
    l0: Target L0; empty where nobody knows it.
    seed: Training seed; -1 where nobody knows it.
    suite: SAEBench suite, or "panel" for this package's own held-out measurement.
    metric: SAEBench's key where it is SAEBench's number.
    direction: 1 higher is better, -1 lower is better, 0 neither (never compared).
    task: Probing dataset, attribute, class, latent; empty for the suite's aggregate.
    value: The number; empty where it could not be computed.
    n: Units behind the value, where known.
    n_of: What n counts: tokens, examples, latents, ...; empty where n is.
    versions: Packages the value depends on, "name=version; ...".

docs/columns.md says more of each.
"""

import hashlib
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sae_baselines.errors import UserError
from sae_baselines.files import reading, write_atomically

COLUMNS = (
    "panel",
    "member",
    "constraint",
    "architecture",
    "l0",
    "seed",
    "suite",
    "metric",
    "direction",
    "task",
    "value",
    "n",
    "n_of",
    "versions",
)
# What a table must have to be compared; the others say where a value is from.
COMPARED = COLUMNS[:-3]
RESULTS_FILE = "results.csv"
_AGAIN = "run sae-baselines eval, which writes it again"
PANEL_SUITE = "panel"
# The row that members are matched by, whatever measured it.
MEASURED_L0 = (PANEL_SUITE, "l0")
# Share of decoder rows that the cap of a member holds.
CAP_BOUND = (PANEL_SUITE, "cap_bound_share")
# 1, with the task ``panel/member`` of another SAE that has the same weights.
SAME_WEIGHTS = (PANEL_SUITE, "same_weights")

_TEXT = (
    "panel",
    "member",
    "constraint",
    "architecture",
    "suite",
    "metric",
    "task",
    "versions",
    "n_of",
)
_NUMBERS: dict[str, Any] = {
    "direction": "int64",
    "seed": "int64",
    "value": "float64",
    "l0": "float64",
}
# What tells two rows apart.
KEY = ("panel", "member", "architecture", "l0", "seed", "suite", "metric", "task")
_MAY_BE_EMPTY = ("panel", "task", "n_of")
_DIRECTIONS: dict[Any, int] = {
    **dict.fromkeys((1, "1", "+1", "1.0", "higher"), 1),
    **dict.fromkeys((-1, "-1", "-1.0", "lower"), -1),
    **dict.fromkeys((0, "0", "0.0", "", "none", None), 0),
}


def row(
    facts: Mapping[str, Any],
    metric: tuple[str, str],
    value: float,
    *,
    direction: int = 0,
    task: str = "",
    n: int | None = None,
    n_of: str = "",
    versions: str | None = None,
) -> dict[str, Any]:
    """One row of a results table.

    Args:
        facts: The columns panel to seed (`evals.Facts.to_dict`).
        metric: Suite and metric.
        value: The number; NaN is an empty cell.
        direction: 1, -1 or 0.
        task: Task, or "" for the aggregate.
        n: Units behind the value.
        n_of: What n counts.
        versions: From `versions_text`; None leaves the column out.
    """
    return {
        **facts,
        "suite": metric[0],
        "metric": metric[1],
        "direction": direction,
        "task": task,
        "value": value,
        "n": n,
        "n_of": n_of if n is not None else "",
        **({} if versions is None else {"versions": versions}),
    }


def versions_text(versions: Mapping[str, str], names: Iterable[str]) -> str:
    """Those of these packages whose version is known: the column ``versions``."""
    return "; ".join(f"{name}={versions[name]}" for name in names if name in versions)


def table_of(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a checked table, in their order.

    Raises:
        UserError: As `check_table`.
    """
    return check_table(pd.DataFrame(list(rows), columns=pd.Index(COLUMNS)))


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, with 17 digits, and its SHA-256 beside it as ``sha256sum`` does."""
    out = io.StringIO()
    table.to_csv(out, index=False, float_format="%.17g", lineterminator="\n")
    data = out.getvalue().encode()
    # Without one, never with another's, wherever the process dies.
    checksum_file(path).unlink(missing_ok=True)
    write_atomically(path, data)
    write_atomically(checksum_file(path), f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")


def checksum_file(path: Path) -> Path:
    """Where the checksum of a table is kept; tables of older versions have none."""
    return path.with_name(f"{path.name}.sha256")


def _check_checksum(path: Path) -> None:
    kept = checksum_file(path)
    if not kept.exists():
        return
    # Line endings are git's.
    found = hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
    with reading(kept):
        stored = kept.read_text(encoding="utf-8").split()[:1]
    if stored != [found]:
        raise UserError(
            f"results: {path} was changed after it was written (its checksum is another); run "
            f"sae-baselines eval to write it again, or delete {kept.name} to take it as it is"
        )


def load_results(root: str | Path) -> pd.DataFrame:
    """``results.csv`` of a study (or the CSV itself), checked against schema and checksum.

    The CSV may be compressed, with the ending that says how (``.csv.gz``).

    Raises:
        UserError: No such file, it does not have the schema, or it was edited.
    """
    is_table = str(root).endswith(".csv") or Path(root).is_file()
    path = Path(root) if is_table else Path(root) / RESULTS_FILE
    if not path.exists():
        raise UserError(f"results: {path} is not there; run sae-baselines eval first")
    table = read_table(path)
    _check_checksum(path)
    refuse_empty(table, path)
    return table


def refuse_empty(table: pd.DataFrame, path: Path) -> None:
    """Raises `UserError` for a table without rows, of which nothing can be said."""
    if table.empty:
        raise UserError(
            f"results: {path} has a header and no rows: nothing was measured; run "
            "sae-baselines train and eval first"
        )


def read_table(path: Path) -> pd.DataFrame:
    """A table from its file, whatever its checksum.

    Raises:
        UserError: It does not have the schema.
    """
    types: dict[str, Any] = dict.fromkeys(_TEXT, "string")
    with reading(path, _AGAIN):
        reader: Any = pd.read_csv
        table = reader(
            path,
            dtype=types,
            keep_default_na=False,
            na_values={"value": [""], "l0": [""], "n": [""]},
            float_precision="round_trip",
            index_col=False,
        )
    if "n_of" not in table and "n" in table:
        # A table of before there was this column.
        table.insert(list(table.columns).index("n") + 1, "n_of", "")
    for column in _TEXT:
        if column in table:
            table[column] = table[column].astype(object)
    try:
        return check_table(table)
    except UserError as error:
        said = str(error).removeprefix("results: ")
        raise UserError(f"results: {path}: {said}; {_AGAIN}") from error


def check_table(table: pd.DataFrame) -> pd.DataFrame:
    """A table with the schema's types, if it has the schema that is written to files.

    Raises:
        UserError: The first thing that is wrong.
    """
    if tuple(table.columns) != COLUMNS:
        names = ", ".join(map(str, table.columns))[:200]
        raise UserError(f"results: columns are {names}, and should be {', '.join(COLUMNS)}")
    for column in (*_NUMBERS, "n"):
        _refuse_no_numbers(table[column], whole=column not in ("value", "l0"))
    table = table.astype({**_NUMBERS, "n": "Int64"})
    for column in _TEXT:
        if column not in _MAY_BE_EMPTY and bool((table[column] == "").any()):
            raise UserError(f"results: an empty {column}")
    odd = sorted(set(table["direction"]) - {-1, 0, 1})
    if odd:
        raise UserError(f"results: direction {odd[0]} is none of 1, -1, 0")
    check_rows(table)
    return table


def _refuse_no_numbers(cells: Any, whole: bool) -> None:
    to_numeric: Any = pd.to_numeric
    numbers = to_numeric(cells, errors="coerce").astype("float64")
    wrong = numbers.isna() & cells.notna()
    if whole:
        wrong |= numbers.mod(1).fillna(1 if cells.name != "n" else 0) != 0
        wrong |= numbers.abs() >= 2**63
    if bool(wrong.any()):
        row = int(wrong.to_numpy().argmax())
        kind = "whole number" if whole else "number"
        raise UserError(
            f"results: {cells.name} of row {row + 1} is {cells.iloc[row]!r}, no {kind}"
        )


def check_rows(table: pd.DataFrame) -> None:
    """Raise where a row is there twice or a metric has two directions.

    Raises:
        UserError: One of these.
    """
    twice = table.duplicated(list(KEY))
    if bool(twice.any()):
        first = table[twice].iloc[0]
        task = f", task {first['task']!r}" if first["task"] else ""
        raise UserError(
            f"results: duplicate row: {first['suite']}/{first['metric']} of {first['panel']}/"
            f"{first['member']}, seed {first['seed']}{task}: it is there twice"
        )
    known: dict[tuple[str, str], int] = {}
    cells = zip(table["suite"], table["metric"], table["direction"], strict=True)
    for suite, metric, direction in cells:
        if known.setdefault((suite, metric), direction) != direction:
            raise UserError(f"results: {suite}/{metric} has rows of different direction")


def normalised(frame: pd.DataFrame) -> pd.DataFrame:
    """A table made by hand, with the types of the schema; columns besides it are kept.

    Directions may be words (higher, lower) or empty, numbers may be text, a task may be
    missing.

    Raises:
        UserError: A column is missing, a key is empty, or something is not what its column
            holds.
    """
    absent = [column for column in COMPARED if column not in frame.columns]
    if absent:
        raise UserError(f"results have no column {', '.join(absent)}")
    for column in COMPARED[:8]:
        empty = frame[column].isna()
        if bool(empty.any()):
            raise UserError(f"results: {column} is empty in row {frame.index[empty][0]}")
    frame = frame.copy()
    frame["task"] = frame["task"].fillna("").astype(str)
    for column in _TEXT[:6]:
        frame[column] = frame[column].astype(str)
    frame["l0"] = [_float(value, "l0") for value in frame["l0"]]
    frame["seed"] = [_seed(value) for value in frame["seed"]]
    keys = zip(*(frame[c] for c in ("suite", "metric", "panel", "member")), strict=True)
    wheres = [f"{suite}/{metric} of {panel}/{member}" for suite, metric, panel, member in keys]
    frame["value"] = [
        _float(value, f"value of {where}")
        for value, where in zip(frame["value"], wheres, strict=True)
    ]
    frame["direction"] = [
        _direction(value, where)
        for value, where in zip(frame["direction"], wheres, strict=True)
    ]
    check_rows(frame)
    return frame


def _direction(value: Any, where: str) -> int:
    key = None if value != value else value
    if isinstance(key, str):
        key = key.strip().lower()
    try:
        return _DIRECTIONS[key]
    except (KeyError, TypeError):
        raise UserError(
            f"direction of {where} is {value!r}; higher (+1), lower (-1) or empty"
        ) from None


def _float(value: Any, what: str) -> float:
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError):
        raise UserError(f"{what} is {value!r}, not a number") from None


def _seed(value: Any) -> int:
    try:
        seed = int(value)
    except (TypeError, ValueError):
        raise UserError(f"seed is {value!r}, not a whole number") from None
    if seed != float(value):
        raise UserError(f"seed is {value!r}, not a whole number")
    return seed
