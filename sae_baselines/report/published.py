"""The part of a report that is about a published SAE: what it is, and where it falls."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sae_baselines.controls import is_control, is_random
from sae_baselines.report.caveats import Caveat
from sae_baselines.report.checked import Checked, value
from sae_baselines.report.context import ReportContext
from sae_baselines.report.document import (
    Block,
    Bullets,
    Cell,
    Details,
    Figure,
    Figures,
    Item,
    Row,
    Rows,
    Table,
    Text,
    code,
)
from sae_baselines.report.names import arrow, title
from sae_baselines.report.numbers import MISSING, mean_sd, number, p_value
from sae_baselines.report.sections import heading, named
from sae_baselines.results.tidy import Group, MetricKey, Tidy
from sae_baselines.stats import PlacedAgainstRandom, Placement
from sae_baselines.stats.decision import ALPHA
from sae_baselines.stats.intervals import Interval
from sae_baselines.stats.one_value import seeds_for
from sae_baselines.stats.placement import NO_PLACEMENT, WITHIN
from sae_baselines.study.spec import PUBLISHED, TRAINED

NAME = "the published SAE"
# A share this close to 0 or 1 is not printed as 0 or 100 %.
_EDGE = 0.0005


def heading_of(context: ReportContext) -> str:
    """The page's title."""
    source = context.published.get("source", context.study)
    return f"Is it better than random? {source}"


def lede(checked: Checked, context: ReportContext) -> str:
    """What was checked, in a sentence or two."""
    record = context.published
    source = code(record.get("source", PUBLISHED))
    where = [
        code(context.model),
        code(context.hook),
        f"{context.d_sae:,} latents" if context.d_sae else "",
    ]
    table = checked.others
    others = [m for m in table.members if any(m in table.present(g) for g in checked.groups)]
    random = [m for m in others if is_random(table.constraints[m]) and m != TRAINED]
    rest = [m for m in others if m not in random and m != TRAINED]
    among = [
        f"random SAEs ({', '.join(map(code, random)) or 'none'})",
        *(
            [f"its own architecture trained here ({code(TRAINED)})"]
            if TRAINED in others
            else []
        ),
        *([f"itself with something broken ({', '.join(map(code, rest))})"] if rest else []),
    ]
    at = ", ".join(filter(None, where))
    return (
        f"The published SAE {source}{f' on {at}' if at else ''}: one training run, placed "
        f"among the seeds of {_and(among)}. {'; '.join(named(g) for g in checked.groups)}; "
        f"{_counted(_n_seeds(checked), 'training seed')} of each."
    )


def blocks(checked: Checked, context: ReportContext, figures: Sequence[Figure]) -> list[Block]:
    """The section, answer first."""
    return [
        *_answer(checked, context),
        _facts(checked, context),
        Text(_one_seed(checked, context)),
        *_notes(context),
        *([Figures(figures)] if figures else []),
        *_placement_table(checked.placements, checked.table),
        *([_glossary()] if checked.placements else []),
        *_every_metric(checked),
    ]


def unplaced(items: Sequence[Placement]) -> list[Caveat]:
    """What could not be placed, a caveat per reason."""
    found: dict[str, list[str]] = defaultdict(list)
    for item in items:
        if not item.placed:
            found[item.reason].append(title(item.suite, item.metric))
    out = []
    for reason, titles in found.items():
        on = "" if reason.startswith(tuple(_keys(items))) else f", on {_few(titles)}"
        out.append(Caveat("no placement", f"No placement is given{on}: {reason}."))
    return out


def _keys(items: Sequence[Placement]) -> set[str]:
    return {f"{item.suite}/{item.metric} " for item in items}


def _few(titles: Sequence[str], most: int = 3) -> str:
    more = f" and {len(titles) - most} more" if len(titles) > most else ""
    return "; ".join(titles[:most]) + more


def _n_seeds(checked: Checked) -> int:
    return len({s for g in checked.groups for s in checked.others.seeds(g)})


