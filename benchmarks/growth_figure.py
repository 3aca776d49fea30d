"""The figure of sparse_growth: time, ratio and memory of a step as it grows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from sae_baselines.report.style import INK, MUTED, SHADE, drawing, finish, looks

_AXES = {"d_sae": "dictionary size d_sae", "k": "active latents k", "batch": "batch"}
_LABELS = {"stock": "stock SAELens", "sparse": "sparse twin, nothing frozen"}


def draw(record: dict[str, Any], stem: Path) -> None:
    """Write ``stem.png`` and ``stem.svg``.

    Args:
        record: What sparse_growth writes, with its three axes and the memory section.
        stem: Path without an ending.
    """
    sections = record["sections"]
    with drawing():
        fig = Figure(figsize=(11.0, 5.2), layout="constrained")
        grid = fig.subplots(2, 4, sharex="col")
        for column, axis in enumerate(_AXES):
            points = sections[axis]["points"]
            times, ratios = grid[0, column], grid[1, column]
            _lines(times, points, axis, lambda p, m: p["members"][m]["median_ms"])
            _lines(ratios, points, axis, lambda p, m: p["members"][m]["ratio"])
            _shade_dense((times, ratios), points, axis)
            _decorate(times, ratios, [p["shape"][axis] for p in points], axis)
            times.set_title(_fixed(sections[axis], axis), color=MUTED)
        memory, share = grid[:, 3]
        points = sections["memory"]["points"]
        _lines(memory, points, "d_sae", lambda p, m: p["peak_mib"][m] / 1024)
        _lines(share, points, "d_sae", lambda p, m: p["peak_mib"][m] / p["peak_mib"]["stock"])
        _decorate(memory, share, [p["shape"]["d_sae"] for p in points], "d_sae")
        memory.set_title(_fixed(sections["memory"], "d_sae"), color=MUTED)
        grid[0, 0].set_ylabel("training step, ms")
        grid[1, 0].set_ylabel("step / stock")
        memory.set_ylabel("peak of a step, GiB")
        share.set_ylabel("peak / stock")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=5)
        figure = finish(fig, stem.name, "")
    stem.with_suffix(".png").write_bytes(figure.png)
    stem.with_suffix(".svg").write_bytes(figure.svg)


def _fixed(section: dict[str, Any], axis: str) -> str:
    kept = {name: v for name, v in section["base_shape"].items() if name != axis}
    return ", ".join(f"{name} {v:,}" for name, v in kept.items())


def _lines(
    axes: Axes, points: list[dict[str, Any]], axis: str, value: Callable[[Any, str], float]
) -> None:
    members = list(points[0]["members" if "members" in points[0] else "peak_mib"])
    known = looks(["sparse"])
    for member in members:
        look = known["trained" if member == "stock" else member]
        axes.plot(
            [p["shape"][axis] for p in points],
            [value(p, member) for p in points],
            color=look.colour,
            marker=look.marker,
            linestyle=look.line,
            label=_LABELS.get(member, member.replace("_", " ")),
        )


def _shade_dense(both: tuple[Axes, Axes], points: list[dict[str, Any]], axis: str) -> None:
    """Grey where the twins fell back to dense steps by themselves."""
    dense = [
        p["shape"][axis]
        for p in points
        if all(m["sparse_share"] == 0 for m in p["members"].values())
    ]
    if not dense:
        return
    below = [p["shape"][axis] for p in points if p["shape"][axis] < min(dense)]
    # On logarithmic axes the middle between two points is their geometric mean.
    first = (min(dense) * max(below)) ** 0.5 if below else min(dense)
    for axes in both:
        axes.axvspan(first, max(dense) * 1.2, color=SHADE, linewidth=0, zorder=0)
    both[1].text(max(dense) * 1.1, 0.03, "dense", color=INK, ha="right", va="bottom")


def _decorate(top: Axes, bottom: Axes, ticks: list[int], axis: str) -> None:
    top.set_xscale("log", base=2)
    top.set_yscale("log")
    bottom.set_xscale("log", base=2)
    bottom.set_ylim(bottom=0)
    bottom.axhline(1, color=MUTED, linewidth=0.8, zorder=1)
    bottom.xaxis.set_major_locator(FixedLocator(ticks[:: 1 + len(ticks) // 5]))
    bottom.xaxis.set_minor_locator(NullLocator())
    bottom.xaxis.set_major_formatter(_short)
    bottom.set_xlabel(_AXES[axis])
    for axes in (top, bottom):
        axes.grid(axis="y")


def _short(value: float, _: object = None) -> str:
    """131072 as 128k (of 1,024)."""
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"
