"""Every reason for caution that applies to a study, found in its rows; words: the template."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_baselines.baselines import CONSTRAINTS
from sae_baselines.controls import PUBLISHED, TRAINED
from sae_baselines.evals.registry import (
    get_suite,
    is_refused,
    is_unchanged,
    metric_of,
    suite_names,
)
from sae_baselines.reconstruction import FEW
from sae_baselines.report.context import Note, ReportContext
from sae_baselines.report.markdown import code, codes, words
from sae_baselines.report.names import key
from sae_baselines.report.numbers import number
from sae_baselines.results import PANEL_SUITE, Group, MetricKey, Results, ordered
from sae_baselines.stats import METHOD, Comparison, Verdict, first_of
from sae_baselines.study.held_out import MOST_IN_FEW
from sae_baselines.study.measure import L0_TOLERANCE

# Explained variance, SAEBench's against the paper's definition.
EV_TOLERANCE = 0.02
# Cross-entropy recovered, SAEBench's against the panel's.
CE_TOLERANCE = 0.02
# A control's score against the trained SAE's, where they are the same but for rounding.
UNCHANGED_TOLERANCE = 1e-3
# Latents of a member that fire on no evaluation token.
DEAD_SHARE = 0.1
# Of an SAE's squared error, in the few worst tokens.
MOST_ERROR_IN_FEW = 0.5
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


def caveat(kind: str, macro: str = "", **facts: Any) -> Caveat:
    """A caveat in the template's words.

    Args:
        kind: Short name.
        macro: Which text; default the one called as the kind is.
        facts: What the text is told.
    """
    name = macro or kind.lower().replace(" ", "_")
    return Caveat(kind, words("caveats.md.j2", name, **facts))


def caveats(
    table: Results, context: ReportContext, items: Sequence[Verdict], dropped: Sequence[Caveat]
) -> list[Caveat]:
    """All that apply, gravest first.

    Args:
        table: The results.
        context: Its failures and notes become caveats.
        items: The verdicts given.
        dropped: What could not be compared at all.
    """
    return [
        *_checks(context),
        *dropped,
        *_published(table, context),
        *_seeds(table, items),
        *_failures(context),
        *_missing(table, context),
        *_not_finite(table),
        *_l0(table),
        *_l0_apart(items),
        *_l0_unchecked(table, items),
        *_floors(table, items),
        *_rounding(items),
        *_failed_runs(items),
        *_baselines(table),
        *_controls(table),
        *_few_activations(context),
        *_error_in_few(table),
        *_explained_variance(table),
        *_cross_entropy(table, context),
        *_dead(table, context),
        *_latents(context),
        *_versions(table, context),
        *_data_order(table, context),
        *_notes(table, context),
    ]


def _few_activations(context: ReportContext) -> list[Caveat]:
    share = context.variance_in_few
    if share is None or share <= MOST_IN_FEW:
        return []
    return [caveat("few activations", share=share, few=FEW)]


def _error_in_few(table: Results) -> Iterable[Caveat]:
    """Members whose explained variance is that of a handful of tokens."""
    texts, n = [], 0
    for group in table.groups:
        for member in table.present(group):
            shares = table.values(group, ("panel", "error_in_few"), member)
            few = {seed: share for seed, share in shares.items() if share > MOST_ERROR_IN_FEW}
            n += len(few)
            if few:
                worst = max(few, key=lambda seed: few[seed])
                ev, median = (
                    table.values(group, ("panel", name), member).get(worst, math.nan)
                    for name in ("explained_variance", "ev_median_token")
                )
                texts.append(
                    f"{_where(member, group)}: {few[worst]:.1%}, with "
                    f"EV {number(ev)} of all and {number(median)} of the median token"
                )
    if texts:
        yield caveat("error in few", share=MOST_ERROR_IN_FEW, few=FEW, n=n, texts=texts)


def _where(member: str, group: Group) -> str:
    return f"{code(member)} of {group[0]} at L0 {group[1]:g}"


def _latents(context: ReportContext) -> list[Caveat]:
    n = context.without_latents
    return [caveat("no rates", n=n, folder=context.folder)] if n else []


def unfit(compared: Sequence[Comparison]) -> list[Caveat]:
    """Pairs that are one SAE, caps that never bound and seeds that collapsed."""
    against: dict[tuple[Group, str], dict[str, None]] = defaultdict(dict)
    for c in compared:
        for bar in c.unfit:
            if bar.kind != "failed run":  # a caveat of its own
                against[(c.architecture, c.l0), bar.reason][c.baseline] = None
    return [
        caveat("no verdict", baselines=list(names), group=group, reason=reason)
        for (group, reason), names in against.items()
    ]


def dead_shares(table: Results, d_sae: int | None) -> dict[tuple[Group, str], list[float]]:
    """Of each member and seed, the share of latents that fire on no evaluation token."""
    found = {}
    for group in table.groups:
        for member in table.present(group):
            alive = list(table.values(group, ("core", "frac_alive"), member).values())
            counts = table.values(group, ("panel", "alive"), member)
            if counts and d_sae:
                alive = [c / d_sae for c in counts.values()]
            found[group, member] = [1 - a for a in alive if math.isfinite(a)]
    return found


def version_mix(table: Results) -> dict[str, dict[str, list[str]]]:
    """Package to version to suites, over the rows' ``versions`` column."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    if "versions" not in table.frame:
        return {}
    pairs = table.frame[["suite", "versions"]].drop_duplicates()
    for suite, text in pairs.itertuples(index=False, name=None):
        for part in text.split(";") if isinstance(text, str) else ():
            package, _, version = part.strip().partition("=")
            version = version.lstrip("=").strip()
            if package and version and suite not in found[package.strip()][version]:
                found[package.strip()][version].append(suite)
    return {package: dict(versions) for package, versions in sorted(found.items())}


