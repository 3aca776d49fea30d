"""Which of the paper's orderings do these studies reproduce?

    python benchmarks/rows/compare.py            # benchmarks/rows/*/study.tar.gz
    python benchmarks/rows/compare.py <study> ...
    python benchmarks/readme.py                  # the tables, into README.md

Writes members.csv, pairs.csv and the figure beside this file. The paper's orderings are those
of its main table (`sae_baselines.report.paper`), pair by pair. Ours is decided by paired
differences over seeds, as verdicts are: paired t tests, corrected by Holm over all pairs of a
model, base and L0. What a guard bars (L0 apart, trained at another L0, a failed run, ...) is
not ordered.
"""

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from matplotlib.figure import Figure as Canvas

sys.path.insert(0, str(Path(__file__).parents[1]))
from archives import unpacked

from sae_baselines.report import paper
from sae_baselines.report.markdown import Figure
from sae_baselines.report.style import MUTED, PAPER, drawing, finish, looks
from sae_baselines.results import KNOWN_MEMBERS, Group, MetricKey, Results
from sae_baselines.stats import Verdict, differences, first_of, t_interval, verdicts
from sae_baselines.stats.fitness import collapses, trained_elsewhere
from sae_baselines.stats.match import Match
from sae_baselines.stats.matched import failures

HERE = Path(__file__).parent
_PROBES = "sparse_probing_sae_probes"
# What is shown, in the order of the tables. EV is that of held-out text: core also scores the
# first positions, which the SAEs were not trained on.
COLUMNS: dict[MetricKey, str] = {
    ("panel", "explained_variance"): "EV",
    ("core", "ce_loss_score"): "CE loss score",
    ("core", "kl_div_score"): "KL score",
    (_PROBES, "sae_top_1_test_accuracy"): "probing top-1",
    (_PROBES, "sae_top_5_test_accuracy"): "probing top-5",
    ("panel", "l0"): "L0",
    ("core", "frac_alive"): "live",
}
_DRAWN = ("EV", "CE loss score", "probing top-1", "probing top-5")
# What is below is at the edge.
_LOWEST, _WITH_EDGE = -0.1, ("EV", "CE loss score")
THERE = "Gemma-2-2B, layer 12 (paper)"

Outcome = Literal["reproduced", "reversed", "undecided"]


@dataclass(frozen=True)
class Score:
    """One member on one column.

    Attributes:
        study: Its name.
        base: Architecture.
        l0: Target.
        member: Member.
        column: One of `COLUMNS`.
        mean: Over seeds.
        sd: Over seeds; NaN of one.
        low: Of the 95 % t interval of the mean over seeds.
        high: The same.
        seeds: How many.
        paper: The paper's number; None where it has none.
        barred: Why the member may not be compared on it; empty if it may.
    """

    study: str
    base: str
    l0: float
    member: str
    column: str
    mean: float
    sd: float
    low: float
    high: float
    seeds: int
    paper: float | None
    barred: str


@dataclass(frozen=True)
class Pair:
    """One ordering of the paper, and what became of it.

    Attributes:
        study: Its name.
        base: Architecture.
        l0: Target.
        column: One of `COLUMNS`.
        higher: The member that the paper has higher.
        lower: The other.
        paper: Their difference there.
        models: How many of the paper's three models order them so.
        difference: Ours, mean over seeds; NaN without.
        low: Of its 95 % interval, before the correction.
        high: The same.
        p: Adjusted; None without a test.
        outcome: What became of it.
        why: Where it is undecided, in a word or two.
        reason: The same in a sentence.
    """

    study: str
    base: str
    l0: float
    column: str
    higher: str
    lower: str
    paper: float
    models: int
    difference: float
    low: float
    high: float
    p: float | None
    outcome: Outcome
    why: str
    reason: str


def main(argv: Sequence[str] | None = None) -> None:
    """Write both tables and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", type=Path, help="folders or packed studies")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    paths = args.studies or sorted(HERE.glob("*/study.tar.gz"))
    if not paths:
        parser.error(f"no study is given, and {HERE} has none yet")
    found, pairs = [], []
    for path in paths:
        with unpacked(path) as folder:
            name = name_of(folder)
            results = Results.read(folder)
        found += scores(name, results)
        pairs += compared(name, results)
    write(args.out / "members.csv", found, Score)
    write(args.out / "pairs.csv", pairs, Pair)
    (args.out / "rows.png").write_bytes(drawn(found).png)
    for outcome in ("reproduced", "reversed", "undecided"):
        print(outcome, sum(pair.outcome == outcome for pair in pairs))


def name_of(folder: Path) -> str:
    """A study's own name."""
    return yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))["spec"]["name"]


