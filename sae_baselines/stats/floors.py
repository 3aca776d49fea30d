"""Whether a metric can tell anything of an SAE: its score above its floor, and room above that.

A floor is what a metric gives when there is nothing to find, measured on the same SAE, tasks
and seed (`Metric.floors`): latents drawn at random, permuted labels. Where the tested SAE is
not above each of its floors, or from the highest of them to the ceiling (`Metric.ceilings`) is
less than the margin, no comparison on this metric means anything: the word is `CANNOT_TELL`.

"Above" is a one-sided t test at alpha of score - floor, paired by seed; with one seed, by task,
where tasks of two SAEs are the same. Several floors need no correction: to be above all of them
is an intersection-union claim. The word only takes other words away, so that these stay as rare
where they are false as without it; families are corrected as if it had not been said.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sae_baselines.evals.registry import metric_of
from sae_baselines.results import Group, MetricKey, Results
from sae_baselines.stats.intervals import Interval, t_interval
from sae_baselines.stats.match import Match

CANNOT_TELL = "cannot tell"
# Of one SAE: fewer tasks give no test of being above a floor.
LEAST_TASKS = 8


@dataclass(frozen=True)
class Floor:
    """One null of a metric of the tested SAE.

    Attributes:
        metric: Its name in the results table.
        value: Mean over seeds.
        gaps: Score - floor, turned so that positive is better, ``[n_seeds]``, or of one seed
            ``[n_tasks]``.
        over: "seeds" or "tasks".
    """

    metric: str
    value: float
    gaps: np.ndarray
    over: str

    @property
    def title(self) -> str:
        """What is null about it."""
        return null_of(self.metric)


@dataclass(frozen=True)
class Room:
    """Between which values the tested SAE's score can lie.

    Attributes:
        tested: The member.
        score: Its mean over seeds.
        direction: +1 where higher is better, -1 where lower is.
        floors: Its nulls that were measured.
        ceiling: The best of its ceilings, mean over seeds; NaN where none was measured.
    """

    tested: str
    score: float
    direction: int
    floors: tuple[Floor, ...] = ()
    ceiling: float = math.nan

    @property
    def highest(self) -> Floor | None:
        """The floor that is hardest to be above."""
        turned = [(self.direction * floor.value, floor) for floor in self.floors]
        return max(turned, key=lambda pair: pair[0])[1] if turned else None

    @property
    def span(self) -> float:
        """From the highest floor to the ceiling; a score beyond the ceiling shows more room."""
        if self.highest is None or math.isnan(self.ceiling):
            return math.nan
        top = max(self.direction * self.ceiling, self.direction * self.score)
        return top - self.direction * self.highest.value

    @property
    def share(self) -> float:
        """(score - floor) / (ceiling - floor); NaN where one is unknown or none is above."""
        if self.highest is None:
            return math.nan
        whole = self.direction * (self.ceiling - self.highest.value)
        gained = self.direction * (self.score - self.highest.value)
        return gained / whole if whole > 0 else math.nan

    def unseen(self, margin: float | None, alpha: float) -> str | None:
        """Why nothing can be told, if nothing can.

        Args:
            margin: The metric's equivalence margin.
            alpha: Of the one-sided test of being above a floor.
        """
        for floor in self.floors:
            interval = above(floor, alpha)
            # Without a test: what is not even higher is not above.
            apart = self.direction * (self.score - floor.value)
            if (apart if interval is None else interval.low) > 0:
                continue
            why = (
                f"{self.tested} is not above its floor ({floor.title}): {self.score:.4g} and "
                f"{floor.value:.4g}, apart by {apart:+.3g}"
            )
            if interval is None:
                return why
            return (
                f"{why}, {interval.level:.0%} interval [{interval.low:+.3g}, "
                f"{interval.high:+.3g}] over {len(floor.gaps)} {floor.over}"
            )
        if margin is not None and self.highest is not None and self.span < margin:
            return (
                f"from its floor ({self.highest.title}, {self.highest.value:.4g}) to its "
                f"ceiling ({self.ceiling:.4g}) is {self.span:.3g}, less than the margin of "
                f"{margin:g}"
            )
        return None


def null_of(metric: str) -> str:
    """What is null about a floor, from its name."""
    return metric.partition("_null_")[2].replace("_", " ") or metric


def above(floor: Floor, alpha: float) -> Interval | None:
    """Of score - floor; its lower end is that of the one-sided test.

    None from one seed, and from fewer than `LEAST_TASKS` tasks: how much harder one task is
    than another counts as noise there, and of a few it alone would decide.
    """
    least = LEAST_TASKS if floor.over == "tasks" else 2
    return t_interval(floor.gaps, 1 - 2 * alpha) if len(floor.gaps) >= least else None


def cannot_tell(rooms: Iterable[Room], margin: float | None, alpha: float) -> str | None:
    """Why a comparison means nothing, if so: `Room.unseen` of one of its `rooms_of`."""
    return next((why for room in rooms if (why := room.unseen(margin, alpha))), None)


def rooms_of(
    match: Match, unpaired: bool, seeds: Sequence[int] | None = None
) -> tuple[Room, ...]:
    """The rooms that a comparison needs: the tested member's.

    And the other's, on a metric that random SAEs are good at for nothing: there a baseline that
    is at its own floor wins by having nothing to be measured (absorption).
    """
    tested = room_of(match, unpaired, seeds)
    if "random" not in metric_of(*match.metric).favours:
        return (tested,)
    turned = Match(match.table, match.group, match.metric, match.other, match.tested)
    return tested, room_of(turned, unpaired, seeds)


def room_of_member(table: Results, group: Group, metric: MetricKey, member: str) -> Room:
    """The room of any member, over all of its seeds."""
    match = Match(table, group, metric, member, member)
    return room_of(match, unpaired=True)


def room_of(match: Match, unpaired: bool, seeds: Sequence[int] | None = None) -> Room:
    """The room of the tested member of a pair.

    Args:
        match: The pair, on a metric.
        unpaired: Whether tasks are each SAE's own.
        seeds: Those compared; all of the member's if not given.
    """
    table, group, (suite, _) = match.table, match.group, match.metric
    known, sign = metric_of(*match.metric), table.direction(match.metric)
    values = match.values[0]
    compared = values if seeds is None else seeds
    scores = {s: values[s] for s in compared if math.isfinite(values[s])}
    floors = []
    for name in known.floors:
        by_seed = table.aggregates((suite, name), group, match.tested)
        # A floor that some seeds lack is none: a mean over others would stand beside the score.
        if not scores or not all(math.isfinite(by_seed.get(s, math.nan)) for s in scores):
            continue
        gaps, over = np.array([sign * (scores[s] - by_seed[s]) for s in scores]), "seeds"
        if len(scores) == 1 and known.tasks_paired and not unpaired:
            (seed,) = scores
            tasks = table.of_tasks((suite, name), group, match.tested, seed)
            own = {t: v for (s, t), v in match.cells[0].items() if s == seed and t in tasks}
            if len(own) > 1:
                gaps = np.array([sign * (v - tasks[t]) for t, v in sorted(own.items())])
                over = "tasks"
        floors.append(Floor(name, float(np.mean([by_seed[s] for s in scores])), gaps, over))
    tops = [table.aggregates((suite, name), group, match.tested) for name in known.ceilings]
    means = [np.mean(list(top.values())) for top in tops if top]
    return Room(
        tested=match.tested,
        score=float(np.mean(list(scores.values()))) if scores else math.nan,
        direction=sign,
        floors=tuple(floors),
        ceiling=float(sign * max(sign * mean for mean in means)) if means else math.nan,
    )