def _checks(context: ReportContext) -> Iterable[Caveat]:
    """Numbers that nothing in the folder vouches for."""
    checks = context.checks
    if checks.edited:
        yield caveat("edited", texts=checks.edited)
    if checks.unverified:
        yield caveat("not verified", names=checks.unverified)
    if checks.unsealed:
        yield caveat("no checksum", n=checks.unsealed)


def _published(table: Results, context: ReportContext) -> Iterable[Caveat]:
    """What a published SAE and the members around it do not have in common."""
    constraints = table.constraints.values()
    if not table.has_published:
        return
    yield caveat("one published seed")
    record = context.published
    own = record.get("tokens_recorded")
    theirs = record.get("training_tokens") or context.training_tokens
    if not own:
        yield caveat("budget unknown")
    elif theirs and own != theirs:
        trained = TRAINED if TRAINED in constraints else ""
        yield caveat("budgets differ", own=own, theirs=theirs, trained=trained)
    recorded, used = record.get("dataset_recorded"), record.get("dataset")
    if recorded and used and recorded != used:
        yield caveat("other text", recorded=recorded, used=used)
    elif used and not recorded:
        yield caveat("text unknown", used=used)


def _seeds(table: Results, items: Sequence[Verdict]) -> Iterable[Caveat]:
    # Also where another reason came first.
    if single_seeds(table, items):
        yield caveat("single seed")
    with_two = list(dict.fromkeys(v.baseline for v in items if v.n_seeds == 2))
    if with_two:
        # The others are compared on more: on a metric of these some seeds are no pairs.
        some = [] if all(v.n_seeds <= 2 for v in items) else with_two
        yield caveat("two seeds", why=METHOD.two_seeds, baselines=some)


def single_seeds(table: Results, items: Sequence[Verdict]) -> list[Group]:
    """Groups with one training seed, in which nothing gets a verdict."""
    compared = dict.fromkeys((v.architecture, v.l0) for v in items)
    return [group for group in compared if len(table.seeds(group, TRAINED)) == 1]


def _failures(context: ReportContext) -> Iterable[Caveat]:
    for f in context.failures:
        where = f"{f.panel}/{f.member}" if f.panel and f.member else f.member
        yield caveat("failure", suite=f.suite, where=where, reason=f.reason)


