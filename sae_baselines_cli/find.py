"""`list` and `show`: what there is, and what an SAE is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_baselines_cli.control import controls_table
from sae_baselines_cli.known import CONSTRAINTS, LISTS, completing
from sae_baselines_cli.shared import console, group, print_table, say

if TYPE_CHECKING:
    from rich.table import Table

    from sae_baselines.show import SAEDescription

app = group()


@app.command("list")
def list_known(
    what: Annotated[
        str | None,
        typer.Argument(
            help=f"{', '.join(LISTS)}; without one, all.", autocompletion=completing(LISTS)
        ),
    ] = None,
    constraint: Annotated[
        str | None,
        typer.Option(
            help="Only architectures of this constraint.",
            autocompletion=completing(CONSTRAINTS),
        ),
    ] = None,
) -> None:
    """List what there is: architectures, presets, suites, controls.

    Examples:

    - `sae-baselines list`
    - `sae-baselines list suites`
    - `sae-baselines list architectures --constraint frozen_decoder`
    """
    from sae_baselines.baselines import CONSTRAINTS
    from sae_baselines.errors import UserError, did_you_mean

    if what is not None and what not in LISTS:
        raise UserError(f"what: {what!r} is unknown; {did_you_mean(what, list(LISTS))}")
    if constraint is not None:
        if constraint not in CONSTRAINTS:
            hint = did_you_mean(constraint, list(CONSTRAINTS))
            raise UserError(f"constraint: {constraint!r} is unknown; {hint}")
        if what not in (None, "architectures"):
            raise UserError(f"constraint: {what} have none; leave it out")
        what = "architectures"
    for name in LISTS if what is None else [what]:
        table = controls_table() if name == "controls" else _table(name, constraint)
        table.title = name
        # Names are copied, so they stay on one line.
        table.columns[0].no_wrap = True
        print_table(table)


def _table(name: str, constraint: str | None) -> "Table":
    from rich.table import Table

    from sae_baselines.baselines import baseline_architectures
    from sae_baselines.evals.registry import DEFAULT_SUITES, get_suite, suite_names
    from sae_baselines.study.presets import preset, preset_names

    if name == "architectures":
        table = Table("architecture", "base", "frozen", "learned")
        for key, baseline in baseline_architectures().items():
            rule = baseline.constraint
            if key == baseline.name and constraint in (None, rule.name):
                table.add_row(key, baseline.base, rule.frozen, rule.learned)
    elif name == "presets":
        table = Table("preset", "model", "hook", "architecture", "L0", "seeds")
        for key in preset_names():
            spec = preset(key)
            lists = (spec.architectures, [f"{l0:g}" for l0 in spec.l0s], map(str, spec.seeds))
            table.add_row(key, spec.model.name, spec.hook_name, *map(", ".join, lists))
    else:
        table = Table("suite", "measures", "verdicts on", "by default")
        for key in suite_names():
            suite = get_suite(key)
            default = "yes" if key in DEFAULT_SUITES else ""
            table.add_row(key, suite.summary, ", ".join(suite.primary), default)
    return table


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
    - `sae-baselines show studies/demo/panels/topk_l0_32_seed_0/frozen_decoder`
    - `sae-baselines show gpt2-small-res-jb`
    - `sae-baselines show gpt2-small-res-jb:blocks.8.hook_resid_pre --json`
    """
    from sae_baselines.show import Listing, StudyMembers
    from sae_baselines.show import show as look_at

    shown = look_at(source, covariance)
    if as_json:
        typer.echo(json.dumps(shown.to_dict(), indent=2))
    elif isinstance(shown, Listing):
        for name in shown.saes:
            say(f"{shown.of}:{name}")
        count = len(shown.saes)
        say(f"{count:,} SAE{'s' if count != 1 else ''}; sae-baselines show {shown.of}:NAME")
    elif isinstance(shown, StudyMembers):
        _print_study(shown.folder, shown.members)
    else:
        _print_sae(shown)


def _print_sae(sae: "SAEDescription") -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in _lines(sae):
        if value not in (None, ""):
            table.add_row(name, str(value))
    say(sae.source)
    console.print(table, highlight=False)
    for warning in sae.warnings:
        console.print("WARNING:", style="bold red", end=" ")
        say(warning)


