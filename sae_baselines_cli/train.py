"""`train`, `demo` and `preset`: SAEs of a language model, and the files they are made from."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_baselines_cli.known import completing, presets
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
    errors,
    group,
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
    resume: Resume = False,
    model: Annotated[
        str | None, typer.Option(help="Hub name or local folder instead of SmolLM2-135M.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Hub name or local file instead of Wikipedia.")
    ] = None,
    hook: Annotated[
        str | None, typer.Option(help="Hook; default: resid_post of a middle layer.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Training tokens.", min=1)] = None,
    device: Device = None,
) -> None:
    """A real check on a real language model, in minutes on two CPU cores.

    Trains a BatchTopK SAE on SmolLM2-135M reading English Wikipedia, and beside it a frozen
    decoder, a frozen encoder and a soft-frozen decoder, which stays near a random start.
    Model and text come from package registries through pip; no account, no GPU.

    Examples:

    - `sae-baselines demo`
    - `sae-baselines demo --resume`
    - `sae-baselines demo --model EleutherAI/pythia-70m-deduped --dataset NeelNanda/pile-10k`
    """
    import sae_baselines.study.table
    from sae_baselines.paper.demo.specs import demo_spec

    spec = demo_spec(model=model, dataset=dataset, hook_name=hook, training_tokens=tokens)
    _print_study(sae_baselines.train(spec, out, resume=resume, device=device))


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