def scores(name: str, results: Results) -> list[Score]:
    """Every member of every panel on every column."""
    found = []
    for group in results.groups:
        part = results.only(group=group)
        for metric, column in COLUMNS.items():
            there = paper.published(group[0], *metric)
            for member in part.present(group):
                by_seed = np.array(list(part.values(group, metric, member).values()))
                if not len(by_seed):
                    continue
                interval = t_interval(by_seed)
                known = None
                if there is not None:
                    known = there.trained if member == "trained" else there.scores.get(member)
                found.append(
                    Score(
                        *(name, *group, member, column),
                        mean=float(by_seed.mean()),
                        sd=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else math.nan,
                        low=interval.low,
                        high=interval.high,
                        seeds=len(by_seed),
                        paper=known,
                        barred=barred(part, group, metric, member),
                    )
                )
    return found


def barred(part: Results, group: Group, metric: MetricKey, member: str) -> str:
    """Why a member may not be compared with any other, if it may not."""
    # A member beside itself: what is then said is of it alone.
    match = Match(part, group, metric, member, member)
    bars = dict.fromkeys([*trained_elsewhere(match), *failures(match), *collapses(match)])
    by_kind: dict[str, list[str]] = {}
    for bar in bars:
        by_kind.setdefault(bar.kind, []).append(bar.reason)
    return "; ".join(map(first_of, by_kind.values()))


def compared(name: str, results: Results) -> list[Pair]:
    """Every ordering of the paper, in every group whose base the paper has."""
    found = []
    for group in results.groups:
        part = results.only(group=group)
        wanted = {
            metric: pairs
            for metric in COLUMNS
            if (pairs := paper.orderings(group[0], *metric)) and metric in part.metrics
        }
        if not wanted:
            continue
        ours = _verdicts(part, group, list(wanted))
        for metric, orderings in wanted.items():
            for there in orderings:
                for tested, other, sign in (
                    (there.higher, there.lower, 1),
                    (there.lower, there.higher, -1),
                ):
                    verdict = ours.get((tested, other, metric))
                    if verdict is not None:
                        column = COLUMNS[metric]
                        found.append(_pair((name, *group, column), there, verdict, sign))
    return found


def _verdicts(
    part: Results, group: Group, metrics: list[MetricKey]
) -> dict[tuple[str, str, MetricKey], Verdict]:
    """By tested member, other member and metric; one family of all pairs."""
    members = [m for m in part.present(group) if m in KNOWN_MEMBERS]
    comparisons, tested = [], []
    for i, member in enumerate(members[:-1]):
        for c in differences(
            part,
            tested=member,
            metrics=["/".join(metric) for metric in metrics],
            on_missing="exclude",
        ):
            if c.baseline in members[i + 1 :]:
                comparisons.append(c)
                tested.append(member)
    # One family, which is all that is given here: not the study, but this group.
    said = verdicts(comparisons, correct="study")
    return {
        (member, v.baseline, (v.suite, v.metric)): v
        for member, v in zip(tested, said, strict=True)
    }


def _pair(
    where: tuple[str, str, float, str], there: paper.Ordering, v: Verdict, sign: int
) -> Pair:
    outcome, why, reason = _outcome(v, sign)
    ends = sorted((sign * v.interval.low, sign * v.interval.high))
    return Pair(
        *where,
        higher=there.higher,
        lower=there.lower,
        paper=there.gap,
        models=there.models,
        difference=sign * v.mean_difference,
        low=ends[0],
        high=ends[1],
        p=v.p_adjusted,
        outcome=outcome,
        why=why,
        reason=reason,
    )


