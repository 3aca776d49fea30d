"""The figure of latents that reappear. Importing this module imports matplotlib."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_baselines.report import style
from sae_baselines.report.markdown import Figure, named
from sae_baselines.results import Group, Results


def reappearance_figure(
    table: Results, group: Group, members: Mapping[str, Mapping[Any, Mapping[str, Any]]]
) -> Figure:
    """Share of latents that another seed has too, against how often they fire.

    Args:
        table: Whose members these are.
        group: Architecture and L0.
        members: By member, pairs of seeds as `study.stability.agreement` describes them.
    """
    looks = style.looks(table.members, table.controls)
    fig, ax = style.canvas(3.0)
    for member, pairs in members.items():
        decades = sorted({int(d) for pair in pairs.values() for d in pair["by_rate"]})
        counts = np.array(
            [
                np.sum([pair["by_rate"].get(str(d), (0, 0)) for pair in pairs.values()], axis=0)
                for d in decades
            ]
        )
        look = looks[member]
        ax.plot(
            [10.0 ** (d + 0.5) for d in decades],
            counts[:, 1] / counts[:, 0],
            color=look.colour,
            marker=look.marker,
            linestyle=look.line,
            label=member,
        )
    first = next(iter(members.values()))
    chance = float(np.mean([pair["reappear_chance"] for pair in first.values()]))
    ax.axhline(chance, color=style.MUTED, linewidth=1.0, linestyle=":", label="random")
    ax.set_xscale("log")
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("share of held-out tokens that a latent fires on")
    ax.set_ylabel("share that reappears")
    ax.grid(axis="y")
    style.legend(fig, ax)
    caption = (
        f"{named(group)}: share of latents that have a match above a cosine of 0.7 in another "
        "seed, by decade of their firing rate."
    )
    return style.finish(fig, f"reappearance-{group[0]}-l0-{group[1]:g}", caption)
