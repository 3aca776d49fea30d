"""What `sae-baselines` starts: signatures and help here, everything else imported in bodies.

Importing `sae_baselines` takes seconds, so no module here imports it, or torch, at its top:
help, mistakes and completion are answered at once.
"""

import runpy
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from sae_baselines_cli import (
    check,
    control,
    drift,
    evaluate,
    find,
    hub,
    judge,
    plan,
    power,
    saelens,
    status,
    toy,
    train,
    vision,
)
from sae_baselines_cli.allocator import keep_freed_memory
from sae_baselines_cli.interruptions import Interruptions, what_is_kept
from sae_baselines_cli.shared import (
    console,
    errors,
    fail,
    group,
    log_to_terminal,
    open_streams,
)

NAME = "sae-baselines"

app = group(
    no_args_is_help=True,
    help="Random baselines for sparse autoencoders: does your SAE beat a frozen one?",
)
for module in (train, plan, saelens, evaluate, status, check, power, find, control):
    app.add_typer(module.app)
app.add_typer(judge.app, name="judge")
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
    """Entry point: one line and exit code 1 for bad input, 128 + its number for a signal."""
    # Completion scripts are named after this, however the command was started.
    open_streams()
    keep_freed_memory()
    sys.argv[0] = str(Path(sys.argv[0]).with_name(NAME))
    arguments = sys.argv[1:]
    with Interruptions(arguments) as interruptions:
        try:
            app(prog_name=NAME)
        except (KeyboardInterrupt, SystemExit) as stopped:
            # Typer makes exit code 130 of an interruption; what came to its end has 0.
            code = 130 if isinstance(stopped, KeyboardInterrupt) else stopped.code
            if not code or (code != 130 and interruptions.number is None):
                raise
            _interrupted(arguments, interruptions.number or signal.SIGINT)
        except Exception as error:
            # Libraries make many things of an interruption, and of its stopping their children.
            if interruptions.number is not None:
                _interrupted(arguments, interruptions.number)
            if _is_torchvisions(error):
                fail(
                    "torchvision: it was built for another torch than the one that is "
                    "installed, and transformers cannot be imported beside it; pip uninstall "
                    "torchvision (SAEBench requires it and never imports it), or install the "
                    "one for your torch"
                )
                sys.exit(1)
            from sae_baselines.errors import StoppedError

            if isinstance(error, StoppedError):
                _interrupted(arguments, error.number)
            message = _one_line(error)
            if message is None:
                raise
            fail(message)
            sys.exit(1)


def _is_torchvisions(error: BaseException | None) -> bool:
    """Whether this came of a torchvision that does not fit torch."""
    while error is not None:
        if "operator torchvision::" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _interrupted(arguments: list[str], number: int) -> NoReturn:
    errors.print(what_is_kept(arguments, number), highlight=False, soft_wrap=True, markup=False)
    sys.exit(128 + number)


def _one_line(error: Exception) -> str | None:
    """What a person at the command line can act on; None for a fault of the package."""
    from pydantic import ValidationError
    from safetensors import SafetensorError

    from sae_baselines.errors import UserError, one_line
    from sae_baselines.files import failed
    from sae_baselines.paper.demo.packages import AssetError
    from sae_baselines.study.spec import first_problem

    if isinstance(error, UserError | AssetError | SafetensorError):
        return str(error)
    if isinstance(error, ValidationError):  # of an option that replaces a field
        return first_problem(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {failed(error)}" if error.filename else failed(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            f"out of memory ({one_line(error, 200)}); what is finished is kept. Make batches "
            "smaller, or choose another device"
        )
    return None