def _answer(checked: Checked, context: ReportContext) -> list[Block]:
    if not checked.placements:
        return [Text("There is no score of the published SAE to place; the caveats say why.")]
    sentences = []
    if checked.placed:
        sentences.append(_against_random(checked.placed))
        if not all(p.silent for p in checked.placed):
            sentences.append(_predicted(checked.placed))
    else:
        sentences.append("No random SAE is here to place it among.")
    own = [p for p in checked.placements if p.constraint == TRAINED]
    if own:
        budget = f" on {context.training_tokens:,} tokens" if context.training_tokens else ""
        n = max(p.n_seeds for p in own)
        sentences.append(
            f"Among {_counted(n, 'seed')} of {code(own[0].member)}, the same architecture "
            f"trained here{budget}: {_words(own)}."
        )
    out: list[Block] = [Bullets(sentences)]
    if checked.placed:
        out.append(_placed_table(checked.placed))
    return out


def _against_random(items: Sequence[PlacedAgainstRandom]) -> str:
    parts = []
    for wanted, words in (
        (True, "better than every seed of every random SAE on"),
        (False, "not better than every seed of every random SAE on"),
        (None, "no placement on"),
    ):
        some = [p for p in items if p.above_all is wanted]
        if some:
            parts.append(f"{words} {len(some)} of {len(items)} metrics ({_titles(some)})")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def _predicted(items: Sequence[PlacedAgainstRandom]) -> str:
    tested = [p for p in items if p.p_adjusted is not None]
    if not tested:
        return "No prediction p could be computed: that takes two seeds with some spread."
    small = [p for p in tested if p.p_adjusted is not None and p.p_adjusted <= ALPHA]
    which = f" ({_titles(small)})" if small and len(small) < len(items) else ""
    return (
        "If scores over seeds are normal, it lies above what one more seed of any random SAE "
        f"would score (Holm p at most {ALPHA:g}) on {len(small)} of {len(items)} "
        f"metrics{which}."
    )


def _words(items: Sequence[Placement]) -> str:
    by_word: dict[str, list[Placement]] = defaultdict(list)
    for item in items:
        by_word[item.word].append(item)
    return "; ".join(
        f"{word} on {len(some)} ({_titles(some)})" for word, some in by_word.items()
    )


def _titles(items: Sequence[Placement] | Sequence[PlacedAgainstRandom]) -> str:
    return "; ".join(title(item.suite, item.metric) for item in items)


def _placed_table(items: Sequence[PlacedAgainstRandom]) -> Table:
    by_group: dict[Group, list[Row]] = defaultdict(list)
    words = {True: "above all seeds", False: "not above all", None: "no placement"}
    for item in items:
        cells = (
            Cell(f"{title(item.suite, item.metric)}"),
            Cell(words[item.above_all], "word"),
            Cell(code(item.closest)),
            Cell(p_value(item.p_adjusted), "number"),
            Cell(p_value(item.p), "number"),
            Cell(p_value(item.p_exchangeable), "number"),
        )
        by_group[item.architecture, item.l0].append(Row(cells, _placed_note(item)))
    return Table(
        (
            "metric",
            "place",
            "closest",
            "Holm p, prediction",
            "prediction p",
            "rank p",
        ),
        [Rows(named(group), rows) for group, rows in by_group.items()],
        "The published SAE among every baseline and every random SAE that nobody trained. Each "
        "p is the largest over them; Holm's correction of the prediction p runs over the "
        "metrics. Above means better, also where lower is better.",
        layout="cards",
    )


def _placed_note(item: PlacedAgainstRandom) -> str:
    # The cells say all of it where it is above all seeds and has its p.
    return _sentence(item.reason) if not item.above_all or item.p is None else ""


