"""The command that shows lazy training."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from sae_baselines.drift import DriftLog, drift_from_checkpoints, drift_table, find_drift
from sae_baselines.drift.sphere import (
    expected_best_cosine,
    log_cap_bound,
    log_cap_probability,
    log_chance_of_best,
)
from sae_baselines.drift.start import saved_config
from sae_baselines.errors import UserError
from sae_baselines.files import write_atomically
from sae_baselines.report.drift_plots import drift_figure
from sae_baselines.study.folder import STUDY_FILE

app = typer.Typer(rich_markup_mode="markdown")
console = Console(width=None if sys.stdout.isatty() else 140)

_SHARES = ("0.8", "0.9", "0.99")
_RECOVERED = 0.8


@app.command()
def drift(
    run: Annotated[
        Path, typer.Argument(help="Study or run folder with records, or SAELens checkpoints.")
    ],
    start: Annotated[
        Path | None,
        typer.Option(help="SAELens folder to measure checkpoints from; default: init_seed."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder; default: drift in the run.")
    ] = None,
) -> None:
    """Show how far directions moved from their start, beside what chance can reach.

    Reads what `drift:` in a panel file or a DriftTracker recorded; without records, the
    checkpoints that SAELens saved. Writes drift.csv and a figure per SAE.

    Examples:

    - `sae-baselines drift studies/demo`
    - `sae-baselines drift checkpoints/k3jd9s2a --out drifted`
    - `sae-baselines drift checkpoints/k3jd9s2a --start checkpoints/k3jd9s2a/4096`
    """
    logs, notes = _logs(run, start)
    folder = out if out is not None else run / "drift"
    for name, log in logs.items():
        console.print(_table(name, log))
        for note in _events(log):
            console.print(f"  {note}", highlight=False, soft_wrap=True, markup=False)
    for line in [*_chance(logs), *notes]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    write_atomically(folder / "drift.csv", drift_table(logs).to_csv(index=False))
    for name, log in logs.items():
        figure = drift_figure(name, log)
        if figure is not None:
            write_atomically(folder / f"{figure.name}.png", figure.png)
            write_atomically(folder / f"{figure.name}.svg", figure.svg)
    console.print(f"Files: {folder}", highlight=False, soft_wrap=True)


def _logs(run: Path, start: Path | None) -> tuple[dict[str, DriftLog], list[str]]:
    if not run.is_dir():
        raise UserError(f"run: {run} is not a folder")
    if start is None:
        recorded = {n: log for n, log in find_drift(run).items() if log.records}
        if recorded:
            return recorded, []
        if (run / STUDY_FILE).is_file():
            return _members(run)
    return _named(drift_from_checkpoints(run, start), run), []


def _members(study: Path) -> tuple[dict[str, DriftLog], list[str]]:
    """The ends of training of a study that kept no records."""
    stored = yaml.safe_load((study / STUDY_FILE).read_text(encoding="utf-8"))
    if stored["spec"].get("normalize_activations") == "covariance_whitening":
        raise UserError(
            f"run: {study} was trained on whitened activations, and exports are not in their "
            "space; train again with drift: [0.05, 0.1, 0.25, 0.5, 1.0] in its file"
        )
    logs: dict[str, DriftLog] = {}
    left_out = []
    for weights in sorted(study.glob("panels/*/*/sae_weights.safetensors")):
        name = "/".join(weights.parent.parts[-2:])
        facts = (saved_config(weights.parent).get("metadata") or {}).get("sae_baselines") or {}
        if "control" in facts:
            continue  # made, not trained
        try:
            logs[name] = drift_from_checkpoints(weights.parent)[""]
        except UserError as error:
            left_out.append(f"left out {name}: {error}")
    if not logs:
        raise UserError(
            f"run: {study} is a study without records of drift and without members to measure; "
            "put drift: [0.05, 0.1, 0.25, 0.5, 1.0] in its file and train"
        )
    note = (
        "No records of training: this is the end alone. For its course, put drift: [0.05, 0.1, "
        "0.25, 0.5, 1.0] in its file and train in another folder."
    )
    return logs, [note, *left_out]


def _named(logs: Mapping[str, DriftLog], run: Path) -> dict[str, DriftLog]:
    return {name or run.resolve().name: log for name, log in logs.items()}


def _table(name: str, log: DriftLog) -> Table:
    on = log.about.get("measured_on")
    table = Table(
        title=f"{name}: cosine with the start ({log.about['start']})"
        + (f"; EV and L0 on {on}" if on else ""),
        title_justify="left",
    )
    table.add_column("training")
    table.add_column("step", justify="right")
    for side in ("decoder", "encoder"):
        table.add_column(f"{side}\nmean", justify="right")
        for share in _SHARES:
            table.add_column(f"\n>= {share}", justify="right")
    table.add_column("EV", justify="right")
    table.add_column("L0", justify="right")
    for record in log.records:
        table.add_row(*_cells(record))
    return table


def _cells(record: Mapping[str, Any]) -> list[str]:
    fraction, step, samples = record["fraction"], record["step"], record["samples"]
    cells = [f"{100 * fraction:.4g} %" if fraction is not None else "as saved"]
    if step is not None:
        cells.append(f"{step:,} of {record['total_steps']:,}")
    else:
        cells.append(f"{samples:,} samples" if samples is not None else "-")
    for side in ("decoder", "encoder"):
        facts = record[side]
        if not facts or not facts["n"]:
            cells += ["-"] * (1 + len(_SHARES))
            continue
        cells.append(f"{facts['mean']:.3f}")
        cells += [f"{100 * facts['share_at_least'][share]:.1f} %" for share in _SHARES]
    for metric, form in (("explained_variance", ".3f"), ("l0", ".1f")):
        value = record[metric]
        cells.append("-" if value is None else format(value, form))
    return cells


def _events(log: DriftLog) -> list[str]:
    """What happened to latents, at the last record."""
    last = log.records[-1]
    words = {
        "unmoved": "have not moved at all",
        "zero_norm": "have norm zero, so no cosine",
        "not_finite": "are NaN or infinite, so have no cosine",
    }
    out = []
    for side in ("decoder", "encoder"):
        for event, text in words.items():
            if last[side] and last[side][event]:
                out.append(f"{last[side][event]:,} {side} directions {text}")
    return out


def _chance(logs: Mapping[str, DriftLog]) -> list[str]:
    """What random directions reach in the same space (paper, Appendix D)."""
    sizes = {(log.about.get("d_in"), log.about.get("d_sae")) for log in logs.values()}
    lines = []
    for n, m in sorted((n, m) for n, m in sizes if n and m):
        lines.append(
            f"By chance in R^{n}: a random direction has cosine >= {_RECOVERED:g} with a given "
            f"one with probability {_power(log_cap_probability(n, _RECOVERED))} (bound "
            f"exp(-n t^2 / 2): {_power(log_cap_bound(n, _RECOVERED))}); one of {m:,} with "
            f"{_power(log_chance_of_best(n, m, _RECOVERED))} (bound: "
            f"{_power(log_cap_bound(n, _RECOVERED, m))}). The best of {m:,} has cosine "
            f"{expected_best_cosine(n, m):.3f} on average."
        )
    return lines


def _power(log: Any) -> str:
    return f"10^{float(log) / math.log(10):.1f}"
