"""Brings finished synthetic studies into benchmarks/toy: tables, reports, figures.

    python benchmarks/toy_collect.py studies/toy-constant studies/toy-variable studies/toy-tau

Each study goes to benchmarks/toy/<name without "toy-">; weights stay where they are. Prints the
tables of benchmarks/toy/README.md.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from sae_baselines.drift import drift_table, find_drift
from sae_baselines.paper.toy.report import write_toy_report
from sae_baselines.paper.toy.results import PAPER_EV, PAPER_RECOVERED, ToyResults, load_toy
from sae_baselines.report.drift_plots import drift_figure

HERE = Path(__file__).parent / "toy"
_KEPT = ("report.md", "study.yaml")
# Equal tables give equal files.
_GZIP: dict[str, Any] = {"method": "gzip", "mtime": 0}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", type=Path, nargs="+")
    args = parser.parse_args()
    for study in args.studies:
        write_toy_report(study)
        results = load_toy(study)
        keep(study, HERE / results.spec.name.removeprefix("toy-"))
        keep_drift(study, HERE / results.spec.name.removeprefix("toy-"))
        print(f"\n{results.spec.name}\n\n{table(results)}")


def keep(study: Path, out: Path) -> None:
    """Copy what a reader needs, and nothing that is large."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "figures").mkdir(parents=True)
    for pattern in _KEPT:
        for path in study.glob(pattern):
            shutil.copy(path, out / path.name)
    for path in study.glob("results_*.csv"):
        pd.read_csv(path, dtype=str, keep_default_na=False).to_csv(
            out / f"{path.name}.gz", index=False, compression=_GZIP
        )
    for path in (study / "figures").glob("*.png"):
        shutil.copy(path, out / "figures" / path.name)


def keep_drift(study: Path, out: Path) -> None:
    """Records of drift as a table, and the histograms of trained SAEs."""
    logs = find_drift(study)
    if not logs:
        return
    drift_table(logs).to_csv(out / "drift.csv.gz", index=False, compression=_GZIP)
    for name, log in logs.items():
        figure = drift_figure(name, log) if Path(name).name == "trained" else None
        if figure is not None:
            (out / "figures" / f"{figure.name}.png").write_bytes(figure.png)


def table(results: ToyResults) -> str:
    """One row per setting and architecture: EV and recovered features of every member."""
    members = [m.name for m in results.spec.member_specs]
    paper = results.is_the_papers
    header = ["setting", "architecture", *(f"{m}: EV, recovered" for m in members)]
    lines = [header + ["paper (trained)"] * paper]
    lines.append(["---"] * len(lines[0]))
    for setting in results.spec.settings:
        for architecture in results.spec.architectures:
            here = results.frame.loc[
                (results.frame["setting"] == setting)
                & (results.frame["architecture"] == architecture)
            ]
            cells = [setting, architecture]
            cells += [member_cell(here.loc[here["member"] == member]) for member in members]
            if paper:
                ev = PAPER_EV.get((setting, architecture))
                share = PAPER_RECOVERED.get((setting, architecture))
                said = [f"{ev:.2f}" if ev else "-", f"{share:.2%}" if share else "-"]
                cells.append(", ".join(said))
            lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def member_cell(rows: pd.DataFrame) -> str:
    """``0.662, 7 (0.2%)``: means over seeds."""
    ev, count = rows["ev"].mean(), rows["recovered"].mean()
    return f"{ev:.3f}, {count:.0f} ({rows['recovered_share'].mean():.1%})"


if __name__ == "__main__":
    main()
