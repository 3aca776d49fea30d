"""Figures of the synthetic case study (paper, Figures 2, 3 and 9). Imports matplotlib.

Frames that the functions take; a figure asks only for the columns it shows:

- ``results`` (a row is a member) and ``snapshots`` (a member at a moment of training):
  ``setting, architecture, member, seed, lr, samples, step, ev, l0, recovered,
  recovered_share, mean_best_cosine, dead``.
- ``features`` (a row is a ground-truth feature of a member), from `feature_frame`:
  ``setting, architecture, member, seed, best_cosine, firing_probability``.

With several seeds lines are means and bands their range; with one there is no band. Figures
raise `UserError` where a column or the asked-for setting or member is missing, or no row is
left to draw.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import (
    FixedLocator,
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

from sae_baselines.drift.sphere import quantile_of_best_cosine
from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.files import own_file
from sae_baselines.paper.toy.chance import chance_curve, reachable_curve
from sae_baselines.report.style import INK, MUTED, PAPER, SHADE, Look, drawing, looks
from sae_baselines.results import ordered
from sae_baselines.study.measure import L0_TOLERANCE
from sae_baselines.study.synthetic.measure import PerFeature
from sae_baselines.study.synthetic.recovery import (
    RECOVERED_ABOVE,
    THRESHOLDS,
    recovery_by_frequency,
    recovery_curve,
)

Numbers = Mapping[tuple[str, str], float]
"""The paper's numbers by (setting, architecture)."""

_NAMES = {
    "batchtopk": "BatchTopK",
    "jumprelu": "JumpReLU",
    "topk": "TopK",
    "matryoshka_batchtopk": "Matryoshka",
}
_SETTINGS = ("constant", "variable")
_CHANCE = "random directions"
_PAPER = "paper"
_KEYS = ("setting", "architecture", "member", "seed")
# Bins of a histogram, of which 0.8 is an edge: fine ones where there are features to fill them.
_FINE, _COARSE, _MANY = 50, 25, 1000
_PANEL = (1.75, 1.6)  # inches, of one panel
_MARKERS = "osD^vPX*"
_DOTTED: dict[str, Any] = {"color": MUTED, "linewidth": 0.9, "linestyle": ":"}


