"""Every reason for caution that applies to a study, found in its rows."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sae_baselines.baselines import CONSTRAINTS
from sae_baselines.controls import is_unchanged
from sae_baselines.report.context import Note, ReportContext
from sae_baselines.report.document import code
from sae_baselines.report.numbers import number
from sae_baselines.results.tidy import Group, Tidy, ordered
from sae_baselines.stats import Verdict
from sae_baselines.study.measure import L0_TOLERANCE
from sae_baselines.study.spec import PUBLISHED

# Explained variance, SAEBench's against the paper's definition.
EV_TOLERANCE = 0.02
# A control's score against the trained SAE's, where they are the same but for rounding.
UNCHANGED_TOLERANCE = 1e-3
# Latents of a member that fire on no evaluation token.
DEAD_SHARE = 0.1
_SHOWN = 8
# SAEs that a note names; of more it says how many.
_SAES_OF_A_NOTE = 4
_SAEBENCH_EV = ("core", "explained_variance")
_PAPER_EV = ("core", "explained_variance_paper")


@dataclass(frozen=True)
class Caveat:
    """A reason for caution.

    Attributes:
        kind: Short name, the same for all caveats of a sort.
        text: What it is, with its numbers.
    """

    kind: str
    text: str


def caveats(
    table: Tidy, context: ReportContext, items: Sequence[Verdict], dropped: Sequence[Caveat]
) -> list[Caveat]:
    """All that apply, gravest first.

    Args:
        table: The results.
        context: Its failures and notes become caveats.
        items: The verdicts given.
        dropped: What could not be compared at all.
    """
    return [
        *dropped,
        *_published(table, context),
        *_seeds(items),
        *_failures(context),
        *_missing(table, context),
        *_not_finite(table),
        *_l0(table),
        *_l0_apart(items),
        *_baselines(table),
        *_controls(table),
        *_explained_variance(table),
        *_dead(table, context),
        *_versions(table, context),
        *_data_order(table, context),
        *_notes(table, context),
    ]


def version_mix(table: Tidy) -> dict[str, dict[str, list[str]]]:
    """Package to version to suites, over the rows' ``versions`` column."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    if "versions" not in table.frame:
        return {}
    pairs = table.frame[["suite", "versions"]].drop_duplicates()
    for suite, text in pairs.itertuples(index=False, name=None):
        if not isinstance(text, str):
            continue
        for part in text.split(";"):
            package, _, version = part.strip().partition("=")
            version = version.lstrip("=").strip()
            if package and version and suite not in found[package.strip()][version]:
                found[package.strip()][version].append(suite)
    return {package: dict(versions) for package, versions in sorted(found.items())}


def _published(table: Tidy, context: ReportContext) -> Iterable[Caveat]:
    """What a published SAE and the members around it do not have in common."""
    if PUBLISHED not in table.constraints.values():
        return
    yield Caveat(
        "one published seed",
        "The published SAE is one training run: how its scores would vary with its seed is "
        "unknown, so it is placed among the others' seeds and gets no verdict.",
    )
    record = context.published
    own, theirs = record.get("tokens_recorded"), record.get("training_tokens")
    theirs = theirs or context.training_tokens
    if not own:
        yield Caveat(
            "budget unknown",
            "How many tokens the published SAE was trained on is not recorded: a difference "
            "may be one of budget.",
        )
    elif theirs and own != theirs:
        more, less = (
            ("published SAE", "others") if own > theirs else ("others", "published SAE")
        )
        text = (
            f"The published SAE was trained on {own:,} tokens, the others on {theirs:,}: the "
            f"{more} had {number(max(own, theirs) / min(own, theirs))} times as many as the "
            f"{less}. A difference may be one of budget"
        )
        if "trained" in table.constraints.values():
            text += f"; {code('trained')} is its architecture at the others' budget"
        yield Caveat("budgets differ", f"{text}.")
    said, used = record.get("dataset_recorded"), record.get("dataset")
    if said and used and said != used:
        yield Caveat(
            "other text",
            f"The published SAE names the text {code(said)}; the others were trained, and all "
            f"were measured by suite `panel`, on {code(used)}.",
        )
    elif used and not said:
        yield Caveat(
            "text unknown",
            "What text the published SAE was trained on is not recorded; the others were "
            f"trained, and all were measured by suite `panel`, on {code(used)}.",
        )


