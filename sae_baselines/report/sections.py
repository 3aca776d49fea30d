"""The parts of a report that are tables and words."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sae_baselines.controls import is_control, is_null_for, is_unchanged, kind_of
from sae_baselines.report import paper
from sae_baselines.report.caveats import Caveat
from sae_baselines.report.document import (
    Block,
    Bullets,
    Cell,
    Details,
    Item,
    Row,
    Rows,
    Table,
    Text,
    code,
)
from sae_baselines.report.names import arrow, better, key, title
from sae_baselines.report.numbers import (
    MISSING,
    difference,
    interval,
    mean_sd,
    number,
    p_value,
    percent,
    percent_interval,
)
from sae_baselines.results.tidy import Group, MetricKey, Tidy
from sae_baselines.stats import AgainstRandom, Retained, Verdict

# In the order of a reader's interest.
WORDS = {
    "beats": "the trained SAE is better than this baseline: the t interval of the difference "
    "lies above 0, also after Holm's correction over the metrics tested.",
    "falls short": "the trained SAE is worse than this baseline: the interval lies below 0, "
    "also after Holm's correction.",
    "matches": "the two are the same up to the margin: two one-sided tests put the difference "
    "inside the equivalence margin, after Holm's correction.",
    "inconclusive": "neither could be shown. This is not 'the same'; the number of seeds said "
    "with it would be enough in 8 of 10 studies if the observed mean and spread were the true "
    "ones.",
    "single seed": "one training seed: the spread over seeds is unknown, so numbers only.",
    "no verdict": "the two must not be compared, for the reason given.",
}
# Tables of more panels than this are folded away, a panel each.
_OPEN_GROUPS = 2


def named(group: Group) -> str:
    return f"{group[0]}, L0 {group[1]:g}"


def heading(suite: str, metric: str, direction: int) -> str:
    """Title, direction and the name in the results table."""
    return f"{title(suite, metric)} {arrow(direction)} ({better(direction)}), " + code(
        key(suite, metric)
    )


def answer(items: Sequence[AgainstRandom]) -> list[Block]:
    """Does it beat random? One sentence per panel, one row per metric."""
    by_group: dict[Group, list[AgainstRandom]] = defaultdict(list)
    for item in items:
        by_group[item.architecture, item.l0].append(item)
    sentences = [f"{named(group)}: {_tally(found)}" for group, found in by_group.items()]
    pairs = [((a.architecture, a.l0), a) for a in items]
    return [Bullets(sentences), *_folded(pairs, _answer_table, "metrics")]


def _answer_table(items: Sequence[AgainstRandom]) -> Table:
    by_group: dict[Group, list[AgainstRandom]] = defaultdict(list)
    for item in items:
        by_group[item.architecture, item.l0].append(item)
    groups = []
    for group, found in by_group.items():
        rows = []
        for item in found:
            word = {True: "beats random", False: "not shown", None: "no verdict"}[item.beats]
            cells = (
                Cell(title(item.suite, item.metric)),
                Cell(word, "word"),
                Cell(code(item.closest)),
                Cell(p_value(item.p_adjusted), "number"),
            )
            rows.append(Row(cells, _sentences([item.reason])))
        groups.append(Rows(named(group), rows))
    return Table(
        ("metric", "against all baselines", "closest baseline", "Holm p"),
        groups,
        "The trained SAE against every baseline at once, and every random SAE that nobody "
        "trained. It beats random on a metric only if it beats each of them; Holm's correction "
        "runs over the metrics.",
        layout="cards",
    )


def _tally(found: Sequence[AgainstRandom]) -> str:
    mute = [a for a in found if a.beats is None]
    if len(mute) == len(found):
        return "no verdict on any metric; see the reasons below."
    parts = []
    for value, words in ((True, "beats random on"), (False, "not shown to beat random on")):
        some = [a for a in found if a.beats is value]
        if some:
            parts.append(f"{words} {len(some)} of {len(found)} metrics ({_titles(some)})")
    if mute:
        parts.append(f"no verdict on {len(mute)} ({_titles(mute)})")
    return "; ".join(parts) + "."


def _titles(items: Sequence[AgainstRandom]) -> str:
    return "; ".join(title(a.suite, a.metric) for a in items)


def caveat_list(found: Sequence[Caveat], most_notes: int = 6) -> list[Block]:
    """Every caveat; evaluations' notes folded away where there are many."""
    grave = [Item(c.kind, c.text) for c in found if c.kind != "note"]
    notes = [c.text for c in found if c.kind == "note"]
    blocks: list[Block] = []
    if grave:
        blocks.append(Bullets(grave))
    if notes and len(notes) <= most_notes:
        blocks += [Text("Notes of the evaluations:"), Bullets(notes)]
    elif notes:
        blocks.append(Details(f"{len(notes)} notes of the evaluations", [Bullets(notes)]))
    return blocks or [Text("None of the checks found a reason for caution.")]


