"""The commands that evaluate and report."""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sae_baselines.errors import UserError
from sae_baselines.evals import (
    EvalReport,
    EvalSpec,
    Target,
    eval_spec_from_dict,
    evaluate,
    load_eval_spec,
    study_targets,
    suite_names,
    write_results,
)
from sae_baselines.evals.doctor import diagnose, print_diagnoses
from sae_baselines.evals.run import subject_of
from sae_baselines.evals.settings import store_spec, stored_spec
from sae_baselines.evals.store import EvalStore
from sae_baselines.evals.study import local_model_of, targets_of
from sae_baselines.evals.suites.autointerp import AutoInterp, requests_needed
from sae_baselines.evals.suites.endpoint import check_endpoint
from sae_baselines.evals.table import primary_table
from sae_baselines.report.of_study import report_of_study
from sae_baselines.report.write import write_report
from sae_baselines.study.folder import STUDY_FILE, StudyFolder
from sae_baselines.study.train import resolve_device
from sae_baselines_command.known import completing

app = typer.Typer(rich_markup_mode="markdown")
console = Console(width=None if sys.stdout.isatty() else 140)
errors = Console(stderr=True)

# Some evaluations failed; the others are there.
INCOMPLETE = 3

Suites = Annotated[
    str | None,
    typer.Option(
        help=f"Comma-separated: {', '.join(suite_names())}; or 'all'.",
        autocompletion=completing(lambda: [*suite_names(), "all"]),
    ),
]
Device = Annotated[str | None, typer.Option(help="Torch device; default: the best there is.")]
Config = Annotated[
    Path | None,
    typer.Option(help="Panel file whose section 'evals' says how; default: as last time."),
]
Model = Annotated[
    Path | None,
    typer.Option(help="Local folder of the language model; default: the study's, or the Hub."),
]


def _is_study(source: str) -> bool:
    return (Path(source) / STUDY_FILE).exists()


def _settings(
    root: Path | None, config: Path | None, suites: str | None, device: str | None
) -> EvalSpec:
    spec = load_eval_spec(config) if config is not None else None
    if spec is None and root is not None:
        spec = stored_spec(root)
    spec = spec or eval_spec_from_dict({})
    if suites is not None:
        names = suite_names() if suites == "all" else [s.strip() for s in suites.split(",")]
        spec = spec.only([name for name in names if name])
    return dataclasses.replace(spec, device=device) if device is not None else spec


def _targets(sources: list[str], seeds: int | None) -> list[Target]:
    if len(sources) == 1 and _is_study(sources[0]):
        return study_targets(sources[0], seeds)
    studies = [s for s in sources if _is_study(s)]
    if studies:
        raise UserError(f"sources: {studies[0]} is a study; evaluate it on its own")
    if seeds is not None:
        raise UserError("seeds: belongs to a study, not to single SAEs")
    return targets_of(sources)


def _model(sources: list[str], model: Path | None) -> Path | None:
    if model is not None or not _is_study(sources[0]):
        return model
    return local_model_of(sources[0])


@app.command("eval")
def evaluate_command(
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
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show SAEBench's own output.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Evaluate again what is finished.")
    ] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove cached activations at the end.")
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
    study = len(sources) == 1 and _is_study(sources[0])
    if study and out is not None:
        raise UserError("out: a study is evaluated in its own folder; leave --out away")
    absent = [s for s in sources if ":" not in s and not Path(s).exists()]
    if absent:
        raise UserError(f"sources: {absent[0]} is neither a folder nor a release:sae_id")
    if out is None and not study:
        raise UserError(
            f"out: needed for SAEs that are not a study, and {sources[0]} is none; e.g. --out "
            "evaluation"
        )
    root = out or Path(sources[0])
    spec = _settings(root, config, suites, device)
    targets = _targets(sources, seeds)
    failed = evaluate_into(targets, spec, root, _model(sources, model), verbose, force)
    if clean:
        EvalStore(root).clean()
    if failed:
        raise typer.Exit(INCOMPLETE)


def evaluate_into(
    targets: list[Target],
    spec: EvalSpec,
    root: Path,
    model: Path | None,
    verbose: bool,
    force: bool = False,
) -> bool:
    """Evaluate, write results.csv, print; whether anything failed."""
    command = shlex.join(["sae-baselines", *sys.argv[1:]])
    with StudyFolder(root).locked():
        # First, so that an interrupted evaluation goes on under the same settings.
        store_spec(root, spec)
        report = evaluate(
            targets, spec, root, model=model, force=force, verbose=verbose, command=command
        )
        results = write_results(root)
    for table in primary_table(results, spec.primary_metrics):
        console.print(table)
    _print_report(report)
    return bool(report.failures)


def _print_report(report: EvalReport) -> None:
    for line in _grouped(report.notes):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    done, kept = len(report.done), len(report.kept)
    console.print(
        f"Evaluated {done}, kept {kept} from before, failed {len(report.failures)}. "
        f"Results: {report.out / 'results.csv'}",
        highlight=False,
        soft_wrap=True,
    )
    for failure in report.failures:
        errors.print(
            f"failed: {failure.suite} {failure.name}: {failure.reason}",
            style="red",
            soft_wrap=True,
            markup=False,
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
    root = Path(source) if source is not None and _is_study(source) else None
    spec = _settings(root, config, suites if suites is not None else "all", device)
    subject = None
    if source is not None:
        targets = _targets([source], None)[:1]
        subject = subject_of(
            targets, spec, resolve_device(spec.device), _model([source], model)
        )
    diagnoses = diagnose(subject, list(spec.suites), spec.suites, root or Path.cwd())
    print_diagnoses(diagnoses, console)
    if any(d.suite == AutoInterp.name and d.ok for d in diagnoses):
        _ask_judge(spec)
    if suites is not None and not all(d.ok for d in diagnoses):
        raise typer.Exit(1)


def _ask_judge(spec: EvalSpec) -> None:
    """One tiny request to AutoInterp's endpoint, and how many an evaluation will make."""
    options = spec.options_of(AutoInterp.name)
    trouble = check_endpoint(options["model"])
    answer = f"does not answer as it should: {trouble}" if trouble else "answers"
    console.print(
        f"autointerp: the judge {options['model']} {answer}; an SAE takes at most "
        f"{requests_needed(options):,} requests",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


@app.command()
def report(study: Annotated[Path, typer.Argument(help="Evaluated study folder.")]) -> None:
    """Compare members over seeds, give verdicts, and write report.md, report.html and figures.

    Example: `sae-baselines report studies/demo`
    """
    if not study.is_dir():
        raise UserError(f"study: there is no folder {study}")
    report_study(study)


def report_study(study: Path) -> None:
    """Build, write and print the report of a study."""
    built = report_of_study(study)
    written = write_report(built, study)
    for line in [*built.placed, *built.against_random]:
        console.print(
            f"{line.architecture}, L0 {line.l0:g}, {line.suite}/{line.metric}: {line.reason}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    page = next(path for path in written if path.suffix == ".html")
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)