def _facts(checked: Checked, context: ReportContext) -> Table:
    record = context.published
    width = [record.get("d_in"), record.get("d_sae")]
    shape = " → ".join(f"{n:,}" for n in width) + " latents" if all(width) else ""
    same = "the same"
    facts = [
        ("SAE", code(record.get("source", "")), "made here"),
        (
            "training tokens",
            _tokens(record.get("tokens_recorded")),
            _tokens(record.get("training_tokens") or context.training_tokens),
        ),
        (
            "text",
            code(record.get("dataset_recorded") or "") or "not recorded",
            code(record.get("dataset") or ""),
        ),
        ("training seeds", "1", str(_n_seeds(checked))),
        ("L0, measured here", _own_l0(checked, record), _l0_range(checked)),
        (
            "architecture",
            code(record.get("architecture") or ""),
            code(record.get("base_architecture") or ""),
        ),
        ("width", shape, same),
        ("model", code(record.get("model_name") or context.model), same),
        ("hook", code(record.get("hook_name") or context.hook), same),
    ]
    rows = [Row([Cell(text) for text in fact]) for fact in facts if fact[1]]
    return Table(
        ("", "published SAE", "the others"),
        [Rows("", rows)],
        "What the published SAE is, by its config and by measurement, and what the others are.",
        layout="cards",
    )


def _tokens(count: int | None) -> str:
    return f"{count:,}" if count else "not recorded"


def _own_l0(checked: Checked, record: Mapping[str, Any]) -> str:
    found = [checked.table.l0(group, PUBLISHED) for group in checked.groups]
    recorded = record.get("l0_recorded")
    return f"{number(found[0])} ({f'{recorded:.4g}' if recorded else 'none'} recorded)"


def _l0_range(checked: Checked) -> str:
    table = checked.others
    found = {
        table.measured_l0.get((panel, member, seed), math.nan)
        for (group, member, seed), panel in table.panels.items()
        if group in checked.groups
    }
    finite = [value for value in found if math.isfinite(value)]
    if not finite:
        return MISSING
    low, high = number(min(finite)), number(max(finite))
    return low if low == high else f"{low} to {high}"


def _one_seed(checked: Checked, context: ReportContext) -> str:
    counts = [p.n_seeds for p in checked.placements if p.placed]
    n = max(counts, default=0)
    text = (
        "What one seed allows. A published SAE is one training run, so how its scores would "
        "vary with its seed is unknown, and nothing here says that its recipe beats another. "
        "What can be said is where this one falls among the seeds of another recipe. Shares, "
        "percentiles and intervals are about that recipe's seeds, seen and unseen; none of "
        "them is about other seeds of the published SAE."
    )
    if n:
        text += (
            f" From {_counted(n, 'seed')} the ranks alone can give no p below "
            f"{1 / (n + 1):.2g}; {seeds_for(ALPHA)} would be needed for {ALPHA:g}. The "
            "prediction p and the normal percentile reach further by supposing normal scores, "
            "which so few seeds cannot check."
        )
    if context.spec.get("data_order") == "shared":
        text += (
            " The seeds saw the same data in the same order, so they vary by initial weights "
            "alone."
        )
    return text


def _notes(context: ReportContext) -> list[Block]:
    notes = [_sentence(str(note)) for note in context.published.get("notes") or ()]
    return [Text("Noted when it was read:"), Bullets(notes)] if notes else []


def _placement_table(items: Sequence[Placement], table: Tidy) -> list[Block]:
    if not items:
        return []
    several = len({(p.architecture, p.l0) for p in items}) > 1
    by_metric: dict[tuple[Group, MetricKey, int], list[Placement]] = defaultdict(list)
    for p in items:
        by_metric[(p.architecture, p.l0), (p.suite, p.metric), p.direction].append(p)
    groups = []
    for (group, metric, direction), found in by_metric.items():
        where = f"{named(group)}: " if several else ""
        name = f"{where}{heading(*metric, direction)}: published {number(found[0].value)}"
        rows = [Row(_placement_cells(p, table), _placement_note(p)) for p in found]
        groups.append(Rows(name, rows))
    level = f"{1 - items[0].alpha:.0%}"
    return [
        Table(
            (
                "among",
                "place",
                "mean ± sd",
                "seeds",
                "share below",
                "rank p",
                "prediction p",
                "normal percentile",
            ),
            groups,
            "Above means better: a higher value, or a lower one where lower is better. In "
            f"brackets: {level} intervals. The p's of single members are not corrected for "
            "their number.",
            layout="cards",
        )
    ]


