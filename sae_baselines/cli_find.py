"""The commands that help to find one's way: `list` and `show`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sae_baselines.baselines import CONSTRAINTS, baseline_architectures
from sae_baselines.cli_controls import controls_table
from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.evals.registry import DEFAULT_SUITES, get_suite, suite_names
from sae_baselines.show import (
    AboutSAE,
    Listing,
    about_sae,
    find,
    is_study,
    members_of_study,
)
from sae_baselines.study.presets import preset, preset_names
from sae_baselines_command.known import completing

app = typer.Typer(rich_markup_mode="markdown")
console = Console(width=None if sys.stdout.isatty() else 140)


def _architectures(constraint: str | None = None) -> Table:
    table = Table("architecture", "base", "frozen", "learned", title="architectures")
    for name, baseline in baseline_architectures().items():
        wanted = constraint in (None, baseline.constraint.name)
        if name == baseline.name and wanted:
            table.add_row(
                name, baseline.base, baseline.constraint.frozen, baseline.constraint.learned
            )
    return table


def _presets() -> Table:
    table = Table("preset", "model", "hook", "architecture", "L0", "seeds", title="presets")
    for name in preset_names():
        spec = preset(name)
        l0s = ", ".join(f"{l0:g}" for l0 in spec.l0s)
        seeds = ", ".join(map(str, spec.seeds))
        table.add_row(
            name, spec.model.name, spec.hook_name, ", ".join(spec.architectures), l0s, seeds
        )
    return table


def _suites() -> Table:
    table = Table("suite", "measures", "verdicts on", "by default", title="suites")
    for name in suite_names():
        suite = get_suite(name)
        default = "yes" if name in DEFAULT_SUITES else ""
        table.add_row(name, suite.summary, ", ".join(suite.primary), default)
    return table


def _controls() -> Table:
    table = controls_table()
    table.title = "controls"
    return table


_LISTS = {
    "architectures": _architectures,
    "presets": _presets,
    "suites": _suites,
    "controls": _controls,
}


@app.command("list")
def list_known(
    what: Annotated[
        str | None,
        typer.Argument(
            help=f"{', '.join(_LISTS)}; without one, all.",
            autocompletion=completing(lambda: _LISTS),
        ),
    ] = None,
    constraint: Annotated[
        str | None,
        typer.Option(
            help="Only architectures of this constraint.",
            autocompletion=completing(lambda: CONSTRAINTS),
        ),
    ] = None,
) -> None:
    """List what there is: architectures, presets, suites, controls.

    Examples:

    - `sae-baselines list`
    - `sae-baselines list suites`
    - `sae-baselines list architectures --constraint frozen_decoder`
    """
    if what is not None and what not in _LISTS:
        raise UserError(f"what: {what!r} is unknown; {did_you_mean(what, list(_LISTS))}")
    if constraint is not None:
        if constraint not in CONSTRAINTS:
            hint = did_you_mean(constraint, list(CONSTRAINTS))
            raise UserError(f"constraint: {constraint!r} is unknown; {hint}")
        if what not in (None, "architectures"):
            raise UserError(f"constraint: {what} have none; leave it out")
        _print_list(_architectures(constraint))
        return
    for make in [_LISTS[what]] if what is not None else _LISTS.values():
        _print_list(make())


def _print_list(table: Table) -> None:
    table.title_justify = "left"
    # Names are copied, so they stay on one line.
    table.columns[0].no_wrap = True
    console.print(table)


@app.command()
def show(
    source: Annotated[
        str,
        typer.Argument(
            help="SAE folder, study, user/repo, user/repo:folder or release:sae_id."
        ),
    ],
    covariance: Annotated[
        Path | None,
        typer.Option(help="Covariance that an SAE of scheme cov started with."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What is this SAE: its constraint, its seed, how far it is from its start.

    The start is drawn again from the seed that the SAE's config records, and a frozen SAE is
    checked to be where it started.

    Examples:

    - `sae-baselines show studies/demo`
    - `sae-baselines show studies/demo/panels/batchtopk_l0_32_seed_0/frozen_decoder`
    - `sae-baselines show gpt2-small-res-jb`
    - `sae-baselines show gpt2-small-res-jb:blocks.8.hook_resid_pre --json`
    """
    if covariance is not None and not covariance.is_file():
        raise UserError(f"covariance: there is no file {covariance}")
    found = find(source)
    if isinstance(found, Listing):
        _print_listing(found, as_json)
    elif isinstance(found, Path) and is_study(found):
        _print_study(found, list(members_of_study(found, covariance)), as_json)
    elif isinstance(found, Path):
        _print_sae(about_sae(found, covariance=covariance), as_json)
    else:
        about = about_sae(source, found.sae, covariance=covariance, l0_stated=found.l0_stated)
        _print_sae(about, as_json)


def _json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2))


def _say(line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True, markup=False)


def _print_listing(found: Listing, as_json: bool) -> None:
    if as_json:
        _json({"source": found.of, "saes": found.saes})
        return
    for name in found.saes:
        _say(f"{found.of}:{name}")
    count = len(found.saes)
    _say(f"{count:,} SAE{'s' if count != 1 else ''}; sae-baselines show {found.of}:NAME")


