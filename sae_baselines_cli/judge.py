"""`judge`: whether a language model can judge descriptions of latents."""

from typing import Annotated

import typer

from sae_baselines_cli.known import LARGEST
from sae_baselines_cli.shared import console, group, print_table, say

app = group(no_args_is_help=True, help="Judges of AutoInterp: any OpenAI-compatible endpoint.")


@app.command("test")
def examine(
    model: Annotated[
        str | None, typer.Option(help="Name of the judge; default: OPENAI_MODEL.")
    ] = None,
    suite: Annotated[
        str, typer.Option(help="By whose prompts: autointerp or interp_detection.")
    ] = "autointerp",
    seed: Annotated[int, typer.Option(help="Of examples and prompts.", min=0, max=LARGEST)] = 0,
) -> None:
    """Test a judge on latents whose answer is known by construction.

    Words of twelve concepts, and words at random, by SAEBench's own prompts: 40 requests; one
    text at a time (`--suite interp_detection`), which small models can do: 540 short ones. A
    judge that is not above its floor (its descriptions exchanged) is refused by `eval` for that
    suite from then on; the exit code is 1.

    Examples:

    - `OPENAI_API_KEY=none OPENAI_BASE_URL=http://localhost:8000/v1 sae-baselines judge test`
    - `sae-baselines judge test --model gpt-4o-mini`
    - `sae-baselines judge test --suite interp_detection`
    """
    from rich.table import Table

    from sae_baselines.evals.examine import examine_judge

    done = examine_judge(model, seed, suite)
    table = Table(title=f"{done.judge['model']} at {done.judge['host']}, {suite}")
    table.add_column("known latent")
    table.add_column("described as", overflow="fold")
    for column in (done.measure, "floor"):
        table.add_column(column, justify="right")
    for name, value in done.scores.items():
        floor = f"{done.floors[name]:.2f}" if name in done.floors else "-"
        table.add_row(name, done.descriptions[name], f"{value:.2f}", floor)
    for name, value in done.random.items():
        table.add_row(name, "", f"{value:.2f}", "-")
    print_table(table)
    low, high = done.interval
    say(
        f"{done.measure} {done.accuracy:.3f}, floor {done.floor:.3f}, 90% interval of the "
        f"difference [{low:+.3f}, {high:+.3f}] over {len(done.gaps)} of {done.asked} concepts"
    )
    if "sha256" in done.judge:
        say(f"{done.judge['file']}, sha256 {done.judge['sha256']}")
    if done.flaw is not None:
        console.print(f"no judge: {done.flaw}")
        raise typer.Exit(1)
    console.print("above its floor: it may judge")