def glossary(items: Sequence[Verdict]) -> Bullets:
    """The words that occur, explained."""
    used = {v.word for v in items}
    return Bullets([Item(word, text) for word, text in WORDS.items() if word in used])


def verdict_tables(items: Sequence[Verdict]) -> list[Block]:
    """One row per metric and baseline; folded by panel where there are many."""
    return _folded([((v.architecture, v.l0), v) for v in items], _verdict_table, "verdicts")


def _folded(
    items: Sequence[tuple[Group, Any]], table: Callable[[Sequence[Any]], Table], what: str
) -> list[Block]:
    by_group: dict[Group, list[Any]] = defaultdict(list)
    for group, item in items:
        by_group[group].append(item)
    if not by_group:
        return []
    if len(by_group) <= _OPEN_GROUPS:
        return [table([item for found in by_group.values() for item in found])]
    return [
        Details(f"{named(group)}: {len(found)} {what}", [table(found)])
        for group, found in by_group.items()
    ]


def _verdict_table(items: Sequence[Verdict]) -> Table:
    by_metric: dict[tuple[Group, MetricKey, int], list[Verdict]] = defaultdict(list)
    for v in items:
        by_metric[(v.architecture, v.l0), (v.suite, v.metric), v.direction].append(v)
    groups = []
    for (group, metric, direction), found in by_metric.items():
        rows = [Row(_verdict_cells(v), _verdict_note(v)) for v in found]
        groups.append(Rows(f"{named(group)}: {heading(*metric, direction)}", rows))
    level = f"{items[0].interval.level:.0%}" if items else "95%"
    return Table(
        (
            "against",
            "verdict",
            "trained",
            "baseline",
            "difference",
            f"t {level}",
            f"bootstrap {level}",
            "seeds",
            "margin",
            "Holm p",
        ),
        groups,
        "Differences are turned so that positive means the trained SAE is better: trained - "
        "baseline, or baseline - trained where lower is better. Verdicts rest on the t "
        "interval.",
        layout="cards",
    )


def _verdict_cells(v: Verdict) -> tuple[Cell, ...]:
    low, high = v.interval.low, v.interval.high
    margin = MISSING if v.margin is None else f"±{v.margin.value:g}"
    return (
        Cell(_against(v)),
        Cell(v.word, "word"),
        Cell(number(v.trained), "number"),
        Cell(number(v.other), "number"),
        Cell(difference(v.mean_difference, low, high), "number"),
        Cell(interval(low, high), "number"),
        Cell(interval(v.bootstrap.low, v.bootstrap.high), "number"),
        Cell(str(v.n_seeds), "number"),
        Cell(margin, "number"),
        Cell(p_value(v.p_adjusted), "number"),
    )


def _against(item: Verdict | Retained) -> str:
    return code(item.baseline) + (" (control)" if is_control(item.constraint) else "")


def _verdict_note(v: Verdict) -> str:
    return _sentences([v.reason, *v.caveats])