def _missing(table: Results, context: ReportContext) -> Iterable[Caveat]:
    """Suites without rows, and members that lack rows of a suite that others have."""
    columns = (table.frame[c] for c in ("suite", "panel", "member"))
    have: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for suite, panel, member in dict.fromkeys(zip(*columns, strict=True)):
        have[suite].add((panel, member))
    every = {pair for pairs in have.values() for pair in pairs}
    rank = {m: i for i, m in enumerate(table.members)}
    for suite in dict.fromkeys([*context.suites, *(s for s in have if s != "panel")]):
        lacking = {
            (panel, member)
            for panel, member in every - have[suite]
            if not is_refused(table.constraints[member], suite)
        }
        if not lacking or all(_has_failed(context, suite, *pair) for pair in lacking):
            continue
        named = [f"{p}/{m}" for p, m in sorted(lacking, key=lambda x: (x[0], rank[x[1]]))]
        some = named if lacking != every else []
        yield caveat("missing", suite=suite, lacking=some, total=len(every))


def _has_failed(context: ReportContext, suite: str, panel: str, member: str) -> bool:
    """Whether a failure says already that there is no result."""
    names = ("", member, f"{panel}/{member}", f"{panel}.{member}")
    return any(
        f.suite == suite and f.panel in ("", panel) and f.member in names
        for f in context.failures
    )


def _not_finite(table: Results) -> Iterable[Caveat]:
    bad = table.frame[~np.isfinite(table.frame["value"])]
    found: dict[MetricKey, dict[str, None]] = defaultdict(dict)
    columns = (bad[c] for c in ("suite", "metric", "panel", "member"))
    for suite, metric, panel, member in zip(*columns, strict=True):
        if table.direction((suite, metric)):
            found[suite, metric][f"{panel}/{member}"] = None
    for metric, names in found.items():
        yield caveat("not a number", metric=metric, names=list(names))


def _l0(table: Results) -> Iterable[Caveat]:
    off, unknown = [], []
    for (group, member, seed), panel in table.panels.items():
        value, target = table.measured_l0.get((panel, member, seed), math.nan), group[1]
        name = f"{panel}/{member}"
        if not math.isfinite(value):
            unknown.append(name)
        elif abs(value - target) > L0_TOLERANCE * target:
            apart = f"{value / target - 1:+.0%}"
            off.append(f"{code(name)} {number(value)} for {target:g} ({apart})")
    if off:
        total = len(table.panels)
        yield caveat("L0 off target", texts=off, total=total, tolerance=L0_TOLERANCE)
    if unknown:
        yield caveat("L0 unknown", names=unknown)


def _l0_apart(items: Sequence[Verdict]) -> Iterable[Caveat]:
    """From the verdicts themselves, so that both say the same."""
    for kind in ("L0 apart", "L0 unmeasured"):
        by_group: dict[Group, dict[str, None]] = defaultdict(dict)
        for v in items:
            if reasons := _reasons(v, kind):
                by_group[v.architecture, v.l0][first_of(reasons)] = None
        if by_group:
            texts = {group: list(texts) for group, texts in by_group.items()}
            yield caveat(kind, texts=texts, tolerance=METHOD.l0_tolerance)


def _reasons(v: Verdict, kind: str) -> tuple[str, ...]:
    return tuple(bar.reason for bar in v.bars if bar.kind == kind)


def _l0_unchecked(table: Results, items: Sequence[Verdict]) -> Iterable[Caveat]:
    """Suites that run the language model, evaluated before their L0 was measured."""
    compared = [s for s in dict.fromkeys(v.suite for v in items) if s in suite_names()]
    unknown = [s for s in compared if get_suite(s).needs.model and s not in table.suite_l0]
    if unknown:
        yield caveat("L0 unchecked", suites=unknown)


