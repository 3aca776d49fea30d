"""Whether two SAEs may be compared at all: at one L0, and with scores that are scores.

L0 depends on the tokens. Thresholds are calibrated on held-out text of the study; a suite has
its own text, first positions and special tokens, on which members that matched may be apart.
So a comparison needs within the tolerance, seed by seed:

1. the panel's L0, on held-out text;
2. the suite's own L0, on what it gave the SAEs (``<suite>/l0``);
3. where it has none (older results, a suite that encodes nothing): every L0 that other suites
   measured of both.
"""

from collections.abc import Callable, Iterator

from sae_baselines.controls import PUBLISHED, is_random_model, kind_of
from sae_baselines.evals.measured import LOWER
from sae_baselines.evals.metrics import AFFINE, null_name
from sae_baselines.evals.registry import metric_of
from sae_baselines.results import L0_TOLERANCE, PANEL_SUITE, BySeed
from sae_baselines.stats.match import Bar, Match
from sae_baselines.study.identity import DEAD_SHARE, SKIP

# The panel's, which is below 0 where a reconstruction is worse than the mean activation.
_EV = "explained_variance"
_MOST_DEAD = 0.5


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
    """Members that are what a failed run left, by this metric or by the panel's measurements.

    A reconstruction worse than without an SAE (the mean activation, or ablation), than an
    untrained SAE's of the same panel, or than the affine map that a transcoder's skip can be;
    or more than half of the latents dead. What is bad by construction has not failed (controls,
    but for those that had something to learn), nor is it a panel's run (a published SAE).

    What is known of an error or a loss without an SAE is that it is worse: it is that of a run
    that failed where an untrained SAE has less.
    """
    known = metric_of(*match.metric)
    scores = match.table.direction(match.metric) == known.direction and (
        known.least is not None or (known.depends, known.direction) == ("reconstruction", LOWER)
    )
    bars = []
    for member, values in zip((match.tested, match.other), match.values, strict=True):
        constraint = match.table.constraints[member]
        if constraint == PUBLISHED:
            continue
        kind = kind_of(constraint)
        if kind is not None and not kind.learnable:
            continue
        found = _by_score(match, member, values, known.least) if scores else {}
        by_panel = _by_panel(match, member)
        for seed in values:
            if (text := found.get(seed) or by_panel.get(seed)) is not None:
                bars.append(Bar("failed run", f"{member} failed at seed {seed}: {text}"))
    return bars


def _by_score(match: Match, member: str, values: BySeed, least: float | None) -> dict[int, str]:
    """By seed, why this metric says that the run failed."""
    table = match.table
    untrained = _untrained(match, member, lambda m: table.values(match.group, match.metric, m))
    sign = match.table.direction(match.metric)
    return _worse(match.metric[1], values, least, untrained, sign)


def _by_panel(match: Match, member: str) -> dict[int, str]:
    """By seed, why the panel's own measurements say so."""

    def of(name: str, member: str) -> BySeed:
        return match.table.of_panel(name, match.group, member)

    dead = {
        seed: f"{share:.0%} of its latents fired on no held-out sample, more than half"
        for seed, share in of(DEAD_SHARE, member).items()
        if share > _MOST_DEAD
    }
    worse_than = _untrained(match, member, lambda m: of(_EV, m))
    has_skip, affine = of(SKIP, member), of(null_name(_EV, AFFINE), member)
    worse_than["the affine map alone, which its skip can be"] = {
        seed: value for seed, value in affine.items() if has_skip.get(seed)
    }
    return {**_worse(f"{PANEL_SUITE}/{_EV}", of(_EV, member), 0.0, worse_than, 1), **dead}


def _worse(
    name: str, values: BySeed, least: float | None, others: dict[str, BySeed], sign: int
) -> dict[int, str]:
    """By seed, what a value is worse than: that of no SAE, or of something else that is less
    than a trained one."""
    found: dict[int, str] = {}
    for seed, value in values.items():
        floors = {} if least is None else {"no SAE at all": least}
        floors |= {what: by[seed] for what, by in others.items() if seed in by}
        for what, floor in floors.items():
            if sign * (value - floor) < 0:
                found.setdefault(
                    seed, f"{name} is {value:.4g}, worse than {what} ({floor:.4g})"
                )
    return found


def _untrained(match: Match, of: str, by: Callable[[str], BySeed]) -> dict[str, BySeed]:
    """A number of the panel's untrained controls, if they read a member's activations."""
    found: dict[str, BySeed] = {}
    if is_random_model(match.table.constraints[of]):
        return found
    for member in match.table.present(match.group):
        kind = kind_of(match.table.constraints[member])
        if kind is not None and kind.untrained:
            found[f"untrained {member}"] = by(member)
    return found