def controls(
    table: Tidy, metrics: Sequence[MetricKey], source: str = "the trained SAE"
) -> list[Block]:
    """What each control of a source is, what it is the null for, and what it is mute about."""
    if not table.controls:
        return []
    items = []
    for member in table.controls:
        constraint = table.constraints[member]
        kind = kind_of(constraint)
        assert kind is not None
        compared = [m for m in metrics if is_null_for(constraint, *m)]
        fixed = [m for m in metrics if is_unchanged(constraint, *m)]
        counts = "is among the random SAEs to beat" if kind.untrained else "is no random SAE"
        parts = [
            f"made as {kind.what}",
            f"the null for {kind.null_for}",
            f"it {counts}; compared on {_named_metrics(compared) or 'nothing here'}",
        ]
        if fixed:
            parts.append(f"{source}'s score by construction: {_named_metrics(fixed)}")
        items.append(Item(member, _sentences(parts)))
    text = (
        f"Controls are SAEs that nobody trained, or {source} with one thing broken. Each "
        "is compared only on metrics that it is a null for: to tie with a broken SAE on what "
        f"was left whole says nothing. Where {source} matches a permuted control, the "
        "metric does not depend on what was broken."
    )
    return [Text(text), Bullets(items)]


def _named_metrics(metrics: Sequence[MetricKey]) -> str:
    return ", ".join(code(key(*m)) for m in metrics)


def score_table(table: Tidy, metrics: Sequence[MetricKey]) -> Table:
    """Member by metric, mean ± sd over seeds."""
    groups = []
    for group in table.groups:
        seeds = len(table.seeds(group))
        rows = []
        for member in table.present(group):
            name = code(member) + (" (control)" if member in table.controls else "")
            cells = [Cell(name), Cell(number(table.l0(group, member)), "number")]
            for metric in metrics:
                values = list(table.values(group, metric, member).values())
                cells.append(Cell(mean_sd(values, seeds), "number"))
            rows.append(Row(cells))
        groups.append(Rows(f"{named(group)}, {_seeds(seeds)}", rows))
    columns = [
        "member",
        "L0",
        *(f"{title(*m)} {arrow(table.direction(m))}".strip() for m in metrics),
    ]
    return Table(
        columns,
        groups,
        "Mean ± standard deviation over training seeds. ↑ higher is better, ↓ lower is better.",
    )


def every_metric(table: Tidy) -> list[Block]:
    """Metric by member, all aggregates."""
    blocks: list[Block] = []
    for group in table.groups:
        seeds = len(table.seeds(group))
        members = table.present(group)
        by_suite: dict[str, list[Row]] = defaultdict(list)
        for metric in table.metrics:
            if not table.present(group, metric):
                continue
            cells = [Cell(f"{code(metric[1])} {arrow(table.direction(metric))}".strip())]
            for member in members:
                values = list(table.values(group, metric, member).values())
                cells.append(Cell(mean_sd(values, seeds), "number"))
            by_suite[metric[0]].append(Row(cells))
        caption = (
            f"{named(group)}: mean ± sd over {_seeds(seeds)}. ↑ higher is better, ↓ lower is "
            "better, no arrow: describes only."
        )
        rows = [Rows(suite, found) for suite, found in by_suite.items()]
        grid = Table(("metric", *members), rows, caption)
        blocks.append(Details(f"Every metric, {named(group)}", [grid]))
    return blocks


def per_task(table: Tidy, metrics: Sequence[MetricKey]) -> list[Block]:
    """Task by member. AutoInterp's tasks are latents of one SAE each: they get a figure."""
    blocks: list[Block] = []
    for metric in metrics:
        if metric[0] == "autointerp":
            continue
        for group in table.groups:
            tasks = table.tasks(group, metric)
            if not tasks:
                continue
            seeds = len(table.seeds(group))
            members = table.present(group)
            rows = [
                Row(
                    [
                        Cell(code(task)),
                        *(
                            Cell(mean_sd(list(by.get(m, {}).values()), seeds), "number")
                            for m in members
                        ),
                    ]
                )
                for task, by in sorted(tasks.items())
            ]
            caption = f"{heading(*metric, table.direction(metric))}: mean ± sd over seeds."
            grid = Table(("task", *members), [Rows("", rows)], caption)
            name = f"{title(*metric)}, {named(group)}: {len(tasks)} tasks"
            blocks.append(Details(name, [grid]))
    return blocks


