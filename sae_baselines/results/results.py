"""Results: the tidy table, validated once and indexed once, for whoever compares or reports."""

import fnmatch
import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from sae_baselines.controls import PUBLISHED, TRAINED, is_control, is_random
from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.results.table import (
    MEASURED_L0,
    PANEL_SUITE,
    SAME_WEIGHTS,
    load_results,
    normalised,
    write_table,
)

Group = tuple[str, float]
MetricKey = tuple[str, str]
BySeed = dict[int, float]
Cells = dict[tuple[int, str], float]
# Panel and member.
SAEKey = tuple[str, str]

# Order in tables and figures; members of other names follow, sorted.
KNOWN_MEMBERS = (
    "trained",
    "soft_frozen_decoder",
    "frozen_decoder",
    "frozen_decoder_cov",
    "frozen_encoder",
    "frozen_encoder_cov",
)


@dataclass(frozen=True, eq=False)
class Results:
    """Values by architecture and L0 (a group), metric, member, seed and task.

    Make one with `Results.read(study)` or `Results.of(frame)` and hand it on: whatever takes
    results takes it, and `Results.of` of it is itself. `only` filters, without validating
    again::

        results = Results.read("studies/demo")
        for group in results.groups:
            part = results.only(group=group, metrics=["core/*"])
            for metric in part.metrics:
                for member in part.present(group, metric):
                    print(metric, member, part.values(group, metric, member))  # by seed

    A group is (architecture, target L0), a metric is (suite, metric).

    Attributes:
        frame: The rows: the table's columns, task "" for aggregates, and what else it had.
        panels: Panel of (group, member, seed), of every SAE with any row.
        measured_l0: By (panel, member, seed): the rows ``panel/l0``.
        suite_l0: The same by suite, of all others that measured L0 on their own tokens.
        constraints: Of every member.
        every: All rows of the table that these are of, whatever is kept.
    """

    frame: pd.DataFrame
    panels: dict[tuple[Group, str, int], str]
    measured_l0: dict[tuple[str, str, int], float]
    suite_l0: dict[str, dict[tuple[str, str, int], float]]
    constraints: dict[str, str]
    every: pd.DataFrame

    @classmethod
    def read(cls, root: str | Path) -> "Results":
        """``results.csv`` of a study, or the CSV itself.

        Raises:
            UserError: As `load_results` and `of`.
        """
        return cls.of(load_results(root))

    @classmethod
    def of(cls, rows: "pd.DataFrame | Results") -> "Results":
        """Validate and index a table; what is validated already is returned as it is.

        Args:
            rows: Tidy rows: panel, member, constraint, architecture, l0, seed, suite, metric,
                direction, task, value, and where known n and versions.

        Raises:
            UserError: A column is missing, a key is empty, a row is duplicated, a direction is
                unknown or changes within a metric, a member has two constraints or a seed
                two panels.
        """
        if isinstance(rows, Results):
            return rows
        frame = normalised(rows)
        results = cls(frame, {}, {}, {}, {}, frame)
        columns = ["panel", "member", "constraint", "architecture", "l0", "seed"]
        for panel, member, constraint, architecture, l0, seed in (
            frame[columns].drop_duplicates().itertuples(index=False, name=None)
        ):
            known = results.constraints.setdefault(member, constraint)
            if known != constraint:
                raise UserError(
                    f"member {member} has two constraints: {known} and {constraint}"
                )
            known = results.panels.setdefault(((architecture, l0), member, seed), panel)
            if known != panel:
                raise UserError(
                    f"{member} of {architecture} at L0 {l0:g}, seed {seed}, is in two panels: "
                    f"{known} and {panel}"
                )
        l0s = frame.loc[(frame["metric"] == MEASURED_L0[1]) & (frame["task"] == "")]
        for suite, panel, member, seed, value in l0s[
            ["suite", "panel", "member", "seed", "value"]
        ].itertuples(index=False, name=None):
            by_sae = results.suite_l0.setdefault(suite, {})
            if (panel, member, seed) in by_sae:
                raise UserError(f"duplicate row: {suite}/l0 of {panel}/{member}, seed {seed}")
            by_sae[panel, member, seed] = value
        results.measured_l0.update(results.suite_l0.pop(PANEL_SUITE, {}))
        return results

    def write(self, path: str | Path) -> None:
        """Write the rows as CSV, with 17 digits."""
        write_table(self.frame, Path(path))

    def only(
        self,
        *,
        group: Group | None = None,
        members: Collection[str] | None = None,
        metrics: Collection[str] | None = None,
    ) -> "Results":
        """A part of these results.

        Fewer metrics leave members, seeds and measured L0 as they are: an SAE is there whether
        or not it has a score.

        Args:
            group: Architecture and L0 to keep.
            members: Members to keep.
            metrics: Patterns ``suite/metric`` (fnmatch) to keep.

        Raises:
            UserError: A pattern that matches nothing.
        """
        if group is members is metrics is None:
            return self
        frame = self.frame
        if group is not None:
            frame = frame.loc[(frame["architecture"] == group[0]) & (frame["l0"] == group[1])]
        if members is not None:
            frame = frame.loc[frame["member"].isin(list(members))]
        if metrics is not None:
            names = _metric_names(frame)
            frame = frame.loc[names.isin(_matching(set(names), metrics))]
        panels = {
            (g, member, seed): panel
            for (g, member, seed), panel in self.panels.items()
            if group in (None, g) and (members is None or member in members)
        }
        saes = {(panel, member, seed) for (_, member, seed), panel in panels.items()}
        kept = {member for _, member, _ in saes}
        return Results(
            frame,
            panels,
            {sae: l0 for sae, l0 in self.measured_l0.items() if sae in saes},
            self.suite_l0,
            {member: c for member, c in self.constraints.items() if member in kept},
            self.every,
        )

    @cached_property
    def groups(self) -> list[Group]:
        """(architecture, target L0), sorted."""
        return sorted({group for group, _, _ in self.panels})

    @cached_property
    def members(self) -> list[str]:
        """All members, trained first, controls last."""
        return sorted(ordered(self.constraints), key=self.is_control)

    @cached_property
    def metrics(self) -> list[MetricKey]:
        """(suite, metric) with any row, the panel's first, then by suite as they appear."""
        return sorted(self._directions, key=lambda key: (key[0] != PANEL_SUITE, key[0]))

    @property
    def controls(self) -> list[str]:
        """Members that were never trained."""
        return [member for member in self.members if self.is_control(member)]

    @property
    def has_published(self) -> bool:
        """Whether somebody else's SAE is a member."""
        return PUBLISHED in self.constraints.values()

    def is_control(self, member: str) -> bool:
        return is_control(self.constraints[member])

    def direction(self, metric: MetricKey) -> int:
        """+1 higher is better, -1 lower is better, 0 neither: never compared."""
        return 0 if metric == MEASURED_L0 else self._directions.get(metric, 0)

    def seeds(self, group: Group, member: str | None = None) -> list[int]:
        """Seeds of a group, or of one of its members, with any row, sorted."""
        return sorted({s for g, m, s in self.panels if g == group and member in (None, m)})

    def present(self, group: Group, metric: MetricKey | None = None) -> list[str]:
        """Members of a group, or those with any value of a metric, in order."""
        if metric is None:
            here = {m for g, m, _ in self.panels if g == group}
        else:
            here = {m for g, k, m in self._values if (g, k) == (group, metric)}
        return [member for member in self.members if member in here]

    def compared_with(self, group: Group, tested: str) -> list[str]:
        """Members to pair with the tested one, sorted.

        A published SAE has no seeds to pair (`stats.placements`); where there is one, permuted
        controls are made of it and say nothing of another SAE.
        """
        return sorted(
            member
            for member in self.present(group)
            if member != tested
            and self.constraints[member] not in (TRAINED, PUBLISHED)
            and (not self.has_published or is_random(self.constraints[member]))
        )

    def compared(self, group: Group) -> list[MetricKey]:
        """Metrics with a direction that a member of the group has, sorted."""
        here = {metric for g, metric, _ in self._values if g == group}
        return sorted(metric for metric in here if self.direction(metric))

    def cells(self, group: Group, metric: MetricKey, member: str) -> Cells:
        """Values by (seed, task), task "" for the aggregate."""
        return self._cells.get((group, metric, member), {})

    def values(self, group: Group, metric: MetricKey, member: str) -> BySeed:
        """By seed: the aggregate, or else the mean over tasks of a metric with a direction."""
        return self._values.get((group, metric, member), {})

    def tasks(self, group: Group, metric: MetricKey) -> dict[str, dict[str, BySeed]]:
        """Task to member to seed to value."""
        return self._tasks.get((group, metric), {})

    def l0(self, group: Group, member: str) -> float:
        """Measured L0, mean over seeds; NaN where a seed has none."""
        by_seed = [
            self.measured_l0.get((self.panels[group, member, seed], member, seed), math.nan)
            for seed in self.seeds(group, member)
        ]
        return float(np.mean(by_seed)) if by_seed else math.nan

    def of_panel(self, metric: str, group: Group, member: str) -> BySeed:
        """A number of suite "panel", also where only other metrics are kept."""
        return self.aggregates((PANEL_SUITE, metric), group, member)

    def aggregates(self, metric: MetricKey, group: Group, member: str) -> BySeed:
        """By seed, also where only other metrics are kept."""
        known = self._aggregates.get((*metric, member), {})
        return {
            seed: known[panel, seed]
            for (g, m, seed), panel in self.panels.items()
            if (g, m) == (group, member) and (panel, seed) in known
        }

    def of_tasks(
        self, metric: MetricKey, group: Group, member: str, seed: int
    ) -> dict[str, float]:
        """By task, of one SAE, also where only other metrics are kept."""
        panel = self.panels.get((group, member, seed))
        return self._of_tasks.get((*metric, member), {}).get((panel, seed), {})

    @cached_property
    def same_weights(self) -> dict[SAEKey, set[SAEKey]]:
        """Of an SAE, the others that have its weights."""
        alike: dict[str, set[SAEKey]] = defaultdict(set)
        every = self.every
        rows = every.loc[
            (every["suite"] == SAME_WEIGHTS[0]) & (every["metric"] == SAME_WEIGHTS[1])
        ]
        columns = rows[["panel", "member", "task"]].itertuples(index=False, name=None)
        for panel, member, first in columns:
            other_panel, _, other = first.rpartition("/")
            alike[first] |= {(panel, member), (other_panel, other)}
        return {sae: saes - {sae} for saes in alike.values() for sae in saes}

    @cached_property
    def _aggregates(self) -> dict[tuple[str, str, str], dict[tuple[str, int], float]]:
        rows = self.every.loc[self.every["task"] == ""]
        columns = rows[["suite", "metric", "member", "panel", "seed", "value"]]
        found: dict[tuple[str, str, str], dict[tuple[str, int], float]] = defaultdict(dict)
        for suite, metric, member, *sae, value in columns.itertuples(index=False, name=None):
            found[suite, metric, member][sae[0], sae[1]] = value
        return dict(found)

    @cached_property
    def _of_tasks(
        self,
    ) -> dict[tuple[str, str, str], dict[tuple[str | None, int], dict[str, float]]]:
        rows = self.every.loc[self.every["task"] != ""]
        columns = rows[["suite", "metric", "member", "panel", "seed", "task", "value"]]
        found: dict[tuple[str, str, str], dict[tuple[str | None, int], dict[str, float]]]
        found = defaultdict(lambda: defaultdict(dict))
        for suite, metric, member, panel, seed, task, value in columns.itertuples(
            index=False, name=None
        ):
            found[suite, metric, member][panel, seed][task] = value
        return found

    @cached_property
    def _directions(self) -> dict[MetricKey, int]:
        keys = zip(self.frame["suite"], self.frame["metric"], strict=True)
        return dict(zip(keys, self.frame["direction"], strict=True))

    @cached_property
    def _cells(self) -> dict[tuple[Group, MetricKey, str], Cells]:
        cells: dict[tuple[Group, MetricKey, str], Cells] = defaultdict(dict)
        for group, metric, member, seed, task, value in self._rows():
            cells[group, metric, member][seed, task] = value
        return dict(cells)

    @cached_property
    def _values(self) -> dict[tuple[Group, MetricKey, str], BySeed]:
        values = {}
        for (group, metric, member), cells in self._cells.items():
            usable = [seed for seed, task in cells if not task or self.direction(metric)]
            if usable:
                values[group, metric, member] = {
                    seed: mean_of_seed(cells, seed) for seed in dict.fromkeys(usable)
                }
        return values

    @cached_property
    def _tasks(self) -> dict[tuple[Group, MetricKey], dict[str, dict[str, BySeed]]]:
        tasks: dict[tuple[Group, MetricKey], dict[str, dict[str, BySeed]]] = {}
        for group, metric, member, seed, task, value in self._rows():
            if task:
                of_task = tasks.setdefault((group, metric), {}).setdefault(task, {})
                of_task.setdefault(member, {})[seed] = value
        return tasks

    def _rows(self) -> Iterable[tuple[Group, MetricKey, str, int, str, float]]:
        columns = ["architecture", "l0", "suite", "metric", "member", "seed", "task", "value"]
        for architecture, l0, suite, metric, *cell in self.frame[columns].itertuples(
            index=False, name=None
        ):
            member, seed, task, value = cell
            yield (architecture, l0), (suite, metric), member, seed, task, value


def mean_of_seed(cells: Cells, seed: int) -> float:
    """A seed's aggregate where there is one, else the mean over its tasks."""
    if (seed, "") in cells:
        return cells[seed, ""]
    return float(np.mean([cells[cell] for cell in sorted(cells) if cell[0] == seed]))


def ordered(members: Iterable[str]) -> list[str]:
    """Trained first, the paper's baselines next, others by name."""
    rank = {member: i for i, member in enumerate(KNOWN_MEMBERS)}
    return sorted(set(members), key=lambda m: (rank.get(m, len(rank)), m))


def _metric_names(frame: pd.DataFrame) -> pd.Series:
    return frame["suite"] + "/" + frame["metric"]


def _matching(names: Collection[str], patterns: Collection[str]) -> set[str]:
    if isinstance(patterns, str):
        raise UserError(f"metrics must be a list of patterns, got the text {patterns!r}")
    matching: set[str] = set()
    for pattern in patterns:
        hits = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            raise UserError(f"no metric {pattern!r}; {did_you_mean(pattern, sorted(names))}")
        matching.update(hits)
    return matching
