"""What the commands share: one console, one log, one way to fail, one set of options."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.segment import Segment

from sae_baselines_cli.known import EXECUTORS, SUITES, completing

if TYPE_CHECKING:
    from rich.table import Table

    from sae_baselines.work.executor import Executor

# What a terminal obeys instead of showing it: control characters but for tab and newline, and
# marks that turn the direction of writing.
_OBEYED = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def visible(text: str) -> str:
    """Text that somebody else wrote, with what a terminal would obey replaced."""
    return _OBEYED.sub("\N{REPLACEMENT CHARACTER}", text)


class _Console(Console):
    """Shows what configs and tables of strangers say, and does nothing that they say.

    Their text is no markup either: it is asked for where ours has some.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, **options)

    def render(self, *args: Any, **options: Any) -> Iterator[Segment]:
        for segment in super().render(*args, **options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


# Redirected output is not cut to the 80 columns rich would assume.
console = _Console(width=None if sys.stdout and sys.stdout.isatty() else 140)
errors = _Console(stderr=True)

# Exit code: some evaluations failed; the others are there.
INCOMPLETE = 3

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Study folder.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an unfinished study.")]
Device = Annotated[str | None, typer.Option(help="Torch device; default: the best there is.")]
Panel = Annotated[Path, typer.Argument(help="Panel file (YAML).")]
Suites = Annotated[
    str | None,
    typer.Option(
        help=f"Comma-separated: {', '.join(SUITES)}; or 'all'.",
        autocompletion=completing([*SUITES, "all"]),
    ),
]
On = Annotated[
    str,
    typer.Option(
        help=f"Where tasks are done: {', '.join(EXECUTORS)}.",
        autocompletion=completing(EXECUTORS),
    ),
]
Devices = Annotated[
    str | None, typer.Option(help="With --on devices: GPUs, one worker each, e.g. 0,1.")
]
Workers = Annotated[
    int | None, typer.Option(help="How many, on the CPU or of a cluster.", min=1)
]
Cluster = Annotated[
    list[str] | None,
    typer.Option(help="With --on slurm: NAME=VALUE, before the panel file's 'cluster'."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="With --on slurm: print the sbatch script alone.")
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Not --on here: try failed tasks again.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show SAEBench's own output.")]


def group(**options: Any) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(rich_markup_mode="markdown", pretty_exceptions_enable=False, **options)


def open_streams() -> None:
    """Have somewhere to print to, whatever is closed and whatever cannot be written there."""
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # It also takes the number, which the next file that is opened would have else.
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, Path(os.devnull).open(mode, errors="replace"))  # noqa: SIM115
        elif name != "stdin" and hasattr(stream, "reconfigure"):
            # Of lines and names that ASCII has not, the rest is printed.
            stream.reconfigure(errors="replace")


def say(line: str) -> None:
    """Print one line as it is, however long."""
    console.print(line, highlight=False, soft_wrap=True)


def print_table(table: "Table") -> None:
    """Print a table with its title above its first column."""
    table.title_justify = "left"
    console.print(table)


def started_by(
    on: str,
    devices: str | None,
    workers: int | None,
    cluster: list[str] | None,
    dry_run: bool,
    file: Path | None,
    root: Callable[[], Path],
) -> "Executor | None":
    """What starts workers, as the command's options say; None for this process.

    Args:
        file: Its section ``cluster`` is read.
        root: The study folder. Of a dry run the script is printed, and the command ends.

    Raises:
        UserError: Bad input, before anything is written.
    """
    from sae_baselines.errors import UserError
    from sae_baselines.work.choice import executor
    from sae_baselines.work.slurm import Slurm

    made = executor(on, devices=devices, workers=workers, file=file, settings=cluster or ())
    if dry_run:
        if not isinstance(made, Slurm):
            raise UserError("dry-run: shows what is submitted to SLURM; add --on slurm")
        typer.echo(made.script(root()))
        raise typer.Exit
    if isinstance(made, Slurm):
        made.require_here()
    return made


def fail(message: str) -> None:
    """Print one line on standard error."""
    errors.print("error:", style="red", end=" ")
    errors.print(message, highlight=False, soft_wrap=True)


def open_page(page: Path, in_browser: bool) -> None:
    """Name a page to look at, and show it if it is asked for and can be."""
    if in_browser:
        import webbrowser

        if webbrowser.open(page.resolve().as_uri()):
            return
        say("There is no browser here that could be opened")
    say(f"open {page}")


def ask(question: str, *, err: bool = False) -> str | None:
    """What is typed in answer to a question; None where nobody sits at a terminal."""
    try:
        return typer.prompt(visible(question), err=err) if sys.stdin.isatty() else None
    except typer.Abort as stopped:  # which it makes of the end of input too
        if isinstance(stopped.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def names_in(listed: str, option: str) -> list[str]:
    """The names of a comma-separated word, each once; at least one."""
    names = dict.fromkeys(part.strip() for part in listed.split(","))
    names.pop("", None)
    if not names:
        raise typer.BadParameter(
            f"{listed!r} names none; name at least one, or leave it out",
            param_hint=f"--{option}",
        )
    return list(names)


# They print what they log, of every retry, of every flawed line and of settings that no user of
# this command has; what matters of it is in the one line that ends a failed command, and one
# when a retry begins.
_PRINTING = ("huggingface_hub", "datasets", "transformers")


class _Retries(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from sae_baselines.reach import say_if_retried

        say_if_retried(record.getMessage())


def _quieten_libraries() -> None:
    """Leave what libraries log to ``--verbose``: it is still logged, but not printed."""
    root = logging.getLogger()
    if not root.handlers:  # else a library makes one that prints
        root.addHandler(logging.NullHandler())
    for name in _PRINTING:
        logger = logging.getLogger(name)
        logger.handlers = [_Retries()]
        # What it prints with is added when it is imported, which it is not yet.
        vars(logger)["addHandler"] = lambda _: None


class _OneLine(logging.Handler):
    """A line a message, where rich would break it at the 80 columns that it assumes."""

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname:<8} {self.format(record)}"
        errors.print(text, highlight=False, soft_wrap=True)


def log_to_terminal(verbose: bool) -> None:
    """Show this package's log on standard error, and what a user can act on alone."""
    from rich.logging import RichHandler

    logger = logging.getLogger("sae_baselines")
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    shown = RichHandler(console=errors, show_path=False, show_time=False)
    logger.handlers = [shown if errors.is_terminal else _OneLine()]
    logger.propagate = False
    if not verbose:
        _quieten_libraries()
        # Advice of the libraries underneath that a user of this command cannot follow.
        for message in (
            "Dataset is not tokenized",
            "The training dataset contains fewer",
            r"\s*This SAE has non-empty model_from_pre",
        ):
            warnings.filterwarnings("ignore", message=message)