def _seeds(items: Sequence[Verdict]) -> Iterable[Caveat]:
    if any(v.word == "single seed" for v in items):
        yield Caveat(
            "single seed",
            "Single seed: the spread over training seeds is unknown, so numbers are given "
            "and no verdict. Two seeds are the least, three or more are advised.",
        )
    if any(v.n_seeds == 2 for v in items):
        yield Caveat(
            "two seeds",
            "Two seeds: the spread over seeds rests on one degree of freedom, so intervals "
            "are very wide.",
        )


def _failures(context: ReportContext) -> Iterable[Caveat]:
    for f in context.failures:
        where = f" on {code(f'{f.panel}/{f.member}' if f.panel else f.member)}"
        yield Caveat(
            "failure",
            f"Suite {code(f.suite)} gave no result{where if f.member else ''}: "
            f"{code(f.reason) or 'no reason was given'}.",
        )


def _missing(table: Tidy, context: ReportContext) -> Iterable[Caveat]:
    """Suites without rows, and members that lack rows of a suite that others have."""
    columns = (table.frame[c] for c in ("suite", "panel", "member"))
    have: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for suite, panel, member in dict.fromkeys(zip(*columns, strict=True)):
        have[suite].add((panel, member))
    every = {pair for pairs in have.values() for pair in pairs}
    asked = dict.fromkeys([*context.suites, *(s for s in have if s != "panel")])
    for suite in asked:
        lacking = every - have[suite]
        if lacking and all(_told(context, suite, *pair) for pair in lacking):
            continue
        if lacking == every:
            yield Caveat("missing", f"Suite {code(suite)} has no rows.")
        elif lacking:
            rank = {m: i for i, m in enumerate(table.members)}
            named = [f"{p}/{m}" for p, m in sorted(lacking, key=lambda x: (x[0], rank[x[1]]))]
            yield Caveat(
                "missing",
                f"Suite {code(suite)} has no rows of {len(lacking)} of {len(every)} SAEs: "
                f"{_named(named)}.",
            )


def _told(context: ReportContext, suite: str, panel: str, member: str) -> bool:
    """Whether a failure says already that there is no result."""
    names = ("", member, f"{panel}/{member}", f"{panel}.{member}")
    return any(
        f.suite == suite and f.panel in ("", panel) and f.member in names
        for f in context.failures
    )


def _not_finite(table: Tidy) -> Iterable[Caveat]:
    frame = table.frame
    bad = frame[~np.isfinite(frame["value"])]
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    columns = (bad[c] for c in ("suite", "metric", "panel", "member"))
    for suite, metric, panel, member in zip(*columns, strict=True):
        if table.direction((suite, metric)):
            name = f"{panel}/{member}"
            if name not in found[suite, metric]:
                found[suite, metric].append(name)
    for (suite, metric), names in found.items():
        yield Caveat(
            "not a number",
            f"{code(f'{suite}/{metric}')} is not a number for {_named(names)}.",
        )


def _l0(table: Tidy) -> Iterable[Caveat]:
    off, unknown = [], []
    for (group, member, seed), panel in table.panels.items():
        value, target = table.measured_l0.get((panel, member, seed), math.nan), group[1]
        if not math.isfinite(value):
            unknown.append(f"{panel}/{member}")
        elif abs(value - target) > L0_TOLERANCE * target:
            off.append(
                f"{code(f'{panel}/{member}')} {number(value)} for {target:g} "
                f"({value / target - 1:+.0%})"
            )
    if off:
        yield Caveat(
            "L0 off target",
            f"Measured L0 is more than {L0_TOLERANCE:.0%} off its target for {len(off)} of "
            f"{len(table.panels)} SAEs: {_listed(off)}.",
        )
    if unknown:
        yield Caveat(
            "L0 unknown",
            f"No measured L0 of {len(unknown)} SAEs, so they get no verdict: "
            f"{_named(unknown)}.",
        )


