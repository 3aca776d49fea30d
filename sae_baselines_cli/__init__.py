"""What `sae-baselines` starts: signatures and help here, everything else imported in bodies.

Importing `sae_baselines` takes seconds, so no module here imports it, or torch, at its top:
help, mistakes and completion are answered at once.
"""

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from sae_baselines_cli import (
    check,
    control,
    drift,
    evaluate,
    find,
    hub,
    saelens,
    toy,
    train,
    vision,
)
from sae_baselines_cli.shared import console, errors, fail, group, log_to_terminal

NAME = "sae-baselines"

app = group(
    no_args_is_help=True,
    help="Random baselines for sparse autoencoders: does your SAE beat a frozen one?",
)
for module in (train, saelens, evaluate, check, find, control):
    app.add_typer(module.app)
app.add_typer(vision.app, name="vision")
for module in (drift, toy, hub):
    app.add_typer(module.app)


def _version(wanted: bool) -> None:
    if wanted:
        spec = find_spec("sae_baselines")  # which does not import it
        assert spec is not None
        assert spec.origin is not None
        file = Path(spec.origin).with_name("version.py")
        console.print(runpy.run_path(str(file))["__version__"], highlight=False)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show debug logs.")] = False,
) -> None:
    del version
    log_to_terminal(verbose)


def main() -> None:
    """Entry point: one line and exit code 1 for bad input, 130 for an interruption."""
    # Completion scripts are named after this, however the command was started.
    sys.argv[0] = str(Path(sys.argv[0]).with_name(NAME))
    try:
        app(prog_name=NAME)
    except KeyboardInterrupt:
        errors.print("interrupted; what is finished is kept, the same command continues")
        sys.exit(130)
    except Exception as error:
        message = _one_line(error)
        if message is None:
            raise
        fail(message)
        sys.exit(1)


def _one_line(error: Exception) -> str | None:
    """What a person at the command line can act on; None for a fault of the package."""
    from safetensors import SafetensorError

    from sae_baselines.errors import UserError
    from sae_baselines.paper.demo.packages import AssetError
    from sae_baselines.study.runner import InterruptedTrainingError

    if isinstance(error, InterruptedTrainingError):
        errors.print("interrupted; continue with --resume (train) or the same command (check)")
        sys.exit(130)
    if isinstance(error, UserError | AssetError | SafetensorError):
        return str(error)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}"
    return None
