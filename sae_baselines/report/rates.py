"""Latents by how often they fire: the report's section."""

from collections.abc import Mapping
from dataclasses import dataclass

from sae_baselines.report.markdown import Figure, Section, grouped, render
from sae_baselines.report.names import title
from sae_baselines.results import Group, Results, SAEKey
from sae_baselines.stats import Correct
from sae_baselines.stats.by_rate import (
    AtRate,
    Choice,
    Rated,
    by_rate,
    choices,
    mean_strata,
)


@dataclass(frozen=True)
class Rates:
    """What is said of latents by their rate.

    Attributes:
        section: For the page.
        figures: One per architecture and L0.
        found: Verdicts within decades.
    """

    section: Section
    figures: tuple[Figure, ...]
    found: tuple[AtRate, ...]


def rates_of(
    table: Results,
    rated: Mapping[SAEKey, Rated],
    correct: Correct = "baseline",
    unit: str = "tokens",
    name: str = "rates",
    heading: str = "Latents by how often they fire",
) -> Rates | None:
    """Compare latents of like rates; None where nothing is stored of any.

    Args:
        table: The results, without a published SAE.
        rated: By panel and member.
        correct: As of `stats.verdicts`.
        unit: What latents fire on.
        name: Of the section, and what figures' names begin with.
        heading: Of the section.
    """
    every = {
        group: {
            member: [
                rated[key]
                for seed in table.seeds(group, member)
                if (key := (table.panels[group, member, seed], member)) in rated
            ]
            for member in table.present(group)
        }
        for group in table.groups
    }
    saes = {
        group: {member: found for member, found in of.items() if found}
        for group, of in every.items()
        if any(of.values())
    }
    if not saes:
        return None
    # matplotlib takes a second to import and is needed nowhere else.
    from sae_baselines.report import rate_plots, style  # noqa: PLC0415

    with style.drawing():
        drawn = [
            rate_plots.rate_figure(table, group, of, unit, name) for group, of in saes.items()
        ]
    found = by_rate(table, rated, correct=correct)
    text = render(
        "rates.md.j2",
        table=table,
        unit=unit,
        known={g for g, of in saes.items() if any(r.recovers is not None for r in _each(of))},
        members={
            group: {member: mean_strata(seeds) for member, seeds in of.items()}
            for group, of in saes.items()
        },
        offsets={group: min(rated.offset for rated in _each(of)) for group, of in saes.items()},
        drawn=drawn,
        chosen=_chosen(saes),
        compared=list(grouped(found, _what).items()),
    )
    section = Section(name, heading, text)
    return Rates(section, tuple(drawn), tuple(found))


def _chosen(
    saes: Mapping[Group, Mapping[str, list[Rated]]],
) -> list[tuple[Group, str, tuple[int, int], dict[str, dict[int | None, Choice]]]]:
    """By group and suite: tasks, latents chosen for each, and choices by member and decade."""
    found = []
    for group, of in saes.items():
        suites = {suite for rated in _each(of) for suite in rated.chosen}
        for suite in sorted(suites):
            known = {
                member: have
                for member, seeds in of.items()
                if (have := [rated for rated in seeds if rated.chosen.get(suite)])
            }
            tasks = [rated.chosen[suite] for have in known.values() for rated in have]
            if tasks:
                counts = max(map(len, tasks)), max(len(js) for t in tasks for js in t.values())
                by_member = {m: choices(have, suite) for m, have in known.items()}
                found.append((group, suite, counts, by_member))
    return found


def _each(members: Mapping[str, list[Rated]]) -> list[Rated]:
    return [rated for seeds in members.values() for rated in seeds]


def _what(item: AtRate) -> tuple[Group, str]:
    v = item.verdict
    name = v.metric.split("_at_rate_")[0]
    what = (
        "variance explained by as many latents" if v.suite == "panel" else title(v.suite, name)
    )
    if item.n_of == "datasets":
        what += " on the datasets for which both chose one of the decade"
    elif item.n_of == "features":
        what = "share of features recovered"
    return (v.architecture, v.l0), what
