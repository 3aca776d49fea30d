"""The report of a synthetic study: table, chance, verdicts, figures (paper, Section 3).

Numbers come from the members' measurement.json, and from the curves that training wrote.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

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
from sae_baselines.report.document import (
    Block,
    Bullets,
    Cell,
    Code,
    Figure,
    Figures,
    Row,
    Rows,
    Section,
    Table,
    Text,
    code,
)
from sae_baselines.report.numbers import mean_sd, number
from sae_baselines.report.write import write_report
from sae_baselines.stats import AgainstRandom, Verdict, against_random
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
    sections = [
        Section("answer", "Does the trained SAE beat random?", _answers(random)),
        *(
            Section(setting, f"Setting: {setting}", _setting(results, setting, found[setting]))
            for setting in spec.settings
        ),
        Section("figures", "Figures", [Figures([figure]) for figure in figures]),
        Section("sceptic", "For a sceptic", _sceptic(results)),
        Section("provenance", "Provenance", _provenance(results)),
    ]
    return Report(
        title=f"Known features: {spec.name}",
        lede=lede,
        sections=tuple(s for s in sections if s.blocks),
        figures=tuple(figures),
        verdicts=tuple(v for vs in found.values() for v in vs),
        against_random=tuple(r for rs in random.values() for r in rs),
        retained=(),
        caveats=(),
    )


def _answers(random: dict[str, list[AgainstRandom]]) -> list[Block]:
    rows = [
        Row(
            [
                Cell(setting),
                Cell(r.architecture),
                Cell(r.metric.replace("_", " ")),
                Cell({True: "yes", False: "no", None: "no verdict"}[r.beats], "word"),
                Cell(r.closest.replace("_", " ")),
            ],
            r.reason,
        )
        for setting, found in random.items()
        for r in found
    ]
    columns = ("setting", "architecture", "metric", "beats random", "closest baseline")
    if all(r.p is None for found in random.values() for r in found):
        if not any(random.values()):
            return [Text("No baseline was trained, so nothing is compared.")]
        return [Text("One training seed gives numbers, not a verdict; run more (--seeds).")]
    return [Table(columns, [Rows("", rows)], layout="cards")] if rows else []


def _setting(results: ToyResults, setting: str, found: list[Verdict]) -> list[Block]:
    spec = results.spec
    frame = results.frame.loc[results.frame["setting"] == setting]
    d_in, n_features, active = results.sizes[setting]
    simulated = results.chance[setting]
    counts = simulated.counts(RECOVERED_ABOVE)
    chance = float(chance_of_best(d_in, spec.d_sae, RECOVERED_ABOVE))
    cap = float(reachable_curve(d_in, spec.d_sae, spec.tau, [RECOVERED_ABOVE])[0])
    blocks: list[Block] = [
        Text(
            f"{n_features:,} features in {d_in} dimensions, {active:.2f} active in a sample. "
            f"Recovered: a decoder row has cosine above {RECOVERED_ABOVE:g} with the feature. "
            f"Of {spec.d_sae:,} random directions {number(chance * n_features)} features would "
            f"be recovered by chance, at a mean best cosine of "
            f"{expected_best_cosine(d_in, spec.d_sae):.3f} (closed form; {simulated.draws} "
            f"simulated dictionaries: {number(float(counts.mean()))}, at most {counts.max()}, "
            f"and {float(simulated.mean_best_cosine.mean()):.3f}). A soft-frozen decoder (tau "
            f"{spec.tau:g}) has a row near enough to reach {cap:.1%} of the features. The "
            "column chance bounds the probability that random directions recover as many."
        ),
        Table(
            (
                "member",
                "EV",
                "L0",
                "dead",
                "recovered",
                "share",
                "chance",
                "one to one",
                "mean best cos",
                "MCC",
                "cos to start",
            ),
            [
                Rows(
                    _heading(results, setting, architecture),
                    [
                        _member_row(
                            member,
                            frame.loc[frame["architecture"] == architecture],
                            (n_features, d_in, spec.d_sae),
                            simulated,
                        )
                        for member in [m.name for m in spec.member_specs]
                    ],
                )
                for architecture in spec.architectures
            ],
            caption="mean ± standard deviation over seeds."
            if len(spec.seeds) > 1
            else "One seed: numbers, no verdict.",
        ),
    ]
    rows = [
        Row(
            [
                Cell(v.architecture),
                Cell(v.metric.replace("_", " ")),
                Cell(v.baseline.replace("_", " ")),
                Cell(number(v.trained), "number"),
                Cell(number(v.other), "number"),
                Cell(f"{v.mean_difference:+.4f}", "number"),
                Cell(
                    f"[{v.interval.low:+.4f}, {v.interval.high:+.4f}]"
                    if v.n_seeds > 1
                    else "n/a",
                    "number",
                ),
                Cell(v.word, "word"),
            ],
            v.reason,
        )
        for v in found
    ]
    columns = (
        "architecture",
        "metric",
        "baseline",
        "trained",
        "other",
        "difference",
        "95 % interval",
        "verdict",
    )
    if rows:
        blocks.append(Table(columns, [Rows("", rows)], layout="cards"))
    return blocks


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
) -> Row:
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

    def cell(column: str) -> Cell:
        values = [float(v) for v in mine[column]]
        if len(values) == 1 and column in _COUNTS:
            return Cell(f"{values[0]:,.0f}", "number")
        return Cell(mean_sd(values), "number")

    off = [seed for seed, ok in zip(mine["seed"], mine["l0_matches"], strict=True) if not ok]
    note = (
        f"L0 is more than {L0_TOLERANCE:.0%} off its target in seed "
        f"{', '.join(map(str, off))}: not comparable"
        if off
        else ""
    )
    before = ("ev", "l0", "dead", "recovered", "recovered_share")
    after = ("recovered_one_to_one", "mean_best_cosine", "mcc", "cos_to_start_mean")
    return Row(
        [
            Cell(member.replace("_", " ")),
            *map(cell, before),
            Cell(f"{chance.p_value:.1g}", "number"),
            *map(cell, after),
        ],
        note,
    )


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


def _sceptic(results: ToyResults) -> list[Block]:
    spec = results.spec
    return [
        Bullets(
            [
                "The paper states neither the number of samples, nor optimiser, nor learning "
                "rate. Recovery counts depend on all three: see the curve against samples.",
                "Cosines are signed, and one latent may count for several features (the "
                "paper's definition); the column one to one gives each feature a latent of "
                "its own.",
                *(
                    [
                        f"0.25 in LogNormal(0, 0.25) is read as {spec.reading}; a magnitude is "
                        "drawn at each firing."
                    ]
                    if set(spec.settings) - set(spec.models)
                    else []
                ),
                "Members of a panel with the same scheme start from the same directions"
                + (
                    ", their encoders scaled by one factor so that the first reconstructions "
                    "fit"
                    if spec.encoder_init == "fitted"
                    else ""
                )
                + ".",
                "Thresholds of exported SAEs (TopK has none) are set on held-out samples so "
                "that L0 is on target, and everything is measured on others.",
                *(
                    [
                        "JumpReLU: quadratic L0 penalty with a coefficient of E|x|^2 / L0, and "
                        f"a bandwidth of {spec.jumprelu_bandwidth:g} times the initial "
                        "threshold. These are choices; the paper states none."
                    ]
                    if "jumprelu" in spec.architectures
                    else []
                ),
                f"The learning rate falls linearly to 0 over the last "
                f"{spec.lr_decay_fraction:.0%} of training: the last point of a curve against "
                "samples is after that, the others are before it.",
                f"Dead: not active on {spec.eval_samples:,} held-out samples.",
            ]
        )
    ]


def _provenance(results: ToyResults) -> list[Block]:
    record = {k: v for k, v in results.record.items() if k != "spec"}
    text = yaml.safe_dump({"spec": results.record["spec"], **record}, sort_keys=False)
    return [Text(f"From {code(STUDY_FILE)}:"), Code(text)]
