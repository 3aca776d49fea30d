"""From a results table to a report."""

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from sae_baselines.controls import is_null_for
from sae_baselines.report import checked as in_table
from sae_baselines.report import published, sceptic, sections
from sae_baselines.report.caveats import Caveat, caveats
from sae_baselines.report.checked import Checked
from sae_baselines.report.context import ReportContext
from sae_baselines.report.document import Block, Figure, Figures, Section, Text, code
from sae_baselines.report.names import key
from sae_baselines.results.tidy import MetricKey, Tidy, tidy
from sae_baselines.stats import (
    AgainstRandom,
    Comparison,
    Margin,
    PlacedAgainstRandom,
    Placement,
    Retained,
    Verdict,
    against_random,
    differences,
    retained,
    verdicts,
)
from sae_baselines.stats.margins import override_matches

_TESTED = "trained"


@dataclass(frozen=True)
class Report:
    """A report, ready to be written.

    Attributes:
        title: Heading.
        lede: What was studied, in a sentence.
        sections: Parts in order.
        figures: All figures.
        verdicts: Per metric and baseline.
        against_random: Per metric.
        retained: Shares.
        caveats: Every reason for caution that applies.
        placements: Where a published SAE falls among every other member's seeds.
        placed: The same against all random members at once.
    """

    title: str
    lede: str
    sections: tuple[Section, ...]
    figures: tuple[Figure, ...]
    verdicts: tuple[Verdict, ...]
    against_random: tuple[AgainstRandom, ...]
    retained: tuple[Retained, ...]
    caveats: tuple[Caveat, ...]
    placements: tuple[Placement, ...] = ()
    placed: tuple[PlacedAgainstRandom, ...] = ()


def build_report(results: pd.DataFrame | Tidy, context: ReportContext) -> Report:
    """Compare, draw and word a study.

    Args:
        results: Tidy rows: panel, member, constraint, architecture, l0, seed, suite, metric,
            direction, task (empty or missing: aggregate), value, and where known n and
            versions. Suite "panel" is the package's own measurement; its "l0" is what
            members are matched by. Rows of a published SAE (constraint "published") are
            placed among the others' seeds and are not paired with any.
        context: What the rows do not say.

    Returns:
        The report; equal inputs give equal reports, byte for byte once written.

    Raises:
        UserError: The table is not as `stats.differences` wants it.
    """
    every = tidy(results)
    has_published = every.has_published
    table = in_table.for_pairing(every) if has_published else every
    metrics, dropped = _primary(every, context)
    compared, more = _compare(table, metrics)
    used, unused = _margins(context, compared)
    found = verdicts(compared, margins=used)
    checked = in_table.place(every, metrics) if has_published else None
    if checked is not None:
        more = [*published.unplaced(checked.placements), *_unexpected(more, table)]
    warned = caveats(every, context, found, [*dropped, *more, *unused])
    parts = _Parts(
        table=table,
        context=context,
        metrics=metrics,
        verdicts=found,
        random=against_random(found),
        retained=retained(compared),
        caveats=warned,
        figures=_draw(table, metrics, found, checked),
        checked=checked,
    )
    return Report(
        title=f"Does it beat random? {context.study}"
        if checked is None
        else published.heading_of(context),
        lede=_lede(table, context) if checked is None else published.lede(checked, context),
        sections=tuple(s for s in _sections(parts) if s.blocks),
        figures=tuple(f for group in parts.figures.values() for f in group),
        verdicts=tuple(found),
        against_random=tuple(parts.random),
        retained=tuple(parts.retained),
        caveats=tuple(warned),
        placements=checked.placements if checked else (),
        placed=checked.placed if checked else (),
    )


@dataclass(frozen=True)
class _Parts:
    table: Tidy
    context: ReportContext
    metrics: list[MetricKey]
    verdicts: list[Verdict]
    random: list[AgainstRandom]
    retained: list[Retained]
    caveats: list[Caveat]
    figures: dict[str, list[Figure]]
    checked: Checked | None


