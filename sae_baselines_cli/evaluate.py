"""`eval`, `doctor` and `report`: scores of SAEs, whether they can be had, what they say."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_baselines_cli.known import LARGEST
from sae_baselines_cli.shared import (
    INCOMPLETE,
    Cluster,
    Device,
    Devices,
    DryRun,
    On,
    RetryFailed,
    Suites,
    Verbose,
    Workers,
    console,
    errors,
    group,
    names_in,
    print_table,
    say,
    started_by,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sae_baselines.pipeline import Evaluation
    from sae_baselines.report import Report
    from sae_baselines.study.latents import Latents
    from sae_baselines.study.plan import MemberKey

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
    on: On = "here",
    devices: Devices = None,
    workers: Workers = None,
    cluster: Cluster = None,
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
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

    root = out or Path(sources[0])
    started = started_by(on, devices, workers, cluster, dry_run, config, lambda: root)
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
        on=started,
        retry_failed=retry_failed,
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
    sources: Annotated[
        list[str],
        typer.Argument(
            help="A trained study folder, with its weights; or SAEs of one model and hook: "
            "SAELens folders, release:sae_id or user/repo:folder."
        ),
    ],
    panel: Annotated[str | None, typer.Option(help="Panel; default: the first.")] = None,
    members: Annotated[
        str | None, typer.Option(help="Columns, comma-separated; default: all members.")
    ] = None,
    per_decade: Annotated[
        int, typer.Option(help="Rows of each decade of the firing rate.", min=0, max=1000)
    ] = 4,
    seed: Annotated[int, typer.Option(help="Draws the latents.", min=0, max=LARGEST)] = 0,
    latent: Annotated[
        list[str] | None,
        typer.Option(help="MEMBER:INDEX of a latent to show, beside others of its rate."),
    ] = None,
    blind: Annotated[
        bool, typer.Option("--blind", help="Hide who is who, and ask; the key is a file.")
    ] = False,
    score: Annotated[
        Path | None, typer.Option(help="Answers to a blind page: how many are right.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Page; default: in the study, or here for SAEs."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="SAEs: Hub name or local folder of their model, if not as recorded."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="SAEs: Hub name or local file of text.")
    ] = None,
    hook: Annotated[str | None, typer.Option(help="SAEs: hook, if none is recorded.")] = None,
    context_size: Annotated[
        int | None, typer.Option(help="SAEs: tokens of a context.", min=2, max=LARGEST)
    ] = None,
    neuronpedia: Annotated[
        Path | None, typer.Option(help="Folder for the same latents as Neuronpedia's files.")
    ] = None,
    saedashboard: Annotated[
        Path | None, typer.Option(help="Folder for the same latents as SAEDashboard's JSON.")
    ] = None,
    device: Device = None,
) -> None:
    """Show latents side by side: latents.html, with the text on which each fires.

    A column is an SAE, a row holds latents that fire about as often. Contexts are kept beside
    each SAE's weights; the model is loaded where some are missing, and where an older study
    lacks what each latent does (latents.npz). Seeds are held against each other too: which
    latents does another seed find again? SAEs that are of no study are read on the text that
    the first one's config names; a blind page asks which latent is the first one's.

    Examples:

    - `sae-baselines latents studies/demo`
    - `sae-baselines latents studies/demo --latent trained:123 --per-decade 2`
    - `sae-baselines latents studies/demo --blind`
    - `sae-baselines latents studies/demo --score latents_answers.json`
    - `sae-baselines latents my_sae other_sae --dataset NeelNanda/pile-10k`
    """
    from sae_lens.constants import SAE_CFG_FILENAME

    from sae_baselines.pipeline import GalleryOptions, gallery, loose_gallery
    from sae_baselines.pipeline import latents as measured
    from sae_baselines.study.folder import STUDY_FILE
    from sae_baselines.study.reference.recipe import CheckOptions

    study = Path(sources[0])
    if score is not None:
        _print_score(study, out, score)
        return
    is_study = len(sources) == 1 and (study / STUDY_FILE).exists()
    if len(sources) == 1 and study.is_dir() and not is_study:
        is_study = not (study / SAE_CFG_FILENAME).exists()  # to be told what it is not
    _refuse_of_others(is_study, panel=panel, members=members)
    _refuse_of_others(
        not is_study, model=model, dataset=dataset, hook=hook, context_size=context_size
    )
    named = [_latent_named(text) for text in latent or ()]
    options = GalleryOptions(
        panel=panel,
        members=None if members is None else names_in(members, "members"),
        per_decade=per_decade,
        seed=seed,
        named=named,
        blind=blind,
        out=out,
        neuronpedia=neuronpedia,
        saedashboard=saedashboard,
    )
    if is_study:
        print_latents(measured(study, device=device))
        written = gallery(study, options, device=device)
    else:
        about = CheckOptions(
            model=model,
            dataset=dataset,
            hook_name=hook,
            context_size=context_size,
            device=device,
        )
        written = loose_gallery(sources, Path(), options, about)
    for path in written:
        say(f"Wrote {path}")


def _refuse_of_others(applies: bool, **options: Any) -> None:
    """Options that say nothing here would mislead if they were ignored in silence."""
    from sae_baselines.errors import UserError

    given = [name for name, value in options.items() if value is not None]
    if given and not applies:
        of = "SAEs" if "model" in options else "a study"
        other = "a study says it itself" if of == "SAEs" else "SAEs have none"
        raise UserError(
            f"{given[0].replace('_', '-')}: is for {of}, and {other}; leave it away"
        )


def _latent_named(text: str) -> tuple[str, int]:
    member, _, index = text.rpartition(":")
    if not member or not index.isdecimal() or len(index) > 9:
        raise typer.BadParameter(
            f"{text!r} is no MEMBER:INDEX, such as trained:123", param_hint="--latent"
        )
    return member, int(index)


def print_latents(found: "Mapping[MemberKey, Latents]") -> None:
    """Variance explained by latents, by decade of the rate."""
    from rich.table import Table

    from sae_baselines.report.markdown import rate
    from sae_baselines.stats.by_rate import Rated, strata

    table = Table("SAE", "latents that fire", title="Variance explained by latents")
    for column in ("latents", "variance explained"):
        table.add_column(column, justify="right")
    for key, latents in found.items():
        for decade, stratum in strata(Rated.of(latents)).items():
            share = f"{100 * stratum.explained:.2f} %"
            table.add_row(key.name, rate(decade), f"{stratum.n:,.0f}", share)
        table.add_section()
    print_table(table)


def _print_score(study: Path, out: Path | None, answers: Path) -> None:
    from rich.table import Table

    from sae_baselines.report.blind import score
    from sae_baselines.report.latents_page import BLIND_PAGE, key_file

    found, unanswered = score(key_file(out or study / BLIND_PAGE), answers)
    table = Table("trained against", title="Which latent is the trained SAE's?")
    for column in ("right", "of", "accuracy", "95 % interval"):
        table.add_column(column, justify="right")
    for told in found:
        low, high = told.interval.low, told.interval.high
        share = f"{told.right / told.n:.2f}"
        name = told.against or "all"
        table.add_row(name, str(told.right), str(told.n), share, f"{low:.2f} to {high:.2f}")
    print_table(table)
    say(f"Guessing is right in 0.50. Pairs without an answer: {unanswered}.")


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
    wandb: Annotated[
        str | None,
        typer.Option(
            metavar="PROJECT",
            help="Also log each SAE as a run of this project of Weights & Biases, in a group "
            "of the study's name.",
        ),
    ] = None,
) -> None:
    """Compare members over seeds, give verdicts, and write report.md, report.html and figures.

    Examples:

    - `sae-baselines report studies/demo`
    - `sae-baselines report studies/demo --correct study`
    - `sae-baselines report studies/demo --wandb my-project`
    """
    import sae_baselines

    print_report(sae_baselines.report(study, correct), study)
    if wandb is not None:
        from sae_baselines.report.wandb_runs import log_to_wandb

        say(f"Weights & Biases: {len(log_to_wandb(study, wandb))} runs in {wandb}")


def print_report(built: "Report", study: Path) -> None:
    """Where an SAE falls among random ones, and where the page is."""
    placed = (*built.placed, *(built.reference.nearly_free if built.reference else ()))
    for line in [*placed, *built.answers]:
        where = f"{line.architecture}, L0 {line.l0:g}, {line.suite}/{line.metric}"
        say(f"{line.question}: {where}: {line.reason}")
    say(f"Report: {study / 'report.html'}")
