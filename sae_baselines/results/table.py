"""Reading the tidy results table strictly."""

import fnmatch
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from sae_baselines.controls import is_random
from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.study.spec import PUBLISHED, TRAINED

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
)
_NEVER_EMPTY = (
    "panel",
    "member",
    "constraint",
    "architecture",
    "l0",
    "seed",
    "suite",
    "metric",
)
_DIRECTIONS: dict[Any, int] = {
    **dict.fromkeys((1, "1", "+1", "1.0", "higher"), 1),
    **dict.fromkeys((-1, "-1", "-1.0", "lower"), -1),
    **dict.fromkeys((0, "0", "0.0", "", "none", None), 0),
}

Group = tuple[str, float]
Cells = dict[tuple[int, str], float]


@dataclass
class Scores:
    """Scores by architecture and L0, suite, metric, member, seed and task ("" = aggregate)."""

    measured_l0: dict[tuple[str, str, int], float] = field(default_factory=dict)
    _cells: dict[tuple[Group, str, str, str], Cells] = field(default_factory=dict)
    _direction: dict[tuple[str, str], int] = field(default_factory=dict)
    _constraint: dict[str, str] = field(default_factory=dict)
    _panel: dict[tuple[Group, str, int], str] = field(default_factory=dict)

    def groups(self) -> list[Group]:
        """(architecture, L0) of every panel, sorted."""
        return sorted({group for group, _, _ in self._panel})

    def members(self, group: Group) -> list[str]:
        """Members with any row, sorted."""
        return sorted({member for g, member, _ in self._panel if g == group})

    def baselines(self, group: Group, tested: str) -> list[str]:
        """Members to compare with.

        A published SAE has no seeds to pair (`placements`); where there is one, permuted
        controls are made of it and say nothing of another SAE.
        """
        published = PUBLISHED in self._constraint.values()
        return [
            member
            for member in self.members(group)
            if member != tested
            and self._constraint[member] not in (TRAINED, PUBLISHED)
            and (not published or is_random(self._constraint[member]))
        ]

    def seeds(self, group: Group, member: str) -> list[int]:
        """Seeds with any row, sorted."""
        return sorted(seed for g, m, seed in self._panel if (g, m) == (group, member))

    def metrics(self, group: Group) -> list[tuple[str, str]]:
        """(suite, metric) with a direction, sorted."""
        return sorted({(suite, metric) for g, suite, metric, _ in self._cells if g == group})

    def cells(self, group: Group, suite: str, metric: str, member: str) -> Cells:
        """Values by (seed, task)."""
        return self._cells.get((group, suite, metric, member), {})

    def direction(self, suite: str, metric: str) -> int:
        return self._direction[suite, metric]

    def constraint(self, member: str) -> str:
        return self._constraint[member]

    def panel(self, group: Group, member: str, seed: int) -> str:
        return self._panel[group, member, seed]


def scores(results: pd.DataFrame, metrics: Collection[str] | None = None) -> Scores:
    """Check a results table and index it.

    Args:
        results: See `differences`.
        metrics: Patterns ``suite/metric`` to keep.

    Raises:
        UserError: A column is missing, a key is empty, a row is duplicated, a direction is
            unknown or changes within a metric, or a pattern matches nothing.
    """
    absent = [column for column in COLUMNS if column not in results.columns]
    if absent:
        raise UserError(f"results have no column {', '.join(absent)}")
    for column in _NEVER_EMPTY:
        empty = results[column].isna()
        if bool(empty.any()):
            raise UserError(f"results: {column} is empty in row {results.index[empty][0]}")
    _check_patterns(results, metrics)
    table = Scores()
    for row in results[list(COLUMNS)].itertuples(index=False, name=None):
        _add(table, dict(zip(COLUMNS, row, strict=True)), metrics)
    return table


def mean_of_seed(cells: Cells, seed: int) -> float:
    """A seed's aggregate where there is one, else the mean over its tasks."""
    if (seed, "") in cells:
        return cells[seed, ""]
    return float(np.mean([cells[cell] for cell in sorted(cells) if cell[0] == seed]))


def _add(table: Scores, row: dict[str, Any], metrics: Collection[str] | None) -> None:
    panel, member, constraint = str(row["panel"]), str(row["member"]), str(row["constraint"])
    suite, metric = str(row["suite"]), str(row["metric"])
    group, seed = (str(row["architecture"]), _float(row["l0"], "l0")), _seed(row["seed"])
    task = "" if row["task"] is None or row["task"] != row["task"] else str(row["task"])
    where = f"{suite}/{metric} of {panel}/{member}"
    if table._constraint.setdefault(member, constraint) != constraint:
        raise UserError(
            f"member {member} has two constraints: {table._constraint[member]} and {constraint}"
        )
    if table._panel.setdefault((group, member, seed), panel) != panel:
        raise UserError(
            f"{member} of {group[0]} at L0 {group[1]:g}, seed {seed}, is in two panels: "
            f"{table._panel[group, member, seed]} and {panel}"
        )
    value = _float(row["value"], f"value of {where}")
    direction = _direction(row["direction"], where)
    if (suite, metric) == ("panel", "l0") and not task:
        if (panel, member, seed) in table.measured_l0:
            raise UserError(f"duplicate row: {where}, seed {seed}")
        table.measured_l0[panel, member, seed] = value
        return
    if table._direction.setdefault((suite, metric), direction) != direction:
        raise UserError(f"{suite}/{metric} has rows of different direction")
    if direction == 0 or not _wanted(suite, metric, metrics):
        return
    cells = table._cells.setdefault((group, suite, metric, member), {})
    if (seed, task) in cells:
        raise UserError(
            f"duplicate row: {where}, seed {seed}" + (f", task {task!r}" if task else "")
        )
    cells[seed, task] = value


def _wanted(suite: str, metric: str, patterns: Collection[str] | None) -> bool:
    return patterns is None or any(
        fnmatch.fnmatchcase(f"{suite}/{metric}", pattern) for pattern in patterns
    )


def _check_patterns(results: pd.DataFrame, patterns: Collection[str] | None) -> None:
    if isinstance(patterns, str):
        raise UserError(f"metrics must be a list of patterns, got the text {patterns!r}")
    names = {f"{s}/{m}" for s, m in zip(results["suite"], results["metric"], strict=True)}
    for pattern in patterns or ():
        if not fnmatch.filter(names, pattern):
            raise UserError(f"no metric {pattern!r}; {did_you_mean(pattern, sorted(names))}")


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
