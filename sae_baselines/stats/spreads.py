"""What a study will be able to show, from how far seeds spread in earlier ones."""

import csv
import fnmatch
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from sae_baselines.controls import TRAINED, is_random
from sae_baselines.evals.metrics import Margin
from sae_baselines.evals.registry import margin_for
from sae_baselines.results import Results
from sae_baselines.stats.decision import ALPHA
from sae_baselines.stats.differences import differences
from sae_baselines.stats.intervals import spread
from sae_baselines.stats.power import (
    power_to_differ,
    power_to_match,
    seeds_to_differ,
    seeds_to_match,
    smallest_difference,
)
from sae_baselines.stats.rounding import is_coarse

KNOWN = Path(__file__).with_name("spreads.csv")
# Upper limit of a standard deviation, for planning: the true one is below it in 80 %
# (Browne, Statistics in Medicine 14, 1995).
CAUTIOUS = 0.8


@dataclass(frozen=True)
class Spread:
    """How far one metric's paired differences spread over the seeds of one study.

    Attributes:
        source: The study.
        model: Language model, or what stands for it.
        hook: Where activations were taken.
        tokens: Training tokens, or samples, of a member.
        architecture: Base architecture.
        l0: Target L0.
        suite: Suite.
        metric: Metric.
        baseline: Member that the trained SAE was paired with.
        constraint: Its constraint, or which control it is.
        tasks: Paired tasks that a score is the mean of; 0 for an aggregate alone. The fewer,
            the wider.
        seeds: Seeds.
        mean: Mean difference, positive where trained is better.
        sd: Standard deviation of the difference over seeds.
    """

    source: str
    model: str
    hook: str
    tokens: int
    architecture: str
    l0: float
    suite: str
    metric: str
    baseline: str
    constraint: str
    tasks: int
    seeds: int
    mean: float
    sd: float


def spreads_of(
    results: pd.DataFrame | Results, *, source: str, model: str, hook: str, tokens: int
) -> list[Spread]:
    """The spreads in a study's results.

    Left out is what has none to speak of: fewer than two seeds, no spread, one that rounding
    makes, and pairs that must not be compared (`stats.differences`).

    Raises:
        UserError: As `differences`.
    """
    table = Results.of(results)
    kinds = table.constraints
    paired = [m for m in table.members if kinds[m] == TRAINED or is_random(kinds[m])]
    found = []
    for c in differences(table.only(members=paired), on_missing="exclude"):
        d = c.differences
        if c.barred or len(d) < 2 or is_coarse(d, c.step) or not spread(d) > 0:
            continue
        found.append(
            Spread(
                *(source, model, hook, tokens, c.architecture, c.l0, c.suite, c.metric),
                *(c.baseline, c.constraint, len(c.tasks), len(d)),
                *(float(d.mean()), float(spread(d))),
            )
        )
    return found


def write_spreads(spreads: Iterable[Spread], path: Path) -> None:
    """Write a table that `read_spreads` reads."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, [f.name for f in fields(Spread)], lineterminator="\n")
        table.writeheader()
        for each in spreads:
            numbers = {"mean": f"{each.mean:.5g}", "sd": f"{each.sd:.5g}", "l0": f"{each.l0:g}"}
            table.writerow({**asdict(each), **numbers})


@lru_cache
def read_spreads(path: Path = KNOWN) -> tuple[Spread, ...]:
    """A table of spreads; default: those of this package's own studies."""
    number: dict[Any, type] = {int: int, float: float}
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(
            Spread(**{f.name: number.get(f.type, str)(row[f.name]) for f in fields(Spread)})
            for row in csv.DictReader(file)
        )


