"""The figures. Importing this module imports matplotlib."""

import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
    ScalarFormatter,
)

from sae_baselines.controls import TRAINED, is_control, is_random
from sae_baselines.report import axes, style
from sae_baselines.report.markdown import Figure
from sae_baselines.report.names import arrow, better, title
from sae_baselines.report.numbers import MISSING, number
from sae_baselines.results import Group, MetricKey, Results
from sae_baselines.stats import AgainstRandom, Retained, Verdict
from sae_baselines.stats.differences import is_unpaired
from sae_baselines.stats.floors import Floor, null_of, room_of_member

_TEST_WORDS = ("beats", "matches", "falls short", "inconclusive")
_STEPS = [1, 2, 2.5, 5, 10]
# The name that floors had before every suite had its own.
_FORMER_FLOOR = "null_floor"


def score_figures(table: Results, metrics: Sequence[MetricKey]) -> list[Figure]:
    """Each metric against L0, or by member where an architecture has one L0."""
    by_architecture: dict[str, list[Group]] = defaultdict(list)
    for group in table.groups:
        by_architecture[group[0]].append(group)
    out = []
    for metric in metrics:
        limits = _limits(table, metric)
        for architecture, groups in by_architecture.items():
            have = [g for g in groups if table.present(g, metric)]
            if limits is None or not have:
                continue
            if len(have) == 1:
                floors = null_floors(table, have[0], metric)
                shown = axes.limits(
                    _rows(table, metric), [floor.value for floor in floors.values()]
                )
                out.append(_by_member(table, metric, have[0], shown, floors))
            else:
                out.append(_against_l0(table, metric, architecture, have, limits))
    return out


def placed_figures(
    table: Results,
    group: Group,
    published: Mapping[MetricKey, float],
    left_out: Mapping[MetricKey, Sequence[str]],
) -> list[Figure]:
    """A strip per metric: seeds of every member, and a published SAE's value as a line.

    Args:
        table: Without the published SAE.
        group: Architecture and L0.
        published: Its value by metric; NaN where there is none to draw.
        left_out: By metric, members that it is not placed among.
    """
    out = []
    for metric, value in published.items():
        if table.present(group, metric) and math.isfinite(value):
            here = {m: table.constraints[m] for m in table.present(group, metric)}
            # A broken SAE may be anywhere; it must not squeeze the random ones together.
            rows = [_finite(table, group, metric, m) for m in here if is_random(here[m])]
            own = [
                v for m in here if here[m] == TRAINED for v in _finite(table, group, metric, m)
            ]
            limits = axes.limits(rows, [value, *own])
            not_placed = left_out.get(metric, ())
            floors = null_floors(table, group, metric)
            out.append(_by_member(table, metric, group, limits, floors, value, not_placed))
    return out


