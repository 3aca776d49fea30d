"""Where one published SAE falls among the seeds of every other member."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from sae_baselines.controls import PUBLISHED
from sae_baselines.errors import UserError
from sae_baselines.evals.metrics import Margin
from sae_baselines.evals.registry import is_null_for, margin_for
from sae_baselines.results import Results
from sae_baselines.stats.decision import ALPHA
from sae_baselines.stats.differences import (
    MeasuredL0,
    OnMetric,
    comparable,
    is_unpaired,
)
from sae_baselines.stats.fitness import collapses, judges, not_two, remarks, trained_elsewhere
from sae_baselines.stats.floors import CANNOT_TELL, cannot_tell, rooms_of
from sae_baselines.stats.intervals import Interval, spread
from sae_baselines.stats.match import Bar, Match
from sae_baselines.stats.matched import failures, unmatched
from sae_baselines.stats.method import METHOD
from sae_baselines.stats.one_value import Ranked, predicted, ranked
from sae_baselines.stats.rounding import FINE, is_coarse, moved, step_of

NO_PLACEMENT = "no placement"
WITHIN = "within"


@dataclass(frozen=True)
class Placement(OnMetric):
    """One metric (`OnMetric`) of the published SAE among the seeds of one other member.

    One training seed never "beats": the words are facts about the seeds that there are.
    "Above" means better, so a lower value where lower is better. Percentiles and intervals
    are about the other member's distribution over seeds. They say nothing of other seeds of
    the published SAE, whose own variation one seed does not show.

    Attributes:
        direction: +1 where higher is better, -1 where lower is.
        member: The other member.
        constraint: Its constraint, or which control it is.
        word: "above all n seeds", "below all n seeds" ("the one seed"), "within";
            "cannot tell" where the published SAE is not above its floor over tasks, or there
            is no room above that (`stats.floors`); or "no placement".
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
        return self.word not in (NO_PLACEMENT, CANNOT_TELL)

    @property
    def is_above(self) -> bool:
        """Better than every seed of the member."""
        return self.placed and self.n_below == self.n_seeds

    @property
    def is_below(self) -> bool:
        """Worse than every seed of the member."""
        return self.placed and not self.n_below and not self.n_equal


