"""Where one published SAE falls among the seeds of every other member."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from sae_baselines.controls import PUBLISHED, is_null_for
from sae_baselines.errors import UserError
from sae_baselines.results import Cells, Group, Results, mean_of_seed
from sae_baselines.stats.decision import ALPHA
from sae_baselines.stats.differences import (
    L0_TOLERANCE,
    UNPAIRED_SUITES,
    MeasuredL0,
    l0_apart,
)
from sae_baselines.stats.intervals import Interval, spread
from sae_baselines.stats.one_value import Predicted, Ranked, predicted, ranked

NO_PLACEMENT = "no placement"
WITHIN = "within"


@dataclass(frozen=True)
class Placement:
    """One metric of the published SAE among the seeds of one other member.

    One training seed never "beats": the words are facts about the seeds that there are.
    "Above" means better, so a lower value where lower is better. Percentiles and intervals
    are about the other member's distribution over seeds. They say nothing of other seeds of
    the published SAE, whose own variation one seed does not show.

    Attributes:
        architecture: Base architecture.
        l0: Target L0.
        suite: Suite.
        metric: Metric.
        direction: +1 where higher is better, -1 where lower is.
        member: The other member.
        constraint: Its constraint, or which control it is.
        word: "above all n seeds", "below all n seeds" ("the one seed"), "within", or
            "no placement".
        reason: The word explained, in one sentence.
        value: Of the published SAE; NaN where there is none.
        null_mean: Mean over the other member's seeds.
        null_sd: Standard deviation over them; NaN with fewer than two.
        null_low: Least of them.
        null_high: Largest of them.
        n_seeds: How many.
        n_below: Seeds that the published SAE is better than.
        n_equal: Seeds that it equals.
        percentile: Mid-rank share of the seeds that it is better than, 0 to 1: ties count
            half. See `one_value.ranked`.
        percentile_interval: Clopper-Pearson interval for the share of the other member's
            distribution that lies below it.
        p_exchangeable: (1 + seeds at least as good) / (n + 1): no assumption but that the
            published SAE would be one more seed of the member.
        z: (value - mean) / sd, turned so that positive is better.
        p_prediction: One-sided p-value of "one more seed of the member" under normality: t
            with n - 1 degrees of freedom. Not corrected. See `one_value.predicted`.
        normal_percentile: Phi(z).
        normal_interval: Its exact interval, from the noncentral t distribution.
        published_l0: Measured L0 of the published SAE.
        member_l0: Mean measured L0 of the other member.
        alpha: One minus the level of the intervals.
        caveats: What a reader must know.
    """

    architecture: str
    l0: float
    suite: str
    metric: str
    direction: int
    member: str
    constraint: str
    word: str
    reason: str
    value: float
    null_mean: float
    null_sd: float
    null_low: float
    null_high: float
    n_seeds: int
    n_below: int | None
    n_equal: int | None
    percentile: float | None
    percentile_interval: Interval
    p_exchangeable: float | None
    z: float | None
    p_prediction: float | None
    normal_percentile: float | None
    normal_interval: Interval
    published_l0: float
    member_l0: float
    alpha: float
    caveats: tuple[str, ...]

    @property
    def placed(self) -> bool:
        """Whether there is a placement at all."""
        return self.word != NO_PLACEMENT

    @property
    def is_above(self) -> bool:
        """Better than every seed of the member."""
        return self.placed and self.n_below == self.n_seeds


def placements(
    results: pd.DataFrame | Results,
    *,
    tested: str = PUBLISHED,
    metrics: Collection[str] | None = None,
    measured_l0: MeasuredL0 | None = None,
    unpaired_suites: Collection[str] = UNPAIRED_SUITES,
    on_missing: Literal["error", "exclude"] = "error",
    alpha: float = ALPHA,
) -> list[Placement]:
    """Place the published SAE among the seeds of every member, on every metric.

    A value is the aggregate row where there is one, else the mean over tasks, as in
    `differences`. A control is used on the metrics that it is a null for.

    Args:
        results: Tidy rows, as `differences` takes them.
        tested: The member with one seed.
        metrics: Patterns ``suite/metric`` (fnmatch); default: all with a direction.
        measured_l0: See `differences`. A member of which any seed's L0 is more than 5 % from
            the tested one's gets "no placement".
        unpaired_suites: Suites whose tasks belong to one SAE each; elsewhere all values of a
            metric must be over the same tasks.
        on_missing: "error" raises where a score is missing or not a number; "exclude" gives
            "no placement", the reason saying why.
        alpha: One minus the level of the intervals.

    Returns:
        One per architecture and L0 that the tested member has, suite, metric and member, in
        that order.

    Raises:
        UserError: As `differences`; the tested member is not there or has several seeds.
    """
    table = Results.of(results)
    if metrics is not None:
        table = table.only(metrics=metrics)
    l0_of = table.measured_l0 if measured_l0 is None else dict(measured_l0)
    groups = [group for group in table.groups if tested in table.present(group)]
    if not groups:
        known = ", ".join(sorted(table.members))
        raise UserError(f"there is no member {tested!r} to place; there is {known}")
    found = []
    for group in groups:
        seeds = table.seeds(group, tested)
        if len(seeds) > 1:
            raise UserError(
                f"{tested} of {group[0]} at L0 {group[1]:g} has {len(seeds)} seeds; a "
                "placement is of one, several are compared by `verdicts`"
            )
        for metric in table.compared(group):
            for member in sorted(table.present(group)):
                if member == tested or not is_null_for(table.constraints[member], *metric):
                    continue
                one = _One(table, group, metric, tested, member, l0_of)
                placed = one.place(metric[0] in unpaired_suites, alpha)
                if on_missing == "error" and one.incomplete:
                    raise UserError(placed.reason)
                found.append(placed)
    return found


class _BarredError(Exception):
    """Why there is no placement."""


class _IncompleteError(_BarredError):
    """A score is missing or not a number."""


class _One:
    def __init__(
        self,
        table: Results,
        group: Group,
        metric: tuple[str, str],
        tested: str,
        member: str,
        l0_of: MeasuredL0,
    ) -> None:
        self.table, self.group, (self.suite, self.metric) = table, group, metric
        self.tested, self.member, self.l0_of = tested, member, l0_of
        self.cells = table.cells(group, metric, tested)
        self.others = table.cells(group, metric, member)
        self.incomplete = False

    def place(self, unpaired: bool, alpha: float) -> Placement:
        value = self._values(self.cells, math.nan)
        null = self._values(self.others)
        own_l0 = self._l0(self.tested)
        l0s = self._l0(self.member)
        try:
            self._complete(unpaired)
            self._matched(own_l0, l0s)
        except _BarredError as reason:
            self.incomplete = isinstance(reason, _IncompleteError)
            return self._placement(NO_PLACEMENT, str(reason), value, null, None, None, alpha)
        sign = self.table.direction((self.suite, self.metric))
        rank = ranked(sign * float(value[0]), sign * null, 1 - alpha)
        normal = predicted(sign * float(value[0]), sign * null, 1 - alpha)
        word = _word(rank)
        reason = _reason(rank)
        return self._placement(word, reason, value, null, rank, normal, alpha)

    def _placement(
        self,
        word: str,
        reason: str,
        value: np.ndarray,
        null: np.ndarray,
        rank: Ranked | None,
        normal: Predicted | None,
        alpha: float,
    ) -> Placement:
        n = len(null)
        # A score that failed leaves no mean of the others.
        whole = null if n and np.isfinite(null).all() else np.array([math.nan])
        none = Interval(math.nan, math.nan, 1 - alpha)
        sd = float(spread(whole)) if len(whole) > 1 else math.nan
        # Copies are no replicates: what counts seeds would count one seed n times.
        counts = rank is not None and sd != 0
        l0s = self._l0(self.member)
        return Placement(
            architecture=self.group[0],
            l0=self.group[1],
            suite=self.suite,
            metric=self.metric,
            direction=self.table.direction((self.suite, self.metric)),
            member=self.member,
            constraint=self.table.constraints[self.member],
            word=word,
            reason=reason,
            value=float(value[0]) if len(value) else math.nan,
            null_mean=float(whole.mean()),
            null_sd=sd,
            null_low=float(whole.min()),
            null_high=float(whole.max()),
            n_seeds=n,
            n_below=None if rank is None else rank.below,
            n_equal=None if rank is None else rank.equal,
            percentile=None if rank is None else rank.share,
            percentile_interval=rank.interval if rank is not None and counts else none,
            p_exchangeable=rank.p if rank is not None and counts else None,
            z=None if normal is None else normal.z,
            p_prediction=None if normal is None else normal.p,
            normal_percentile=None if normal is None else normal.percentile,
            normal_interval=none if normal is None else normal.interval,
            published_l0=next(iter(self._l0(self.tested).values()), math.nan),
            member_l0=float(np.mean(list(l0s.values()))) if l0s else math.nan,
            alpha=alpha,
            caveats=self._caveats(rank, sd),
        )

    def _values(self, cells: Cells, *default: float) -> np.ndarray:
        """By seed, ascending."""
        found = [mean_of_seed(cells, seed) for seed in sorted({s for s, _ in cells})]
        return np.array(found or default, dtype=float)

    def _l0(self, member: str) -> dict[int, float]:
        """By seed; NaN where it was not measured."""
        found = {}
        for seed in self.table.seeds(self.group, member):
            panel = self.table.panels[self.group, member, seed]
            found[seed] = self.l0_of.get((panel, member, seed), math.nan)
        return found

    def _complete(self, unpaired: bool) -> None:
        for member, cells in ((self.tested, self.cells), (self.member, self.others)):
            if not cells:
                raise _IncompleteError(f"{self._where()}: {member} has no score")
            bad = sorted({seed for (seed, _), value in cells.items() if not np.isfinite(value)})
            if bad:
                raise _IncompleteError(
                    f"{self._where()}: {self._of(member, bad)} is not a finite number; a score "
                    "that failed is not one to leave out"
                )
        missing = sorted(self._expected() - {seed for seed, _ in self.others})
        if missing:
            raise _IncompleteError(
                f"{self._where()}: {self.member} has no score for seed "
                f"{', '.join(map(str, missing))}, which others have"
            )
        by_seed = [
            {task for s, task in cells if s == seed and (not unpaired or not task)}
            for cells in (self.cells, self.others)
            for seed in sorted({s for s, _ in cells})
        ]
        if any(tasks != by_seed[0] for tasks in by_seed):
            raise _IncompleteError(
                f"{self._where()}: {self.tested} and the seeds of {self.member} were not "
                "scored on the same tasks"
            )

    def _expected(self) -> set[int]:
        """The member's seeds, less those at which nobody has the metric."""
        scored = {
            seed
            for member in self.table.present(self.group)
            for seed, _ in self.table.cells(self.group, (self.suite, self.metric), member)
        }
        return scored & set(self.table.seeds(self.group, self.member))

    def _matched(self, own: dict[int, float], others: dict[int, float]) -> None:
        scored = {seed for seed, _ in self.others}
        (mine,) = own.values()
        if not (math.isfinite(mine) and mine > 0):
            raise _BarredError(f"no measured L0 of {self.tested}")
        for seed in sorted(scored):
            theirs = others.get(seed, math.nan)
            if not (math.isfinite(theirs) and theirs > 0):
                raise _BarredError(f"no measured L0 of {self.member} at seed {seed}")
            apart = l0_apart(mine, theirs)
            if apart > L0_TOLERANCE:
                raise _BarredError(
                    f"L0 differs: {self.tested} {mine:.4g}, {self.member} {theirs:.4g} at seed "
                    f"{seed} ({apart:.1%} apart, at most {L0_TOLERANCE:.0%} allowed)"
                )

    def _caveats(self, rank: Ranked | None, sd: float) -> tuple[str, ...]:
        if rank is None:
            return ()
        found = []
        if rank.n == 1:
            found.append("one seed has no spread: no prediction p and no normal percentile")
        elif sd == 0:
            found.append(
                f"all {rank.n} seeds have the same value to the last digit: copies, not "
                "replicates, or a score with few values; no p and no interval"
            )
        elif rank.n == 2:
            found.append("two seeds: the spread rests on one degree of freedom")
        if rank.equal:
            found.append(
                f"equal to {rank.equal} of {rank.n} seeds, which count half in the share"
            )
        absent = set(self.table.seeds(self.group, self.member)) - {s for s, _ in self.others}
        if absent:
            named = ", ".join(map(str, sorted(absent)))
            found.append(f"no member has this metric for seed {named}")
        return tuple(found)

    def _of(self, member: str, seeds: Sequence[int]) -> str:
        if member == self.tested:
            return f"the value of {member}"
        return f"the value of {member} at seed {', '.join(map(str, seeds))}"

    def _where(self) -> str:
        return f"{self.suite}/{self.metric} of {self.group[0]} at L0 {self.group[1]:g}"


def _word(rank: Ranked) -> str:
    seeds = "the one seed" if rank.n == 1 else f"all {rank.n} seeds"
    if rank.below == rank.n:
        return f"above {seeds}"
    return f"below {seeds}" if rank.below + rank.equal == 0 else WITHIN


def _reason(rank: Ranked) -> str:
    worse = rank.n - rank.below - rank.equal
    parts = [f"better than {rank.below}"]
    if rank.equal:
        parts.append(f"equal to {rank.equal}")
    parts.append(f"worse than {worse}")
    return f"{', '.join(parts[:-1])} and {parts[-1]} of {rank.n} seed{'s'[: rank.n != 1]}"
