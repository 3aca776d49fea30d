"""From a results table to a report."""

import fnmatch
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_baselines.controls import (
    PUBLISHED,
    SHUFFLED_MLP,
    SHUFFLED_PAIRS,
    TRAINED,
    is_random_model,
    kind_of,
)
from sae_baselines.evals.registry import (
    get_suite,
    is_null_for,
    is_unchanged,
    metric_of,
    override_matches,
    suite_names,
)
from sae_baselines.evals.results import current_results
from sae_baselines.report import paper
from sae_baselines.report import reference as of_reference
from sae_baselines.report.caveats import (
    DEAD_SHARE,
    Caveat,
    caveat,
    caveats,
    dead_shares,
    single_seeds,
    unfit,
    version_mix,
)
from sae_baselines.report.context import ReportContext, study_context
from sae_baselines.report.gallery import section_of as latents_section
from sae_baselines.report.markdown import Figure, Section, render, words
from sae_baselines.report.names import key, of_transcoders
from sae_baselines.report.rates import rates_of
from sae_baselines.report.reference import Reference
from sae_baselines.report.stability import section_of
from sae_baselines.results import Group, MetricKey, Results
from sae_baselines.stats import (
    METHOD,
    AgainstRandom,
    Comparison,
    Margin,
    PlacedAgainstRandom,
    Placement,
    Retained,
    Room,
    Verdict,
    against_random,
    corrected,
    differences,
    retained,
    room_of_member,
    verdicts,
)
from sae_baselines.stats.by_rate import AtRate, Rated
from sae_baselines.stats.differences import is_unpaired

_NO_PAIRS = "nothing to compare"
_PANEL_EV = ("panel", "explained_variance")
Closest = dict[AgainstRandom, tuple[Verdict, Retained | None]]