def _floors(table: Results, items: Sequence[Verdict]) -> Iterable[Caveat]:
    """Suites whose metrics have floors that were not measured: evaluated before there were."""
    compared = dict.fromkeys(((v.suite, v.metric), (v.architecture, v.l0)) for v in items)
    if table.has_published:
        scored = [m for m in table.metrics if table.direction(m)]
        compared |= dict.fromkeys((m, group) for m in scored for group in table.groups)
    tested = PUBLISHED if table.has_published else TRAINED
    none: dict[str, list[bool]] = defaultdict(list)
    for metric, group in compared:
        if metric[0] == PANEL_SUITE:
            continue  # floors of transcoders, which are measured with them
        scores = table.aggregates(metric, group, tested)
        for floor in metric_of(*metric).floors:
            known = table.aggregates((metric[0], floor), group, tested)
            none[metric[0]] += [not math.isfinite(known.get(s, math.nan)) for s in scores]
    for part, suites in (
        (False, [suite for suite, missing in none.items() if missing and all(missing)]),
        (True, [suite for suite, missing in none.items() if any(missing) and not all(missing)]),
    ):
        if suites:
            yield caveat("floors not measured", suites=suites, part=part)


def _rounding(items: Sequence[Verdict]) -> Iterable[Caveat]:
    """Scores that are means in half precision, and what that leaves undecided."""
    steps: dict[MetricKey, list[Verdict]] = defaultdict(list)
    for v in items:
        if v.step:
            steps[v.suite, v.metric].append(v)
    for metric, vs in steps.items():
        margin = next((v.margin.value for v in vs if v.margin), None)
        undecided = [f"{v.baseline} of {v.architecture}" for v in vs if _reasons(v, "rounded")]
        step = max(v.step for v in vs)
        yield caveat("rounding", metric=metric, step=step, margin=margin, names=undecided)


def _failed_runs(items: Sequence[Verdict]) -> Iterable[Caveat]:
    texts = dict.fromkeys(text for v in items for text in _reasons(v, "failed run"))
    if texts:
        yield caveat("failed run", texts=list(texts))


def _baselines(table: Results) -> Iterable[Caveat]:
    lacking: dict[tuple[str, ...], list[Group]] = defaultdict(list)
    for group in table.groups:
        here = {table.constraints[member] for member in table.present(group)}
        there = (c for c, known in CONSTRAINTS.items() if known.why_not(group[0]) is None)
        lacking[tuple(c for c in there if c not in here)].append(group)
    for absent, groups in lacking.items():
        if absent:
            some = groups if len(lacking) > 1 else []
            yield caveat("baselines absent", names=absent, groups=some)


def _controls(table: Results) -> Iterable[Caveat]:
    """A control with its source's latents has its scores wherever only latents count."""
    published = table.has_published
    for control in table.controls:
        apart: dict[MetricKey, float] = {}
        unchanged = [m for m in table.metrics if is_unchanged(table.constraints[control], *m)]
        for group in table.groups:
            for metric in unchanged:
                own = table.values(group, metric, control)
                source = table.values(group, metric, PUBLISHED if published else TRAINED)
                if published:
                    # All seeds of a control are made of the one SAE.
                    source = dict.fromkeys(own, next(iter(source.values()), math.nan))
                for seed, value in source.items():
                    gap = abs(own.get(seed, value) - value)
                    if gap > UNCHANGED_TOLERANCE * max(1.0, abs(value)):
                        apart[metric] = max(gap, apart.get(metric, 0.0))
        if apart:
            yield caveat(
                "control differs",
                control=control,
                source=PUBLISHED if published else TRAINED,
                texts=[f"{code(key(*m))} by {number(gap)}" for m, gap in apart.items()],
            )


def _explained_variance(table: Results) -> Iterable[Caveat]:
    pairs, lonely = _pairs(table, _SAEBENCH_EV, _PAPER_EV)
    if apart := _apart(pairs, EV_TOLERANCE):
        yield caveat("EV disagreement", tolerance=EV_TOLERANCE, **apart)
    if lonely:
        yield caveat("EV unchecked", n=lonely)


def _cross_entropy(table: Results, context: ReportContext) -> Iterable[Caveat]:
    """Two numbers of what cross-entropy an SAE leaves, which need not order SAEs alike."""
    pairs, _ = _pairs(table, ("core", "ce_loss_score"), ("panel", "ce_recovered"))
    positions = list(context.spec.get("seqpos_slice") or [None])
    if apart := _apart(pairs, CE_TOLERANCE):
        some = positions if any(p is not None for p in positions) else None
        yield caveat("CE disagreement", tolerance=CE_TOLERANCE, positions=some, **apart)


_Pairs = dict[str, list[tuple[float, float]]]