def answer_figures(
    items: Mapping[AgainstRandom, tuple[Verdict, Retained | None]], members: list[str]
) -> dict[Group, Figure]:
    """Per group, each metric's difference from the closest baseline, and what that retains.

    Args:
        items: Per metric and question, with the closest baseline's verdict and share.
        members: All, so that one looks the same in every figure.
    """
    by_group: dict[Group, dict[MetricKey, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for item, (v, share) in items.items():
        by_group[v.architecture, v.l0][v.suite, v.metric].append((item, v, share))
    return {group: _answer(group, found, members) for group, found in by_group.items()}


def forest_figures(items: Sequence[Verdict], members: list[str]) -> list[Figure]:
    """Differences with their t intervals and margins, a figure per metric and architecture."""
    by_metric: dict[MetricKey, dict[str, list[Verdict]]] = defaultdict(dict)
    for v in items:
        if math.isfinite(v.mean_difference):
            by_metric[v.suite, v.metric].setdefault(v.architecture, []).append(v)
    out = []
    for by_architecture in by_metric.values():
        every = [v for vs in by_architecture.values() for v in vs]
        rows = [[v.mean_difference, v.interval.low, v.interval.high] for v in every]
        margins = {v.margin.value for v in every if v.margin is not None}
        limits = axes.limits(rows, [0.0, *(s * m for m in margins for s in (-1, 1))])
        out += [_forest(vs, members, limits) for vs in by_architecture.values()]
    return out


def distribution_figures(table: Results) -> list[Figure]:
    """Scores of single latents, per member, all seeds together."""
    out = []
    for metric in table.metrics:
        if table.direction(metric) == 0 or not is_unpaired(metric):
            continue
        for group in table.groups:
            scores: dict[str, list[float]] = defaultdict(list)
            for members in table.tasks(group, metric).values():
                for member, by_seed in members.items():
                    scores[member] += [v for v in by_seed.values() if math.isfinite(v)]
            found = {m: scores[m] for m in table.members if scores.get(m)}
            if found:
                out.append(_distribution(table, metric, group, found))
    return out


def null_floors(table: Results, group: Group, metric: MetricKey) -> dict[str, Floor]:
    """By member, the floor that is hardest to be above, as verdicts use it."""
    found = {}
    for member in table.members:
        if highest := room_of_member(table, group, metric, member).highest:
            found[member] = highest
        elif values := _finite(table, group, (metric[0], _FORMER_FLOOR), member):
            mean = float(np.mean(values))
            found[member] = Floor(_FORMER_FLOOR, mean, np.array([]), over="seeds")
    return found


def _against_l0(
    table: Results,
    metric: MetricKey,
    architecture: str,
    groups: list[Group],
    limits: tuple[float, float],
) -> Figure:
    members = [m for m in table.members if any(m in table.present(g, metric) for g in groups)]
    looks = style.looks(table.members, table.controls)
    measured = all(
        math.isfinite(table.l0(g, m)) for g in groups for m in table.present(g, metric)
    )
    rows = math.ceil(len(members) / 2)
    fig, ax = style.canvas(2.9 + 0.2 * rows)
    n_seeds = 0
    for member in members:
        points = []
        for group in groups:
            values = _finite(table, group, metric, member)
            if values:
                x = table.l0(group, member) if measured else group[1]
                points.append((x, float(np.mean(values)), min(values), max(values)))
                n_seeds = max(n_seeds, len(values))
        if not points:
            continue
        x, mean, low, high = np.array(sorted(points)).T
        look = looks[member]
        ax.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0)
        ax.plot(
            x,
            mean,
            color=look.colour,
            marker=look.marker,
            linestyle=look.line,
            label=member,
            zorder=4 if look.line == "-" else 3,
        )
    _log_l0(ax, [g[1] for g in groups])
    ax.set_ylim(*limits)
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    ax.grid(axis="y")
    _titles(fig, title(*metric), architecture)
    ax.set_xlabel("L0, measured" if measured else "L0, target")
    ax.set_ylabel(_axis(table, metric))
    fig.legend(loc="outside lower left", ncols=2, handlelength=2.4, columnspacing=1.0)
    band = "Bands: range over seeds. " if n_seeds > 1 else "Single seed. "
    caption = (
        f"{title(*metric)} against L0, {architecture} ({better(table.direction(metric))}). "
        f"{band}Trained solid, baselines dashed"
        f"{', controls dotted' if set(members) & set(table.controls) else ''}."
    )
    return style.finish(fig, _name(metric, "vs_l0", architecture), caption)


def _by_member(
    table: Results,
    metric: MetricKey,
    group: Group,
    limits: tuple[float, float],
    floors: Mapping[str, Floor],
    published: float | None = None,
    not_placed: Sequence[str] = (),
) -> Figure:
    members = table.present(group, metric)
    looks = style.looks(table.members, table.controls)
    fig, ax = style.canvas(0.95 + 0.3 * len(members))
    n_seeds = 0
    far: list[str] = []
    floors = {m: floor for m, floor in floors.items() if not axes.beyond([floor.value], limits)}
    for y, member in enumerate(members):
        values = _finite(table, group, metric, member)
        n_seeds = max(n_seeds, len(values))
        look = looks[member]
        if member in floors:
            _floor_line(ax, floors[member].value, y - 0.45, y + 0.45)
        if not values:
            continue
        mean = float(np.mean(values))
        if side := axes.beyond(values, limits):
            far.append(member)
            _off_axis(ax, y, mean, side, limits, look.colour)
            continue
        ax.plot([mean, mean], [y - 0.3, y + 0.3], color=look.colour, linewidth=2.2)
        ax.plot(
            values,
            np.full(len(values), y),
            linestyle="none",
            marker=look.marker,
            markerfacecolor=look.colour if member == "trained" else "none",
            color=look.colour,
            markersize=6,
        )
    _member_rows(ax, members)
    ax.set_xlim(*limits)
    _titles(fig, title(*metric), f"{group[0]}, L0 {group[1]:g}")
    ax.set_xlabel(_axis(table, metric))
    what = "One marker per seed, bar: mean" if n_seeds > 1 else "Single seed"
    if floors:
        what += f". {_what_is_dashed(metric, floors)}"
    where = f"{group[0]}, L0 {group[1]:g} ({better(table.direction(metric))})"
    if published is None:
        caption = f"{title(*metric)} by member, {where}. {what}.{_far(far)}"
        name = _name(metric, "by_member", group[0], f"l0_{group[1]:g}")
        return style.finish(fig, name, caption)
    _published_line(ax, published, limits)
    caption = (
        f"{title(*metric)} of the published SAE (line: {number(published)}) among the members' "
        f"seeds, {where}. {what}.{_far(far)}"
    )
    if not_placed:
        caption += f" Drawn, but not placed among, for the reason given: {_and(not_placed)}."
    name = _name(metric, "published", group[0], f"l0_{group[1]:g}")
    return style.finish(fig, name, caption)


def _published_line(ax: Axes, value: float, limits: tuple[float, float]) -> None:
    """A line through all rows, named above them on the side where there is room."""
    ax.axvline(value, color=style.INK, linewidth=1.4, zorder=2.5)
    late = value > (limits[0] + limits[1]) / 2
    ax.annotate(
        "published",
        (value, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(3 if late else -3, 2),
        textcoords="offset points",
        ha="right" if late else "left",
        va="bottom",
    )


def _and(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _forest(vs: list[Verdict], members: list[str], limits: tuple[float, float]) -> Figure:
    rank = {m: i for i, m in enumerate(members)}
    vs = sorted(vs, key=lambda v: (rank[v.baseline], v.l0))
    several = len({v.l0 for v in vs}) > 1
    looks = style.looks(members, {v.baseline for v in vs if is_control(v.constraint)})
    fig, ax = style.canvas(1.05 + 0.38 * len(vs))
    margins = {v.margin.value for v in vs if v.margin is not None}
    # One metric has one margin.
    for margin in margins:
        ax.axvspan(-margin, margin, color=style.SHADE, linewidth=0, zorder=0)
    ax.axvline(0, color=style.MUTED, linewidth=0.9, zorder=1)
    far: list[str] = []
    for y, v in enumerate(vs):
        look = looks[v.baseline]
        if side := axes.beyond([v.mean_difference], limits):
            far.append(v.baseline)
            _off_axis(ax, y, v.mean_difference, side, limits, look.colour)
            continue
        if math.isfinite(v.interval.low):
            ax.plot([v.interval.low, v.interval.high], [y, y], color=look.colour, zorder=2)
        ax.plot([v.mean_difference], [y], color=look.colour, marker=look.marker, markersize=6.5)
    labels = [f"{v.baseline}{f', L0 {v.l0:g}' if several else ''}\n{v.word}" for v in vs]
    _member_rows(ax, labels)
    ax.set_xlim(*limits)
    first = vs[0]
    lower = first.direction < 0
    at = f"{first.architecture}" + ("" if several else f", L0 {first.l0:g}")
    _titles(fig, title(first.suite, first.metric), at)
    which = "baseline - trained" if lower else "trained - baseline"
    ax.set_xlabel(f"{which}\n(right: trained is better)")
    level = f"{first.interval.level:.0%}"
    parts = [
        f"{title(first.suite, first.metric)}, {first.architecture}: {which}"
        + (" (lower is better, so the sign is turned)" if lower else "")
        + "."
    ]
    if any(math.isfinite(v.interval.low) for v in vs):
        parts.append(f"Bars: {level} t interval over seeds, before Holm's correction.")
    if not any(v.word in _TEST_WORDS for v in vs):
        parts.append("No interval supports a verdict here; see the table.")
    if margins:
        parts.append(f"Shaded: equivalence margin ±{min(margins):g}.")
    return style.finish(
        fig,
        _name((first.suite, first.metric), "differences", first.architecture),
        " ".join(parts) + _far(far),
    )


# Inches: of a metric's heading, each of its rows and its ticks; of the columns, and below all.
_HEADING, _ROW, _TICKS, _TOP, _LEGEND = 0.22, 0.19, 0.27, 0.28, 0.2
_DIFFERENCE, _SHARE = (0.84, 1.62), (2.72, 0.84)
# Of the longest label of a tick, and some space.
_LABEL = 0.4


def _answer(
    group: Group,
    by_metric: Mapping[MetricKey, Sequence[tuple[AgainstRandom, Verdict, Retained | None]]],
    members: list[str],
) -> Figure:
    every = [item for rows in by_metric.values() for item in rows]
    controls = {v.baseline for _, v, _ in every if is_control(v.constraint)}
    looks = style.looks(members, controls)
    shown = [m for m in members if any(v.baseline == m for _, v, _ in every)]
    lines = math.ceil(len(shown) / 2)
    height = _TOP + _LEGEND * lines + 0.1
    height += sum(_HEADING + _ROW * len(rows) + _TICKS for rows in by_metric.values())
    fig = Canvas(figsize=(style.WIDTH, height))

    def at(x: float, y: float, width: float, tall: float) -> Axes:
        """Axes in inches, from the left and from the top."""
        shares = (x / style.WIDTH, 1 - (y + tall) / height)
        return fig.add_axes((*shares, width / style.WIDTH, tall / height))

    def label(x: float, y: float, text: str, **how: Any) -> None:
        fig.text(x / style.WIDTH, 1 - y / height, text, va="top", **how)

    label(_DIFFERENCE[0], 0.04, "difference, right: better", color=style.MUTED, fontsize=8.5)
    label(_SHARE[0], 0.04, "retained", color=style.MUTED, fontsize=8.5)
    top = _TOP
    for (suite, metric), rows in by_metric.items():
        name = f"{title(suite, metric)} {arrow(rows[0][1].direction)}"
        label(0.05, top, textwrap.shorten(name, 52, placeholder=" ..."), weight="bold")
        top += _HEADING
        tall = _ROW * len(rows)
        left, right = (at(x, top, width, tall) for x, width in (_DIFFERENCE, _SHARE))
        top += tall + _TICKS
        differences, shares = [], []
        for y, (_, v, share) in enumerate(rows):
            look = looks[v.baseline]
            ends = (v.interval.low, v.interval.high)
            differences.append(_dot(left, y, v.mean_difference, ends, look))
            ends = (share.interval.low, share.interval.high) if share else (math.nan, math.nan)
            shares.append(_dot(right, y, share.share if share else math.nan, ends, look))
        left.set_xlim(*axes.limits(differences, [0.0]))
        right.set_xlim(*axes.limits(shares, [1.0]))
        if margin := rows[0][1].margin:
            ends = (-margin.value, margin.value)
            left.axvspan(*ends, color=style.SHADE, linewidth=0, zorder=0)
        left.axvline(0, color=style.MUTED, linewidth=0.9, zorder=1)
        right.axvline(1, color=style.MUTED, linewidth=0.9, linestyle=":", zorder=1)
        _member_rows(left, [item.question for item, _, _ in rows])
        _member_rows(right, [""] * len(rows))
        _spaced(left, _DIFFERENCE[1], 0.0)
        _spaced(right, _SHARE[1], 1.0)
        right.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.3g}%"))
    handles = [
        Line2D([], [], color=looks[m].colour, marker=looks[m].marker, label=m) for m in shown
    ]
    below = {"loc": "lower left", "ncols": 2, "handlelength": 1.4, "columnspacing": 1.0}
    fig.legend(handles=handles, bbox_to_anchor=(0, 0), **below)
    level = f"{every[0][1].interval.level:.0%}"
    caption = (
        f"{group[0]}, L0 {group[1]:g}: the trained SAE and the closest baseline. Left: by how "
        f"much the trained SAE is better, {level} interval, an axis per metric; shaded: the "
        "margin. Right: the baseline's score as a share of the trained SAE's."
    )
    return style.finish(fig, _name(("answer", group[0]), f"l0_{group[1]:g}"), caption)


def _spaced(ax: Axes, width: float, first: float) -> None:
    """Ticks with room for their labels, one of them where the two SAEs are equal."""
    low, high = ax.get_xlim()
    label = _LABEL * (high - low) / width
    kept = [first]
    for bins in range(6, 0, -1):
        ticks = MaxNLocator(bins, steps=_STEPS).tick_values(low, high)
        inside = [x for x in ticks if low + label / 6 <= x <= high - label / 6]
        others = [x for x in inside if abs(x - first) >= label]
        if others and np.diff(sorted([*others, first])).min() >= label:
            kept += others
            break
    ax.xaxis.set_major_locator(FixedLocator(sorted(kept)))


def _dot(
    ax: Axes, y: int, value: float, ends: tuple[float, float], look: style.Look
) -> tuple[float, ...]:
    """A value with its interval, where there are these; what was drawn."""
    if not math.isfinite(value):
        ax.text(0.02, y, MISSING, transform=ax.get_yaxis_transform(), va="center", fontsize=8)
        return ()
    ax.plot([value], [y], color=look.colour, marker=look.marker, linestyle="none", zorder=3)
    if not all(map(math.isfinite, ends)):
        return (value,)
    ax.plot(ends, [y, y], color=look.colour, zorder=2)
    return (value, *ends)


def _off_axis(
    ax: Any, y: int, value: float, side: int, limits: tuple[float, float], colour: str
) -> None:
    """An arrow at the edge with the number, for a member too far away to be drawn."""
    text = f"← {value:.3g}" if side < 0 else f"{value:.3g} →"
    pad = 0.01 * (limits[1] - limits[0])
    at = limits[0] + pad if side < 0 else limits[1] - pad
    align = "left" if side < 0 else "right"
    ax.text(at, y, text, color=colour, ha=align, va="center")


def _far(members: Sequence[str]) -> str:
    if not members:
        return ""
    return f" Off the axis, mean beside the arrow: {_and(members)}."


def _distribution(
    table: Results, metric: MetricKey, group: Group, scores: dict[str, list[float]]
) -> Figure:
    floors = null_floors(table, group, metric)
    looks = style.looks(table.members, table.controls)
    every = [v for vs in scores.values() for v in vs]
    low, high = min(every), max(every)
    # Scores are multiples of one over the examples; more bins than values would leave gaps.
    bins = min(20, len({round(v, 9) for vs in scores.values() for v in vs}))
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    fig, ax = style.canvas(0.95 + 0.42 * len(scores))
    for y, (member, values) in enumerate(scores.items()):
        counts, _ = np.histogram(values, edges)
        # Rows run downwards, so heights are subtracted.
        base = y + 0.42
        heights = 0.84 * counts / counts.max()
        look = looks[member]
        ax.bar(
            edges[:-1],
            -heights,
            width=np.diff(edges),
            bottom=base,
            align="edge",
            color=look.colour,
            alpha=0.45,
            linewidth=0,
        )
        mean = float(np.mean(values))
        ax.plot([mean], [base], marker=look.marker, color=look.colour, clip_on=False, zorder=5)
        if member in floors:
            _floor_line(ax, floors[member].value, base, base - 0.9)
    _member_rows(ax, list(scores))
    _titles(fig, title(*metric), f"{group[0]}, L0 {group[1]:g}")
    ax.set_xlabel(_axis(table, metric))
    floor = f"{_what_is_dashed(metric, floors)}. " if floors else "No null floor was measured. "
    counted = ", ".join(f"{m} {len(v)}" for m, v in scores.items())
    caption = (
        f"{title(*metric)} of single latents, {group[0]}, L0 {group[1]:g}, all seeds together. "
        f"Marker: mean. {floor}Latents: {counted}."
    )
    name = _name(metric, "distribution", group[0], f"l0_{group[1]:g}")
    return style.finish(fig, name, caption)


def _floor_line(ax: Axes, floor: float, *between: float) -> None:
    """Across one member's row."""
    ax.plot(
        [floor] * 2,
        between,
        color=style.INK,
        linestyle=(0, (2, 1.5)),
        linewidth=1.2,
        zorder=1.5,
    )


def _what_is_dashed(metric: MetricKey, floors: Mapping[str, Floor]) -> str:
    """In a caption; where members' highest floors are different ones, whose is which."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for member, floor in floors.items():
        by_name[floor.metric].append(member)
    if len(by_name) == 1:
        (name,) = by_name
        return f"Dashed: null floor ({title(metric[0], name)})"
    named = (f"{null_of(name)} for {_and(ms)}" for name, ms in by_name.items())
    return f"Dashed: the highest null floor of each ({'; '.join(named)})"


def _member_rows(ax: Axes, labels: list[str]) -> None:
    """One row per label, the first on top."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))


def _log_l0(ax: Axes, targets: list[float]) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(sorted(targets)))
    ax.xaxis.set_minor_locator(NullLocator())
    plain = ScalarFormatter()
    plain.set_scientific(False)
    ax.xaxis.set_major_formatter(plain)


def _limits(table: Results, metric: MetricKey) -> tuple[float, float] | None:
    """The same axis for every architecture."""
    values = [v for row in _rows(table, metric) for v in row]
    if not values:
        return None
    pad = 0.06 * ((max(values) - min(values)) or abs(max(values)) or 1.0)
    return min(values) - pad, max(values) + pad


def _rows(table: Results, metric: MetricKey) -> list[list[float]]:
    return [
        _finite(table, g, metric, m) for g in table.groups for m in table.present(g, metric)
    ]


def _finite(table: Results, group: Group, metric: MetricKey, member: str) -> list[float]:
    found = table.values(group, metric, member)
    return [found[s] for s in sorted(found) if math.isfinite(found[s])]


def _axis(table: Results, metric: MetricKey) -> str:
    direction = table.direction(metric)
    return f"{better(direction)} {arrow(direction)}".strip()


def _titles(fig: Canvas, metric: str, where: str) -> None:
    """Above everything, where even a long name has the figure's whole width."""
    text = "\n".join(textwrap.wrap(metric, 44))
    fig.suptitle(f"{text}\n{where}", x=0.01, ha="left", fontsize=9)


def _name(metric: MetricKey, what: str, *more: str) -> str:
    parts = (*metric, what, *more)
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", p) for p in parts).replace(".", "_")