@dataclass(frozen=True)
class Report:
    """A report, ready to be written.

    Attributes:
        title: Heading.
        lede: What was studied, in a sentence.
        sections: Parts in order.
        figures: All figures.
        verdicts: Per metric and baseline.
        against_random: Per metric, against random members.
        nearly_free: Per metric, against members that are trained within a cap.
        retained: Shares.
        caveats: Every reason for caution that applies.
        reference: Where a published SAE falls among every other member's seeds.
        by_rate: Verdicts on latents of like firing rates.
    """

    title: str
    lede: str
    sections: tuple[Section, ...]
    figures: tuple[Figure, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    against_random: tuple[AgainstRandom, ...] = ()
    nearly_free: tuple[AgainstRandom, ...] = ()
    retained: tuple[Retained, ...] = ()
    caveats: tuple[Caveat, ...] = ()
    reference: Reference | None = None
    by_rate: tuple[AtRate, ...] = ()

    @property
    def answers(self) -> tuple[AgainstRandom, ...]:
        """Per metric and question: is random beaten, and what is nearly free?"""
        return (*self.against_random, *self.nearly_free)

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Of the published SAE among every other member's seeds."""
        return self.reference.placements if self.reference else ()

    @property
    def placed(self) -> tuple[PlacedAgainstRandom, ...]:
        """The same against all random members at once."""
        return self.reference.placed if self.reference else ()


def report_of_study(study: str | Path, correct: str | None = None) -> Report:
    """Build the report of a study from its ``results.csv`` and records.

    Args:
        study: Study folder.
        correct: What verdicts are corrected over, "baseline" or "study"; default: as in the
            panel file's section ``evals``.

    Raises:
        UserError: No study or no results there, or a table that is not what it should be or
            not that of the records.
    """
    return build_report(*_current(study, correct))


def verdicts_of_study(study: str | Path) -> tuple[Verdict, ...]:
    """The verdicts of `report_of_study`, without what is drawn and worded around them."""
    results, context = _current(study)
    return tuple(_judge(Results.of(results), context).found)


def _current(
    study: str | Path, correct: str | None = None
) -> tuple[pd.DataFrame, ReportContext]:
    study = Path(study)
    results, checks = current_results(study)
    context = replace(study_context(study), checks=checks)
    if correct is not None:
        context = replace(context, correct=corrected(correct))
    return results, context


@dataclass(frozen=True)
class _Judged:
    """Verdicts and what they rest on.

    Attributes:
        table: Members that may be paired.
        metrics: Those that are primary.
        compared: Paired differences.
        found: Their verdicts.
        unpaired: Why members have no pair.
        caveats: About metrics and margins.
    """

    table: Results
    metrics: list[MetricKey]
    compared: list[Comparison]
    found: list[Verdict]
    unpaired: list[Caveat]
    caveats: list[Caveat]


def _judge(every: Results, context: ReportContext) -> _Judged:
    table = of_reference.for_pairing(every) if every.has_published else every
    metrics, dropped = _primary(every, context)
    compared, unpaired = _compare(table, metrics)
    used, unused = _margins(context, compared)
    found = verdicts(compared, margins=used, correct=context.correct)
    return _Judged(table, metrics, compared, found, unpaired, [*dropped, *unused])


def build_report(results: pd.DataFrame | Results, context: ReportContext) -> Report:
    """Compare, draw and word a study.

    Args:
        results: Results rows: panel, member, constraint, architecture, l0, seed, suite, metric,
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
    every = Results.of(results)
    judged = _judge(every, context)
    table, metrics, found, more = judged.table, judged.metrics, judged.found, judged.unpaired
    reference = None
    if every.has_published:
        reference = of_reference.place(every, metrics, context)
    trained = TRAINED in table.constraints.values()
    if reference is not None:
        # Without an SAE trained here nothing can be paired, which is as it was asked for.
        more = [c for c in more if trained or c.kind != _NO_PAIRS]
        more = [*of_reference.unplaced(reference.placements), *more]
    barred = [*unfit(judged.compared), *judged.caveats, *more]
    warned = caveats(every, context, found, barred)
    random = against_random(found, "random", context.correct)
    nearly_free = against_random(found, "nearly free", context.correct)
    shares = retained(judged.compared)
    answers = [*random, *nearly_free]
    closest = _closest(answers, found, shares)
    drawn, answered = _draw(table, metrics, found, reference, closest)
    held_out = _held_out(every, metrics, context)
    parts: list[Section] = []
    if reference is None:
        title, lede = f"Does it beat random? {context.study}", _lede(table, context)
        which, source = "trained SAE", "the trained SAE"
    else:
        title = f"Is it better than random? {context.published.get('source', context.study)}"
        lede = of_reference.lede(reference, context)
        which, source = "SAE that was trained here", "the published SAE"
        near = " and nearly free" if reference.nearly_free else ""
        heading = f"Where the published SAE falls among random{near} ones"
        text = of_reference.section(reference, context, drawn["published"], held_out)
        parts.append(Section("published", heading, text))
    if reference is None or trained:
        text = render(
            "answer.md.j2",
            answers=answers,
            verdicts=found,
            closest=closest,
            drawn=answered,
            singles=single_seeds(table, found),
            table=table,
            held_out={} if reference else held_out,
            caveats=warned,
            correct=context.correct,
        )
        parts.append(Section("answer", f"Does the {which} beat random?", text))
    text = render("caveat_list.md.j2", caveats=warned)
    parts.append(Section("caveats", "Caveats that apply", text))
    text = render(
        "scores.md.j2",
        table=table,
        metrics=metrics,
        drawn=drawn["scores"],
        rooms=_rooms(table, metrics),
        alongside=_alongside(table, metrics),
        paper=_beside_paper(table, metrics),
        setting=paper.SETTING,
    )
    parts.append(Section("scores", "Scores", text))
    if found:
        text = render("verdicts.md.j2", verdicts=found, drawn=drawn["differences"])
        parts.append(Section("verdicts", "Differences and verdicts", text))
    if answers:
        text = render("joint.md.j2", answers=answers, correct=context.correct)
        parts.append(Section("joint", "Against all baselines of a question at once", text))
    rated = {
        key: Rated.of(found, context.chosen.get(key))
        for key, found in context.latents.items()
        if key[1] != PUBLISHED
    }
    rates = rates_of(table, rated, context.correct)
    if rates is not None:
        parts.append(rates.section)
        drawn["rates"] = list(rates.figures)
    gallery = latents_section(context.contexts, context.latents, context.folder)
    if gallery is not None:
        parts.append(gallery)
    stable = section_of(table, context.stability)
    if stable is not None:
        parts.append(stable[0])
        drawn["stability"] = stable[1]
    with_controls = table if reference is None else reference.table
    if with_controls.controls:
        text = render(
            "controls.md.j2", controls=_controls(with_controls, metrics), source=source
        )
        parts.append(Section("controls", "Controls", text))
    if shares:
        text = render("retained.md.j2", shares=shares, setting=paper.SETTING)
        heading = "What a baseline retains, and the paper's numbers"
        parts.append(Section("retained", heading, text))
    if drawn["distributions"]:
        text = render("figures.md.j2", drawn=drawn["distributions"])
        parts.append(Section("distributions", "Scores of single latents", text))
    # Tasks that are latents of one SAE each get a figure.
    tasked = [metric for metric in metrics if not is_unpaired(metric)]
    text = render("everything.md.j2", table=table, metrics=metrics, tasked=tasked)
    parts.append(Section("all", "Every metric and task", text))
    text = render(
        "methods.md.j2",
        context=context,
        suites=sorted(set(table.frame["suite"]) - {"panel"}),
        primary=[key(*metric) for metric in metrics],
        margins={p: getattr(m, "value", m) for p, m in context.margins.items()},
        controls=table.controls,
        random_models=[m for m in table.controls if is_random_model(table.constraints[m])],
        shuffled=[m for m in table.controls if _is_shuffled(table.constraints[m])],
        placed=reference is not None,
        paired=reference is None or bool(found),
        alpha=found[0].alpha if found else METHOD.alpha,
    )
    parts.append(Section("sceptic", "For a sceptic", text))
    text = render("provenance.md.j2", table=table, context=context, by_row=version_mix(table))
    parts.append(Section("provenance", "Provenance", text))
    if context.spec.get("hook_name_out") is not None:
        lede = of_transcoders(lede)
        parts = [
            replace(part, title=of_transcoders(part.title), text=of_transcoders(part.text))
            for part in parts
        ]
    return Report(
        title=title,
        lede=lede,
        sections=tuple(parts),
        figures=tuple(f for figures in drawn.values() for f in figures),
        verdicts=tuple(found),
        against_random=tuple(random),
        nearly_free=tuple(nearly_free),
        retained=tuple(shares),
        caveats=tuple(warned),
        reference=reference,
        by_rate=() if rates is None else rates.found,
    )


def _primary(table: Results, context: ReportContext) -> tuple[list[MetricKey], list[Caveat]]:
    """Metrics that verdicts are made of, in the order of their patterns."""
    # Suites that were run with none of their metrics primary are no reason to take them all.
    comparable = [
        m
        for m in table.metrics
        if table.direction(m) and not (context.evals and metric_of(*m).favours)
    ]
    if not context.primary:
        return comparable, [caveat("no primary metrics", n=len(comparable))]
    chosen: dict[MetricKey, None] = {}
    dropped = []
    for pattern in context.primary:
        hits = [m for m in table.metrics if fnmatch.fnmatchcase(key(*m), pattern)]
        usable = [m for m in hits if table.direction(m)]
        if not usable:
            facts = {"pattern": pattern, "described": bool(hits)}
            dropped.append(caveat("missing", "primary_without_rows", **facts))
        chosen.update(dict.fromkeys(usable))
    for_nothing = [key(*m) for m in chosen if context.evals and metric_of(*m).favours]
    if for_nothing:
        dropped.append(caveat("for nothing", names=for_nothing))
    return list(chosen), dropped


def _compare(
    table: Results, metrics: Sequence[MetricKey]
) -> tuple[list[Comparison], list[Caveat]]:
    """Paired differences, where there is a pair at all."""
    compared: list[Comparison] = []
    dropped = []
    for group in table.groups:
        members = table.present(group)
        baselines = [m for m in members if table.constraints[m] != TRAINED]
        if TRAINED not in members or not baselines:
            why = "no baseline" if TRAINED in members else f"no member `{TRAINED}`"
            dropped.append(caveat(_NO_PAIRS, group=group, why=why))
            continue
        names = [
            key(*m)
            for m in metrics
            if table.present(group, m)
            and any(is_null_for(table.constraints[b], *m) for b in baselines)
        ]
        if not names:
            dropped.append(caveat(_NO_PAIRS, group=group, why="no null"))
        else:
            part = table.only(group=group)
            compared += differences(part, metrics=names, on_missing="exclude")
    rank = {metric: i for i, metric in enumerate(metrics)}
    order = {member: i for i, member in enumerate(table.members)}
    compared.sort(
        key=lambda c: (c.architecture, c.l0, rank[c.suite, c.metric], order[c.baseline])
    )
    return compared, dropped


def _margins(
    context: ReportContext, compared: Sequence[Comparison]
) -> tuple[dict[str, float | Margin], list[Caveat]]:
    """Margins of metrics that are compared; one for another metric is named, not an error."""
    used = {
        pattern: margin
        for pattern, margin in context.margins.items()
        if any(override_matches(pattern, c.suite, c.metric) for c in compared)
    }
    unused = [p for p in context.margins if p not in used]
    return used, [caveat("unused margin", pattern=p) for p in unused]


def _closest(
    answers: Sequence[AgainstRandom], found: Sequence[Verdict], shares: Sequence[Retained]
) -> Closest:
    """With each answer what decides it: the closest baseline's verdict and its share."""

    def pair(of: Verdict | Retained) -> tuple[Any, ...]:
        return (of.architecture, of.l0, of.suite, of.metric, of.baseline)

    verdict, share = {pair(v): v for v in found}, {pair(r): r for r in shares}
    keys = [(i, (i.architecture, i.l0, i.suite, i.metric, i.closest)) for i in answers]
    return {item: (verdict[key], share.get(key)) for item, key in keys}


def _draw(
    table: Results,
    metrics: Sequence[MetricKey],
    found: Sequence[Verdict],
    reference: Reference | None,
    closest: Closest,
) -> tuple[dict[str, list[Figure]], dict[Group, Figure]]:
    """Figures by section, and those of the answer by group, where there is a difference."""
    # matplotlib takes a second to import and is needed nowhere else.
    from sae_baselines.report import plots, style  # noqa: PLC0415

    with style.drawing():
        strips, scores = [], list(metrics)
        if reference is not None:
            strips = of_reference.strips(reference, metrics)
            scores = of_reference.not_in_strips(reference, metrics)
        some = {i: of for i, of in closest.items() if math.isfinite(of[0].mean_difference)}
        answered = plots.answer_figures(some, table.members)
        return {
            "published": strips,
            "scores": plots.score_figures(table, scores),
            "differences": plots.forest_figures(found, table.members),
            "distributions": plots.distribution_figures(table),
            "answer": list(answered.values()),
        }, answered


def _rooms(
    table: Results, metrics: Sequence[MetricKey]
) -> list[tuple[Group, list[MetricKey], list[tuple[str, list[Room]]], list[float]]]:
    """By group, the metrics with floor and ceiling, every member's room on each, and what
    stands beside each, if anything does; NaN where nothing does."""
    found = []
    for group in table.groups:
        rooms = {
            metric: {m: room_of_member(table, group, metric, m) for m in table.present(group)}
            for metric in metrics
            if metric_of(*metric).floors
        }
        shown = [m for m, of in rooms.items() if any(r.share == r.share for r in of.values())]
        members = [(m, [rooms[metric][m] for metric in shown]) for m in table.present(group)]
        if shown:
            beside = [_beside(table, group, metric) for metric in shown]
            known = beside if any(map(math.isfinite, beside)) else []
            found.append((group, shown, members, known))
    return found


def _alongside(
    table: Results, metrics: Sequence[MetricKey]
) -> list[tuple[Group, list[MetricKey], list[tuple[str, list[float]]]]]:
    """By group and metric that has any, it and what stands alongside: means over seeds."""
    found = []
    for group in table.groups:
        for suite, name in metrics:
            others = [
                (suite, other)
                for other in metric_of(suite, name).alongside
                if (suite, other) in table.metrics
            ]
            shown = [(suite, name), *others]
            rows = [
                (m, [_mean(table.aggregates(each, group, m).values()) for each in shown])
                for m in table.present(group, (suite, name))
            ]
            if others and rows:
                found.append((group, shown, rows))
    return found


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _beside(table: Results, group: Group, metric: MetricKey) -> float:
    """What depends on no SAE, mean over whatever measured it."""
    values = [
        value
        for name in metric_of(*metric).beside
        for member in table.present(group)
        for value in table.aggregates((metric[0], name), group, member).values()
    ]
    return sum(values) / len(values) if values else math.nan


def _held_out(
    table: Results, metrics: Sequence[MetricKey], context: ReportContext
) -> dict[tuple[Group, str], float]:
    """Dead share of the members whose own measurement stands beside the answer; NaN if unknown.

    Verdicts are of the suites that were asked for; what the panel measured is beside them
    where no verdict is about it, and where latents are dead.
    """
    shares = {
        key: max(dead, default=math.nan)
        for key, dead in dead_shares(table, context.d_sae).items()
    }
    beside = _PANEL_EV not in metrics or any(share > DEAD_SHARE for share in shares.values())
    if not beside or _PANEL_EV not in table.metrics:
        return {}
    return shares


def _lede(table: Results, context: ReportContext) -> str:
    """What was studied, in a sentence."""
    baselines = [
        m for m in table.members if table.constraints[m] != TRAINED and m not in table.controls
    ]
    return words("ledes.md.j2", "of_study", context=context, table=table, baselines=baselines)


def _controls(table: Results, metrics: Sequence[MetricKey]) -> list[dict[str, object]]:
    """What each control is, what it is compared on, and what it is mute about."""
    constraints = table.constraints
    scored = dict.fromkeys(suite for suite, _ in table.metrics)
    suites = {name: get_suite(name).on_random_model for name in scored if name in suite_names()}
    return [
        {
            "member": member,
            "kind": kind_of(constraints[member]),
            "compared": [key(*m) for m in metrics if is_null_for(constraints[member], *m)],
            "fixed": [key(*m) for m in metrics if is_unchanged(constraints[member], *m)],
            "suites": suites if is_random_model(constraints[member]) else {},
            "is_shuffled": _is_shuffled(constraints[member]),
        }
        for member in table.controls
    ]


def _is_shuffled(constraint: str) -> bool:
    return kind_of(constraint) in (SHUFFLED_PAIRS, SHUFFLED_MLP)


def _beside_paper(
    table: Results, metrics: Sequence[MetricKey]
) -> list[tuple[Group, MetricKey, paper.Published, list[tuple[str, float, float | None]]]]:
    """Scores of members beside the paper's, where the paper has the metric."""
    found = []
    for group in table.groups:
        for metric in metrics:
            there = paper.published(group[0], *metric)
            if there is None or not table.present(group, metric):
                continue
            rows = []
            for member in table.present(group, metric):
                values = list(table.values(group, metric, member).values())
                finite = [v for v in values if math.isfinite(v)]
                score = there.trained if member == TRAINED else there.scores.get(member)
                rows.append((member, float(np.mean(finite)) if finite else math.nan, score))
            found.append((group, metric, there, rows))
    return found
