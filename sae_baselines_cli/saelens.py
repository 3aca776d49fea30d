"""`saelens`: SAELens' own training command."""

import argparse
import runpy
import sys
from typing import Annotated, NoReturn

import typer

from sae_baselines_cli.known import architectures, completing
from sae_baselines_cli.shared import group

app = group()


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
            autocompletion=completing(architectures()),
        ),
    ] = None,
) -> None:
    """SAELens' own training command, with the baselines registered.

    Example: `sae-baselines saelens --architecture frozen_decoder --d_in 512 --d_sae 8192 ...`
    """
    from unittest.mock import patch

    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    import sae_baselines  # noqa: F401  (registers the baselines)
    from sae_baselines.errors import UserError, did_you_mean, one_line

    arguments = list(context.args)
    if architecture is not None:
        if architecture not in SAE_TRAINING_CLASS_REGISTRY:
            hint = did_you_mean(architecture, list(SAE_TRAINING_CLASS_REGISTRY))
            raise UserError(f"architecture: {architecture!r} is unknown; {hint}")
        arguments = ["--architecture", architecture, *arguments]
    sys.modules.pop("sae_lens.llm_sae_training_runner", None)

    def refuse(self: argparse.ArgumentParser, message: str) -> NoReturn:
        del self
        raise UserError(f"{message}; sae-baselines saelens --help lists them")

    try:
        with (
            patch.object(sys, "argv", ["sae_lens.llm_sae_training_runner", *arguments]),
            # Of its own it prints two pages of usage before the line that says what is wrong.
            patch.object(argparse.ArgumentParser, "error", refuse),
            # Its own handlers forget which signal it was; ours it answers alike.
            patch("signal.signal"),
        ):
            runpy.run_module("sae_lens.llm_sae_training_runner", run_name="__main__")
    except UserError:
        raise
    except (ValueError, TypeError, argparse.ArgumentError) as error:
        raise UserError(one_line(error, 300)) from error
