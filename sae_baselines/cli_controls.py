"""The command that makes a control of any SAE."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sae_baselines.baselines.covariance_file import read_tensor
from sae_baselines.controls import CONTROLS, control_names, make_control
from sae_baselines.errors import UserError
from sae_baselines_command.known import completing

app = typer.Typer(rich_markup_mode="markdown")
console = Console(width=None if sys.stdout.isatty() else 140)


@app.command()
def control(
    source: Annotated[
        str | None,
        typer.Argument(help="SAELens folder or release:sae_id; without one, lists the kinds."),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(help=", ".join(control_names()), autocompletion=completing(control_names)),
    ] = "random",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the new SAE.")
    ] = None,
    activations: Annotated[
        Path | None,
        typer.Option(
            help="Activations of the SAE's hook, [n, d_in]: .npy, or .safetensors with a "
            "tensor 'activations'."
        ),
    ] = None,
    l0: Annotated[
        float | None, typer.Option(help="L0 of a random control; default: the source's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed.", min=0)] = 0,
) -> None:
    """Make an SAE without training, from one that is trained: the cheapest null there is.

    The folder is an ordinary SAELens one; evaluate it like any other SAE.

    Examples:

    - `sae-baselines control`
    - `sae-baselines control my_sae --kind random:cov --activations acts.npy --out null`
    - `sae-baselines control gpt2-small-res-jb:blocks.8.hook_resid_pre --kind permuted_pairing
      --out null`
    """
    if source is None:
        console.print(controls_table())
        return
    if out is None:
        raise UserError("out: name a folder for the control, e.g. --out control")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out: {out} is not an empty folder; use another")
    x = None
    if activations is not None:
        try:
            x = read_tensor(activations, "activations", "activations")
        except ValueError as error:
            raise UserError(str(error)) from error
    made = make_control(source, kind, seed=seed, activations=x, l0=l0)
    made.save(out)
    lines = [
        f"{made.facts['control']}, seed {seed}: {out}",
        f"The null for {made.kind.null_for}.",
    ]
    calibrated = made.facts.get("calibration")
    if calibrated is not None:
        lines.append(
            f"L0 {calibrated['l0']:.4g} on {calibrated['n_activations']:,} activations, target "
            f"{calibrated['target_l0']:.4g}; latents scaled by {calibrated['scale']:.3g}."
        )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def controls_table() -> Table:
    """The kinds of controls, and what each is the null for."""
    table = Table("kind", "made as", "the null for")
    for kind in CONTROLS.values():
        schemes = "".join(f"\n{kind.name}:{s}" for s in kind.schemes[1:])
        table.add_row(kind.name + schemes, kind.what, kind.null_for)
    return table
