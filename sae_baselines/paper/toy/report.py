"""The report of a synthetic study: table, chance, verdicts, figures (paper, Section 3).

Numbers come from the members' measurement.json, and from the curves that training wrote. What
is said of them stands in ``templates/``.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from sae_baselines.drift.sphere import chance_of_best, expected_best_cosine
from sae_baselines.files import keep_links_inside, write_atomically
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
    toy_answers,
    toy_verdicts,
)
from sae_baselines.report.build import Report
from sae_baselines.report.markdown import Figure, Section, render
from sae_baselines.report.numbers import mean_sd
from sae_baselines.report.rates import Rates, rates_of
from sae_baselines.report.write import write_report
from sae_baselines.results import Results
from sae_baselines.stats import Correct, Verdict, corrected
from sae_baselines.study.folder import STUDY_FILE
from sae_baselines.study.measure import L0_TOLERANCE
from sae_baselines.study.recipes import in_words
from sae_baselines.study.synthetic.recovery import RECOVERED_ABOVE

CURVES_FILE = "curves.csv"

# Columns of a member, before and after the one for chance.
_BEFORE = ("ev", "l0", "dead", "recovered", "recovered_share")
_AFTER = ("recovered_one_to_one", "mean_best_cosine", "mcc", "cos_to_start_mean")
_COUNTS = ("dead", "recovered", "recovered_one_to_one")


def write_toy_report(root: str | Path, correct: str = "baseline") -> Path:
    """Write a table per setting, curves.csv, verdicts.csv, report.md, report.html and figures.

    The tables (results_<setting>.csv) are tidy, as the project's statistics read them.

    Args:
        root: Study folder.
        correct: What verdicts are corrected over: the metrics of each baseline, setting and
            architecture ("baseline"), or all of the study ("study").

    Returns:
        The page.

    Raises:
        UserError: As `load_toy`; an unknown name in ``correct``.
    """
    family = corrected(correct)
    results = load_toy(root)
    root = Path(root)
    keep_links_inside(root)
    for setting, rows in results.rows.groupby("setting"):
        table = rows.drop(columns="setting").to_csv(index=False)
        write_atomically(root / f"results_{setting}.csv", table)
    write_atomically(root / CURVES_FILE, results.curves.to_csv(index=False))
    write_report(build_toy_report(results, family), root)
    return root / "report.html"


def build_toy_report(results: ToyResults, correct: Correct = "baseline") -> Report:
    """Everything in the report, as data."""
    spec = results.spec
    verdicts = toy_verdicts(results, correct)
    random = toy_answers(verdicts, "random", correct)
    nearly_free = toy_answers(verdicts, "nearly free", correct)
    answers = {setting: [*random[setting], *nearly_free[setting]] for setting in verdicts}
    figures = _figures(results)
    by_rate = {setting: _by_rate(results, setting, correct) for setting in verdicts}
    rates = {setting: found for setting, found in by_rate.items() if found is not None}
    single_seed = len(spec.seeds) == 1
    record = {"spec": results.record["spec"], **results.record}
    seeds = "one training seed" if len(spec.seeds) == 1 else f"{len(spec.seeds)} training seeds"
    sections = (
        Section(
            "answer",
            "Does the trained SAE beat random?",
            _words(
                "toy_answer.md.j2", answers=answers, single_seed=single_seed, correct=correct
            )
            + "\n"
            + _words(
                "toy_scores.md.j2",
                members=[m.name for m in spec.member_specs],
                scores=_scores(results),
            ),
        ),
        *(
            Section(setting, f"Setting: {setting}", _setting(results, setting, found))
            for setting, found in verdicts.items()
        ),
        *(found.section for found in rates.values()),
        Section("figures", "Figures", _words("toy_figures.md.j2", drawn=figures)),
        Section(
            "sceptic",
            "For a sceptic",
            _words(
                "toy_sceptic.md.j2",
                spec=spec,
                of_paper=set(spec.settings) - set(spec.models),
                recipe=in_words(spec.recipe),
                encoder_inits={spec.encoder_init_for(base) for base in spec.architectures},
            ),
        ),
        Section(
            "provenance",
            "Provenance",
            _words(
                "toy_provenance.md.j2",
                file=STUDY_FILE,
                record=yaml.safe_dump(record, sort_keys=False),
            ),
        ),
    )
    return Report(
        title=f"Known features: {spec.name}",
        lede=f"SAEs with {spec.d_sae:,} latents at L0 {spec.l0:g}, and their baselines, "
        f"on data whose features are known. {spec.training_samples:,} samples each, learning "
        f"rate {spec.lr:g}, {seeds}; every member of a setting sees the same samples.",
        sections=sections,
        figures=(*figures, *(f for found in rates.values() for f in found.figures)),
        verdicts=tuple(v for vs in verdicts.values() for v in vs),
        against_random=tuple(r for rs in random.values() for r in rs),
        nearly_free=tuple(r for rs in nearly_free.values() for r in rs),
        by_rate=tuple(item for found in rates.values() for item in found.found),
    )


def _by_rate(results: ToyResults, setting: str, correct: Correct) -> Rates | None:
    rows = results.rows.loc[results.rows["setting"] == setting]
    return rates_of(
        Results.of(rows.drop(columns="setting")),
        results.rated,
        correct,
        unit="samples",
        name=f"rates-{setting}",
        heading=f"Latents and features by how often they fire: {setting}",
    )


def _scores(results: ToyResults) -> dict[tuple[str, str], dict[str, tuple[float, float]]]:
    """Mean explained variance and recovered features, by setting and architecture."""
    found: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    keys = ["setting", "architecture", "member"]
    means = results.frame.groupby(keys, sort=False)[["ev", "recovered"]].mean().reset_index()
    for setting, architecture, member, ev, recovered in means.itertuples(index=False):
        found.setdefault((setting, architecture), {})[member] = (ev, recovered)
    return found


def _setting(results: ToyResults, setting: str, verdicts: list[Verdict]) -> str:
    spec = results.spec
    frame = results.frame.loc[results.frame["setting"] == setting]
    d_in, n_features, active = results.sizes[setting]
    simulated = results.chance[setting]
    members, paper = {}, {}
    for architecture in spec.architectures:
        mine = frame.loc[frame["architecture"] == architecture]
        members[architecture] = [
            _member(mine.loc[mine["member"] == m.name], d_in, simulated)
            for m in spec.member_specs
        ]
        stated = ((PAPER_EV, "EV {:g}"), (PAPER_RECOVERED, "{:.2%} recovered"))
        paper[architecture] = [
            text.format(numbers[setting, architecture])
            for numbers, text in stated
            if (setting, architecture) in numbers
        ]
    return _words(
        "toy_setting.md.j2",
        results=results,
        spec=spec,
        n_features=n_features,
        d_in=d_in,
        active=active,
        above=RECOVERED_ABOVE,
        expected=float(chance_of_best(d_in, spec.d_sae, RECOVERED_ABOVE)) * n_features,
        expected_best=expected_best_cosine(d_in, spec.d_sae),
        simulated=simulated,
        counts=simulated.counts(RECOVERED_ABOVE),
        reachable=float(reachable_curve(d_in, spec.d_sae, spec.tau, [RECOVERED_ABOVE])[0]),
        members=members,
        paper=paper,
        tolerance=L0_TOLERANCE,
        verdicts=verdicts,
    )


def _member(
    mine: pd.DataFrame, d_in: int, simulated: SimulatedRecovery
) -> tuple[list[str], list[int]]:
    """The cells of a member's row, and seeds whose L0 is off."""
    # Of several seeds the least count: the weakest claim.
    chance = count_and_chance(
        int(mine["recovered"].min()),
        n_features=simulated.n_features,
        d_in=d_in,
        d_sae=int(mine["d_sae"].iloc[0]),
        simulation=simulated,
    )

    def cell(column: str) -> str:
        values = [float(v) for v in mine[column]]
        single = len(values) == 1 and column in _COUNTS
        return f"{values[0]:,.0f}" if single else mean_sd(values)

    name = mine["member"].iloc[0].replace("_", " ")
    cells = [name, *map(cell, _BEFORE), f"{chance.p_value:.1g}", *map(cell, _AFTER)]
    return cells, mine.loc[~mine["l0_matches"].astype(bool), "seed"].tolist()