def _primary(table: Tidy, context: ReportContext) -> tuple[list[MetricKey], list[Caveat]]:
    """Metrics that verdicts are made of, in the order of their patterns."""
    comparable = [m for m in table.metrics if table.direction(m)]
    if not context.primary:
        text = (
            f"No primary metrics were named, so all {len(comparable)} that have a direction "
            "are tested together; each one more makes every verdict harder to earn."
        )
        return comparable, [Caveat("no primary metrics", text)]
    chosen: dict[MetricKey, None] = {}
    dropped = []
    for pattern in context.primary:
        hits = [m for m in table.metrics if fnmatch.fnmatchcase(key(*m), pattern)]
        usable = [m for m in hits if table.direction(m)]
        if not usable:
            why = "describes only and is never compared" if hits else "has no rows"
            text = f"Primary metric {code(pattern)} {why}; nothing here speaks of it."
            dropped.append(Caveat("missing", text))
        chosen.update(dict.fromkeys(usable))
    return list(chosen), dropped


def _compare(
    table: Tidy, metrics: Sequence[MetricKey]
) -> tuple[list[Comparison], list[Caveat]]:
    """Paired differences, where there is a pair at all."""
    compared: list[Comparison] = []
    dropped = []
    for group in table.groups:
        members = table.present(group)
        baselines = [m for m in members if table.constraints[m] != _TESTED]
        if _TESTED not in members or not baselines:
            lacks = "no baseline" if _TESTED in members else f"no member {code(_TESTED)}"
            text = f"{sections.named(group)} has {lacks}, so nothing is compared there."
            dropped.append(Caveat("nothing to compare", text))
            continue
        names = [
            key(*m)
            for m in metrics
            if table.present(group, m)
            and any(is_null_for(table.constraints[b], *m) for b in baselines)
        ]
        if not names:
            text = (
                f"What {sections.named(group)} has besides the trained SAE is a null for none "
                "of the metrics, so nothing is compared there."
            )
            dropped.append(Caveat("nothing to compare", text))
        else:
            part = table.only(group=group)
            compared += differences(part, metrics=names, on_missing="exclude")
    rank = {metric: i for i, metric in enumerate(metrics)}
    order = {member: i for i, member in enumerate(table.members)}
    compared.sort(
        key=lambda c: (c.architecture, c.l0, rank[c.suite, c.metric], order[c.baseline])
    )
    return compared, dropped


def _unexpected(dropped: Sequence[Caveat], table: Tidy) -> list[Caveat]:
    """Without an SAE trained here nothing can be paired, which is as it was asked for."""
    trained = _TESTED in table.constraints.values()
    return [c for c in dropped if trained or c.kind != "nothing to compare"]


def _margins(
    context: ReportContext, compared: Sequence[Comparison]
) -> tuple[dict[str, float | Margin], list[Caveat]]:
    """Margins of metrics that are compared; one for another metric is named, not an error."""
    used = {
        pattern: margin
        for pattern, margin in context.margins.items()
        if any(override_matches(pattern, c.suite, c.metric) for c in compared)
    }
    unused = [
        Caveat("unused margin", f"A margin is set for {code(p)}, which is not compared here.")
        for p in context.margins
        if p not in used
    ]
    return used, unused


def _draw(
    table: Tidy,
    metrics: Sequence[MetricKey],
    found: Sequence[Verdict],
    checked: Checked | None,
) -> dict[str, list[Figure]]:
    # matplotlib takes a second to import and is needed nowhere else.
    from sae_baselines.report import plots, style  # noqa: PLC0415

    with style.drawing():
        strips = [] if checked is None else in_table.strips(checked, metrics)
        scores = metrics if checked is None else _not_in_strips(checked, metrics)
        return {
            "published": strips,
            "scores": plots.score_figures(table, scores),
            "differences": plots.forest_figures(found, table.members),
            "distributions": plots.distribution_figures(table),
        }


def _not_in_strips(checked: Checked, metrics: Sequence[MetricKey]) -> list[MetricKey]:
    """A strip with the published SAE shows all that one without it would."""
    if len(checked.others.groups) > 1:
        return list(metrics)
    drawn = {
        metric
        for metric in metrics
        for group in checked.groups
        if math.isfinite(in_table.value(checked.table, group, metric))
    }
    return [metric for metric in metrics if metric not in drawn]


