"""`power`: what a study's seeds will be able to show."""

from pathlib import Path
from typing import Annotated

import typer

from sae_baselines_cli.shared import Panel, console, group, print_table, say

app = group()


@app.command()
def power(
    panel: Panel,
    pilot: Annotated[
        Path | None,
        typer.Option(
            help="Study folder with two or more seeds whose spreads are taken instead of those "
            "of this package's own studies."
        ),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw power over seeds: a .png or .svg file.")
    ] = None,
) -> None:
    """Say what the seeds of a study can show, before it is run.

    For every metric of its verdicts: the seeds that show a difference of the margin, those that
    show equivalence within it, and what one more seed buys. Spreads over seeds are those of
    earlier studies, which are named, or of a pilot.

    Examples:

    - `sae-baselines power panel.yaml`
    - `sae-baselines power panel.yaml --pilot studies/pilot --figure power.png`
    """
    from rich.table import Table

    from sae_baselines.pipeline import power, power_notes, save_power_figure

    plan = power(panel, pilot)
    n = plan.seeds
    table = Table(title=f"{panel}: {n} seeds")
    table.add_column("metric", overflow="fold")
    for column in (
        "margin",
        "sd (df)",
        "widest baseline",
        "seeds: difference of the margin",
        "seeds: equivalence",
        f"least shown by {n}",
        f"by {n + 1}",
    ):
        table.add_column(column, justify="right", overflow="fold")
    for p in plan.planned:
        seeds = [_seeds(p.margin, of(), of(cautious=True)) for of in (p.to_differ, p.to_match)]
        smallest = ["-" if k < 2 else f"{p.smallest(k):.3g}" for k in (n, n + 1)]
        margin = "-" if p.margin is None else f"{p.margin.value:g}"
        table.add_row(p.name, margin, f"{p.sd:.2g} ({p.df})", p.baseline, *seeds, *smallest)
    if plan.planned:
        print_table(table)
    for line in power_notes(plan):
        say(line)
    if figure is not None:
        save_power_figure(plan, figure)
        console.print(f"Wrote {figure}", highlight=False, soft_wrap=True)


def _seeds(margin: object, seeds: int | None, cautious: int | None) -> str:
    from sae_baselines.stats import METHOD

    if margin is None:
        return "-"
    most = f"> {METHOD.most_seeds}"
    return f"{seeds or most} ({cautious or most})"
