"""`check`: put an SAE to the test in one go."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_baselines_cli.evaluate import as_typed, print_evaluation, print_report
from sae_baselines_cli.known import (
    BASES,
    CHECK_MEMBERS,
    CHECK_SEEDS,
    CONSTRAINTS,
    CONTROLS,
    LARGEST,
    MOST_SEEDS,
    PANEL_SUITE,
    SUITES,
    TRAINED,
    completing,
)
from sae_baselines_cli.shared import (
    INCOMPLETE,
    Cluster,
    Device,
    Devices,
    On,
    Out,
    RetryFailed,
    Verbose,
    Workers,
    ask,
    group,
    names_in,
    say,
    started_by,
)

if TYPE_CHECKING:
    from sae_baselines.pipeline import Evaluation
    from sae_baselines.report import Report

app = group()

_OF_SAES = (
    "tokens",
    "seeds",
    "members",
    "architecture",
    "model",
    "dataset",
    "dataset_config",
    "hook",
    "context_size",
    "config",
)


@app.command()
def check(
    context: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(
            help="A panel file (YAML); or an SAE: SAELens folder, release:sae_id or "
            "user/repo:folder."
        ),
    ] = None,
    release: Annotated[
        str | None, typer.Option(help="Release in SAELens' list, or user/repo; with --sae-id.")
    ] = None,
    sae_id: Annotated[str | None, typer.Option(help="SAE of the release.")] = None,
    out: Out = None,
    tokens: Annotated[
        str | None,
        typer.Option(help="Training tokens of each baseline; default: the SAE's, if recorded."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Training seeds of the baselines.", min=1, max=MOST_SEEDS)
    ] = (CHECK_SEEDS),
    members: Annotated[
        str,
        typer.Option(
            help="Comma-separated members of each panel.",
            autocompletion=completing([TRAINED, *CONSTRAINTS, *CONTROLS]),
        ),
    ] = ",".join(CHECK_MEMBERS),
    architecture: Annotated[
        str | None,
        typer.Option(
            help="Base architecture of the baselines, if the SAE does not say.",
            autocompletion=completing(BASES),
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Hub name or local folder of the language model.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Hub name or local file of the text.")
    ] = None,
    dataset_config: Annotated[
        str | None, typer.Option(help="Configuration of a Hub dataset.")
    ] = None,
    hook: Annotated[str | None, typer.Option(help="Hook, if the SAE names none.")] = None,
    context_size: Annotated[
        int | None,
        typer.Option(help="Tokens of a context, if not recorded.", min=2, max=LARGEST),
    ] = None,
    suites: Annotated[
        str | None,
        typer.Option(
            help=f"Comma-separated: {', '.join(SUITES)}; or 'panel' for this package's "
            "own measurements alone, without SAEBench.",
            autocompletion=completing([*SUITES, PANEL_SUITE]),
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML with further fields of a panel file, and a section 'evals'."),
    ] = None,
    device: Device = None,
    on: On = "here",
    devices: Devices = None,
    workers: Workers = None,
    cluster: Cluster = None,
    retry_failed: RetryFailed = False,
    verbose: Verbose = False,
) -> None:
    """Train, evaluate and report in one go; run it again to continue.

    With a panel file: the SAEs it describes. With an SAE: baselines and controls are trained
    around it, with its width, hook, L0 and text, and the report says where it falls among
    them.

    Examples:

    - `sae-baselines check panel.yaml`
    - `sae-baselines check my_sae --tokens 20_000_000 --seeds 5`
    - `sae-baselines check --release gemma-scope-2b-pt-res-canonical --sae-id
      layer_12/width_16k/canonical --tokens 500_000_000`
    - `sae-baselines check user/repo:folder --suites core`
    - `sae-baselines check panel.yaml --on devices --devices 0,1`
    """
    import sae_baselines
    from sae_baselines.pipeline import PANEL_FILES
    from sae_baselines.study.reference.recipe import CheckOptions, whole_number

    where = _source(source, release, sae_id)
    options = None
    if where.endswith(PANEL_FILES):
        _refuse_options(context)
    else:
        options = CheckOptions(
            tokens=None if tokens is None else whole_number("tokens", tokens),
            seeds=seeds,
            members=tuple(names_in(members, "members")),
            architecture=architecture,
            model=model,
            dataset=dataset,
            dataset_config=dataset_config,
            hook_name=hook,
            context_size=context_size,
        )
    # Where the section 'cluster' is: in the panel file itself, or in --config.
    file = config if config is not None or options is not None else Path(where)
    started = started_by(on, devices, workers, cluster, False, file, Path)
    complete = sae_baselines.check(
        where,
        out,
        suites=None if suites is None else names_in(suites, "suites"),
        options=options,
        config=config,
        device=device,
        verbose=verbose,
        command=as_typed(),
        on=started,
        retry_failed=retry_failed,
        ask=lambda option, question: ask(f"{question}\n{option}", err=True),
        progress=print_found,
    )
    if not complete:
        raise typer.Exit(INCOMPLETE)


def print_found(found: "str | Evaluation | Report", study: Path) -> None:
    """What a check has found, as soon as it has."""
    from sae_baselines.pipeline import Evaluation
    from sae_baselines.progress import aside

    with aside():
        if isinstance(found, str):
            say(found)
        elif isinstance(found, Evaluation):
            print_evaluation(found)
        else:
            print_report(found, study)


def _source(source: str | None, release: str | None, sae_id: str | None) -> str:
    from sae_baselines.errors import UserError

    if (release is None) != (sae_id is None):
        here, other = ("release", "sae-id") if sae_id is None else ("sae-id", "release")
        raise UserError(f"{here}: needs --{other} beside it")
    if (source is None) == (release is None):
        raise UserError(
            "source: name one: a panel file, an SAE (folder, release:sae_id or "
            "user/repo:folder), or --release with --sae-id"
        )
    return source if source is not None else f"{release}:{sae_id}"


def _refuse_options(context: typer.Context) -> None:
    """A panel file says these itself; to ignore them in silence would mislead."""
    from sae_baselines.errors import UserError

    for name in _OF_SAES:
        origin: Any = context.get_parameter_source(name)
        if origin is not None and origin.name == "COMMANDLINE":
            raise UserError(
                f"{name.replace('_', '-')}: is for the check of an SAE; a panel file says this "
                "itself"
            )