@dataclass(frozen=True)
class Drawn:
    """A figure, not saved yet.

    Attributes:
        name: File name without ending.
        caption: What it shows.
        canvas: matplotlib's figure.
    """

    name: str
    caption: str
    canvas: Canvas

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``name.png`` and ``name.pdf``; equal figures give equal bytes."""
        nothing: dict[str, Any] = {
            "png": {"Software": None},
            "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")),
        }
        paths = []
        # Font type 42: text in a PDF stays text.
        with drawing(), matplotlib.rc_context({"pdf.fonttype": 42}):
            for ending, metadata in nothing.items():
                paths.append(own_file(Path(folder, f"{self.name}.{ending}")))
                self.canvas.savefig(paths[-1], dpi=200, metadata=metadata)
        return paths


def feature_frame(measured: Iterable[tuple[Mapping[str, Any], PerFeature]]) -> pd.DataFrame:
    """The ``features`` frame of members.

    Args:
        measured: Of each, a row with ``setting, architecture, member, seed``, and its arrays.
            Where the row has ``n_samples``, the frame has a column ``firing_frequency``, what
            was observed: a hierarchy keeps features below their probability.

    Raises:
        UserError: Nothing was measured, or a row lacks a key.
    """
    parts = []
    for row, arrays in measured:
        for key in _KEYS:
            if key not in row:
                raise UserError(f"{key}: missing from a measured row; {', '.join(_KEYS)}")
        part = {key: row[key] for key in _KEYS}
        part["best_cosine"] = arrays.best_cosine
        part["firing_probability"] = arrays.firing_probability
        if "n_samples" in row:
            part["firing_frequency"] = arrays.firings / row["n_samples"]
        parts.append(pd.DataFrame(part))
    if not parts:
        raise UserError("measured: nothing to draw; give a row and arrays per member")
    return pd.concat(parts, ignore_index=True)


def recovery_histograms(features: pd.DataFrame, *, d_in: int, d_sae: int) -> Drawn:
    """Distribution of features' best cosines (paper, Figure 2; four architectures, Figure 9).

    Args:
        features: See the module.
        d_in: Width of the activations, for the chance of random directions.
        d_sae: Latents.
    """
    _need(features, (*_KEYS, "best_cosine"))
    n = features.groupby(list(_KEYS)).size().min()
    edges = np.linspace(0.0, 1.0, 1 + (_FINE if n >= _MANY else _COARSE))
    chance = -np.diff(chance_curve(d_in, d_sae, edges))
    members = ordered(features["member"])
    styles = looks(members)

    def panel(ax: Axes, part: pd.DataFrame) -> None:
        ax.stairs(chance, edges, fill=True, color=SHADE, label=_CHANCE, zorder=0)
        top = chance.max()
        for member, seeds in _by_member(part, members):
            # Below zero only where there are a handful of latents.
            best = [np.clip(b, 0.0, 1.0) for b in seeds["best_cosine"]]
            mass = np.mean([np.histogram(b, edges)[0] / len(b) for b in best], axis=0)
            trained = member == "trained"
            ax.stairs(
                mass,
                edges,
                color=styles[member].colour,
                linewidth=1.5 if trained else 1.1,
                label=_words(member),
                zorder=4 if trained else 3,
            )
            top = max(top, mass.max())
        _cosine_axis(ax)
        # A panel has its own height: shapes are compared, not heights.
        ax.set_ylim(0, 1.08 * top)
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    canvas = _by_setting(features, panel, "best cosine", "features per bin", share_y="none")
    caption = (
        "Best cosine of each ground-truth feature with a decoder row. Dotted: "
        f"{RECOVERED_ABOVE:g}, above which a feature counts as recovered. Shaded: {d_sae:,} "
        f"random directions in {d_in} dimensions, closed form. {_seeds(features, bands=False)}"
    )
    return Drawn("toy_recovery_histograms", caption, canvas)


def recovery_curves(
    features: pd.DataFrame,
    *,
    d_in: int,
    d_sae: int,
    tau: float | None = None,
    log: bool = False,
) -> Drawn:
    """Share of features recovered, over thresholds, with the chance of random directions.

    Args:
        features: See the module.
        d_in: Width of the activations.
        d_sae: Latents.
        tau: If given, also what a soft-frozen decoder of this tau could reach.
        log: A logarithmic share, down to less than one feature: 3 of 3,200 are on the floor
            of a linear one.
    """
    _need(features, (*_KEYS, "best_cosine"))
    members = ordered(features["member"])
    styles = looks(members)
    x = np.array(THRESHOLDS)
    chance = chance_curve(d_in, d_sae)

    def panel(ax: Axes, part: pd.DataFrame) -> None:
        ax.fill_between(x, chance, color=SHADE, linewidth=0, zorder=0, label=_CHANCE)
        for member, seeds in _by_member(part, members):
            curves = np.array([recovery_curve(best) for best in seeds["best_cosine"]])
            _band(ax, x, curves, styles[member], _words(member), marker="")
        if tau is not None:
            ax.plot(
                x,
                reachable_curve(d_in, d_sae, tau),
                color=styles.get("soft_frozen_decoder", Look(MUTED, "", "")).colour,
                linestyle=(0, (1, 1.5)),
                linewidth=1.0,
                label=f"reach of tau = {tau:g}",
            )
        _cosine_axis(ax)
        if not log:
            _percent(ax)
            return
        ax.set_yscale("log", nonpositive="clip")
        ax.set_ylim(0.5 / part.groupby(["member", "seed"]).size().min(), 1.5)
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.grid(True, axis="y")

    canvas = _by_setting(features, panel, "threshold", "features above it")
    dots = "" if tau is None else f"Dots: most that a cap of {tau:g} around the start allows. "
    caption = (
        "Share of ground-truth features whose best cosine exceeds a threshold. Shaded: "
        f"{d_sae:,} random directions in {d_in} dimensions, closed form. {dots}Vertical: "
        f"{RECOVERED_ABOVE:g}. {_seeds(features)}"
    )
    return Drawn("toy_recovery_curves" + ("_log" if log else ""), caption, canvas)


def recovery_against_frequency(
    features: pd.DataFrame,
    *,
    d_in: int,
    d_sae: int,
    setting: str = "variable",
    frequency: str = "firing_probability",
    bins: int = 12,
) -> Drawn:
    """Recovery against how often a feature fires (paper, Figure 3).

    Above each feature of the trained SAE (of its first seed), below the recovered share of
    every member.

    Args:
        features: See the module.
        d_in: Width of the activations.
        d_sae: Latents.
        setting: Which one; in ``constant`` every feature fires alike.
        frequency: Column: ``firing_probability``, or ``firing_frequency`` as observed.
        bins: Log-spaced bins.
    """
    _need(features, (*_KEYS, "best_cosine", frequency))
    settings = sorted(set(features["setting"]))
    if setting not in settings:
        raise UserError(
            f"setting: {setting!r} was not measured; {did_you_mean(setting, settings)}"
        )
    features = _where(features, setting=setting).query(f"{frequency} > 0")
    _need(features, _KEYS)
    members, architectures = ordered(features["member"]), _architectures(features)
    styles = looks(members)
    low, high = float(features[frequency].min()), float(features[frequency].max())
    edges = np.geomspace(low, high, bins + 1) if low < high else np.array([low / 2, low * 2])
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    several = features["seed"].nunique() > 1

    def dots(ax: Axes, part: pd.DataFrame) -> None:
        first = _where(part, member=members[0])
        first = _where(first, seed=first["seed"].min())
        band = [quantile_of_best_cosine(d_in, d_sae, q) for q in (0.025, 0.975)]
        ax.axhspan(*band, color=SHADE, linewidth=0, zorder=0, label=_CHANCE)
        many = len(first) > 500
        ax.plot(
            first[frequency],
            first["best_cosine"],
            linestyle="none",
            marker=".",
            markersize=2.5 if many else 5,
            markeredgewidth=0,
            color=styles[members[0]].colour,
            alpha=0.35 if many else 0.7,
            rasterized=True,
        )
        ax.axhline(RECOVERED_ABOVE, **_DOTTED)
        ax.set_ylim(min(0.0, float(features["best_cosine"].min())), 1.02)

    def share(ax: Axes, part: pd.DataFrame) -> None:
        centres = np.sqrt(edges[1:] * edges[:-1])
        # Intervals of single seeds stand side by side.
        step = 1.0 if several else (edges[1] / edges[0]) ** 0.08
        for i, (member, seeds) in enumerate(_by_member(part, members)):
            tables = [
                recovery_by_frequency(best, p, edges.tolist())
                for best, p in zip(seeds["best_cosine"], seeds[frequency], strict=True)
            ]
            shares = np.array([table["share"] for table in tables])
            kept = ~np.isnan(shares).all(axis=0)
            x = centres[kept] * step ** (i - (len(members) - 1) / 2)
            _band(ax, x, shares[:, kept], styles[member], _words(member))
            if not several:
                ends = tables[0][["share_low", "share_high"]].to_numpy()[kept]
                ax.vlines(x, *ends.T, color=styles[member].colour, linewidth=0.8)
        _log_x(ax)
        _percent(ax)

    with drawing():
        fig, grid = _panels(2, len(architectures), share_y="row")
        for column, architecture in enumerate(architectures):
            part = _where(features, architecture=architecture)
            dots(grid[0, column], part)
            share(grid[1, column], part)
            grid[0, column].set_title(_name(architecture))
        grid[0, 0].set_ylabel("best cosine")
        grid[1, 0].set_ylabel("features recovered")
        _finish(fig, grid, frequency.replace("_", " "))
    bars = (
        "Bands: range over seeds." if several else "Single seed; bars: 95 % Wilson intervals."
    )
    caption = (
        f"Recovery against firing frequency, {setting} setting. Above: best cosine of each "
        f"ground-truth feature, {_words(members[0])}, one seed; shaded, the middle 95 % "
        f"of what {d_sae:,} random directions give; dotted, {RECOVERED_ABOVE:g}. Below: share "
        f"of features above it, in bins of equal log width. {bars}"
    )
    return Drawn(f"toy_recovery_against_frequency_{setting}", caption, fig)


def side_by_side(
    results: pd.DataFrame,
    *,
    chance: float | None = None,
    paper_recovered: Numbers | None = None,
    paper_ev: Numbers | None = None,
) -> Drawn:
    """All architectures and members, both settings: recovered share and EV (cf. Figure 9).

    Args:
        results: See the module.
        chance: Share that random directions recover, for a line.
        paper_recovered: Recovered shares in [0, 1] to draw beside ours.
        paper_ev: Explained variances to draw beside ours.
    """
    _need(results, (*_KEYS, "recovered_share", "ev"))
    members, architectures = ordered(results["member"]), _architectures(results)
    styles, settings = looks(members), _settings(results)
    values = (
        ("recovered_share", "features recovered", paper_recovered),
        ("ev", "explained variance", paper_ev),
    )
    with drawing():
        width = 0.75 + 0.72 * len(architectures)
        fig, grid = _panels(2, len(settings), width=width, share_y="row")
        for column, setting in enumerate(settings):
            for row, (value, label, paper) in enumerate(values):
                ax = grid[row, column]
                part = _where(results, setting=setting)
                for i, member in enumerate(members):
                    _spread_points(
                        ax,
                        _where(part, member=member),
                        value,
                        architectures,
                        0.62 * ((i + 0.5) / len(members) - 0.5),
                        styles[member],
                        _words(member),
                    )
                for x, architecture in enumerate(architectures):
                    y = (paper or {}).get((setting, architecture))
                    if y is not None:
                        ends = [x - 0.4, x + 0.4]
                        ax.plot(ends, [y, y], color=MUTED, linewidth=1.0, label=_PAPER)
                ax.set_xlim(-0.5, len(architectures) - 0.5)
                ax.xaxis.set_major_locator(FixedLocator(range(len(architectures))))
                ax.set_xticklabels([_name(a) for a in architectures])
                ax.tick_params(axis="x", length=0)
                ax.grid(True, axis="y")
                grid[row, 0].set_ylabel(label)
            top = grid[0, column]
            if chance is not None:
                top.axhline(chance, **_DOTTED, label=_CHANCE)
            _percent(top)
            top.set_ylim(-0.03, 1.03)
            top.set_title(setting)
        _finish(fig, grid)
    paper_words = "Grey bars: the paper. " if paper_recovered or paper_ev else ""
    chance_words = "" if chance is None else f"Dotted: random directions ({chance:.2g}). "
    caption = (
        f"Features recovered (best cosine above {RECOVERED_ABOVE:g}) and explained variance on "
        f"held-out samples. {paper_words}{chance_words}One marker per seed, bar: mean."
    )
    return Drawn("toy_side_by_side", caption, fig)


def training_map(
    snapshots: pd.DataFrame,
    *,
    member: str = "trained",
    l0: float | None = None,
    paper_recovered: Numbers | None = None,
    paper_ev: Numbers | None = None,
) -> Drawn:
    """Recovered share and EV against training samples, a line per learning rate.

    Args:
        snapshots: See the module; a column ``batch`` with several values gets lines of its own.
        member: Whose.
        l0: Target; moments whose measured L0 is more than 5 % off it get hollow markers, since
            EV and recovery at another L0 are of another comparison.
        paper_recovered: Recovered shares in [0, 1], for a line across.
        paper_ev: Explained variances, for a line across.
    """
    shown = ("lr", "samples", "recovered_share", "ev", *(["l0"] if l0 else []))
    _need(snapshots, (*_KEYS, *shown))
    members = sorted(set(snapshots["member"]))
    if member not in members:
        raise UserError(f"member: {member!r} has no snapshot; {did_you_mean(member, members)}")
    frame = _where(snapshots, member=member).query("samples > 0")
    by_batch = "batch" in frame and frame["batch"].nunique() > 1
    lines = ["lr", "batch"] if by_batch else ["lr"]
    kinds = sorted(set(frame[lines].itertuples(index=False, name=None)))
    styles = {kind: _shade(i, len(kinds)) for i, kind in enumerate(kinds)}
    values = (("recovered_share", "recovered", paper_recovered), ("ev", "EV", paper_ev))

    def panel(
        ax: Axes, part: pd.DataFrame, value: str, paper: Numbers | None, at: tuple[str, str]
    ) -> None:
        for kind in kinds:
            some = _where(part, **dict(zip(lines, kind, strict=True)))
            if len(some):
                label = f"lr {kind[0]:g}" + (f", batch {kind[1]:,.0f}" if by_batch else "")
                _line(ax, some, value, styles[kind], label, l0)
        if paper and at in paper:
            ax.axhline(paper[at], **_DOTTED, label=_PAPER, zorder=1)
        _log_x(ax)
        ax.grid(True, axis="y")
        if value == "recovered_share":
            _percent(ax)

    settings, architectures = _settings(frame), _architectures(frame)
    with drawing():
        rows = [(setting, *value) for setting in settings for value in values]
        fig, grid = _panels(len(rows), len(architectures), height=1.3, share_y="row")
        for r, (setting, value, label, paper) in enumerate(rows):
            for c, architecture in enumerate(architectures):
                part = _where(frame, setting=setting, architecture=architecture)
                panel(grid[r, c], part, value, paper, (setting, architecture))
            grid[r, 0].set_ylabel(label)
            _row_name(grid[r, -1], setting)
        for ax, architecture in zip(grid[0], architectures, strict=True):
            ax.set_title(_name(architecture))
        fig.align_ylabels(list(grid[:, 0]))
        _finish(fig, grid, "training samples")
    dots = "Dotted: the paper's number. " if paper_recovered or paper_ev else ""
    if l0 is not None:
        dots += f"Hollow: L0 more than {L0_TOLERANCE:.0%} off {l0:g}. "
    caption = (
        f"Features recovered and explained variance along training, {_words(member)}, by "
        f"learning rate{' and batch' if by_batch else ''}. {dots}{_seeds(frame)}"
    )
    name = "toy_training_map" + ("" if member == "trained" else f"_{member}")
    return Drawn(name, caption, fig)


# What several figures draw.


def _by_setting(
    features: pd.DataFrame,
    panel: Callable[[Axes, pd.DataFrame], None],
    x: str,
    y: str,
    share_y: str = "all",
) -> Canvas:
    """A row per setting, a column per architecture."""
    settings, architectures = _settings(features), _architectures(features)
    with drawing():
        fig, grid = _panels(len(settings), len(architectures), share_y=share_y)
        for r, setting in enumerate(settings):
            for c, architecture in enumerate(architectures):
                part = _where(features, setting=setting, architecture=architecture)
                if len(part):
                    panel(grid[r, c], part)
                if r == 0:
                    grid[r, c].set_title(_name(architecture))
            _row_name(grid[r, -1], setting)
        fig.supylabel(y, fontsize=9)
        _finish(fig, grid, x)
    return fig


def _panels(
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


def _finish(fig: Canvas, grid: np.ndarray, x: str = "") -> None:
    """Name the last row's x, and make one legend for all panels, each name once."""
    # Not the figure's own label: a legend outside of the axes would lie on it.
    for ax in grid[-1]:
        ax.set_xlabel(x)
    handles: dict[str, Any] = {}
    for ax in grid.ravel():
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    # What is not ours comes last.
    names = sorted(handles, key=lambda name: name in (_PAPER, _CHANCE))
    rows = math.ceil(len(names) / max(2, int(fig.get_figwidth() / 1.5)))
    fig.legend(
        [handles[name] for name in names],
        names,
        loc="outside lower center",
        ncols=math.ceil(len(names) / rows),
        handlelength=1.8,
        columnspacing=1.2,
    )