def _pairs(table: Results, theirs: MetricKey, ours: MetricKey) -> tuple[_Pairs, int]:
    """By member, two metrics of the same SAEs; and how many SAEs have the first alone."""
    pairs: _Pairs = defaultdict(list)
    lonely = 0
    for group in table.groups:
        for member in table.present(group, theirs):
            own = table.values(group, ours, member)
            for seed, value in table.values(group, theirs, member).items():
                if seed in own:
                    pairs[member].append((value, own[seed]))
                else:
                    lonely += 1
    return pairs, lonely


def _apart(pairs: _Pairs, tolerance: float) -> dict[str, Any] | None:
    """How many pairs are further apart, and the means by member; None if none is."""
    apart = [abs(a - b) for ps in pairs.values() for a, b in ps if math.isfinite(a - b)]
    n = sum(gap > tolerance for gap in apart)
    if not n:
        return None
    means = [(m, *np.array(pairs[m]).mean(axis=0)) for m in ordered(pairs)]
    return {"n": n, "total": len(apart), "most": max(apart), "means": means}


def _dead(table: Results, context: ReportContext) -> Iterable[Caveat]:
    named, n = [], 0
    for (group, member), shares in dead_shares(table, context.d_sae).items():
        dead = [share for share in shares if share > DEAD_SHARE]
        n += len(dead)
        if dead:
            named.append(f"{_where(member, group)}: {max(dead):.0%}")
    if named:
        yield caveat("dead latents", share=DEAD_SHARE, n=n, texts=named)


def _versions(table: Results, context: ReportContext) -> Iterable[Caveat]:
    stages: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for stage, packages in context.versions.items():
        for package, used in packages.items():
            for version in used.split(", "):
                stages[package][version].append(stage)
    for what, mix, order in (
        ("Rows were made with", version_mix(table), sorted),
        ("Stages used", stages, list),
    ):
        for package, versions in sorted(mix.items()):
            if len(versions) > 1:
                by = order(versions.items())
                yield caveat("version mix", what=what, package=package, versions=by)


def _data_order(table: Results, context: ReportContext) -> Iterable[Caveat]:
    seeds: dict[Group, set[int]] = defaultdict(set)
    for group, member, seed in table.panels:
        if table.constraints[member] != PUBLISHED:
            seeds[group].add(seed)
    several = any(len(found) > 1 for found in seeds.values())
    if several and context.spec.get("data_order") == "shared":
        yield caveat("shared data order")


def _notes(table: Results, context: ReportContext) -> Iterable[Caveat]:
    """One line where several SAEs share a note."""
    shared: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for note in context.notes:
        shared[note.suite, _without_suite(note)].update({note.name: None} if note.name else {})
    for (suite, text), names in shared.items():
        of = [part for part in (code(suite), _saes(table, list(names))) if part]
        yield Caveat("note", f"{', '.join(of)}: {text}" if of else text)


def _without_suite(note: Note) -> str:
    """The text; some suites begin theirs with their own name."""
    return note.text.removeprefix(f"{note.suite}:").strip() if note.suite else note.text


def _saes(table: Results, names: Sequence[str]) -> str:
    """The SAEs of a note: by name, or how many and of what."""
    if len(names) <= 1:
        return codes(names)
    if len(names) <= _SAES_OF_A_NOTE:
        return f"{len(names)} SAEs ({codes(names)})"
    known = {f"{panel}.{m}": (group[0], m) for (group, m, _), panel in table.panels.items()}
    if not set(names) <= set(known):
        return f"{len(names)} SAEs"
    if len(names) == len(known):
        return f"all {len(names)} SAEs"
    parts = []
    for i, (word, every) in enumerate(
        (("of", [g[0] for g in table.groups]), ("members", table.members))
    ):
        here = {known[name][i] for name in names}
        if here < set(every):
            parts.append(f"{word} {_few([e for e in dict.fromkeys(every) if e in here])}")
    of = f" ({'; '.join(parts)})" if parts else ""
    return f"{len(names)} of {len(known)} SAEs{of}"


def _few(names: Sequence[str]) -> str:
    return words("caveats.md.j2", "named", names=names)