def _l0_apart(items: Sequence[Verdict]) -> Iterable[Caveat]:
    """From the verdicts themselves, so that both say the same."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for v in items:
        if v.word == "no verdict" and "L0 differs" in v.reason:
            reasons[f"{v.architecture}, L0 {v.l0:g}: {v.reason}"].append(v.metric)
    for reason in reasons:
        yield Caveat("L0 apart", f"No verdict is given where L0 is apart. {reason}.")


def _baselines(table: Tidy) -> Iterable[Caveat]:
    here = set(table.constraints.values())
    absent = [c for c in CONSTRAINTS if c not in here]
    if absent:
        yield Caveat(
            "baselines absent",
            f"The study has no {_named(absent)}; what is said of random baselines is said of "
            "those that are there.",
        )


def _controls(table: Tidy) -> Iterable[Caveat]:
    """A control with its source's latents has its scores wherever only latents count."""
    published = PUBLISHED in table.constraints.values()
    for control in table.controls:
        apart: dict[str, float] = {}
        for group in table.groups:
            for metric in table.metrics:
                if not is_unchanged(table.constraints[control], *metric):
                    continue
                own = table.values(group, metric, control)
                source = table.values(group, metric, PUBLISHED if published else "trained")
                if published:
                    # All seeds of a control are made of the one SAE.
                    source = dict.fromkeys(own, next(iter(source.values()), math.nan))
                for seed, value in source.items():
                    gap = abs(own.get(seed, value) - value)
                    if gap > UNCHANGED_TOLERANCE * max(1.0, abs(value)):
                        name = f"{metric[0]}/{metric[1]}"
                        apart[name] = max(gap, apart.get(name, 0.0))
        if apart:
            named = _listed([f"{code(name)} by {number(gap)}" for name, gap in apart.items()])
            yield Caveat(
                "control differs",
                f"{code(control)} has the {'published' if published else 'trained'} SAE's "
                "latents, yet its score differs, at "
                f"most: {named}. What decides these scores is then not the latents alone, or "
                "one SAE does not get the same score twice.",
            )


def _explained_variance(table: Tidy) -> Iterable[Caveat]:
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    lonely = 0
    for group in table.groups:
        for member in table.present(group, _SAEBENCH_EV):
            own = table.values(group, _PAPER_EV, member)
            for seed, value in table.values(group, _SAEBENCH_EV, member).items():
                if seed in own:
                    pairs[member].append((value, own[seed]))
                else:
                    lonely += 1
    every = [pair for ps in pairs.values() for pair in ps]
    apart = [abs(a - b) for a, b in every if math.isfinite(a) and math.isfinite(b)]
    n = sum(gap > EV_TOLERANCE for gap in apart)
    if n:
        named = []
        for member in ordered(pairs):
            theirs, paper = np.array(pairs[member]).mean(axis=0)
            named.append(f"{code(member)} {number(theirs)} against {number(paper)}")
        yield Caveat(
            "EV disagreement",
            "SAEBench's `core/explained_variance` differs from the paper's definition by more "
            f"than {EV_TOLERANCE:g} for {n} of {len(apart)} SAEs (at most "
            f"{number(max(apart))}): where the definition subtracts the square of the mean "
            "activation, SAEBench subtracts the square of the mean squared activation. Means "
            f"over SAEs, SAEBench's against the paper's: {'; '.join(named)}.",
        )
    if lonely:
        yield Caveat(
            "EV unchecked",
            f"`core/explained_variance` of {lonely} SAEs stands alone: it is SAEBench's "
            "formula, not the paper's, and was not checked against it.",
        )