def _cosine_axis(ax: Axes) -> None:
    ax.axvline(RECOVERED_ABOVE, **_DOTTED)
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_locator(FixedLocator([0, 0.5, 1]))


def _log_x(ax: Axes) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(numticks=5))
    ax.xaxis.set_minor_locator(NullLocator())


def _row_name(ax: Axes, name: str) -> None:
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


def _band(
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


def _shade(i: int, n: int) -> Look:
    """Rates from dark to light, in a map made for every kind of colour vision."""
    colour = to_hex(colormaps["viridis"](0.0 if n == 1 else 0.88 * i / (n - 1)))
    return Look(colour, _MARKERS[i % len(_MARKERS)], "-")


def _percent(ax: Axes) -> None:
    ax.set_ylim(-0.02, 1.02)
    ax.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(True, axis="y")


def _where(frame: pd.DataFrame, **equal: Any) -> pd.DataFrame:
    """The rows in which each column has its value."""
    for column, value in equal.items():
        frame = frame.loc[lambda rows, c=column, v=value: rows[c] == v]
    return frame


def _in_order(values: Iterable[str], known: Sequence[str]) -> list[str]:
    found = set(values)
    return [*(v for v in known if v in found), *sorted(found - set(known))]


def _need(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    for column in columns:
        if column not in frame:
            raise UserError(
                f"{column}: no such column; {did_you_mean(column, list(frame.columns))}"
            )
        if bool(frame[column].isna().any()):
            raise UserError(f"{column}: has missing values; measure these members again")
    if frame.empty:
        raise UserError("rows: nothing to draw; measure at least one member")


def _words(member: str) -> str:
    return member.replace("_", " ")


def _name(architecture: str) -> str:
    """As papers write it."""
    return _NAMES.get(architecture, architecture)


def _settings(frame: pd.DataFrame) -> list[str]:
    return _in_order(frame["setting"], _SETTINGS)


def _architectures(frame: pd.DataFrame) -> list[str]:
    return _in_order(frame["architecture"], tuple(_NAMES))


def _line(
    ax: Axes, part: pd.DataFrame, value: str, look: Look, label: str, l0: float | None
) -> None:
    table = part.pivot_table(index="samples", columns="seed", values=value).sort_index()
    x = table.index.to_numpy(float)
    _band(ax, x, table.to_numpy(float).T, look, label)
    if l0 is not None:
        measured = part.groupby("samples")["l0"].mean().sort_index().to_numpy(float)
        off = np.abs(measured - l0) > L0_TOLERANCE * l0
        ax.plot(
            x[off],
            np.nanmean(table.to_numpy(float), axis=1)[off],
            linestyle="none",
            marker=look.marker,
            markersize=3.5,
            color=look.colour,
            markerfacecolor=PAPER,
            zorder=5,
        )


def _spread_points(
    ax: Axes,
    part: pd.DataFrame,
    value: str,
    architectures: Sequence[str],
    offset: float,
    look: Look,
    label: str,
) -> None:
    for x, architecture in enumerate(architectures):
        values = part.loc[part["architecture"] == architecture, value].to_numpy(float)
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        at = x + offset
        if len(values) > 1:
            ax.plot([at - 0.07, at + 0.07], [values.mean()] * 2, color=look.colour, linewidth=2)
        ax.plot(
            np.full(len(values), at),
            values,
            linestyle="none",
            marker=look.marker,
            markersize=4.5,
            color=look.colour,
            markerfacecolor=look.colour if look.line == "-" else "none",
            # Nothing recovered is on the edge.
            clip_on=False,
            zorder=4,
            label=label,
        )


def _by_member(
    part: pd.DataFrame, members: Sequence[str]
) -> Iterator[tuple[str, dict[str, list[np.ndarray]]]]:
    """Of each member that is there, the columns as one array per seed."""
    for member in members:
        some = _where(part, member=member)
        if len(some):
            by_seed = [group for _, group in some.groupby("seed", sort=True)]
            yield (
                member,
                {c: [g[c].to_numpy() for g in by_seed] for c in some.columns if c not in _KEYS},
            )


def _seeds(frame: pd.DataFrame, bands: bool = True) -> str:
    n = frame["seed"].nunique()
    if n == 1:
        return "Single seed."
    return f"Lines: mean over {n} seeds; bands: range." if bands else f"Mean over {n} seeds."
