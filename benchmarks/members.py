"""Scores of every member of packed studies, with floor, ceiling and verdict, in one table.

    python benchmarks/members.py headline               # benchmarks/headline/*/study.tar.gz
    python benchmarks/members.py transcoders <study> ...
    python benchmarks/readme.py                         # the tables, into README.md

Writes members.csv into that folder: a line for each member and metric, with its mean and
standard deviation over seeds, the highest of its floors and its ceiling (what the report holds
it against; empty where there is none), and the word that the report gives the trained member
against it.
"""

import argparse
import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from archives import unpacked
from render_rows import ABSORPTION

from sae_baselines.evals.results import current_results
from sae_baselines.report import verdicts_of_study
from sae_baselines.results import MetricKey, Results
from sae_baselines.stats.floors import room_of_member
from sae_baselines.study.folder import load_study

HERE = Path(__file__).parent
_PROBES = "sparse_probing_sae_probes"
_PROBING: dict[MetricKey, str] = {
    (_PROBES, "sae_top_1_test_accuracy"): "probing top-1",
    (_PROBES, "sae_top_5_test_accuracy"): "probing top-5",
}
_EV: dict[MetricKey, str] = {("panel", "explained_variance"): "EV"}
_CONTEXTS: dict[MetricKey, str] = {("interp_embedding", "embedding_auc"): "contexts, AUC"}
# What the suite's own model of sentences is held against: no score, and no verdict.
_WORDS: dict[MetricKey, str] = {
    ("interp_embedding", "lexical_auc"): "by words in common",
    ("interp_embedding", "token_auc"): "by the token",
}
_L0: dict[MetricKey, str] = {("panel", "l0"): "L0"}
COLUMNS: dict[str, dict[MetricKey, str]] = {
    "headline": {
        **_EV,
        ("core", "ce_loss_score"): "CE loss score",
        **_CONTEXTS,
        **_WORDS,
        **_PROBING,
        ("ravel", "disentanglement_score"): "RAVEL",
        ("ravel", "cause_score"): "RAVEL cause",
        ("ravel", "isolation_score"): "RAVEL isolation",
        ("ravel", "disentanglement_score_null_random_latents"): "RAVEL, latents by lot",
        ("ravel", "l0"): "L0 on RAVEL's texts",
        ("absorption", "mean_absorption_fraction_score"): ABSORPTION,
        **_L0,
    },
    "random_transformer": {
        **_EV,
        **_CONTEXTS,
        **_PROBING,
        **_L0,
    },
    "transcoders": {
        **_EV,
        ("panel", "ce_recovered"): "CE recovered",
        ("panel", "kl"): "KL, nats",
        **_CONTEXTS,
        **_WORDS,
        **_PROBING,
        **_L0,
    },
}
FIELDS = (
    *("study", "base", "l0", "member", "column"),
    *("mean", "sd", "seeds", "floor", "ceiling", "word"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", choices=sorted(COLUMNS), help="of benchmarks/")
    parser.add_argument("studies", nargs="*", type=Path, help="folders or packed studies")
    parser.add_argument("--out", type=Path, help="default: members.csv in that folder")
    args = parser.parse_args(argv)
    home = HERE / args.folder
    paths = args.studies or sorted(home.glob("*/study.tar.gz"))
    if not paths:
        parser.error(f"no study is given, and {home} has none yet")
    with (args.out or home / "members.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        for path in paths:
            with unpacked(path) as folder:
                writer.writerows(lines(folder, COLUMNS[args.folder]))


def lines(folder: Path, columns: Mapping[MetricKey, str]) -> Iterator[list[str]]:
    """Of one study."""
    name = load_study(folder)[0].name
    results = Results.of(current_results(folder)[0])
    words = {
        ((v.architecture, v.l0), v.baseline, (v.suite, v.metric)): v.word
        for v in verdicts_of_study(folder)
    }
    for group in results.groups:
        for metric, column in columns.items():
            for member in results.present(group):
                values = np.array(list(results.values(group, metric, member).values()))
                if not len(values):
                    continue
                room = room_of_member(results, group, metric, member)
                yield [
                    name,
                    group[0],
                    _number(group[1]),
                    member,
                    column,
                    _number(values.mean()),
                    _number(values.std(ddof=1) if len(values) > 1 else math.nan),
                    str(len(values)),
                    _number(math.nan if room.highest is None else room.highest.value),
                    _number(room.ceiling),
                    words.get((group, member, metric), ""),
                ]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


if __name__ == "__main__":
    main()
