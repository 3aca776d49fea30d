"""Panels of the synthetic case study's figures: grids, bands, legends. Imports matplotlib."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, PercentFormatter

from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.report.style import INK, Look

NAMES = {
    "batchtopk": "BatchTopK",
    "jumprelu": "JumpReLU",
    "topk": "TopK",
    "matryoshka_batchtopk": "Matryoshka",
}
SETTINGS = ("constant", "variable")
CHANCE_LABEL = "random directions"
PAPER_LABEL = "paper"

_PANEL = (1.75, 1.6)  # inches, of one panel
_MARKERS = "osD^vPX*"


def name(architecture: str) -> str:
    """As papers write it."""
    return NAMES.get(architecture, architecture)


def panels(
    rows: int,
    columns: int,
    *,
    share_y: Any,
    width: float = _PANEL[0],
    height: float = _PANEL[1],
) -> tuple[Canvas, np.ndarray]:
    # A single panel is wide enough for the legend.
    size = (max(3.7, 0.6 + width * columns), 0.9 + height * rows)
    fig = Canvas(figsize=size, layout="constrained")
    return fig, fig.subplots(rows, columns, squeeze=False, sharex=True, sharey=share_y)


def legend(fig: Canvas, axes: Iterable[Axes]) -> None:
    """One for all panels, each name once."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    # What is not ours comes last.
    names = sorted(found, key=lambda name: name in (PAPER_LABEL, CHANCE_LABEL))
    rows = math.ceil(len(names) / max(2, int(fig.get_figwidth() / 1.5)))
    fig.legend(
        [found[name] for name in names],
        names,
        loc="outside lower center",
        ncols=math.ceil(len(names) / rows),
        handlelength=1.8,
        columnspacing=1.2,
    )


def label(grid: np.ndarray, x: str) -> None:
    # Not the figure's own label: a legend outside of the axes would lie on it.
    for ax in grid[-1]:
        ax.set_xlabel(x)


def log_x(ax: Axes) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(numticks=5))
    ax.xaxis.set_minor_locator(NullLocator())


def row_name(ax: Axes, name: str) -> None:
    """To the right of the row's last panel."""
    ax.annotate(
        name,
        (1.0, 0.5),
        xytext=(5, 0),
        xycoords="axes fraction",
        textcoords="offset points",
        rotation=270,
        va="center",
        color=INK,
    )


def band(
    ax: Axes,
    x: np.ndarray,
    curves: np.ndarray,
    look: Look,
    label: str,
    marker: str | None = None,
) -> None:
    """Mean over the first axis, and its range where there is more than one."""
    if len(curves) > 1:
        low, high = np.nanmin(curves, axis=0), np.nanmax(curves, axis=0)
        ax.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0)
    ax.plot(
        x,
        np.nanmean(curves, axis=0),
        color=look.colour,
        linestyle=look.line,
        marker=look.marker if marker is None else marker,
        markersize=3.5,
        linewidth=1.3,
        label=label,
        zorder=4 if look.line == "-" else 3,
    )


def shade(i: int, n: int) -> Look:
    """Rates from dark to light, in a map made for every kind of colour vision."""
    colour = to_hex(colormaps["viridis"](0.0 if n == 1 else 0.88 * i / (n - 1)))
    return Look(colour, _MARKERS[i % len(_MARKERS)], "-")


def percent(ax: Axes) -> None:
    ax.set_ylim(-0.02, 1.02)
    ax.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(True, axis="y")


def where(frame: pd.DataFrame, **equal: Any) -> pd.DataFrame:
    """The rows in which each column has its value."""
    for column, value in equal.items():
        frame = frame.loc[lambda rows, c=column, v=value: rows[c] == v]
    return frame


def words(member: str) -> str:
    return member.replace("_", " ")


def settings(frame: pd.DataFrame) -> list[str]:
    return in_order(frame["setting"], SETTINGS)


def architectures(frame: pd.DataFrame) -> list[str]:
    return in_order(frame["architecture"], tuple(NAMES))


def in_order(values: Iterable[str], known: Sequence[str]) -> list[str]:
    found = set(values)
    return [*(v for v in known if v in found), *sorted(found - set(known))]


def need(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    for column in columns:
        if column not in frame:
            raise UserError(
                f"{column}: no such column; {did_you_mean(column, list(frame.columns))}"
            )
        if bool(frame[column].isna().any()):
            raise UserError(f"{column}: has missing values; measure these members again")
    if frame.empty:
        raise UserError("rows: nothing to draw; measure at least one member")