def _dead(table: Tidy, context: ReportContext) -> Iterable[Caveat]:
    named, worst = [], 0
    for group in table.groups:
        for member in table.present(group):
            alive = list(table.values(group, ("core", "frac_alive"), member).values())
            counts = table.values(group, ("panel", "alive"), member)
            if counts and context.d_sae:
                alive = [c / context.d_sae for c in counts.values()]
            alive = [a for a in alive if math.isfinite(a)]
            dead = [1 - a for a in alive if 1 - a > DEAD_SHARE]
            worst += len(dead)
            if dead:
                named.append(
                    f"{code(member)} of {group[0]} at L0 {group[1]:g}: {max(dead):.0%}"
                )
    if named:
        yield Caveat(
            "dead latents",
            f"More than {DEAD_SHARE:.0%} of the latents fire on no evaluation token for "
            f"{worst} SAEs; at most {_listed(named)}. Fewer evaluation tokens make more "
            "latents look dead.",
        )


def _versions(table: Tidy, context: ReportContext) -> Iterable[Caveat]:
    for package, versions in version_mix(table).items():
        if len(versions) > 1:
            named = "; ".join(f"{v} ({', '.join(s)})" for v, s in sorted(versions.items()))
            yield Caveat(
                "version mix",
                f"Rows were made with more than one version of {code(package)}: {named}.",
            )
    stages: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for stage, packages in context.versions.items():
        for package, used in packages.items():
            for version in used.split(", "):
                stages[package][version].append(stage)
    for package, versions in sorted(stages.items()):
        if len(versions) > 1:
            named = "; ".join(f"{v} ({', '.join(s)})" for v, s in versions.items())
            yield Caveat(
                "version mix", f"Stages used more than one version of {code(package)}: {named}."
            )


def _data_order(table: Tidy, context: ReportContext) -> Iterable[Caveat]:
    seeds: dict[Group, set[int]] = defaultdict(set)
    for group, member, seed in table.panels:
        if table.constraints[member] != PUBLISHED:
            seeds[group].add(seed)
    several = any(len(found) > 1 for found in seeds.values())
    if several and context.spec.get("data_order") == "shared":
        yield Caveat(
            "shared data order",
            "All seeds saw the same data in the same order: intervals are about other initial "
            "weights, not about other data (`data_order: per_seed` varies both).",
        )


def _notes(table: Tidy, context: ReportContext) -> Iterable[Caveat]:
    """One line where several SAEs share a note."""
    grouped: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for note in context.notes:
        grouped[note.suite, _without_suite(note)].update({note.name: None} if note.name else {})
    for (suite, text), names in grouped.items():
        said_of = [part for part in (code(suite), _saes(table, list(names))) if part]
        yield Caveat("note", f"{', '.join(said_of)}: {text}" if said_of else text)


def _without_suite(note: Note) -> str:
    """The text; some suites begin theirs with their own name."""
    return note.text.removeprefix(f"{note.suite}:").strip() if note.suite else note.text


def _saes(table: Tidy, names: Sequence[str]) -> str:
    """The SAEs of a note: by name, or how many and of what."""
    if len(names) <= 1:
        return _named(names)
    if len(names) <= _SAES_OF_A_NOTE:
        return f"{len(names)} SAEs ({_named(names)})"
    known = {f"{panel}.{m}": (group[0], m) for (group, m, _), panel in table.panels.items()}
    if not set(names) <= set(known):
        return f"{len(names)} SAEs"
    if len(names) == len(known):
        return f"all {len(names)} SAEs"
    among = (
        ("of", [known[n][0] for n in names], [g[0] for g in table.groups]),
        ("members", [known[n][1] for n in names], table.members),
    )
    parts = [
        f"{word} {_named([each for each in dict.fromkeys(every) if each in here])}"
        for word, here, every in among
        if set(here) < set(every)
    ]
    of = f" ({'; '.join(parts)})" if parts else ""
    return f"{len(names)} of {len(known)} SAEs{of}"


def _named(names: Sequence[str]) -> str:
    return _listed([code(name) for name in names])


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