def _outcome(v: Verdict, sign: int) -> tuple[Outcome, str, str]:
    """What became of an ordering, and why it was not decided."""
    if v.word in ("beats", "falls short"):
        as_there = (v.word == "beats") == (sign > 0)
        return "reproduced" if as_there else "reversed", "", ""
    if v.word == "matches" and v.margin is not None:
        margin = f"{v.margin.value:g}"
        return "undecided", "level", f"apart by less than the margin of {margin} either way"
    if v.word == "inconclusive":
        over = f"after Holm over {v.n_metrics} pairs"
        seeds = "more than 100" if v.seeds_needed is None else f"about {v.seeds_needed}"
        reason = f"p = {v.p_adjusted:.2g} {over}; {seeds} seeds would be needed for a word"
        return "undecided", "noise", reason
    kinds = dict.fromkeys(bar.kind for bar in v.bars)
    return "undecided", ", ".join(kinds) or v.word, v.short_reason


def write(path: Path, rows: Sequence[Any], kind: type) -> None:
    """Rows as CSV, the header also without any."""
    with path.open("w", newline="", encoding="utf-8") as file:
        names = [field.name for field in fields(kind)]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            cells = asdict(row).items()
            writer.writerow({k: f"{v:.8g}" if isinstance(v, float) else v for k, v in cells})


def drawn(found: Sequence[Score]) -> Figure:
    """Members by column with intervals, a line of panels per study and one for the paper.

    At the smallest L0 of each study. A hollow marker may not be compared.
    """
    studies = list(dict.fromkeys(s.study for s in found))
    least = {name: min(s.l0 for s in found if s.study == name) for name in studies}
    shown = [s for s in found if s.l0 == least[s.study] and s.column in _DRAWN]
    bases = list(dict.fromkeys(s.base for s in shown))
    members = list(dict.fromkeys(s.member for s in shown))
    controls = [m for m in members if m not in KNOWN_MEMBERS]
    look = looks(members, controls)
    rows = [*studies, THERE]
    step = 0.8 / max(1, len(members))
    with drawing():
        fig = Canvas(figsize=(7.4, 0.6 + 1.9 * len(rows)), layout="constrained")
        axes = fig.subplots(len(rows), len(_DRAWN), sharex="col", sharey=True, squeeze=False)
        for s in shown:
            ax = axes[rows.index(s.study)][_DRAWN.index(s.column)]
            y = bases.index(s.base) + (members.index(s.member) - len(members) / 2) * step
            edge = _LOWEST if s.column in _WITH_EDGE else -math.inf
            style = {"color": look[s.member].colour, "marker": look[s.member].marker}
            error = None
            if math.isfinite(s.low):
                error = [[max(0.0, s.mean - s.low)], [max(0.0, s.high - s.mean)]]
            ax.errorbar(
                max(s.mean, edge),
                y,
                xerr=error if s.mean > edge else None,
                linestyle="none",
                markersize=4,
                markerfacecolor=PAPER if s.barred else style["color"],
                elinewidth=1,
                **style,
            )
            if s.paper is not None:
                axes[-1][_DRAWN.index(s.column)].plot(
                    max(s.paper, edge), y, linestyle="none", markersize=4, **style
                )
        for i, row in enumerate(rows):
            for j, column in enumerate(_DRAWN):
                ax = axes[i][j]
                ax.grid(axis="x")
                if i == 0:
                    ax.set_title(column, loc="left")
                if not ax.lines and not ax.containers:
                    ax.text(0.5, 0.5, "none", transform=ax.transAxes, color=MUTED)
                if column in _WITH_EDGE:
                    ax.set_xlim(left=_LOWEST - 0.03)
            axes[i][0].set_ylabel(row, fontsize=7.5)
            axes[i][0].set_yticks(range(len(bases)), bases)
        axes[0][0].invert_yaxis()
        for member in members:
            style = {"color": look[member].colour, "marker": look[member].marker}
            axes[0][0].plot([], [], linestyle="none", markersize=4, label=member, **style)
        fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower left", ncols=4)
        l0s = ", ".join(f"{name}: {l0:g}" for name, l0 in least.items())
        seeds = sorted({s.seeds for s in shown})
        caption = (
            f"Mean over seeds ({' to '.join(map(str, seeds))}) with its 95% interval, at the "
            f"smallest L0 ({l0s}); hollow: may not be compared; EV and CE loss score below "
            f"{_LOWEST:g} stand at the edge. Last line: the paper's main table."
        )
        return finish(fig, "rows", caption)


if __name__ == "__main__":
    main()
