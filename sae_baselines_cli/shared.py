"""What the commands share: one console, one log, one way to fail, one set of options."""

import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sae_baselines_cli.known import SUITES, completing

if TYPE_CHECKING:
    from rich.table import Table

# Redirected output is not cut to the 80 columns rich would assume.
console = Console(width=None if sys.stdout.isatty() else 140)
errors = Console(stderr=True)

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
Verbose = Annotated[bool, typer.Option("--verbose", help="Show SAEBench's own output.")]


def group(**options: Any) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(rich_markup_mode="markdown", pretty_exceptions_enable=False, **options)


def say(line: str) -> None:
    """Print one line as it is, however long."""
    console.print(line, highlight=False, soft_wrap=True, markup=False)


def print_table(table: "Table") -> None:
    """Print a table with its title above its first column."""
    table.title_justify = "left"
    console.print(table)


def fail(message: str) -> None:
    """Print one line on standard error."""
    # "error:" alone is in colour: a message may hold what looks like markup.
    errors.print("[red]error:[/red]", end=" ")
    errors.print(message, highlight=False, soft_wrap=True, markup=False)


def ask(question: str, *, err: bool = False) -> str | None:
    """What is typed in answer to a question; None where nobody sits at a terminal."""
    return typer.prompt(question, err=err) if sys.stdin.isatty() else None


def names_in(listed: str) -> list[str]:
    """The names of a comma-separated word."""
    return [name for name in (part.strip() for part in listed.split(",")) if name]


def log_to_terminal(verbose: bool) -> None:
    """Show this package's log on standard error, and what a user can act on alone."""
    from rich.logging import RichHandler

    logger = logging.getLogger("sae_baselines")
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.handlers = [RichHandler(console=errors, show_path=False, show_time=False)]
    logger.propagate = False
    if not verbose:
        # Advice of the libraries underneath that a user of this command cannot follow.
        for message in (
            "Dataset is not tokenized",
            "The training dataset contains fewer",
            r"\s*This SAE has non-empty model_from_pre",
        ):
            warnings.filterwarnings("ignore", message=message)