def _lines(sae: "SAEDescription") -> Iterator[tuple[str, Any]]:
    facts = {key: _or(value) for key, value in sae.facts.items()}
    known = sae.facts
    tokens, ev = known["tokens_seen"], known["explained_variance"]
    yield "architecture", f"{facts['architecture']}; trained as {facts['trained_as']}"
    yield "constraint", f"{facts['constraint']}: {facts['constraint_words']}"
    yield from (("tau", known["tau"]), ("seed", known["seed"]))
    yield "init scheme", known["init_scheme"]
    yield "model, hook", f"{facts['model']}, {facts['hook']}"
    yield "size", f"d_in {known['d_in']:,}, d_sae {known['d_sae']:,}"
    yield "context", f"{facts['context_size']} tokens; data: {facts['dataset']}"
    yield "tokens seen", f"{tokens:,}" if tokens else "not recorded"
    yield "L0", _l0(known)
    yield "EV", ev and f"{ev:.4g}"
    yield "versions", ", ".join(f"{k} {v}" for k, v in known["versions"].items())
    yield "start", sae.start or f"not known: {sae.start_unknown}"
    for side, words in (("decoder", "decoder rows"), ("encoder", "encoder columns")):
        drift = sae.drift[side] if sae.drift is not None else None
        if drift is not None and drift["n"]:
            q = drift["quantiles"]
            yield (
                f"cosine, {side}",
                f"{words} to their start: mean {drift['mean']:.4f}, least {q['0']:.4f}, "
                f"median {q['0.5']:.4f} (unrelated directions: 0 +- "
                f"{known['d_in'] ** -0.5:.3f})",
            )
    share = known.get("cap_bound_share")
    yield "on its cap", (share is not None and f"{share:.1%} of the decoder rows") or None
    if sae.promise is not None:
        soft = known["constraint"].startswith("soft")
        words = {None: "not checked: {}", True: "yes ({})", False: "NO ({})"}
        answer = words[sae.promise.holds].format(sae.promise.reason)
        yield "in its cap" if soft else "frozen as claimed", answer


def _or(value: Any) -> str:
    return "not recorded" if value is None else str(value)


def _l0(facts: dict[str, Any]) -> str:
    measured, target = facts["l0"], facts["l0_target"]
    words = [] if target is None else [f"target {target:g}"]
    if measured is not None:
        words.append(f"{measured:.4g} {facts['l0_measured']}")
    return ", ".join(words) or "not recorded"


def _print_study(folder: Path, members: "list[SAEDescription]") -> None:
    from rich.table import Table

    columns = ("panel", "member", "seed", "L0 (target)", "EV", "cos W_dec\nmean / least")
    table = Table(*columns, "cos W_enc\nmean", "as\nclaimed", title=str(folder))
    for member in members:
        table.add_row(*_cells(member, folder))
    print_table(table)
    for member in members:
        for warning in member.warnings:
            say(f"WARNING: {Path(member.source).name}: {warning}")
    first = members[0].facts
    say(
        f"{len(members)} members on {_or(first['model'])}, {_or(first['hook'])}; sae-baselines "
        "show with a member's folder says more."
    )


def _cells(sae: "SAEDescription", folder: Path) -> Iterator[str]:
    facts, drift = sae.facts, sae.drift or {}
    decoder, encoder = drift.get("decoder"), drift.get("encoder")
    *above, name = Path(sae.source).relative_to(folder).parts
    yield "/".join(above[1:])  # below panels; a reference is of none
    yield name
    yield _or(facts["seed"])
    yield "-" if facts["l0"] is None else f"{facts['l0']:#.4g} ({_or(facts['l0_target'])})"
    ev = facts["explained_variance"]
    yield "-" if ev is None else f"{ev:.3f}"
    if decoder and decoder["n"]:
        yield f"{decoder['mean']:.3f} / {decoder['quantiles']['0']:.3f}"
    else:
        yield "-"
    yield f"{encoder['mean']:.3f}" if encoder and encoder["n"] else "-"
    promise = sae.promise
    words = {None: "not checked", True: "yes", False: "NO"}
    yield "-" if promise is None else words[promise.holds]
