"""`control`: an SAE without training, made from any SAE."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_baselines_cli.known import CONTROLS, LARGEST, completing
from sae_baselines_cli.shared import console, group, say

if TYPE_CHECKING:
    from rich.table import Table

app = group()


@app.command()
def control(
    source: Annotated[
        str | None,
        typer.Argument(help="SAELens folder or release:sae_id; without one, lists the kinds."),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(help=", ".join(CONTROLS), autocompletion=completing(CONTROLS)),
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
    seed: Annotated[int, typer.Option(help="Seed.", min=0, max=LARGEST)] = 0,
) -> None:
    """Make an SAE without training, from one that is trained: the cheapest null there is.

    The folder is an ordinary SAELens one; evaluate it like any other SAE.

    Examples:

    - `sae-baselines control`
    - `sae-baselines control my_sae --kind random:cov --activations acts.npy --out null`
    - `sae-baselines control gpt2-small-res-jb:blocks.8.hook_resid_pre --kind permuted_pairing
      --out null`
    """
    import sae_baselines
    from sae_baselines.errors import UserError

    if source is None:
        console.print(controls_table())
        return
    if out is None:
        raise UserError("out: name a folder for the control, e.g. --out control")
    made = sae_baselines.control(source, kind, out, activations=activations, l0=l0, seed=seed)
    say(f"{made.facts['control']}, seed {seed}: {out}")
    say(f"The null for {made.kind.null_for}.")
    calibrated = made.facts.get("calibration")
    if calibrated is not None:
        say(
            f"L0 {calibrated['l0']:.4g} on {calibrated['n_activations']:,} activations, target "
            f"{calibrated['target_l0']:.4g}; latents scaled by {calibrated['scale']:.3g}."
        )


def controls_table() -> "Table":
    """The kinds of controls, and what each is the null for."""
    from rich.table import Table

    from sae_baselines.controls import CONTROLS

    table = Table("kind", "made as", "the null for")
    for kind in CONTROLS.values():
        schemes = "".join(f"\n{kind.name}:{s}" for s in kind.schemes[1:])
        table.add_row(kind.name + schemes, kind.what, kind.null_for)
    return table