def _print_sae(about: AboutSAE, as_json: bool) -> None:
    if as_json:
        _json(about.to_dict())
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in _lines(about):
        table.add_row(name, value)
    _say(about.source)
    console.print(table, markup=False, highlight=False)
    for warning in about.warnings:
        console.print("[bold red]WARNING:[/bold red]", end=" ")
        _say(warning)


def _lines(about: AboutSAE) -> list[tuple[str, str]]:
    facts = about.facts
    lines = [
        (
            "architecture",
            f"{_or(facts['architecture'])}; trained as {_or(facts['trained_as'])}",
        ),
        ("constraint", f"{_or(facts['constraint'])}: {facts['constraint_words']}"),
        ("tau", facts["tau"]),
        ("seed", facts["seed"]),
        ("init scheme", facts["init_scheme"]),
        ("model, hook", f"{_or(facts['model'])}, {_or(facts['hook'])}"),
        ("size", f"d_in {facts['d_in']:,}, d_sae {facts['d_sae']:,}"),
        ("context", f"{_or(facts['context_size'])} tokens; data: {_or(facts['dataset'])}"),
        (
            "tokens seen",
            f"{facts['tokens_seen']:,}" if facts["tokens_seen"] else "not recorded",
        ),
        ("L0", _l0(facts)),
        ("EV", facts["explained_variance"] and f"{facts['explained_variance']:.4g}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in facts["versions"].items())),
        ("start", about.start or f"not known: {about.start_unknown}"),
    ]
    for side, words in (("decoder", "decoder rows"), ("encoder", "encoder columns")):
        drift = about.drift[side] if about.drift is not None else None
        if drift is not None and drift["n"]:
            q = drift["quantiles"]
            lines.append(
                (
                    f"cosine, {side}",
                    f"{words} to their start: mean {drift['mean']:.4f}, least {q['0']:.4f}, "
                    f"median {q['0.5']:.4f} (unrelated directions: 0 +- "
                    f"{facts['d_in'] ** -0.5:.3f})",
                )
            )
    if about.claim is not None:
        lines.append((_claim_name(about), _claim_words(about)))
    return [(name, str(value)) for name, value in lines if value not in (None, "")]


def _claim_name(about: AboutSAE) -> str:
    soft = about.facts["constraint"].startswith("soft")
    return "in its cap" if soft else "frozen as claimed"


def _claim_words(about: AboutSAE) -> str:
    claim = about.claim
    assert claim is not None
    if claim.holds is None:
        return f"not checked: {claim.reason}"
    return f"{'yes' if claim.holds else 'NO'} ({claim.reason})"


def _or(value: Any) -> str:
    return "not recorded" if value is None else str(value)


def _l0(facts: dict[str, Any]) -> str:
    measured, target = facts["l0"], facts["l0_target"]
    words = [] if target is None else [f"target {target:g}"]
    if measured is not None:
        words.append(f"{measured:.4g} {facts['l0_measured']}")
    return ", ".join(words) or "not recorded"


def _print_study(folder: Path, members: list[AboutSAE], as_json: bool) -> None:
    if as_json:
        _json({"source": str(folder), "members": [m.to_dict() for m in members]})
        return
    columns = ("panel", "member", "seed", "L0 (target)", "EV", "cos W_dec\nmean / least")
    table = Table(*columns, "cos W_enc\nmean", "as\nclaimed", title=str(folder))
    table.title_justify = "left"
    for about in members:
        table.add_row(*_cells(about, folder))
    console.print(table)
    for about in members:
        for warning in about.warnings:
            _say(f"WARNING: {Path(about.source).name}: {warning}")
    first = members[0].facts
    _say(
        f"{len(members)} members on {_or(first['model'])}, {_or(first['hook'])}; sae-baselines "
        "show with a member's folder says more."
    )


def _cells(about: AboutSAE, folder: Path) -> list[str]:
    facts, drift = about.facts, about.drift or {}
    decoder, encoder = drift.get("decoder"), drift.get("encoder")
    place = Path(about.source).relative_to(folder).parts
    holds = None if about.claim is None else about.claim.holds
    claimed = "-" if about.claim is None else "not checked"
    return [
        "/".join(place[1:-1]),  # below panels; a published SAE is of none
        place[-1],
        str(_or(facts["seed"])),
        "-" if facts["l0"] is None else f"{facts['l0']:.4g} ({_or(facts['l0_target'])})",
        "-" if facts["explained_variance"] is None else f"{facts['explained_variance']:.3f}",
        _cosines(decoder),
        "-" if not encoder or not encoder["n"] else f"{encoder['mean']:.3f}",
        claimed if holds is None else ("yes" if holds else "NO"),
    ]


def _cosines(facts: dict[str, Any] | None) -> str:
    if not facts or not facts["n"]:
        return "-"
    return f"{facts['mean']:.3f} / {facts['quantiles']['0']:.3f}"
