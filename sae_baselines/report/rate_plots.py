"""The figure of latents by their firing rate. Importing this module imports matplotlib."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure as Canvas

from sae_baselines.report import style
from sae_baselines.report.markdown import Figure, named
from sae_baselines.results import Group, Results
from sae_baselines.stats.by_rate import Rated

_PER_DECADE = 4


def rate_figure(
    table: Results,
    group: Group,
    members: Mapping[str, Sequence[Rated]],
    unit: str = "tokens",
    name: str = "rates",
) -> Figure:
    """How many latents fire how often, and how much of the variance they explain.

    Args:
        table: Whose members these are.
        group: Architecture and L0.
        members: Latents of each seed, by member.
        unit: What latents fire on.
        name: What the figure's name begins with.
    """
    looks = style.looks(table.members, table.controls)
    every = np.concatenate([rated.rates for seeds in members.values() for rated in seeds])
    fires = every[every > 0]
    lowest = np.floor(_PER_DECADE * np.log10(fires.min())) if len(fires) else -_PER_DECADE
    edges = 10.0 ** (np.arange(lowest, 1) / _PER_DECADE)
    # A rate on an edge belongs above it, and one of 1 to the last bin.
    bounds = edges * (1 - 1e-12)
    bounds[-1] = 1.1
    fig = Canvas(figsize=(style.WIDTH, 4.4), layout="constrained")
    count, share = fig.subplots(2, 1, sharex=True)
    for member, seeds in members.items():
        look = looks[member]
        for ax, weigh in ((count, None), (share, "explained")):
            heights = [
                np.histogram(r.rates, bounds, weights=None if weigh is None else r.explained)[0]
                for r in seeds
            ]
            ax.stairs(
                np.mean(heights, axis=0),
                edges,
                color=look.colour,
                linestyle=look.line,
                label=member,
                fill=False,
            )
    count.set_ylabel("latents")
    share.set_ylabel("share of variance")
    share.set_xlabel(f"share of held-out {unit} that a latent fires on")
    share.axhline(0, color=style.GRID, linewidth=0.8)
    for ax in (count, share):
        ax.set_xscale("log")
        ax.grid(axis="y")
    style.legend(fig, count)
    caption = (
        f"{named(group)}: latents by how often they fire, {_PER_DECADE} bins per decade, and "
        "the share of variance that those of a bin explain; mean over seeds."
    )
    return style.finish(fig, f"{name}-{group[0]}-l0-{group[1]:g}", caption)
