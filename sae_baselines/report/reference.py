"""A reference in a study's table: its rows, where it falls, what is said of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_baselines.controls import PUBLISHED, TRAINED, is_random, question_of
from sae_baselines.report.caveats import DEAD_SHARE, Caveat, caveat
from sae_baselines.report.context import ReportContext
from sae_baselines.report.markdown import Figure, code, grouped, render, words
from sae_baselines.report.names import key, title
from sae_baselines.report.numbers import MISSING, number
from sae_baselines.results import Group, MetricKey, Results
from sae_baselines.stats import (
    CANNOT_TELL,
    PlacedAgainstRandom,
    Placement,
    placed_against_random,
    placements,
)
from sae_baselines.stats.placement import NO_PLACEMENT, WITHIN


@dataclass(frozen=True)
class Reference:
    """A published SAE among the members that were made around it.

    Attributes:
        table: All rows, its own among them.
        others: All rows but its own.
        groups: Architecture and L0 that it is placed at: one.
        placements: Where it falls.
        placed: The same against all random members.
        nearly_free: And against all that are trained within a cap.
    """

    table: Results
    others: Results
    groups: tuple[Group, ...]
    placements: tuple[Placement, ...]
    placed: tuple[PlacedAgainstRandom, ...]
    nearly_free: tuple[PlacedAgainstRandom, ...]

    @property
    def n_seeds(self) -> int:
        """Training seeds of the others."""
        return len({s for g in self.groups for s in self.others.seeds(g)})

    def value(self, group: Group, metric: MetricKey) -> float:
        """Its own score; NaN where there is none."""
        return next(iter(self.table.values(group, metric, PUBLISHED).values()), math.nan)


def for_pairing(table: Results) -> Results:
    """The rows that seeds are paired over, in a study around a published SAE.

    Without its own rows, which have no seed to pair, and without its permuted controls: they
    are that SAE with something broken, which says nothing of an SAE trained here.
    """
    others = _others(table)
    return others.only(members=[m for m in others.members if is_random(others.constraints[m])])


def place(table: Results, metrics: Sequence[MetricKey], context: ReportContext) -> Reference:
    """Where it falls, in the order of metrics and members.

    Args:
        table: All rows.
        metrics: Suites and metrics to place it on.
        context: Margins, and what is corrected together.
    """
    found: list[Placement] = []
    if metrics:
        names = [key(*metric) for metric in metrics]
        found = placements(table, metrics=names, on_missing="exclude", margins=context.margins)
    rank = {metric: i for i, metric in enumerate(metrics)}
    order = {member: i for i, member in enumerate(table.members)}
    found.sort(key=lambda p: (p.architecture, p.l0, rank[p.suite, p.metric], order[p.member]))
    return Reference(
        table=table,
        others=_others(table),
        groups=tuple(g for g in table.groups if PUBLISHED in table.present(g)),
        placements=tuple(found),
        placed=tuple(placed_against_random(found, "random", context.correct)),
        nearly_free=tuple(placed_against_random(found, "nearly free", context.correct)),
    )


def strips(reference: Reference, metrics: Sequence[MetricKey]) -> list[Figure]:
    """A figure per metric that it has a score on; to be called inside `style.drawing`."""
    from sae_baselines.report import plots  # noqa: PLC0415

    out = []
    for group in reference.groups:
        here = [p for p in reference.placements if (p.architecture, p.l0) == group]
        left_out = grouped([p for p in here if not p.placed], lambda p: (p.suite, p.metric))
        values = {m: reference.value(group, m) for m in metrics}
        names = {metric: [p.member for p in some] for metric, some in left_out.items()}
        out += plots.placed_figures(reference.others, group, values, names)
    return out


def not_in_strips(reference: Reference, metrics: Sequence[MetricKey]) -> list[MetricKey]:
    """A strip with the published SAE shows all that one without it would."""
    if len(reference.others.groups) > 1:
        return list(metrics)
    return [
        metric
        for metric in metrics
        if not any(math.isfinite(reference.value(g, metric)) for g in reference.groups)
    ]


def unplaced(items: Sequence[Placement]) -> list[Caveat]:
    """What could not be placed, a caveat per reason."""
    names = tuple(f"{item.suite}/{item.metric} " for item in items)
    barred = [item for item in items if item.word == NO_PLACEMENT]
    found = grouped(barred, lambda item: item.reason)
    return [
        caveat(
            "no placement",
            reason=reason,
            # The reason may name its metric.
            titles=[]
            if reason.startswith(names)
            else [title(item.suite, item.metric) for item in some],
        )
        for reason, some in found.items()
    ]


def lede(reference: Reference, context: ReportContext) -> str:
    """What was checked, in a sentence or two."""
    table = reference.others
    others = [m for m in table.members if any(m in table.present(g) for g in reference.groups)]
    of = {m: question_of(table.constraints[m]) for m in others if m != TRAINED}
    return words(
        "ledes.md.j2",
        "of_published",
        context=context,
        source=context.published.get("source", PUBLISHED),
        groups=reference.groups,
        seeds=reference.n_seeds,
        random=[m for m, question in of.items() if question == "random"],
        nearly_free=[m for m, question in of.items() if question == "nearly free"],
        own=[m for m in others if m == TRAINED],
        broken=[m for m, question in of.items() if question is None],
    )


def section(
    reference: Reference,
    context: ReportContext,
    drawn: Sequence[Figure],
    held_out: Mapping[tuple[Group, str], float],
) -> str:
    """The section, answer first."""
    return render(
        "reference.md.j2",
        context=context,
        table=reference.table,
        others=reference.others,
        groups=reference.groups,
        placements=reference.placements,
        answers=(*reference.placed, *reference.nearly_free),
        own=[p for p in reference.placements if p.constraint == TRAINED],
        facts=_facts(reference, context),
        most_seeds=max((p.n_seeds for p in reference.placements if p.placed), default=0),
        drawn=drawn,
        held_out={
            key: held_out[key]
            for key in sorted(held_out, key=lambda key: key[1] != PUBLISHED)
            if key[0] in reference.groups
        },
        dead=held_out.get((reference.groups[0], PUBLISHED), math.nan),
        DEAD_SHARE=DEAD_SHARE,
        PUBLISHED=PUBLISHED,
        WITHIN=WITHIN,
        NO_PLACEMENT=NO_PLACEMENT,
        CANNOT_TELL=CANNOT_TELL,
    )


def _facts(reference: Reference, context: ReportContext) -> list[tuple[str, str, str]]:
    """What it is, by its config and by measurement, and what the others are."""
    record = context.published
    width = [record.get("d_in"), record.get("d_sae")]
    recorded = record.get("l0_recorded")
    l0 = number(reference.table.l0(reference.groups[0], PUBLISHED))
    trained_on = record.get("training_tokens") or context.training_tokens
    same = "the same"
    return [
        ("SAE", code(record.get("source", "")), "made here"),
        ("training tokens", _tokens(record.get("tokens_recorded")), _tokens(trained_on)),
        (
            "text",
            code(record.get("dataset_recorded") or "") or "not recorded",
            code(record.get("dataset") or ""),
        ),
        ("training seeds", "1", str(reference.n_seeds)),
        (
            "L0, measured here",
            f"{l0} ({f'{recorded:.4g}' if recorded else 'none'} recorded)",
            _l0_range(reference),
        ),
        (
            "architecture",
            _architecture(record),
            code(record.get("base_architecture") or ""),
        ),
        ("width", " → ".join(f"{n:,}" for n in width) + " latents" if all(width) else "", same),
        ("model", code(record.get("model_name") or context.model), same),
        ("hook", code(record.get("hook_name") or context.hook), same),
    ]


def _architecture(record: Mapping[str, Any]) -> str:
    """BatchTopK, for one, is exported as JumpReLU."""
    own = code(record.get("architecture") or "")
    exported = own and own != code(record.get("base_architecture") or "")
    return f"{own}, as exported" if exported else own


def _tokens(count: int | None) -> str:
    return f"{count:,}" if count else "not recorded"


def _l0_range(reference: Reference) -> str:
    table = reference.others
    found = [
        table.measured_l0.get((panel, member, seed), math.nan)
        for (group, member, seed), panel in table.panels.items()
        if group in reference.groups
    ]
    finite = [value for value in found if math.isfinite(value)]
    if not finite:
        return MISSING
    low, high = number(min(finite)), number(max(finite))
    return low if low == high else f"{low} to {high}"


def _others(table: Results) -> Results:
    return table.only(members=[m for m, c in table.constraints.items() if c != PUBLISHED])
