"""`eval`, `doctor` and `report`: scores of SAEs, whether they can be had, what they say."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_baselines_cli.shared import (
    INCOMPLETE,
    Device,
    Suites,
    Verbose,
    console,
    errors,
    group,
    names_in,
    print_table,
    say,
)

if TYPE_CHECKING:
    from sae_baselines.pipeline import Evaluation
    from sae_baselines.report import Report

app = group()

Config = Annotated[
    Path | None,
    typer.Option(help="Panel file whose section 'evals' says how; default: as last time."),
]
Model = Annotated[
    Path | None,
    typer.Option(help="Local folder of the language model; default: the study's, or the Hub."),
]


@app.command("eval")
def evaluate(
    sources: Annotated[
        list[str],
        typer.Argument(help="A study folder; or SAELens folders and release:sae_id."),
    ],
    suites: Suites = None,
    config: Config = None,
    device: Device = None,
    seeds: Annotated[
        int | None, typer.Option(help="Only the first N training seeds.", min=1)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder; default: the study.")
    ] = None,
    model: Model = None,
    verbose: Verbose = False,
    force: Annotated[
        bool, typer.Option("--force", help="Evaluate again what is finished.")
    ] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove cached activations at the end.")
    ] = False,
    allow_plugins: Annotated[
        bool,
        typer.Option(
            "--allow-plugins",
            help="Import the modules that the study's panel file named under 'plugins': they "
            "run, so only for studies you trust.",
        ),
    ] = False,
) -> None:
    """Run SAEBench's suites on a study, on SAELens folders, or on published SAEs.

    What is finished is not repeated, so an interrupted evaluation continues. Exit code 3: some
    evaluations failed, the others are there.

    Examples:

    - `sae-baselines eval studies/demo`
    - `sae-baselines eval studies/demo --suites core,sparse_probing`
    - `sae-baselines eval gpt2-small-res-jb:blocks.8.hook_resid_pre --suites core --out checked`
    """
    import sae_baselines

    done = sae_baselines.evaluate(
        sources,
        None if suites is None else names_in(suites, "suites"),
        out,
        config=config,
        device=device,
        seeds=seeds,
        model=model,
        force=force,
        clean=clean,
        verbose=verbose,
        command=as_typed(),
        allow_plugins=allow_plugins,
    )
    print_evaluation(done)
    if done.failures:
        raise typer.Exit(INCOMPLETE)


def as_typed() -> str:
    """The command line, to be recorded."""
    return shlex.join(["sae-baselines", *sys.argv[1:]])


def print_evaluation(done: "Evaluation") -> None:
    """Scores, what must be said about them, and what failed."""
    from sae_baselines.evals.table import primary_table

    for table in primary_table(done.results, done.primary_metrics):
        console.print(table)
    for line in _grouped(done.notes):
        say(line)
    say(
        f"Evaluated {len(done.done)}, kept {len(done.kept)} from before, failed "
        f"{len(done.failures)}. Results: {done.out / 'results.csv'}"
    )
    for failure in done.failures:
        errors.print(
            f"failed: {failure.suite} {failure.name}: {failure.reason}",
            style="red",
            soft_wrap=True,
        )


def _grouped(notes: list[tuple[str, str, str]]) -> list[str]:
    """A note that several SAEs share is said once."""
    named: dict[tuple[str, str], list[str]] = {}
    for suite, name, text in notes:
        named.setdefault((suite, text.removeprefix(f"{suite}: ")), []).append(name)
    return [
        f"{suite}, {names[0] if len(names) == 1 else f'{len(names)} SAEs'}: {text}"
        for (suite, text), names in named.items()
    ]


@app.command()
def doctor(
    source: Annotated[
        str | None,
        typer.Argument(help="Study, SAELens folder or release:sae_id to check for."),
    ] = None,
    suites: Suites = None,
    config: Config = None,
    device: Device = None,
    model: Model = None,
) -> None:
    """Say which suites can run here, and why the others cannot, before an hour is spent.

    Without a source: versions, API endpoint and addresses alone. Exit code 1 if a suite that
    was asked for by name cannot run.

    Examples:

    - `sae-baselines doctor`
    - `sae-baselines doctor studies/demo --suites core,ravel`
    """
    from sae_baselines.evals.doctor import print_diagnoses
    from sae_baselines.pipeline import examine

    names = None if suites is None else names_in(suites, "suites")
    diagnoses, judge = examine(source, names, config=config, device=device, model=model)
    print_diagnoses(diagnoses, console)
    if judge is not None:
        say(judge)
    if suites is not None and not all(diagnosis.ok for diagnosis in diagnoses):
        raise typer.Exit(1)


@app.command()
def latents(
    study: Annotated[Path, typer.Argument(help="Trained study folder, with its weights.")],
    device: Device = None,
) -> None:
    """Measure what each latent does on held-out text, where an older study lacks it.

    How often it fires, how much of the variance it explains, how far its direction moved:
    latents.npz beside each SAE's weights, and by decade of the firing rate in the report. If
    SAEs lack it, the model is loaded and the study's text read; studies trained today have it.
    Seeds are held against each other too: which latents does another seed find again?

    Examples:

    - `sae-baselines latents studies/demo`
    """
    from rich.table import Table

    from sae_baselines.pipeline import latents as measured
    from sae_baselines.report.markdown import rate
    from sae_baselines.stats.by_rate import Rated, strata

    table = Table("SAE", "latents that fire", title="Variance explained by latents")
    for column in ("latents", "variance explained"):
        table.add_column(column, justify="right")
    for key, found in measured(study, device=device).items():
        for decade, stratum in strata(Rated.of(found)).items():
            share = f"{100 * stratum.explained:.2f} %"
            table.add_row(key.name, rate(decade), f"{stratum.n:,.0f}", share)
        table.add_section()
    print_table(table)


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="Evaluated study folder.")],
    correct: Annotated[
        str | None,
        typer.Option(
            help="Correct the verdicts over the metrics of each 'baseline', or over all tests "
            "of the 'study'; default: as in the panel file's evals.",
        ),
    ] = None,
) -> None:
    """Compare members over seeds, give verdicts, and write report.md, report.html and figures.

    Examples:

    - `sae-baselines report studies/demo`
    - `sae-baselines report studies/demo --correct study`
    """
    import sae_baselines

    print_report(sae_baselines.report(study, correct), study)


def print_report(built: "Report", study: Path) -> None:
    """Where an SAE falls among random ones, and where the page is."""
    placed = (*built.placed, *(built.reference.nearly_free if built.reference else ()))
    for line in [*placed, *built.answers]:
        where = f"{line.architecture}, L0 {line.l0:g}, {line.suite}/{line.metric}"
        say(f"{line.question}: {where}: {line.reason}")
    say(f"Report: {study / 'report.html'}")