def _figures(results: ToyResults) -> list[Figure]:
    # matplotlib takes a second to import and is needed nowhere else.
    from sae_baselines.paper.toy import plots  # noqa: PLC0415
    from sae_baselines.report import style  # noqa: PLC0415

    spec = results.spec
    widths = {d for d, _, _ in results.sizes.values()}
    paper: dict[str, Any] = {}
    if results.is_the_papers:
        paper = {"paper_recovered": PAPER_RECOVERED, "paper_ev": PAPER_EV}
    drawn, chance = [], None
    with style.drawing():
        # Chance is drawn where there is one: settings may differ in width.
        if len(widths) == 1:
            d_in = widths.pop()
            sizes: dict[str, Any] = {"d_in": d_in, "d_sae": spec.d_sae}
            chance = float(chance_of_best(d_in, spec.d_sae, RECOVERED_ABOVE))
            features = plots.feature_frame(results.features)
            drawn += [
                plots.recovery_histograms(features, **sizes),
                plots.recovery_curves(features, **sizes, tau=spec.tau),
                plots.recovery_curves(features, **sizes, tau=spec.tau, log=True),
            ]
            for setting in spec.settings:
                # A hierarchy keeps features below their nominal probability.
                observed = "frequency" if setting in spec.models else "probability"
                if setting != "constant":
                    drawn.append(
                        plots.recovery_against_frequency(
                            features, **sizes, setting=setting, frequency=f"firing_{observed}"
                        )
                    )
        drawn.append(plots.side_by_side(results.frame, chance=chance, **paper))
        if len(results.curves):
            drawn.append(plots.training_map(results.curves, l0=spec.l0, **paper))
        return [style.finish(d.canvas, d.name, d.caption) for d in drawn]


def _words(template: str, **values: Any) -> str:
    return render(template, "sae_baselines.paper.toy", **values)
