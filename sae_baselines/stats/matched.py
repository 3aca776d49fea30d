"""Whether two SAEs may be compared at all: at one L0, and with scores that are scores.

L0 depends on the tokens. Thresholds are calibrated on held-out text of the study; a suite has
its own text, first positions and special tokens, on which members that matched may be apart.
So a comparison needs within the tolerance, seed by seed:

1. the panel's L0, on held-out text;
2. the suite's own L0, on what it gave the SAEs (``<suite>/l0``);
3. where it has none (older results, a suite that encodes nothing): every L0 that other suites
   measured of both.
"""

from collections.abc import Iterable, Iterator

from sae_baselines.controls import PUBLISHED, is_control, kind_of
from sae_baselines.evals.measured import LOWER
from sae_baselines.evals.registry import metric_of
from sae_baselines.results import L0_TOLERANCE, PANEL_SUITE
from sae_baselines.stats.match import Bar, Match

# The panel's, which is below 0 where a reconstruction is worse than the mean activation.
_EV = "explained_variance"


def l0_apart(first: float, second: float) -> float:
    """|a - b| relative to their mean: the same whichever is called trained."""
    return abs(first - second) / ((first + second) / 2)


def unmatched(match: Match, own: int, other: int) -> Bar | None:
    """Why L0 forbids to compare two SAEs, if it does.

    Args:
        match: The members.
        own: Seed of the tested one.
        other: Seed of the other.
    """
    saes = ((match.tested, own), (match.other, other))
    for suite, on in _texts(match, saes):
        l0s = [match.l0(member, seed, suite) for member, seed in saes]
        for (member, seed), l0 in zip(saes, l0s, strict=True):
            if l0 is None:
                kind = "L0 unmeasured" if on else "L0 unknown"
                return Bar(kind, f"no measured L0 of {member}{on}{_at(seed)}")
        first, second = (l0 for l0 in l0s if l0 is not None)
        apart = l0_apart(first, second)
        if apart > L0_TOLERANCE:
            both = own == other
            return Bar(
                "L0 apart",
                f"L0 differs{on}{_at(own) if both else ''}: {match.tested} {first:.4g}, "
                f"{match.other} {second:.4g}{'' if both else _at(other)} "
                f"({apart:.1%} apart, at most {L0_TOLERANCE:.0%} allowed)",
            )
    return None


def _texts(match: Match, saes: tuple[tuple[str, int], ...]) -> Iterator[tuple[str, str]]:
    """Suites whose L0 must match, and how to call their tokens."""
    yield PANEL_SUITE, ""
    own = match.metric[0]
    if own == PANEL_SUITE:
        return
    known = {s: [match.l0(*sae, s) is not None for sae in saes] for s in match.table.suite_l0}
    # One that has none where the other has one cannot be compared.
    if any(known.get(own, ())):
        yield own, f" on the tokens of {own}"
        return
    for suite in sorted(s for s, there in known.items() if all(there)):
        yield suite, f" on the tokens of {suite} ({own} measured none)"


def _at(seed: int) -> str:
    return f" at seed {seed}" if seed >= 0 else ""


def failures(match: Match) -> list[Bar]:
    """Scores of either member that are those of a run that failed.

    So is a reconstruction worse than without an SAE (the mean activation, or ablation), or than
    an untrained SAE's of the same panel. What is bad by construction has not failed (controls),
    nor is it a panel's run (a published SAE).

    What is known of an error or a loss without an SAE is that it is worse: it is that of a run
    that failed where an untrained SAE has less, or where the panel's explained variance is.
    """
    known = metric_of(*match.metric)
    least = known.least
    if match.table.direction(match.metric) != known.direction:
        return []
    if least is None and (known.depends, known.direction) != ("reconstruction", LOWER):
        return []
    return [Bar("failed run", text) for text in _failures(match, least)]


def _failures(match: Match, least: float | None) -> Iterable[str]:
    table, group, metric = match.table, match.group, match.metric
    sign = table.direction(metric)
    untrained = {}
    for member in table.present(group, metric):
        kind = kind_of(table.constraints[member])
        if kind is not None and kind.untrained:
            untrained[member] = table.values(group, metric, member)
    for member, values in zip((match.tested, match.other), match.values, strict=True):
        constraint = table.constraints[member]
        if is_control(constraint) or constraint == PUBLISHED:
            continue
        explained = {} if least is not None else table.of_panel(_EV, group, member)
        for seed, value in values.items():
            floors = {} if least is None else {"no SAE at all": least}
            floors |= {f"untrained {m}": by[seed] for m, by in untrained.items() if seed in by}
            worse = [
                f"{metric[1]} is {value:.4g}, worse than {what} ({floor:.4g})"
                for what, floor in floors.items()
                if sign * (value - floor) < 0
            ]
            if (ev := explained.get(seed, 0.0)) < 0:
                worse.append(f"{PANEL_SUITE}/{_EV} is {ev:.4g}, worse than no SAE at all (0)")
            if worse:
                yield f"{member} failed at seed {seed}: {worse[0]}"
