"""How long the paper's synthetic SAEs must train to recover what the paper says they do.

    python benchmarks/toy_length.py studies/toy-length/* --also studies/toy-long

Gathers the snapshots of finished (or running) studies of benchmarks/toy/length/*.yaml, each
trained by ``sae-baselines toy benchmarks/toy/length/X.yaml --out studies/toy-length/X``, into
benchmarks/toy/length: curves.csv and the figure. Lines of curves.csv that no folder has stay.
Prints the table of benchmarks/toy/README.md: the samples at which each of the paper's numbers
is reached, and where each line ends.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd

from sae_baselines.files import write_atomically
from sae_baselines.paper.toy.plots import training_map
from sae_baselines.paper.toy.results import PAPER_EV, PAPER_RECOVERED

HERE = Path(__file__).parent / "toy" / "length"
_LINE = ["setting", "architecture", "lr", "batch"]
_HEAD = (
    "setting, architecture",
    "rate, batch",
    "recovered after 1 M / 10 M / 30 M / all samples",
    "EV after the same",
    "silent at the end",
    "paper: recovered, reached after",
)
_AT = (1e6, 1e7, 3e7)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", type=Path, nargs="*", help="folders of studies")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="further folders")
    args = parser.parse_args()
    paths = [p for s in (*args.studies, *args.also) for p in sorted(s.glob("curves/*.csv"))]
    if not paths:
        raise SystemExit("studies: no snapshots; a study writes curves/*.csv while it trains")
    frame = pd.concat([pd.read_csv(path) for path in paths], ignore_index=True)
    frame = with_kept(frame.loc[frame["member"] == "trained"])
    HERE.mkdir(exist_ok=True)
    write_atomically(HERE / "curves.csv", frame.to_csv(index=False, float_format="%.6g"))
    drawn = training_map(frame, l0=20, paper_recovered=PAPER_RECOVERED, paper_ev=PAPER_EV)
    for path in replace(drawn, name="length").save(HERE):
        print(path)
    print(table(frame))


def with_kept(frame: pd.DataFrame) -> pd.DataFrame:
    """Snapshots of these lines, and of those that curves.csv alone has."""
    kept = HERE / "curves.csv"
    if kept.is_file():
        here = set(frame[_LINE].itertuples(index=False, name=None))
        old = pd.read_csv(kept)
        alone = [row not in here for row in old[_LINE].itertuples(index=False, name=None)]
        frame = pd.concat([frame, old.loc[alone]], ignore_index=True)
    return frame.sort_values([*_LINE, "samples"])


def table(frame: pd.DataFrame) -> str:
    """A row for each line of the figure.

    Args:
        frame: Snapshots of trained SAEs, by line and then by samples.
    """
    lines = [list(_HEAD), ["---"] * len(_HEAD)]
    for _, rows in frame.groupby(_LINE, sort=False):
        setting, architecture, lr, batch = rows.iloc[0][_LINE]
        last = rows.iloc[-1]
        shown = [_nearest(rows, at) for at in _AT if at < last["samples"]] + [last]
        paper = PAPER_RECOVERED.get((setting, architecture))
        lines.append(
            [
                f"{setting}, {architecture}",
                f"{lr:g}, {batch:,.0f}",
                " / ".join(f"{row['recovered_share']:.1%}" for row in shown)
                + f" ({last['samples'] / 1e6:.0f} M)",
                " / ".join(f"{row['ev']:.3f}" for row in shown),
                f"{last['silent']:,.0f}",
                "-" if paper is None else f"{paper:.2%}, {_reached(rows, paper)}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _nearest(rows: pd.DataFrame, samples: float) -> pd.Series:
    """The snapshot nearest to a number of samples, in ratio."""
    return rows.iloc[(rows["samples"] / samples - 1).abs().argmin()]


def _reached(rows: pd.DataFrame, share: float) -> str:
    """The first snapshot with at least this share recovered, in words."""
    there = rows.loc[rows["recovered_share"] >= share, "samples"]
    return f"{there.iloc[0] / 1e6:.3g} M" if len(there) else "not reached"


if __name__ == "__main__":
    main()
