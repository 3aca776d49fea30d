"""Looks of the figures: one palette, one way to save, bytes that do not change.

Importing this module imports matplotlib.
"""

import io
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from sae_baselines.report.markdown import Figure
from sae_baselines.results import KNOWN_MEMBERS

# Inches: a column of a paper; on a phone its 9 pt text comes out at 11 pixels or more.
WIDTH = 3.7

INK, MUTED, GRID, SHADE, PAPER = "#1b1f24", "#57606a", "#d8dde3", "#e6eaf0", "#ffffff"
# Okabe and Ito's, for every kind of colour vision, less the two that vanish on white; the
# trained SAE is in the colour of the text. Markers tell members apart without colour.
_COLOURS = ("#0072b2", "#d55e00", "#cc79a7", "#009e73", "#e69f00", "#56b4e9")
_MARKERS = ("s", "^", "v", "D", "P", "X", "*", "<", ">", "h")
_CONTROL_MARKERS = ("x", "+", "1", "2", "3", "4")
# What a colour is called in HTML, where it follows the page's light or dark.
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    SHADE: "--shade",
    PAPER: "--paper",
    **{colour: f"--c{i}" for i, colour in enumerate(_COLOURS)},
}
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    # Ids would otherwise be random.
    "svg.hashsalt": "sae_baselines",
}


@dataclass(frozen=True)
class Look:
    """How a member is drawn."""

    colour: str
    marker: str
    line: str


def looks(members: list[str], controls: Collection[str] = ()) -> dict[str, Look]:
    """The same member looks the same in every study, as long as its name is a known one.

    Args:
        members: Members.
        controls: Those of them that were never trained: grey and dotted, told apart by markers.
    """
    known = [m for m in KNOWN_MEMBERS if m != "trained"]
    others = [m for m in members if m not in KNOWN_MEMBERS and m not in controls]
    out = {"trained": Look(INK, "o", "-")}
    for i, member in enumerate([*known, *others]):
        out[member] = Look(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], "--")
    for i, member in enumerate(m for m in members if m in controls):
        out[member] = Look(MUTED, _CONTROL_MARKERS[i % len(_CONTROL_MARKERS)], ":")
    return out


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with this style, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def canvas(height: float) -> tuple[Canvas, Axes]:
    """A figure one column wide, of this height in inches."""
    fig = Canvas(figsize=(WIDTH, height), layout="constrained")
    return fig, fig.add_subplot()


def legend(fig: Canvas, ax: Axes) -> None:
    """What one of its plots shows, below all of them."""
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower left", ncols=2, columnspacing=1.0)


def finish(fig: Canvas, name: str, caption: str) -> Figure:
    """Save in all forms; equal figures give equal bytes."""
    # The layout is worked out once. With None, not "none": that leaves an engine that does
    # nothing, and for its sake every save draws twice.
    layout = fig.get_layout_engine()
    if layout is not None:
        layout.execute(fig)
    fig.set_layout_engine(None)
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=200, metadata={"Software": None})
    standalone = _svg(fig, "path", transparent=False)
    inline = _inline(_svg(fig, "none", transparent=True).decode(), name)
    return Figure(name, caption, inline, standalone, png.getvalue())


def _svg(fig: Canvas, fonts: str, transparent: bool) -> bytes:
    out = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": fonts}):
        fig.savefig(out, format="svg", metadata=nothing, transparent=transparent)
    return out.getvalue()


def _inline(svg: str, name: str) -> str:
    """An SVG element for a page: no prologue, no foreign names, ids of its own, CSS colours."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    # Attributes cannot hold variables, styles can; matplotlib writes styles.
    return f'<svg viewBox="{box.group(1)}" role="img" aria-labelledby="{name}-caption">{body}'
