"""Trained minus baseline, paired by seed and by task."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from sae_baselines.controls import is_null_for
from sae_baselines.errors import UserError
from sae_baselines.results import Group, Results, mean_of_seed

# Suites whose tasks are latents or texts of one SAE, so that no task has a partner.
UNPAIRED_SUITES = ("autointerp",)
L0_TOLERANCE = 0.05
# SAEBench rounds some means to 4 decimals.
_ROUNDING = 2e-4
_SHOWN = 3

MeasuredL0 = Mapping[tuple[str, str, int], float]


@dataclass(frozen=True)
class Exclusion:
    """A seed that must not be compared.

    Attributes:
        seed: Training seed.
        reason: Why, in words.
    """

    seed: int
    reason: str


@dataclass(frozen=True)
class Comparison:
    """One metric of the trained SAE and one baseline, seed by seed.

    Attributes:
        architecture: Base architecture.
        l0: Target L0.
        suite: Suite.
        metric: Metric.
        direction: +1 where higher is better, -1 where lower is.
        baseline: Member compared with: a baseline or a control.
        constraint: Its constraint, or which control it is.
        seeds: Seeds compared, ascending.
        trained: Value of the trained member per seed, mean over tasks, ``[n_seeds]``.
        other: The same of the baseline.
        tasks: Names of the paired tasks; empty if there are none.
        rows: Per seed, oriented differences per task; without tasks, the seed's only one.
        crossed: Whether all seeds have the same tasks.
        excluded: Seeds left out, and why.
        failure: Why there is nothing to compare, if there is not (``on_missing="exclude"``).
        caveats: What a reader must know.
    """

    architecture: str
    l0: float
    suite: str
    metric: str
    direction: int
    baseline: str
    constraint: str
    seeds: tuple[int, ...]
    trained: np.ndarray
    other: np.ndarray
    tasks: tuple[str, ...]
    rows: tuple[np.ndarray, ...]
    crossed: bool = True
    excluded: tuple[Exclusion, ...] = ()
    failure: str | None = None
    caveats: tuple[str, ...] = ()

    @property
    def differences(self) -> np.ndarray:
        """direction * (trained - baseline) per seed: positive where trained is better."""
        return self.direction * (self.trained - self.other)


def differences(
    results: pd.DataFrame | Results,
    *,
    tested: str = "trained",
    measured_l0: MeasuredL0 | None = None,
    metrics: Collection[str] | None = None,
    unpaired_suites: Collection[str] = UNPAIRED_SUITES,
    on_missing: Literal["error", "exclude"] = "error",
) -> list[Comparison]:
    """Pair the tested member with every baseline, on every metric.

    A control is paired on the metrics that it is a null for and on no others: a permuted
    decoder has the trained SAE's latents, so that it ties on probing by construction, which
    says nothing about the trained SAE (`sae_baselines.controls`).

    A pair has the same architecture, target L0, suite, metric and seed. Its value per seed is
    the aggregate row (no task) where there is one, else the mean over tasks. Tasks serve the
    bootstrap, where their mean is that aggregate; a metric whose aggregate is something else
    (a maximum, say) is compared by its aggregate alone, with a caveat.

    Args:
        results: Tidy rows: panel, member, constraint, architecture, l0, seed, suite, metric,
            direction, task, value. Rows without a direction (0, empty) describe and are not
            compared.
        tested: The member to test. Baselines are the others whose constraint is not "trained".
        measured_l0: Measured L0 by (panel, member, seed); default: rows with suite "panel" and
            metric "l0".
        metrics: Patterns ``suite/metric`` (fnmatch) to compare; default: all with a direction.
        unpaired_suites: Suites whose tasks belong to one SAE each (AutoInterp's latents): their
            mean is taken first, within each member.
        on_missing: "error" raises where a score is missing or not a number; "exclude" returns
            that comparison without numbers, its `Comparison.failure` saying why.

    Returns:
        One comparison per architecture, L0, suite, metric and baseline (or control), in that
        order.

    Raises:
        UserError: A column is missing, a row is duplicated, a pair is incomplete, a value is
            not a finite number, or there is nothing to compare.
    """
    table = Results.of(results)
    if metrics is not None:
        table = table.only(metrics=metrics)
    l0_of = table.measured_l0 if measured_l0 is None else dict(measured_l0)
    found = []
    for group in table.groups:
        baselines = table.compared_with(group, tested)
        if tested not in table.present(group):
            known = ", ".join(sorted(table.present(group)))
            raise UserError(f"{_group(group)} has no member {tested!r}; it has {known}")
        if not baselines:
            raise UserError(f"{_group(group)} has no baseline to compare {tested!r} with")
        for metric in table.compared(group):
            for baseline in baselines:
                if not is_null_for(table.constraints[baseline], *metric):
                    continue
                pair = _Pair(table, group, metric, tested, baseline, l0_of)
                found.append(pair.compare(metric[0] in unpaired_suites, on_missing))
    if not found:
        raise UserError(
            "no metric to compare: no row has a direction and matches `metrics`, or what there "
            "is besides the trained SAE is a null for none of them"
        )
    return found


def l0_apart(first: float, second: float) -> float:
    """|a - b| relative to their mean: the same whichever is called trained."""
    return abs(first - second) / ((first + second) / 2)


class _IncompleteError(Exception):
    """A score is missing or not a number."""


class _Pair:
    def __init__(
        self,
        table: Results,
        group: Group,
        metric: tuple[str, str],
        tested: str,
        baseline: str,
        l0_of: MeasuredL0,
    ) -> None:
        self.table, self.group, (self.suite, self.metric) = table, group, metric
        self.tested, self.baseline, self.l0_of = tested, baseline, l0_of
        self.cells = table.cells(group, metric, tested)
        self.others = table.cells(group, metric, baseline)

    def compare(self, unpaired: bool, on_missing: str) -> Comparison:
        empty = np.empty(0)
        fixed: dict[str, Any] = {
            "architecture": self.group[0],
            "l0": self.group[1],
            "suite": self.suite,
            "metric": self.metric,
            "direction": self.table.direction((self.suite, self.metric)),
            "baseline": self.baseline,
            "constraint": self.table.constraints[self.baseline],
        }
        try:
            self._complete(unpaired)
        except _IncompleteError as reason:
            if on_missing == "error":
                raise UserError(str(reason)) from None
            return Comparison(
                **fixed,
                seeds=(),
                trained=empty,
                other=empty,
                tasks=(),
                rows=(),
                failure=str(reason),
            )
        every = sorted({seed for seed, _ in self.cells})
        excluded = [e for e in map(self._l0, every) if e is not None]
        seeds = [s for s in every if s not in {e.seed for e in excluded}]
        trained = np.array([mean_of_seed(self.cells, s) for s in seeds])
        other = np.array([mean_of_seed(self.others, s) for s in seeds])
        tasks, caveats = self._tasks(seeds, unpaired)
        sign = fixed["direction"]
        rows = [
            np.array([sign * (self.cells[s, t] - self.others[s, t]) for t in tasks[s]])
            if tasks
            else np.array([sign * (a - b)])
            for s, a, b in zip(seeds, trained, other, strict=True)
        ]
        crossed = len({tuple(t) for t in tasks.values()}) <= 1
        if not crossed:
            caveats.append("seeds were scored on different tasks")
        absent = sorted(set(self.table.seeds(self.group, self.tested)) - set(every))
        if absent:
            named = ", ".join(map(str, absent))
            caveats.append(f"neither member has this metric for seed {named}")
        return Comparison(
            **fixed,
            seeds=tuple(seeds),
            trained=trained,
            other=other,
            tasks=tuple(sorted({t for ts in tasks.values() for t in ts})),
            rows=tuple(rows),
            crossed=crossed,
            excluded=tuple(excluded),
            caveats=tuple(caveats),
        )

    def _complete(self, unpaired: bool) -> None:
        """Every score of one member has its partner, and all are numbers."""
        if not self.cells and not self.others:
            raise _IncompleteError(
                f"{self._where()}: neither {self.tested} nor {self.baseline} has a score"
            )

        def wanted(cells: Mapping[tuple[int, str], float]) -> set[tuple[int, str]]:
            # Without partners, what must agree is which seeds have scores at all.
            return {(s, "") for s, _ in cells} if unpaired else set(cells)

        for have, lack, name, has in (
            (self.cells, self.others, self.baseline, self.tested),
            (self.others, self.cells, self.tested, self.baseline),
        ):
            missing = sorted(wanted(have) - wanted(lack))
            if missing:
                raise _IncompleteError(
                    f"{self._where()}: {name} has no score for {_named(missing)}, {has} has"
                )
        for name, cells in ((self.tested, self.cells), (self.baseline, self.others)):
            bad = sorted(cell for cell, value in cells.items() if not math.isfinite(value))
            if bad:
                raise _IncompleteError(
                    f"{self._where()}: {name} has no finite value for {_named(bad)}; a score "
                    "that failed is not one to leave out"
                )
            with_mean = {s for s, t in cells if not t}
            without = sorted({s for s, _ in cells} - with_mean)
            if with_mean and without:
                raise _IncompleteError(
                    f"{self._where()}: {name} has an aggregate for some seeds, but not for "
                    f"seed {', '.join(map(str, without))}"
                )

    def _l0(self, seed: int) -> Exclusion | None:
        values = []
        for member in (self.tested, self.baseline):
            panel = self.table.panels[self.group, member, seed]
            value = self.l0_of.get((panel, member, seed))
            if value is None or not (math.isfinite(value) and value > 0):
                return Exclusion(seed, f"no measured L0 of {member} at seed {seed}")
            values.append(value)
        apart = l0_apart(*values)
        if apart <= L0_TOLERANCE:
            return None
        return Exclusion(
            seed,
            f"L0 differs at seed {seed}: {self.tested} {values[0]:.4g}, {self.baseline} "
            f"{values[1]:.4g} ({apart:.1%} apart, at most {L0_TOLERANCE:.0%} allowed)",
        )

    def _tasks(
        self, seeds: list[int], unpaired: bool
    ) -> tuple[dict[int, list[str]], list[str]]:
        """Tasks of each seed to resample; none where they cannot or should not be."""
        tasks = {s: sorted(t for seed, t in self.cells if seed == s and t) for s in seeds}
        if unpaired:
            return {}, ["its tasks are each SAE's own, so only seeds are paired and resampled"]
        if not any(tasks.values()):
            return {}, []
        for cells in (self.cells, self.others):
            for s in seeds:
                mean = float(np.mean([cells[s, t] for t in tasks[s]])) if tasks[s] else math.nan
                close = abs(mean - mean_of_seed(cells, s)) <= _ROUNDING * max(1, abs(mean))
                if not close:
                    return {}, [
                        "the aggregate is not the mean over tasks, so tasks are not resampled"
                    ]
        return tasks, []

    def _where(self) -> str:
        return f"{self.suite}/{self.metric} of {_group(self.group)}"


def _group(group: tuple[str, float]) -> str:
    return f"{group[0]} at L0 {group[1]:g}"


def _named(cells: list[tuple[int, str]]) -> str:
    shown = [f"seed {s}" + (f" task {t!r}" if t else "") for s, t in cells[:_SHOWN]]
    more = f" and {len(cells) - _SHOWN} more" if len(cells) > _SHOWN else ""
    return ", ".join(shown) + more
