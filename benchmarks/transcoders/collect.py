"""Scores, floors and verdicts of transcoder studies, in one table.

    python benchmarks/transcoders/collect.py            # benchmarks/transcoders/*/study.tar.gz
    python benchmarks/transcoders/collect.py <study> ...
    python benchmarks/readme.py                         # the tables, into README.md

Writes members.csv beside this file: a line for each member and metric, with its mean and
standard deviation over seeds, what the affine map alone scores in its place, and the word that
the report gives the trained transcoder against it.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from archives import unpacked

from sae_baselines.evals.metrics import null_name
from sae_baselines.evals.results import current_results
from sae_baselines.report import report_of_study
from sae_baselines.results import MetricKey, Results
from sae_baselines.study.folder import load_study

HERE = Path(__file__).parent
_PROBES = "sparse_probing_sae_probes"
COLUMNS: dict[MetricKey, str] = {
    ("panel", "explained_variance"): "EV",
    ("panel", "ce_recovered"): "CE recovered",
    ("panel", "kl"): "KL, nats",
    (_PROBES, "sae_top_1_test_accuracy"): "probing top-1",
    (_PROBES, "sae_top_5_test_accuracy"): "probing top-5",
    ("panel", "l0"): "L0",
}
# What stands in a score's place where nothing is there to find.
FLOORS = {"panel": "affine", _PROBES: "random_latents"}
FIELDS = ("study", "member", "column", "mean", "sd", "seeds", "floor", "word")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", type=Path, help="folders or packed studies")
    parser.add_argument("--out", type=Path, default=HERE / "members.csv")
    args = parser.parse_args(argv)
    paths = args.studies or sorted(HERE.glob("*/study.tar.gz"))
    if not paths:
        parser.error(f"no study is given, and {HERE} has none yet")
    with args.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        for path in paths:
            with unpacked(path) as folder:
                writer.writerows(lines(folder))


def lines(folder: Path) -> Iterator[list[str]]:
    """Of one study."""
    name = load_study(folder)[0].name
    results = Results.of(current_results(folder)[0])
    words = {
        (v.baseline, (v.suite, v.metric)): v.word for v in report_of_study(folder).verdicts
    }
    for group in results.groups:
        for metric, column in COLUMNS.items():
            for member in results.present(group):
                values = np.array(list(results.values(group, metric, member).values()))
                if not len(values):
                    continue
                floor = (metric[0], null_name(metric[1], FLOORS[metric[0]]))
                floors = list(results.values(group, floor, member).values())
                yield [
                    name,
                    member,
                    column,
                    f"{values.mean():.6g}",
                    f"{values.std(ddof=1):.6g}" if len(values) > 1 else "",
                    str(len(values)),
                    f"{np.mean(floors):.6g}" if floors else "",
                    words.get((member, metric), ""),
                ]


if __name__ == "__main__":
    main()