def _placement_cells(p: Placement, table: Tidy) -> tuple[Cell, ...]:
    scores = table.values((p.architecture, p.l0), (p.suite, p.metric), p.member)
    return (
        Cell(code(p.member) + (" (control)" if is_control(p.constraint) else "")),
        Cell(p.word, "word"),
        Cell(mean_sd(list(scores.values())), "number"),
        Cell(str(p.n_seeds), "number"),
        Cell(_with_interval(p.percentile, p.percentile_interval, _share), "number"),
        Cell(p_value(p.p_exchangeable), "number"),
        Cell(p_value(p.p_prediction), "number"),
        Cell(_with_interval(p.normal_percentile, p.normal_interval, _percentile), "number"),
    )


def _with_interval(share: float | None, found: Interval, shown: Callable[[float], str]) -> str:
    """``share% [low, high]``."""
    if share is None:
        return MISSING
    text = f"{shown(share)}%"
    if not found.low <= found.high:
        return text
    ends = dict.fromkeys([shown(found.low), shown(found.high)])
    return f"{text} [{', '.join(ends)}]"


def _share(share: float) -> str:
    return f"{100 * share:.1f}"


def _percentile(share: float) -> str:
    """A share that is estimated: never 0 or 100."""
    if share > 1 - _EDGE:
        return f"> {_share(1 - 2 * _EDGE)}"
    return f"< {_share(2 * _EDGE)}" if share < _EDGE else _share(share)


def _placement_note(p: Placement) -> str:
    # Above or below all of so many seeds needs no more words.
    reason = [p.reason] if p.word in (WITHIN, NO_PLACEMENT) else []
    return " ".join(map(_sentence, (*reason, *p.caveats)))


def _glossary() -> Block:
    return Bullets(
        [
            Item(
                "place", "where the published value falls among the member's seeds there are."
            ),
            Item(
                "share below",
                "share of these seeds that it is better than, ties counted half; its interval "
                "(Clopper-Pearson) is for the share of all seeds that the member could have "
                "had.",
            ),
            Item(
                "rank p",
                "(1 + seeds at least as good) / (seeds + 1): how often one more seed of the "
                "member would rank this high at most, whatever the distribution.",
            ),
            Item(
                "prediction p",
                "the same question if scores over seeds are normal: (value - mean) / (sd √(1 + "
                "1/n)) held against t with n - 1 degrees of freedom.",
            ),
            Item(
                "normal percentile",
                "Φ((value - mean) / sd): the share of the member's seeds that would score "
                "worse if they are normal; its exact interval is from the noncentral t "
                "distribution.",
            ),
        ]
    )


def _every_metric(checked: Checked) -> list[Block]:
    """Everything that was measured of it, beside the others."""
    out: list[Block] = []
    table = checked.table
    for group in checked.groups:
        members = checked.others.present(group)
        seeds = len(checked.others.seeds(group))
        by_suite: dict[str, list[Row]] = defaultdict(list)
        for metric in table.metrics:
            if not table.values(group, metric, PUBLISHED):
                continue
            own = value(table, group, metric)
            cells = [
                Cell(f"{code(metric[1])} {arrow(table.direction(metric))}".strip()),
                Cell(number(own), "number"),
                *(
                    Cell(
                        mean_sd(list(table.values(group, metric, m).values()), seeds), "number"
                    )
                    for m in members
                ),
            ]
            by_suite[metric[0]].append(Row(cells))
        if by_suite:
            grid = Table(
                ("metric", PUBLISHED, *members),
                [Rows(suite, rows) for suite, rows in by_suite.items()],
                f"{named(group)}: the published SAE's value; the others' mean ± sd over "
                f"{_counted(seeds, 'seed')}. ↑ higher is better, ↓ lower is better, no arrow: "
                "describes only.",
            )
            out.append(Details("Every number of the published SAE", [grid]))
    return out


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    end = "" if text.endswith((".", "!", "?")) else "."
    return f"{text[:1].upper()}{text[1:]}{end}"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