def _sections(p: _Parts) -> list[Section]:
    exact = [key(*metric) for metric in p.metrics]
    return [
        *_published(p),
        Section("answer", _question(p), _answer(p)),
        Section("caveats", "Caveats that apply", sections.caveat_list(p.caveats)),
        Section("scores", "Scores", _scores(p)),
        Section("verdicts", "Differences and verdicts", _comparisons(p)),
        Section("controls", "Controls", _controls(p)),
        Section("retained", "What a baseline retains, and the paper's numbers", _shares(p)),
        Section("distributions", "AutoInterp scores of single latents", _latents(p)),
        Section("all", "Every metric and task", _everything(p)),
        Section("sceptic", "For a sceptic", _for_a_sceptic(p, exact)),
        Section("provenance", "Provenance", sceptic.provenance(p.table, p.context)),
    ]


def _for_a_sceptic(p: _Parts, exact: Sequence[str]) -> list[Block]:
    return sceptic.sceptic(p.table, p.context, exact, p.verdicts, p.checked is not None)


def _published(p: _Parts) -> list[Section]:
    if p.checked is None:
        return []
    found = published.blocks(p.checked, p.context, p.figures["published"])
    return [Section("published", "Where the published SAE falls among random ones", found)]


def _question(p: _Parts) -> str:
    which = "trained SAE" if p.checked is None else "SAE that was trained here"
    return f"Does the {which} beat random?"


def _controls(p: _Parts) -> list[Block]:
    if p.checked is None:
        return sections.controls(p.table, p.metrics)
    return sections.controls(p.checked.table, p.metrics, published.NAME)


def _answer(p: _Parts) -> list[Block]:
    if p.checked is not None and _TESTED not in p.table.constraints.values():
        return []
    if not p.random:
        why = "no random baseline is here" if p.verdicts else "the caveats say why"
        return [Text(f"Nothing could be compared with random; {why}.")]
    return sections.answer(p.random)


def _scores(p: _Parts) -> list[Block]:
    return [
        *_figures(p, "scores"),
        sections.score_table(p.table, p.metrics),
        *sections.beside_paper(p.table, p.metrics),
    ]


def _comparisons(p: _Parts) -> list[Block]:
    if not p.verdicts:
        return []
    return [
        *_figures(p, "differences"),
        Text("The words:"),
        sections.glossary(p.verdicts),
        *sections.verdict_tables(p.verdicts),
    ]


def _shares(p: _Parts) -> list[Block]:
    return sections.retained_tables(p.retained)


def _latents(p: _Parts) -> list[Block]:
    return _figures(p, "distributions")


def _everything(p: _Parts) -> list[Block]:
    return [*sections.every_metric(p.table), *sections.per_task(p.table, p.metrics)]


def _figures(p: _Parts, which: str) -> list[Block]:
    return [Figures(p.figures[which])] if p.figures[which] else []


def _lede(table: Tidy, context: ReportContext) -> str:
    """What was studied, in a sentence."""
    where = ", ".join(
        code(part) if i < 2 else part
        for i, part in enumerate(
            (
                context.model,
                context.hook,
                f"{context.d_sae:,} latents" if context.d_sae else "",
                f"{context.training_tokens:,} training tokens"
                if context.training_tokens
                else "",
            )
        )
        if part
    )
    architectures = ", ".join(dict.fromkeys(g[0] for g in table.groups))
    l0s = ", ".join(f"{l0:g}" for l0 in sorted({g[1] for g in table.groups}))
    seeds = sorted({s for g in table.groups for s in table.seeds(g)})
    baselines = [
        code(m)
        for m in table.members
        if table.constraints[m] != _TESTED and m not in table.controls
    ]
    controls = ", ".join(map(code, table.controls))
    return (
        f"A trained SAE beside random baselines ({', '.join(baselines) or 'none'})"
        + (f" and controls ({controls})" if controls else "")
        + (f" on {where}" if where else "")
        + f". Architectures: {architectures}; L0: {l0s}; "
        + ("single training seed." if len(seeds) == 1 else f"{len(seeds)} training seeds.")
    )
