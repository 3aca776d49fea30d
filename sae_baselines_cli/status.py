"""`status`: how far the tasks of a study are."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_baselines_cli.shared import console, group, print_table, say

if TYPE_CHECKING:
    from sae_baselines.evals.status import TaskStatus

app = group()

_STATES = ("done", "running", "waiting", "failed")


@app.command()
def status(
    study: Annotated[Path, typer.Argument(help="Study folder.")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again until nothing is waiting or running.")
    ] = False,
    every: Annotated[
        float, typer.Option(help="Seconds between two looks.", min=1, max=3600)
    ] = 10,
) -> None:
    """Tasks of a study: done, running, waiting, failed; who is at which, and why some failed.

    Examples:

    - `sae-baselines status studies/demo`
    - `sae-baselines status studies/demo --watch`
    """
    from sae_baselines.evals.status import study_status

    while True:
        found = study_status(study)
        if watch and console.is_terminal:
            console.clear()
        _print(found)
        if not watch or all(task.state in ("done", "failed") for task in found):
            return
        time.sleep(every)


def _print(found: "list[TaskStatus]") -> None:
    from rich.table import Table

    table = Table("tasks")
    for state in _STATES:
        table.add_column(state, justify="right")
    for kind in dict.fromkeys(task.kind for task in found):
        states = [task.state for task in found if task.kind == kind]
        table.add_row(kind, *(str(states.count(state)) for state in _STATES))
    print_table(table)
    for task in found:
        if task.state == "running":
            again = f", attempt {task.attempts}" if task.attempts > 1 else ""
            say(f"running: {task.name} ({task.said}{again})")
    for task in found:
        if task.state == "failed":
            say(f"failed: {task.name}: {task.said} (log: {task.log})")
