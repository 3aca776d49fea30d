"""A published SAE in a study's table: its rows, its placements, its figures."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sae_baselines.controls import PUBLISHED, is_random
from sae_baselines.report.document import Figure
from sae_baselines.report.names import key
from sae_baselines.results.tidy import Group, MetricKey, Tidy
from sae_baselines.stats import (
    PlacedAgainstRandom,
    Placement,
    placed_against_random,
    placements,
)


@dataclass(frozen=True)
class Checked:
    """A published SAE in a study.

    Attributes:
        table: All rows, its own among them.
        others: All rows but its own.
        groups: Architecture and L0 that it is placed at: one.
        placements: Where it falls.
        placed: The same against all random members.
    """

    table: Tidy
    others: Tidy
    groups: tuple[Group, ...]
    placements: tuple[Placement, ...]
    placed: tuple[PlacedAgainstRandom, ...]


def for_pairing(table: Tidy) -> Tidy:
    """The rows that seeds are paired over, in a study around a published SAE.

    Without its own rows, which have no seed to pair, and without its permuted controls: they
    are that SAE with something broken, which says nothing of an SAE trained here.
    """
    others = _others(table)
    return others.only(members=[m for m in others.members if is_random(others.constraints[m])])


def place(table: Tidy, metrics: Sequence[MetricKey]) -> Checked:
    """Where it falls, in the order of metrics and members.

    Args:
        table: All rows.
        metrics: Suites and metrics to place it on.
    """
    found: list[Placement] = []
    if metrics:
        names = [key(*metric) for metric in metrics]
        found = placements(table, metrics=names, on_missing="exclude")
    rank = {metric: i for i, metric in enumerate(metrics)}
    order = {member: i for i, member in enumerate(table.members)}
    found.sort(key=lambda p: (p.architecture, p.l0, rank[p.suite, p.metric], order[p.member]))
    return Checked(
        table=table,
        others=_others(table),
        groups=tuple(g for g in table.groups if PUBLISHED in table.present(g)),
        placements=tuple(found),
        placed=tuple(placed_against_random(found)),
    )


def strips(checked: Checked, metrics: Sequence[MetricKey]) -> list[Figure]:
    """A figure per metric that it has a score on; to be called inside `style.drawing`."""
    from sae_baselines.report import plots  # noqa: PLC0415

    out = []
    for group in checked.groups:
        left_out: dict[MetricKey, list[str]] = defaultdict(list)
        for p in checked.placements:
            if (p.architecture, p.l0) == group and not p.placed:
                left_out[p.suite, p.metric].append(p.member)
        values = {m: value(checked.table, group, m) for m in metrics}
        out += plots.placed_figures(checked.others, group, values, left_out)
    return out


def value(table: Tidy, group: Group, metric: MetricKey) -> float:
    """The published SAE's score; NaN where there is none."""
    return next(iter(table.values(group, metric, PUBLISHED).values()), math.nan)


def _others(table: Tidy) -> Tidy:
    return table.only(members=[m for m, c in table.constraints.items() if c != PUBLISHED])
