"""Two members on one metric, as they stand in results."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from sae_baselines.results import PANEL_SUITE, Group, MetricKey, Results

BarKind = Literal[
    "one SAE",
    "cap never bound",
    "copies",
    "collapsed seed",
    "failed run",
    "L0 in training",
    "judge untested",
    "L0 apart",
    "L0 unknown",
    "L0 unmeasured",
    "rounded",
]


class Bar(NamedTuple):
    """Why nothing may be said of a pair.

    Attributes:
        kind: Which rule.
        reason: What it found, in words.
    """

    kind: BarKind
    reason: str


@dataclass(frozen=True)
class Match:
    """The tested member and another one on one metric."""

    table: Results
    group: Group
    metric: MetricKey
    tested: str
    other: str

    @property
    def where(self) -> str:
        return f"{'/'.join(self.metric)} of {named(self.group)}"

    @cached_property
    def cells(self) -> tuple[dict[tuple[int, str], float], ...]:
        """By (seed, task), of either."""
        return tuple(
            self.table.cells(self.group, self.metric, m) for m in (self.tested, self.other)
        )

    @cached_property
    def values(self) -> tuple[dict[int, float], ...]:
        """By seed, ascending, of either."""
        members = (self.tested, self.other)
        by_seed = (self.table.values(self.group, self.metric, member) for member in members)
        return tuple(dict(sorted(values.items())) for values in by_seed)

    def l0(self, member: str, seed: int, suite: str = PANEL_SUITE) -> float | None:
        """L0 on the tokens of a suite, where it was measured and is one."""
        table = self.table
        l0s = table.measured_l0 if suite == PANEL_SUITE else table.suite_l0.get(suite, {})
        l0 = l0s.get((table.panels[self.group, member, seed], member, seed), math.nan)
        return l0 if 0 < l0 < math.inf else None

    def without_score(self, which: int) -> str:
        """Seeds of the tested member (0) or the other (1) without this metric, as text."""
        seeds = self.table.seeds(self.group, (self.tested, self.other)[which])
        return ", ".join(str(seed) for seed in seeds if seed not in self.values[which])


def named(group: Group) -> str:
    return f"{group[0]} at L0 {group[1]:g}"
