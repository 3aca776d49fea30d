"""Figures of lazy training: histograms of cos(row now, row at the start), after the paper's.

Importing this module imports matplotlib.
"""

import re
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from sae_baselines.drift.cosines import EDGES
from sae_baselines.drift.record import SIDES, DriftLog
from sae_baselines.drift.sphere import expected_best_cosine
from sae_baselines.report import style
from sae_baselines.report.markdown import Figure

# The paper shows 5 % and 10 %; the end belongs to it.
SHOWN = (0.05, 0.1, 1.0)
_BINS_PER_BAR = 20
_ROW_TITLES = {"decoder": "decoder rows", "encoder": "encoder columns"}


def drift_figure(name: str, log: DriftLog, shown: tuple[float, ...] = SHOWN) -> Figure | None:
    """Histograms at the records nearest to some fractions of training.

    Args:
        name: Of the SAE.
        log: Its records.
        shown: Fractions of training.

    Returns:
        The figure; None if no record has anything to compare.
    """
    sides = [s for s in SIDES if any(r[s] and r[s]["n"] for r in log.records)]
    if not sides:
        return None
    chosen = _nearest(log, shown)
    with style.drawing():
        fig = Canvas(figsize=(style.WIDTH, 0.9 + 1.35 * len(sides)), layout="constrained")
        plots = fig.subplots(len(sides), 1, sharex=True, squeeze=False)[:, 0]
        for ax, side in zip(plots, sides, strict=True):
            _histograms(ax, log, chosen, side)
            ax.set_title(_ROW_TITLES[side], loc="left")
        plots[-1].set_xlabel("cosine with the start")
        fig.supylabel("share of latents", fontsize=9)
        style.legend(fig, plots[0])
        caption = (
            f"{name}: cosine of each latent's direction with its start "
            f"({log.header['start']}), in bins of {_BINS_PER_BAR * 0.001:g}, at "
            f"{_in_words(log, chosen)}."
        )
        plain = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-") or "sae"
        return style.finish(fig, f"drift-{plain}", caption)


def _nearest(log: DriftLog, shown: tuple[float, ...]) -> list[int]:
    """Records nearest to the fractions; evenly spread ones where fractions are not known."""
    known = [i for i, r in enumerate(log.records) if r["fraction"] is not None]
    if not known:
        spread = np.linspace(0, len(log.records) - 1, min(len(shown), len(log.records)))
        return sorted({round(i) for i in spread})
    distance = {f: [abs(log.records[i]["fraction"] - f) for i in known] for f in shown}
    return sorted({known[int(np.argmin(d))] for d in distance.values()})


def _histograms(ax: Axes, log: DriftLog, chosen: list[int], side: str) -> None:
    baselines = [look.colour for look in style.looks([]).values()][1:]
    early = baselines[: len(chosen) - 1]
    edges = EDGES[::_BINS_PER_BAR]
    least = 1.0
    # Earlier ones are wider, so that equal ones can be told apart.
    widths = np.linspace(2.8, 1.2, len(chosen))
    for index, colour, width in zip(chosen, [*early, style.INK], widths, strict=True):
        counts = log.histogram(index, side)
        if counts is None or not counts.sum():
            continue
        share = counts.reshape(-1, _BINS_PER_BAR).sum(axis=1) / counts.sum()
        least = min(least, float(edges[np.flatnonzero(share)[0]]))
        label = _when(log.records[index])
        ax.stairs(share, edges, color=colour, label=label, fill=False, linewidth=width)
    d_in, d_sae = log.header.get("d_in"), log.header.get("d_sae")
    if d_in and d_sae:
        chance = expected_best_cosine(d_in, d_sae)
        least = min(least, chance)
        ax.axvline(
            chance,
            color=style.MUTED,
            linewidth=1.0,
            linestyle=":",
            label=f"best of {d_sae:,} random",
        )
    ax.set_xlim(max(-1.0, least - 0.05), 1.02)
    ax.set_ylim(bottom=0)
    ax.grid(axis="y")


def _when(record: dict[str, Any]) -> str:
    if record["fraction"] is not None:
        return f"{100 * record['fraction']:.3g} % of training"
    return f"{record['samples']:,} samples" if record["samples"] is not None else "as saved"


def _in_words(log: DriftLog, chosen: list[int]) -> str:
    parts = []
    for index in chosen:
        record = log.records[index]
        ev = record["explained_variance"]
        parts.append(_when(record) + (f" (EV {ev:.2f})" if ev is not None else ""))
    return ", ".join(parts)