def retained_tables(items: Sequence[Retained]) -> list[Block]:
    """Share of the trained score, and the paper's beside it."""
    return _folded([((r.architecture, r.l0), r) for r in items], _retained_table, "shares")


def _retained_table(items: Sequence[Retained]) -> Table:
    by_metric: dict[tuple[Group, MetricKey, int], list[Retained]] = defaultdict(list)
    for r in items:
        by_metric[(r.architecture, r.l0), (r.suite, r.metric), r.direction].append(r)
    groups = []
    for (group, metric, direction), found in by_metric.items():
        there = paper.published(group[0], *metric)
        rows = [Row(_retained_cells(r, there), _retained_note(r, there)) for r in found]
        groups.append(Rows(f"{named(group)}: {heading(*metric, direction)}", rows))
    return Table(
        (
            "baseline",
            "share of trained",
            "its 95%",
            "change",
            "its 95%",
            "seeds",
            "paper's change",
        ),
        groups,
        "Share: mean baseline / mean trained, interval by Fieller. Change: (baseline - "
        "trained) / trained. Where lower is better a share above 100% is a worse score. "
        f"Paper's change: computed from its table for {paper.SETTING}, another model, layer "
        "and budget: for orientation, not for comparison of sizes.",
        layout="cards",
        note="remark",
    )


def _retained_cells(r: Retained, there: paper.Published | None) -> tuple[Cell, ...]:
    change = None if there is None else there.change_of(r.baseline)
    return (
        Cell(_against(r) + (" (best frozen)" if r.best else "")),
        Cell(percent(r.share), "number"),
        Cell(percent_interval(r.interval.low, r.interval.high), "number"),
        Cell(percent(r.change, signed=True), "number"),
        Cell(percent_interval(r.change_interval.low, r.change_interval.high, True), "number"),
        Cell(str(r.n_seeds), "number"),
        Cell(MISSING if change is None else percent(change, signed=True), "number"),
    )


def _retained_note(r: Retained, there: paper.Published | None) -> str:
    parts = [r.reason] if r.reason else []
    if r.best and math.isfinite(r.best_interval.low):
        span = percent_interval(r.best_interval.low, r.best_interval.high, signed=True)
        parts.append(f"best frozen baseline: change {span} once its choice is allowed for")
    if r.best and there is not None:
        text = (
            f"paper's best frozen baseline on {there.column}: "
            f"{percent(there.change, signed=True)} "
            f"({there.best:.3g} against {there.trained:.3g})"
        )
        parts.append(text + (f"; {there.differs}" if there.differs else ""))
    return _sentences(parts)


def beside_paper(table: Tidy, metrics: Sequence[MetricKey]) -> list[Block]:
    """Scores of members beside the paper's, where the paper has the metric."""
    groups = []
    for group in table.groups:
        for metric in metrics:
            there = paper.published(group[0], *metric)
            if there is None or not table.present(group, metric):
                continue
            rows = []
            for member in table.present(group, metric):
                values = [
                    v for v in table.values(group, metric, member).values() if math.isfinite(v)
                ]
                score = there.trained if member == "trained" else there.scores.get(member)
                here = number(float(np.mean(values))) if values else MISSING
                cells = (
                    Cell(code(member)),
                    Cell(here, "number"),
                    Cell(number(score), "number"),
                )
                rows.append(Row(cells))
            differs = f" ({there.differs})" if there.differs else ""
            name = f"{named(group)}: {title(*metric)}; in the paper {there.column}{differs}"
            groups.append(Rows(name, rows))
    if not groups:
        return []
    table_ = Table(
        ("member", "here", "paper"),
        groups,
        f"Paper: {paper.SETTING}.",
    )
    return [Details("Scores beside the paper's", [table_])]


def _sentences(parts: Sequence[str]) -> str:
    """Fragments as sentences."""
    return " ".join(f"{part[:1].upper()}{part[1:]}." for part in parts)


def _seeds(n: int) -> str:
    return "single seed" if n == 1 else f"{n} seeds"
