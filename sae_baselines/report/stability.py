"""Whether other seeds find the same latents: the report's section."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_baselines.controls import TRAINED
from sae_baselines.report.markdown import Figure, Section, render
from sae_baselines.results import Group, Results
from sae_baselines.stats import Interval, t_interval
from sae_baselines.stats.u_statistic import mean_over_pairs

# Name, heading, and which nulls `study.stability.agreement` has of it.
MEASURES = (
    ("best", "cosine of the best match"),
    ("reappear", "best match above 0.7"),
    ("near", "best match above 0.9"),
    ("one_to_one", "cosine, one to one"),
    ("activations", "correlation of activations"),
    ("subspace", "overlap of main subspaces"),
)
NULLS = (
    ("chance", "random directions, closed form"),
    ("random", "random directions, simulated"),
    ("covariance", "random directions of the same covariance"),
    ("shuffled", "matches of other latents of like rate"),
)
_FROZEN = "frozen_decoder"
Pairs = dict[tuple[int, int], Mapping[str, Any]]


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        what: Whose seeds.
        n: Pairs.
        cells: By measure, the mean over pairs and its interval; none where it is not known.
    """

    what: str
    n: int
    cells: Mapping[str, tuple[float, Interval | None]]


def section_of(
    table: Results, pairs: Sequence[Mapping[str, Any]]
) -> tuple[Section, list[Figure]] | None:
    """The section and a figure per architecture and L0; None where nothing was compared.

    Args:
        table: The results.
        pairs: From `study.stability.measure_stability`.
    """
    names = {
        f"{panel}.{m}": (group, m, seed) for (group, m, seed), panel in table.panels.items()
    }
    found: dict[Group, dict[tuple[str, str], Pairs]] = {}
    for pair in pairs:
        ends = [names.get(pair[side]) for side in ("first", "second")]
        if ends[0] is None or ends[1] is None:
            continue
        (group, first, seed), (_, second, other) = ends[0], ends[1]
        found.setdefault(group, {}).setdefault((first, second), {})[seed, other] = pair
    if not found:
        return None
    # matplotlib takes a second to import and is needed nowhere else.
    from sae_baselines.report import stability_plots, style  # noqa: PLC0415

    lines, figures = {}, []
    for group, of in found.items():
        members = {m: of[m, m] for m in table.present(group) if (m, m) in of}
        lines[group] = [*_members(members), *_frozen(of), *_nulls(members or of)]
        if members:
            with style.drawing():
                figures.append(stability_plots.reappearance_figure(table, group, members))
    text = render(
        "stability.md.j2",
        lines=lines,
        measures=MEASURES,
        drawn=figures,
    )
    return Section("stability", "Do other seeds find the same latents?", text), figures


def _members(members: Mapping[str, Pairs]) -> list[Line]:
    out = [
        Line(
            f"`{member}`, between seeds",
            len(pairs),
            {n: mean_over_pairs({k: p[n] for k, p in pairs.items()}) for n, _ in MEASURES},
        )
        for member, pairs in members.items()
    ]
    trained = members.get(TRAINED)
    for member, pairs in members.items() if trained else ():
        both = trained.keys() & pairs.keys() if trained else set()
        if member != TRAINED and both:
            assert trained is not None
            cells = {
                n: mean_over_pairs({k: trained[k][n] - pairs[k][n] for k in both})
                for n, _ in MEASURES
            }
            out.append(Line(f"trained less `{member}`", len(both), cells))
    return out


def _frozen(of: Mapping[tuple[str, str], Pairs]) -> list[Line]:
    """The trained SAE and frozen decoders, from the same start and from others."""
    pairs = of.get((TRAINED, _FROZEN), {})
    out = []
    same = [p for (a, b), p in pairs.items() if a == b]
    if same:
        cells = {}
        for n, _ in MEASURES:
            values = np.array([p[n] for p in same])
            cells[n] = (float(values.mean()), t_interval(values))
        out.append(Line("trained and the frozen decoder of the same start", len(same), cells))
    others = [p for (a, b), p in pairs.items() if a != b]
    if others:
        # Each seed is in as many pairs as there are others, on either side: no interval.
        cells = {n: (float(np.mean([p[n] for p in others])), None) for n, _ in MEASURES}
        out.append(Line("trained and frozen decoders of other starts", len(others), cells))
    return out


def _nulls(of: Mapping[Any, Pairs]) -> list[Line]:
    """Of the trained SAE's pairs where there are any: widths differ by what fires."""
    pairs = list((of.get(TRAINED) or next(iter(of.values()))).values())
    out = []
    for null, title in NULLS:
        cells = {
            n: (float(np.mean([p[f"{n}_{null}"] for p in pairs])), None)
            for n, _ in MEASURES
            if f"{n}_{null}" in pairs[0]
        }
        if cells:
            out.append(Line(title, len(pairs), cells))
    return out
