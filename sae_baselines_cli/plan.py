"""`plan`: the tasks of a study, and what they cost, before it is begun."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_baselines_cli.known import SUITES
from sae_baselines_cli.shared import (
    Device,
    Out,
    Panel,
    Suites,
    console,
    group,
    names_in,
    print_table,
    say,
)

if TYPE_CHECKING:
    from sae_baselines.evals.plan import PlannedTask, StudyPlan
    from sae_baselines.study.spec import StudySpec

app = group()


@app.command()
def plan(
    panel: Panel,
    out: Out = None,
    suites: Suites = None,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Load the model and time a few steps on this machine."),
    ] = False,
    price: Annotated[
        float | None, typer.Option(help="Of an hour of one device, in any money.", min=0)
    ] = None,
    tasks: Annotated[bool, typer.Option("--tasks", help="Every task, not only kinds.")] = False,
    to: Annotated[
        Path | None, typer.Option("--json", help="File for the tasks, with what each needs.")
    ] = None,
    device: Device = None,
) -> None:
    """The tasks of a study: how many, what each needs, device-hours and price of the whole.

    Nothing is trained. Times come from tasks of the same kind that are done in --out, and with
    --probe from a few steps on this machine; what has neither is said.

    Examples:

    - `sae-baselines plan panel.yaml`
    - `sae-baselines plan panel.yaml --probe --price 2.5`
    - `sae-baselines plan panel.yaml --out studies/first --tasks`
    """
    from sae_baselines.evals.plan import plan_study
    from sae_baselines.evals.spec import has_eval_spec, load_eval_spec

    spec = _spec(panel)
    if device is not None:
        spec = dataclasses.replace(spec, device=device)
    if suites is not None:
        names = list(SUITES) if suites == "all" else names_in(suites, "suites")
    else:
        names = list(load_eval_spec(panel).suites) if has_eval_spec(panel) else []
    found = plan_study(spec, names, out or Path("studies") / spec.name, probe=probe)
    if to is not None:
        from sae_baselines.files import write_atomically

        told = [{**dataclasses.asdict(task), "kind": task.kind} for task in found.tasks]
        write_atomically(to, json.dumps(told, indent=2))
    _print(found, price, tasks)


def _spec(panel: Path) -> "StudySpec":
    from sae_baselines.study.folder import OTHER_KINDS
    from sae_baselines.study.patches.spec import VisionSpec
    from sae_baselines.study.spec import PanelSpec, load_spec
    from sae_baselines.study.synthetic.spec import ToySpec
    from sae_baselines.yaml_text import read_yaml

    data = read_yaml(panel)
    kinds: dict[str, type[StudySpec]] = dict(
        zip(OTHER_KINDS, (VisionSpec, ToySpec), strict=True)
    )
    named = [kind for field, kind in kinds.items() if isinstance(data, dict) and field in data]
    return load_spec(panel, named[0] if named else PanelSpec)


def _print(found: "StudyPlan", price: float | None, every: bool) -> None:
    from rich.table import Table

    table = Table("task" if every else "tasks")
    columns = ("done", "activations", "memory", "disk", "time", "device-hours")
    for column in columns if every else ("number", *columns):
        table.add_column(column, justify="right")
    groups: dict[str, list[PlannedTask]] = {}
    for task in found.tasks:
        groups.setdefault(task.name if every else task.kind, []).append(task)
    for name, some in groups.items():
        table.add_row(name, *([] if every else [str(len(some))]), *_row(some))
    print_table(table)
    _say_what(found, price)


def _row(some: "list[PlannedTask]") -> list[str]:
    """Memory, disk and time are of the largest; activations and device-hours are sums."""
    from sae_baselines.files import size_text

    def largest(values: "list[int | None]") -> str:
        known = [value for value in values if value]
        return size_text(max(known)) if known else "?"

    seconds = [task.seconds for task in some]
    longest = max((s for s in seconds if s is not None), default=None)
    known = None not in seconds
    left = sum(task.seconds or 0 for task in some if not task.done)
    return [
        str(sum(task.done for task in some)),
        f"{sum(task.activations for task in some):,}" if some[0].activations else "",
        largest([task.memory for task in some]),
        largest([task.disk for task in some]) if any(t.disk != 0 for t in some) else "",
        "?" if longest is None else _time(longest),
        f"{left / 3600:.3g}" if known else "?",
    ]


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _say_what(found: "StudyPlan", price: float | None) -> None:
    left, unknown = found.left, found.unknown
    known = len(left) - len(unknown)
    if known:
        cost = "" if price is None else f", {found.device_hours * price:.2f} at {price:g} each"
        say(f"{known} tasks that are left: {found.device_hours:.3g} device-hours{cost}.")
    if unknown:
        kinds = ", ".join(dict.fromkeys(task.kind for task in unknown))
        say(
            f"{len(unknown)} tasks that are left have no estimate and are not in that: "
            f"{kinds}. --probe times training and measuring; the others have one once a task "
            "of their kind is done in --out."
        )
    if not any(task.by == "probe" for task in found.tasks):
        say("Memory is what weights and moments take at the least; --probe measures it.")
    console.print()
