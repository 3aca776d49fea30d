"""The report of a synthetic study: table, chance, verdicts, figures (paper, Section 3).

Numbers come from the members' measurement.json, and from the curves that training wrote.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from sae_baselines.drift.sphere import chance_of_best, expected_best_cosine
from sae_baselines.files import write_atomically
from sae_baselines.paper.toy.chance import (
    SimulatedRecovery,
    count_and_chance,
    reachable_curve,
)
from sae_baselines.paper.toy.results import (
    PAPER_EV,
    PAPER_RECOVERED,
    ToyResults,
    load_toy,
    toy_verdicts,
)
from sae_baselines.report.build import Report
from sae_baselines.report.markdown import Figure, Section, render
from sae_baselines.report.numbers import mean_sd
from sae_baselines.report.write import write_report
from sae_baselines.stats import Verdict, against_random
from sae_baselines.study.folder import STUDY_FILE
from sae_baselines.study.measure import L0_TOLERANCE
from sae_baselines.study.synthetic.recovery import RECOVERED_ABOVE

CURVES_FILE = "curves.csv"

_COUNTS = ("dead", "recovered", "recovered_one_to_one")


def write_toy_report(root: str | Path) -> Path:
    """Write a table per setting, curves.csv, verdicts.csv, report.md, report.html and figures.

    The tables (results_<setting>.csv) are tidy, as the project's statistics read them.

    Args:
        root: Study folder.

    Returns:
        The page.

    Raises:
        UserError: As `load_toy`.
    """
    results = load_toy(root)
    root = Path(root)
    for setting, rows in results.rows.groupby("setting"):
        table = rows.drop(columns="setting").to_csv(index=False)
        write_atomically(root / f"results_{setting}.csv", table)
    write_atomically(root / CURVES_FILE, results.curves.to_csv(index=False))
    report = build_toy_report(results)
    write_report(report, root)
    return root / "report.html"


def build_toy_report(results: ToyResults) -> Report:
    """Everything in the report, as data."""
    found = toy_verdicts(results)
    random = {setting: against_random(vs) for setting, vs in found.items()}
    figures = _figures(results)
    spec = results.spec
    seeds = "one training seed" if len(spec.seeds) == 1 else f"{len(spec.seeds)} training seeds"
    lede = (
        f"SAEs with {spec.d_sae:,} latents at L0 {spec.l0:g}, and their random baselines, on "
        f"data whose features are known. {spec.training_samples:,} samples each, learning "
        f"rate {spec.lr:g}, {seeds}; every member of a setting sees the same samples."
    )
    record = {k: v for k, v in results.record.items() if k != "spec"}
    record = {"spec": results.record["spec"], **record}
    parts = [
        (
            "answer",
            "Does the trained SAE beat random?",
            _text("answers", random=[r for rs in random.values() for r in rs]),
        ),
        *(
            (setting, f"Setting: {setting}", _setting(results, setting, found[setting]))
            for setting in spec.settings
        ),
        ("figures", "Figures", _text("figures", drawn=figures)),
        ("sceptic", "For a sceptic", _text("how", spec=spec)),
        ("provenance", "Provenance", _text("provenance", file=STUDY_FILE, record=record)),
    ]
    return Report(
        title=f"Known features: {spec.name}",
        lede=lede,
        sections=tuple(Section(*part) for part in parts),
        figures=tuple(figures),
        verdicts=tuple(v for vs in found.values() for v in vs),
        against_random=tuple(r for rs in random.values() for r in rs),
    )


def _setting(results: ToyResults, setting: str, found: list[Verdict]) -> str:
    spec = results.spec
    frame = results.frame.loc[results.frame["setting"] == setting]
    d_in, n_features, active = results.sizes[setting]
    simulated = results.chance[setting]
    sizes = (n_features, d_in, spec.d_sae)
    members = [
        (
            _heading(results, setting, architecture),
            [
                _member_row(
                    member.name,
                    frame.loc[frame["architecture"] == architecture],
                    sizes,
                    simulated,
                )
                for member in spec.member_specs
            ],
        )
        for architecture in spec.architectures
    ]
    return _text(
        "setting",
        spec=spec,
        n_features=n_features,
        d_in=d_in,
        active=active,
        by_chance=float(chance_of_best(d_in, spec.d_sae, RECOVERED_ABOVE)) * n_features,
        best_cosine=expected_best_cosine(d_in, spec.d_sae),
        simulated=simulated,
        counts=simulated.counts(RECOVERED_ABOVE),
        reachable=float(reachable_curve(d_in, spec.d_sae, spec.tau, [RECOVERED_ABOVE])[0]),
        members=members,
        verdicts=found,
        RECOVERED_ABOVE=RECOVERED_ABOVE,
        L0_TOLERANCE=L0_TOLERANCE,
    )


def _text(template: str, **values: Any) -> str:
    return render(f"{template}.md.j2", "sae_baselines.paper.toy", **values)


def _heading(results: ToyResults, setting: str, architecture: str) -> str:
    if not results.is_the_papers:
        return architecture
    said = []
    ev = PAPER_EV.get((setting, architecture))
    share = PAPER_RECOVERED.get((setting, architecture))
    if ev is not None:
        said.append(f"EV {ev:g}")
    if share is not None:
        said.append(f"{share:.2%} recovered")
    return f"{architecture} (paper, trained: {', '.join(said) or 'not stated'})"


def _member_row(
    member: str,
    frame: pd.DataFrame,
    sizes: tuple[int, int, int],
    simulated: SimulatedRecovery,
) -> dict[str, Any]:
    mine = frame.loc[frame["member"] == member]
    n_features, d_in, d_sae = sizes
    # Of several seeds the least count: the weakest claim.
    chance = count_and_chance(
        int(mine["recovered"].min()),
        n_features=n_features,
        d_in=d_in,
        d_sae=d_sae,
        simulation=simulated,
    )

    def cell(column: str) -> str:
        values = [float(v) for v in mine[column]]
        if len(values) == 1 and column in _COUNTS:
            return f"{values[0]:,.0f}"
        return mean_sd(values)

    before = ("ev", "l0", "dead", "recovered", "recovered_share")
    after = ("recovered_one_to_one", "mean_best_cosine", "mcc", "cos_to_start_mean")
    return {
        "member": member,
        "cells": [*map(cell, before), f"{chance.p_value:.1g}", *map(cell, after)],
        "off": [s for s, ok in zip(mine["seed"], mine["l0_matches"], strict=True) if not ok],
    }


def _figures(results: ToyResults) -> list[Figure]:
    # matplotlib takes a second to import and is needed nowhere else.
    from sae_baselines.paper.toy import plots as toy_plots  # noqa: PLC0415
    from sae_baselines.report import style  # noqa: PLC0415

    spec = results.spec
    features = toy_plots.feature_frame(results.features)
    d_in = {d for d, _, _ in results.sizes.values()}
    paper = results.is_the_papers
    figures: list[Figure] = []
    with style.drawing():
        if len(d_in) == 1:
            width = d_in.pop()
            figures += _draw_features(results, features, width)
            chance = float(chance_of_best(width, spec.d_sae, RECOVERED_ABOVE))
        else:
            chance = None
        drawn = [
            toy_plots.side_by_side(
                results.frame,
                chance=chance,
                paper_recovered=PAPER_RECOVERED if paper else None,
                paper_ev=PAPER_EV if paper else None,
            )
        ]
        if len(results.curves):
            drawn.append(
                toy_plots.training_map(
                    results.curves,
                    l0=spec.l0,
                    paper_recovered=PAPER_RECOVERED if paper else None,
                    paper_ev=PAPER_EV if paper else None,
                )
            )
        figures += [style.finish(d.canvas, d.name, d.caption) for d in drawn]
    return figures


def _draw_features(results: ToyResults, features: pd.DataFrame, d_in: int) -> Iterator[Figure]:
    from sae_baselines.paper.toy import plots as toy_plots  # noqa: PLC0415
    from sae_baselines.report import style  # noqa: PLC0415

    spec = results.spec
    sizes: dict[str, Any] = {"d_in": d_in, "d_sae": spec.d_sae}
    drawn = [
        toy_plots.recovery_histograms(features, **sizes),
        toy_plots.recovery_curves(features, **sizes, tau=spec.tau),
        toy_plots.recovery_curves(features, **sizes, tau=spec.tau, log=True),
    ]
    drawn += [
        toy_plots.recovery_against_frequency(
            features,
            **sizes,
            setting=setting,
            # A hierarchy keeps features below their nominal probability.
            frequency="firing_frequency" if setting in spec.models else "firing_probability",
        )
        for setting in spec.settings
        if setting != "constant"
    ]
    for d in drawn:
        yield style.finish(d.canvas, d.name, d.caption)
