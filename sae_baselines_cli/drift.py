"""`drift`: lazy training, shown."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_baselines_cli.shared import group, print_table, say

if TYPE_CHECKING:
    from sae_baselines.drift import DriftLog

app = group()

_SIDES = ("decoder", "encoder")
_SHARES = ("0.8", "0.9", "0.99")
_EVENTS = {
    "unmoved": "have not moved at all",
    "zero_norm": "have norm zero, so no cosine",
    "not_finite": "are NaN or infinite, so have no cosine",
}


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
    from sae_baselines.show import show_drift

    found = show_drift(run, start, out)
    for name, log in found.logs.items():
        _print_log(name, log)
        for event in _events(log):
            say(f"  {event}")
    for line in found.notes:
        say(line)
    say(f"Files: {found.folder}")


def _print_log(name: str, log: "DriftLog") -> None:
    from rich.table import Table

    on = log.header.get("measured_on")
    measured = f"; EV and L0 on {on}" if on else ""
    table = Table(
        "training", title=f"{name}: cosine with the start ({log.header['start']}){measured}"
    )
    columns = ["step"]
    for side in _SIDES:
        columns += [f"{side}\nmean", *(f"\n>= {share}" for share in _SHARES)]
    for column in [*columns, "EV", "L0"]:
        table.add_column(column, justify="right")
    for record in log.records:
        table.add_row(*_cells(record))
    print_table(table)


def _cells(record: Mapping[str, Any]) -> Iterator[str]:
    fraction, step, samples = record["fraction"], record["step"], record["samples"]
    yield f"{100 * fraction:.4g} %" if fraction is not None else "as saved"
    if step is not None:
        yield f"{step:,} of {record['total_steps']:,}"
    else:
        yield f"{samples:,} samples" if samples is not None else "-"
    for side in _SIDES:
        facts = record[side]
        if facts and facts["n"]:
            yield f"{facts['mean']:.3f}"
            yield from (f"{100 * facts['share_at_least'][s]:.1f} %" for s in _SHARES)
        else:
            yield from ["-"] * (1 + len(_SHARES))
    for metric, form in (("explained_variance", ".3f"), ("l0", ".1f")):
        yield "-" if record[metric] is None else format(record[metric], form)


def _events(log: "DriftLog") -> Iterator[str]:
    """What happened to latents, at the last record."""
    last = log.records[-1]
    for side in _SIDES:
        for event, text in _EVENTS.items():
            if last[side] and last[side][event]:
                yield f"{last[side][event]:,} {side} directions {text}"