@dataclass(frozen=True)
class Planned:
    """One metric of a study that is not there yet, beside the baseline that varies most.

    Attributes:
        suite: Suite.
        metric: Metric.
        margin: Margin of equivalence, and the difference that is to be shown; None without.
        baseline: Constraint or control of the baseline whose difference spreads most.
        sd: Standard deviation of a difference over seeds, pooled over studies.
        df: Its degrees of freedom.
        alpha: Level of one test: of Holm's first step.
        sources: Where the spread was measured.
    """

    suite: str
    metric: str
    margin: Margin | None
    baseline: str
    sd: float
    df: int
    alpha: float
    sources: tuple[str, ...]

    @property
    def name(self) -> str:
        """``suite/metric``."""
        return f"{self.suite}/{self.metric}"

    @property
    def cautious(self) -> float:
        """Upper 80 % limit of the standard deviation."""
        return self.sd * math.sqrt(self.df / float(stats.chi2.ppf(1 - CAUTIOUS, self.df)))

    def smallest(self, seeds: int) -> float:
        """Smallest difference that so many seeds show with 80 % power."""
        return smallest_difference(self.sd, seeds, alpha=self.alpha)

    def to_differ(self, cautious: bool = False) -> int | None:
        """Seeds that show a difference of the margin; None if more than are counted."""
        if self.margin is None:
            return None
        sd = self.cautious if cautious else self.sd
        return seeds_to_differ(self.margin.value, sd, alpha=self.alpha)

    def to_match(self, cautious: bool = False) -> int | None:
        """Seeds that show equivalence within the margin where there is no difference."""
        if self.margin is None:
            return None
        sd = self.cautious if cautious else self.sd
        return seeds_to_match(0.0, sd, self.margin.value, alpha=self.alpha)

    def powers(self, seeds: int) -> tuple[float, float]:
        """Chance to show a difference of the margin, and equivalence where there is none."""
        if self.margin is None:
            return math.nan, math.nan
        margin = self.margin.value
        return (
            power_to_differ(margin, self.sd, seeds, alpha=self.alpha),
            power_to_match(self.sd, margin, seeds, alpha=self.alpha),
        )


@dataclass(frozen=True)
class Plan:
    """What a study's seeds can and cannot show.

    Attributes:
        seeds: Seeds that it has.
        planned: Metrics whose spread is known.
        unknown: Metrics that no study at hand has measured.
        n_metrics: Metrics that words are for.
        n_tests: Tests that are corrected for together.
    """

    seeds: int
    planned: tuple[Planned, ...]
    unknown: tuple[str, ...]
    n_metrics: int
    n_tests: int

    @property
    def sources(self) -> tuple[str, ...]:
        """Studies that the spreads are of."""
        return tuple(dict.fromkeys(s for p in self.planned for s in p.sources))


def planned(
    spreads: Sequence[Spread],
    metrics: Sequence[str],
    *,
    seeds: int,
    constraints: Collection[str] = (),
    architectures: Collection[str] = (),
    margins: Mapping[str, float | Margin] | None = None,
    families: int = 1,
    alpha: float = ALPHA,
) -> Plan:
    """What so many seeds can show, a metric at a time.

    Spreads of the study's own constraints and architectures are taken where there are any, else
    all. Those of one constraint are pooled over studies, weighted by degrees of freedom; of
    several constraints the widest counts, since beating random means beating all.

    Args:
        spreads: Of earlier studies.
        metrics: Patterns ``suite/metric`` of the verdicts.
        seeds: Seeds of the study.
        constraints: Of its baselines and controls.
        architectures: Its base architectures.
        margins: In place of the defaults; see `margin_for`.
        families: Of one baseline, architecture and L0 each, that are corrected together: all of
            the study's under ``correct: study``.
        alpha: Chance of a false word in them.
    """
    by_metric: dict[tuple[str, str], list[Spread]] = defaultdict(list)
    unknown = []
    for pattern in metrics:
        hits = [s for s in spreads if fnmatch.fnmatchcase(f"{s.suite}/{s.metric}", pattern)]
        for s in hits:
            if s not in by_metric[s.suite, s.metric]:
                by_metric[s.suite, s.metric].append(s)
        if not hits:
            unknown.append(pattern)
    n_metrics = len(by_metric) + len(unknown)
    found = []
    for (suite, metric), rows in by_metric.items():
        rows = [s for s in rows if s.architecture in architectures] or rows
        rows = [s for s in rows if s.constraint in constraints] or rows
        by_constraint: dict[str, list[Spread]] = defaultdict(list)
        for s in rows:
            by_constraint[s.constraint].append(s)
        sd, widest = max((_pooled(of), name) for name, of in by_constraint.items())
        of = by_constraint[widest]
        margin, df = margin_for(suite, metric, margins), sum(s.seeds - 1 for s in of)
        sources = tuple(dict.fromkeys(s.source for s in of))
        level = alpha / (n_metrics * families)
        found.append(Planned(suite, metric, margin, widest, sd, df, level, sources))
    return Plan(seeds, tuple(found), tuple(unknown), n_metrics, n_metrics * families)


def _pooled(spreads: Sequence[Spread]) -> float:
    squares = sum((s.seeds - 1) * s.sd**2 for s in spreads)
    return math.sqrt(squares / sum(s.seeds - 1 for s in spreads))
