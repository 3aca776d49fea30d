"""Trained minus baseline, paired by seed and by task."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict

import numpy as np
import pandas as pd
from typing_extensions import Unpack

from sae_baselines.errors import UserError
from sae_baselines.evals.registry import is_null_for, metric_of
from sae_baselines.results import MetricKey, Results
from sae_baselines.stats.fitness import remarks, unfit
from sae_baselines.stats.floors import Room, rooms_of
from sae_baselines.stats.match import Bar, Match, named
from sae_baselines.stats.matched import unmatched
from sae_baselines.stats.rounding import step_of

# SAEBench rounds some means to 4 decimals.
_ROUNDING = 2e-4
_SHOWN = 3

MeasuredL0 = Mapping[tuple[str, str, int], float]


class Pairing(TypedDict, total=False):
    """What `differences` takes besides results, and hence whatever calls it."""

    tested: str
    measured_l0: MeasuredL0 | None
    metrics: Collection[str] | None
    unpaired_suites: Collection[str] | None
    on_missing: Literal["error", "exclude"]


@dataclass(frozen=True)
class OnMetric:
    """Something said of one metric.

    Attributes:
        architecture: Base architecture.
        l0: Target L0.
        suite: Suite.
        metric: Metric.
    """

    architecture: str
    l0: float
    suite: str
    metric: str


@dataclass(frozen=True)
class Paired(OnMetric):
    """Something said of the trained SAE and one other member on one metric (`OnMetric`).

    Attributes:
        direction: +1 where higher is better, -1 where lower is.
        baseline: Member compared with: a baseline or a control.
        constraint: Its constraint, or which control it is.
    """

    direction: int
    baseline: str
    constraint: str

    @property
    def pair(self) -> dict[str, Any]:
        """These fields alone."""
        return {field.name: getattr(self, field.name) for field in fields(Paired)}


@dataclass(frozen=True)
class Exclusion:
    """A seed that must not be compared.

    Attributes:
        seed: Training seed.
        bar: Why.
    """

    seed: int
    bar: Bar

    @property
    def reason(self) -> str:
        """Why, in words."""
        return self.bar.reason


@dataclass(frozen=True)
class Comparison(Paired):
    """One metric of the trained SAE and one baseline (`Paired`), seed by seed.

    Attributes:
        seeds: Seeds compared, ascending.
        trained: Value of the trained member per seed, mean over tasks, ``[n_seeds]``.
        other: The same of the baseline.
        tasks: Names of the paired tasks; empty if there are none.
        rows: Per seed, oriented differences per task; without tasks, the seed's only one.
        crossed: Whether all seeds have the same tasks.
        excluded: Seeds left out, and why.
        failure: Why there is nothing to compare, if there is not (``on_missing="exclude"``).
        unfit: Why a word would mean nothing although there are numbers (`stats.fitness`):
            kind and reason of each.
        step: How far off rounding can put a difference; 0 where scores are not rounded.
        rooms: Floors and ceilings that matter (`stats.floors.rooms_of`), the trained member's
            first; none where there is nothing to compare.
        blind: Why the metric that this is a part of tells nothing; parts have no rooms.
        caveats: What a reader must know.
    """

    seeds: tuple[int, ...]
    trained: np.ndarray
    other: np.ndarray
    tasks: tuple[str, ...]
    rows: tuple[np.ndarray, ...]
    crossed: bool = True
    excluded: tuple[Exclusion, ...] = ()
    failure: str | None = None
    unfit: tuple[Bar, ...] = ()
    step: float = 0.0
    rooms: tuple[Room, ...] = ()
    blind: str | None = None
    caveats: tuple[str, ...] = ()

    @property
    def differences(self) -> np.ndarray:
        """direction * (trained - baseline) per seed: positive where trained is better."""
        return self.direction * (self.trained - self.other)

    @property
    def barred(self) -> str | None:
        """Why nothing may be said of it, if nothing may."""
        return self.failure or "; ".join(bar.reason for bar in self.bars) or None

    @property
    def bars(self) -> tuple[Bar, ...]:
        """All that forbids a word although there are numbers."""
        return (*self.unfit, *(e.bar for e in self.excluded))


def differences(
    results: pd.DataFrame | Results,
    *,
    tested: str = "trained",
    measured_l0: MeasuredL0 | None = None,
    metrics: Collection[str] | None = None,
    unpaired_suites: Collection[str] | None = None,
    on_missing: Literal["error", "exclude"] = "error",
) -> list[Comparison]:
    """Pair the tested member with every baseline, on every metric.

    A control is paired on the metrics that it is a null for and on no others: a permuted
    decoder has the trained SAE's latents, so that it ties on probing by construction, which
    says nothing about the trained SAE (`sae_baselines.controls`).

    A pair has the same architecture, target L0, suite, metric and seed. Its value per seed is
    the aggregate row (no task) where there is one, else the mean over tasks. Tasks serve the
    interval over tasks, where their mean is that aggregate; a metric whose aggregate is
    something else (a maximum, say) is compared by its aggregate alone, with a caveat.

    Args:
        results: Results, or tidy rows: panel, member, constraint, architecture, l0, seed,
            suite, metric, direction, task, value. Rows without a direction (0, empty)
            describe and are not compared.
        tested: The member to test. Baselines are the others whose constraint is not "trained".
        measured_l0: Measured L0 by (panel, member, seed); default: rows with suite "panel" and
            metric "l0". Rows ``l0`` of other suites count besides (`stats.matched`).
        metrics: Patterns ``suite/metric`` (fnmatch) to compare; default: all with a direction.
        unpaired_suites: Suites whose tasks belong to one SAE each (latents): their
            mean is taken first, within each member. Default: as each metric says
            (`Metric.tasks_paired`).
        on_missing: "error" raises where a score is missing or not a number; "exclude" returns
            that comparison without numbers, its `Comparison.failure` saying why.

    Returns:
        One comparison per architecture, L0, suite, metric and baseline (or control), in that
        order.

    Raises:
        UserError: A column is missing, a row is duplicated, a pair is incomplete, a value is
            not a finite number, or there is nothing to compare.
    """
    table = comparable(results, metrics, measured_l0)
    comparisons = []
    for group in table.groups:
        baselines = table.compared_with(group, tested)
        if tested not in table.present(group):
            known = ", ".join(sorted(table.present(group)))
            raise UserError(f"{named(group)} has no member {tested!r}; it has {known}")
        if not baselines:
            raise UserError(f"{named(group)} has no baseline to compare {tested!r} with")
        for metric in table.compared(group):
            for baseline in baselines:
                if is_null_for(table.constraints[baseline], *metric):
                    match = Match(table, group, metric, tested, baseline)
                    unpaired = is_unpaired(metric, unpaired_suites)
                    comparisons.append(_compare(match, unpaired, on_missing))
    if not comparisons:
        raise UserError(
            "no metric to compare: no row has a direction and matches `metrics`, or what there "
            "is besides the trained SAE is a null for none of them"
        )
    return comparisons


def is_unpaired(metric: MetricKey, suites: Collection[str] | None = None) -> bool:
    """Whether the tasks of a metric are one SAE's own, as these suites' are."""
    return not metric_of(*metric).tasks_paired if suites is None else metric[0] in suites


def comparable(
    results: pd.DataFrame | Results,
    metrics: Collection[str] | None,
    measured_l0: MeasuredL0 | None,
) -> Results:
    """Validated results of these metrics, with these measured L0 if any are given."""
    table = Results.of(results).only(metrics=metrics)
    return table if measured_l0 is None else replace(table, measured_l0=dict(measured_l0))


def comparisons_of(
    results: pd.DataFrame | Results | Sequence[Comparison], **pairing: Unpack[Pairing]
) -> list[Comparison]:
    """`differences`, unless that is what is given."""
    if isinstance(results, pd.DataFrame | Results):
        return differences(results, **pairing)
    return list(results)


def _compare(match: Match, unpaired: bool, on_missing: str) -> Comparison:
    table, group = match.table, match.group
    sign = table.direction(match.metric)
    pair = Paired(*group, *match.metric, sign, match.other, table.constraints[match.other]).pair
    failure = _failure(match, unpaired)
    if failure is not None:
        if on_missing == "error":
            raise UserError(failure)
        empty = np.empty(0)
        return Comparison(
            **pair, seeds=(), trained=empty, other=empty, tasks=(), rows=(), failure=failure
        )
    excluded = {s: bar for s in match.values[0] if (bar := unmatched(match, s, s))}
    seeds = [seed for seed in match.values[0] if seed not in excluded]
    trained, other = (np.array([values[s] for s in seeds]) for values in match.values)
    tasks, caveats = _tasks(match, seeds, unpaired)
    cells, others = match.cells
    rows = [np.array([sign * (cells[s, t] - others[s, t]) for t in tasks[s]]) for s in tasks]
    if not tasks:
        rows = [np.array([sign * (a - b)]) for a, b in zip(trained, other, strict=True)]
    crossed = _same(tasks)
    if not crossed:
        caveats.append("seeds were scored on different tasks")
    absent = match.without_score(0)
    if absent:
        caveats.append(f"neither member has this metric for seed {absent}")
    return Comparison(
        **pair,
        seeds=tuple(seeds),
        trained=trained,
        other=other,
        tasks=tuple(sorted({task for names in tasks.values() for task in names})),
        rows=tuple(rows),
        crossed=crossed,
        excluded=tuple(Exclusion(seed, bar) for seed, bar in excluded.items()),
        unfit=unfit(match),
        step=step_of(match),
        rooms=rooms_of(match, unpaired, seeds),
        caveats=(*caveats, *remarks(match)),
    )


def _failure(match: Match, unpaired: bool) -> str | None:
    """Why the scores of one member do not have their partners, if they do not."""
    names = (match.tested, match.other)
    if not any(match.cells):
        return f"{match.where}: neither {names[0]} nor {names[1]} has a score"
    # Without partners, what must agree is which seeds have scores at all.
    wanted = [{(s, "") for s, _ in cells} if unpaired else set(cells) for cells in match.cells]
    for has, lacks in ((0, 1), (1, 0)):
        missing = wanted[has] - wanted[lacks]
        if missing:
            lost = f"{names[lacks]} has no score for {_shown(missing)}, {names[has]} has"
            return f"{match.where}: {lost}"
    for name, cells in zip(names, match.cells, strict=True):
        bad = [cell for cell, value in cells.items() if not math.isfinite(value)]
        if bad:
            return (
                f"{match.where}: {name} has no finite value for {_shown(bad)}; a score "
                "that failed is not one to leave out"
            )
        with_mean = {s for s, task in cells if not task}
        without = sorted({s for s, _ in cells} - with_mean)
        if with_mean and without:
            return (
                f"{match.where}: {name} has an aggregate for some seeds, but not for "
                f"seed {', '.join(map(str, without))}"
            )
    return None


def _tasks(
    match: Match, seeds: list[int], unpaired: bool
) -> tuple[dict[int, list[str]], list[str]]:
    """Tasks of each seed that are paired; none where they cannot or should not be."""
    tasks = {s: sorted(t for seed, t in match.cells[0] if seed == s and t) for s in seeds}
    if unpaired:
        return {}, ["its tasks are each SAE's own, so only seeds are paired"]
    if not any(tasks.values()):
        return {}, []
    every = [task for names in tasks.values() for task in names]
    if not _same(tasks) and len(set(every)) < len(every):
        # Tasks that only some seeds share are neither theirs alone nor common to all.
        return {}, ["seeds were scored on different tasks, so nothing is said of other tasks"]
    for cells, values in zip(match.cells, match.values, strict=True):
        for s in seeds:
            mean = float(np.mean([cells[s, t] for t in tasks[s]])) if tasks[s] else math.nan
            if not abs(mean - values[s]) <= _ROUNDING * max(1, abs(mean)):
                why = "the aggregate is not the mean over tasks"
                return {}, [f"{why}, so nothing is said of other tasks"]
    return tasks, []


def _same(tasks: Mapping[int, Sequence[str]]) -> bool:
    return len({tuple(names) for names in tasks.values()}) <= 1


def _shown(cells: Iterable[tuple[int, str]]) -> str:
    first = sorted(cells)
    shown = [f"seed {s}" + (f" task {t!r}" if t else "") for s, t in first[:_SHOWN]]
    more = f" and {len(first) - _SHOWN} more" if len(first) > _SHOWN else ""
    return ", ".join(shown) + more