def placements(
    results: pd.DataFrame | Results,
    *,
    tested: str = PUBLISHED,
    metrics: Collection[str] | None = None,
    measured_l0: MeasuredL0 | None = None,
    unpaired_suites: Collection[str] | None = None,
    on_missing: Literal["error", "exclude"] = "error",
    alpha: float = ALPHA,
    margins: Mapping[str, float | Margin] | None = None,
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
        unpaired_suites: See `differences`; elsewhere all values of a metric must be over the
            same tasks.
        on_missing: "error" raises where a score is missing or not a number; "exclude" gives
            "no placement", the reason saying why.
        alpha: One minus the level of the intervals.
        margins: Margins in place of the defaults, for the room that a metric must have.

    Returns:
        One per architecture and L0 that the tested member has, suite, metric and member, in
        that order.

    Raises:
        UserError: As `differences`; the tested member is not there or has several seeds.
    """
    table = comparable(results, metrics, measured_l0)
    groups = [group for group in table.groups if tested in table.present(group)]
    if not groups:
        known = ", ".join(sorted(table.members))
        raise UserError(f"there is no member {tested!r} to place; there is {known}")
    placed = []
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
                match = Match(table, group, metric, tested, member)
                unpaired = is_unpaired(metric, unpaired_suites)
                failure = _failure(match, unpaired)
                if on_missing == "error" and failure is not None:
                    raise UserError(failure)
                own = [*not_two(match), *trained_elsewhere(match), *judges(match)]
                barred = failure or _joined(own) or _unmatched(match)
                unseen = None
                if barred is None:
                    margin = margin_for(*metric, margins)
                    rooms = rooms_of(match, unpaired)
                    unseen = cannot_tell(rooms, margin and margin.value, alpha)
                placed.append(_place(match, barred, unseen, alpha))
    return placed


def _place(match: Match, barred: str | None, unseen: str | None, alpha: float) -> Placement:
    table, group, member = match.table, match.group, match.other
    sign = table.direction(match.metric)
    value = next(iter(match.values[0].values()), math.nan)
    null = np.array(list(match.values[1].values()))
    rank = normal = None
    step = step_of(match)
    # Placed even where the metric cannot tell: which metrics are corrected together must not
    # hang on the published SAE's score.
    if barred is None:
        rank = ranked(sign * value, sign * null, 1 - alpha, step)
        drawn, at = sign * null, sign * value
        if is_coarse(drawn, step):
            apart = at - float(drawn.mean())
            at -= math.copysign(min(step, abs(apart)), apart)
            drawn = moved(drawn, 0.0, step)
        normal = predicted(at, drawn, 1 - alpha)
    # A score that failed leaves no mean of the others.
    whole = null if len(null) and np.isfinite(null).all() else np.array([math.nan])
    sd = float(spread(whole)) if len(whole) > 1 else math.nan
    none = Interval(math.nan, math.nan, 1 - alpha)
    # Copies are no replicates: what counts seeds would count one seed n times.
    counted = rank if sd != 0 or step else None
    return Placement(
        *group,
        *match.metric,
        direction=sign,
        member=member,
        constraint=table.constraints[member],
        word=CANNOT_TELL if unseen else _word(rank) if rank else NO_PLACEMENT,
        reason=barred or unseen or (_reason(rank) if rank else ""),
        value=value,
        null_mean=float(whole.mean()),
        null_sd=sd,
        null_low=float(whole.min()),
        null_high=float(whole.max()),
        n_seeds=len(null),
        n_below=rank and rank.below,
        n_equal=rank and rank.equal,
        percentile=rank and rank.share,
        percentile_interval=counted.interval if counted else none,
        p_exchangeable=counted and counted.p,
        z=normal and normal.z,
        p_prediction=normal and normal.p,
        normal_percentile=normal and normal.percentile,
        normal_interval=normal.interval if normal else none,
        published_l0=table.l0(group, match.tested),
        member_l0=table.l0(group, member),
        alpha=alpha,
        caveats=() if rank is None else tuple(_caveats(match, rank, sd, step)),
    )


def _failure(match: Match, unpaired: bool) -> str | None:
    """Why scores are missing or are no numbers, if that is so."""
    for which, cells in enumerate(match.cells):
        name = (match.tested, match.other)[which]
        if not cells:
            return f"{match.where}: {name} has no score"
        bad = sorted({seed for (seed, _), value in cells.items() if not np.isfinite(value)})
        if bad:
            at = f" at seed {', '.join(map(str, bad))}" if which else ""
            return (
                f"{match.where}: the value of {name}{at} is not a finite number; a score "
                "that failed is not one to leave out"
            )
    # Its seeds, less those at which nobody has the metric.
    scored = {
        seed
        for member in match.table.present(match.group)
        for seed in match.table.values(match.group, match.metric, member)
    }
    expected = scored & set(match.table.seeds(match.group, match.other))
    missing = sorted(expected - set(match.values[1]))
    if missing:
        return (
            f"{match.where}: {match.other} has no score for seed "
            f"{', '.join(map(str, missing))}, which others have"
        )
    by_seed = [
        {task for s, task in cells if s == seed and (not unpaired or not task)}
        for cells, values in zip(match.cells, match.values, strict=True)
        for seed in values
    ]
    if any(tasks != by_seed[0] for tasks in by_seed):
        return (
            f"{match.where}: {match.tested} and the seeds of {match.other} were not "
            "scored on the same tasks"
        )
    return None


def _unmatched(match: Match) -> str | None:
    """Why L0 or a failed run forbids a placement, if one does."""
    (own,) = match.table.seeds(match.group, match.tested)
    bars = filter(None, (unmatched(match, own, seed) for seed in match.values[1]))
    return _joined(next(([bar] for bar in bars), failures(match)))


def _joined(bars: Iterable[Bar]) -> str | None:
    return "; ".join(bar.reason for bar in bars) or None


def _caveats(match: Match, rank: Ranked, sd: float, step: float) -> list[str]:
    caveats = [*(bar.reason for bar in collapses(match)), *remarks(match)]
    if rank.n == 1:
        caveats.append("one seed has no spread: no prediction p and no normal percentile")
    elif step and sd < FINE * step:
        caveats.append(
            f"scores come in steps of {step:.2g} (means in half precision), which is about the "
            "spread of the seeds: values one step apart tie, and p allows for a step"
        )
    elif sd == 0:
        caveats.append(
            f"all {rank.n} seeds have the same value to the last digit: copies, not "
            "replicates, or a score with few values; no p and no interval"
        )
    elif rank.n == 2:
        caveats.append(METHOD.two_seeds)
    if rank.equal:
        caveats.append(
            f"equal to {rank.equal} of {rank.n} seeds, which count half in the share"
        )
    absent = match.without_score(1)
    if absent:
        caveats.append(f"no member has this metric for seed {absent}")
    return caveats


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
