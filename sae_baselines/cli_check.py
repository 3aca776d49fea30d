"""The command that puts an SAE to the test in one go."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sae_baselines.baselines import CONSTRAINTS, base_architectures
from sae_baselines.cli_evals import INCOMPLETE, evaluate_into, report_study
from sae_baselines.controls import control_names
from sae_baselines.errors import UserError
from sae_baselines.evals import (
    eval_spec_from_dict,
    load_eval_spec,
    study_targets,
    suite_names,
    write_results,
)
from sae_baselines.evals.doctor import diagnose, require_runnable
from sae_baselines.evals.results import PANEL_SUITE
from sae_baselines.evals.settings import stored_spec
from sae_baselines.evals.spec import has_eval_spec
from sae_baselines.evals.study import local_model_of, subject_of_panel
from sae_baselines.study import load_spec, train_study
from sae_baselines.study.reference import (
    CheckOptions,
    described,
    prepare_check,
    suites_for,
    whole_number,
)
from sae_baselines.study.reference.recipe import DEFAULT_MEMBERS, DEFAULT_SEEDS
from sae_baselines.study.spec import TRAINED, read_yaml
from sae_baselines_command.known import completing

app = typer.Typer(rich_markup_mode="markdown")
console = Console(width=None if sys.stdout.isatty() else 140)

_PANEL_FILES = (".yaml", ".yml")
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
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Study folder.")] = None,
    tokens: Annotated[
        str | None,
        typer.Option(help="Training tokens of each baseline; default: the SAE's, if recorded."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Training seeds of the baselines.", min=1)] = (
        DEFAULT_SEEDS
    ),
    members: Annotated[
        str,
        typer.Option(
            help="Comma-separated members of each panel.",
            autocompletion=completing(lambda: [TRAINED, *CONSTRAINTS, *control_names()]),
        ),
    ] = ",".join(DEFAULT_MEMBERS),
    architecture: Annotated[
        str | None,
        typer.Option(
            help="Base architecture of the baselines, if the SAE does not say.",
            autocompletion=completing(base_architectures),
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
        int | None, typer.Option(help="Tokens of a context, if not recorded.", min=2)
    ] = None,
    suites: Annotated[
        str | None,
        typer.Option(
            help=f"Comma-separated: {', '.join(suite_names())}; or 'panel' for this package's "
            "own measurements alone, without SAEBench.",
            autocompletion=completing(lambda: [*suite_names(), PANEL_SUITE]),
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML with further fields of a panel file, and a section 'evals'."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Torch device; default: the best there is.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show SAEBench's own output.")
    ] = False,
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
    """
    where = _source(source, release, sae_id)
    asked = None if suites is None else _names(suites)
    if where.endswith(_PANEL_FILES):
        _refuse_options(context)
        spec, evals = load_spec(where), load_eval_spec(where)
        root = out or Path("studies") / spec.name
        model_loaded = None
    else:
        options = CheckOptions(
            tokens=None if tokens is None else whole_number("tokens", tokens),
            seeds=seeds,
            members=tuple(_names(members)),
            architecture=architecture,
            model=model,
            dataset=dataset,
            dataset_config=dataset_config,
            hook_name=hook,
            context_size=context_size,
            device=device,
            overrides=_overrides(config),
        )
        prepared = prepare_check(where, options, out, _ask)
        spec, root, model_loaded = prepared.spec, prepared.folder, prepared.model
        evals = load_eval_spec(config) if config and has_eval_spec(config) else None
        evals = evals or stored_spec(root) or eval_spec_from_dict({})
        evals, notes = suites_for(spec, evals, asked)
        for line in [*described(spec), *notes]:
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    if device is not None:
        spec.device = device
        evals = dataclasses.replace(evals, device=device)
    if asked == [PANEL_SUITE]:
        train_study(spec, root, resume=True, model=model_loaded)
        write_results(root)
        report_study(root)
        return
    if asked is not None:
        evals = evals.only([name for name in asked if name != PANEL_SUITE])
    subject = subject_of_panel(spec, evals)
    require_runnable(diagnose(subject, list(evals.suites), evals.suites, root))
    train_study(spec, root, resume=True, model=model_loaded)
    failed = evaluate_into(study_targets(root), evals, root, local_model_of(root), verbose)
    report_study(root)
    if failed:
        raise typer.Exit(INCOMPLETE)


def _source(source: str | None, release: str | None, sae_id: str | None) -> str:
    if (release is None) != (sae_id is None):
        given, other = ("release", "sae-id") if sae_id is None else ("sae-id", "release")
        raise UserError(f"{given}: needs --{other} beside it")
    if (source is None) == (release is None):
        raise UserError(
            "source: name one: a panel file, an SAE (folder, release:sae_id or "
            "user/repo:folder), or --release with --sae-id"
        )
    return source if source is not None else f"{release}:{sae_id}"


def _refuse_options(context: typer.Context) -> None:
    """A panel file says these itself; to ignore them in silence would mislead."""
    for name in _OF_SAES:
        where = context.get_parameter_source(name)
        if where is not None and where.name == "COMMANDLINE":
            raise UserError(
                f"{name.replace('_', '-')}: is for the check of an SAE; a panel file says this "
                "itself"
            )


def _names(listed: str) -> list[str]:
    return [name for name in (part.strip() for part in listed.split(",")) if name]


def _overrides(config: Path | None) -> dict[str, Any]:
    """Fields of a panel file in a YAML file, without its section 'evals'."""
    if config is None:
        return {}
    data = read_yaml(config)
    if not isinstance(data, dict):
        raise UserError(f"{config}: is not a mapping of fields; see 'sae-baselines preset'")
    fixed = sorted({"published", "d_sae", "d_in", "expansion", "l0"} & set(data))
    if fixed:
        raise UserError(f"{config}: {fixed[0]} is the SAE's own; leave it away")
    if "architecture" in data:
        raise UserError(f"{config}: architecture: use --architecture")
    return {name: value for name, value in data.items() if name != "evals"}


def _ask(option: str, question: str) -> str | None:
    if not sys.stdin.isatty():
        return None
    return typer.prompt(f"{question}\n{option}", err=True)
