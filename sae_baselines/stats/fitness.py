"""Whether two members are two SAEs, and their seeds replicates: what a word takes for granted.

What is found here bars the word of a comparison and leaves its numbers:

- **equal weights**: the other member is the tested one, or seeds of a member are copies.
- **a cap that never bound**: the cap of a soft-frozen decoder holds fewer than `LEAST_BOUND` of
  its rows at the end of training. Up to rounding it is then the trained SAE.
- **a collapsed seed**: one run of a member failed where its others did not. The mean over
  seeds is then about how often that happens, which few seeds do not tell.
- **a judge that was never tested**, or is not above its floor on latents that are known.
- **trained at another L0**: a member that was trained at an L0 that it is not measured at, and
  brought to it afterwards, is not as well trained as one that was trained at it.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import stats

from sae_baselines.controls import question_of
from sae_baselines.evals.judge import AUTOINTERP, JUDGE_ABOVE
from sae_baselines.evals.registry import asks_judge
from sae_baselines.results import BySeed
from sae_baselines.stats.intervals import spread
from sae_baselines.stats.match import Bar, Match
from sae_baselines.stats.matched import failures
from sae_baselines.study.identity import ALLOWED, OFF_TARGET, off_target

# 1 %: what fewer rows than that can do to a mean over latents is within the noise of seeds, and
# a word would be about something else than the cap.
LEAST_BOUND = 0.01
# A collapsed seed lost this share of the score that the member's other seeds have ...
_LOST = 0.5
# ... and is that far out with a chance below this, were it one of them.
_OUTLYING = 0.01
# A seed's difference dominates the spread where it is that far out.
_DOMINANT = 0.05
# Also the panel's own measurements show a collapse; higher is better in both.
_HEALTH = ("explained_variance", "alive")


def unfit(match: Match) -> tuple[Bar, ...]:
    """Why a word about this pair would mean nothing, if it would."""
    return (
        *not_two(match),
        *collapses(match),
        *trained_elsewhere(match),
        *failures(match),
        *judges(match),
    )


def not_two(match: Match) -> list[Bar]:
    """Why these are not two SAEs with seeds that are replicates, if they are not."""
    same = _same(match)
    bars = [same] if same else _unbound(match)
    for member in (match.tested, match.other):
        bars += _copies(match, member)
    return bars


def remarks(match: Match) -> list[str]:
    """Members besides the tested one that are the other one."""
    saes, known = _saes(match, match.other), match.table.same_weights
    names = {m for sae in saes.values() for _, m in known.get(sae, ())}
    names -= {match.other, match.tested}
    return [f"has the weights of {name}: one SAE under two names" for name in sorted(names)]


def collapsed(values: BySeed, partner: BySeed, sign: int = 1) -> list[int]:
    """Seeds of a member that failed where its others did not.

    A seed is one where the member lost half of what the median of its seeds has (where lower is
    better: has twice as much), if most did not; such seeds are further below the others than
    these are apart; and a one-sided t test against them, with the spread of both members,
    gives p <= 0.01 over the number of seeds.

    Args:
        values: Of the member, by seed.
        partner: Of the member that it is compared with.
        sign: +1 where higher is better, -1 where lower is.
    """
    own = {seed: sign * v for seed, v in values.items() if np.isfinite(v)}
    limit = _least(list(own.values()))
    low = [seed for seed, v in own.items() if v < limit]
    well = np.array([v for seed, v in own.items() if seed not in low])
    if not low or len(well) < max(2, len(low) + 1):
        return []
    # Of noise, those below the limit lie close to those above it.
    if well.min() - max(own[seed] for seed in low) <= well.max() - well.min():
        return []
    theirs = np.array([sign * v for v in partner.values() if np.isfinite(v)])
    # One of them that collapsed would hide this one.
    theirs = theirs[theirs >= _least(theirs)]
    squares = sum(
        float(((part - part.mean()) ** 2).sum()) for part in (well, theirs) if len(part)
    )
    degrees = len(well) - 1 + max(0, len(theirs) - 1)
    scale = np.sqrt(squares / degrees * (1 + 1 / len(well)))
    found = []
    for seed in low:
        gap = well.mean() - own[seed]
        p = 0.0 if scale == 0 else float(stats.t.sf(gap / scale, degrees))
        if p <= _OUTLYING / len(own):
            found.append(seed)
    return found


def dominant(differences: np.ndarray) -> int | None:
    """The seed that makes most of the spread, if one does.

    It lies outside the 95 % prediction interval of the others' differences, with Bonferroni's
    correction for the number of seeds; it takes three.

    Args:
        differences: ``[n_seeds]``.
    """
    n = len(differences)
    if n < 3:
        return None
    out = int(np.argmax(np.abs(differences - np.median(differences))))
    others = np.delete(differences, out)
    scale = float(spread(others)) * np.sqrt(1 + 1 / (n - 1))
    gap = abs(differences[out] - others.mean())
    if scale == 0:
        return out if gap > 0 else None
    return out if 2 * stats.t.sf(gap / scale, n - 2) <= _DOMINANT / n else None


def _least(scores: Sequence[float] | np.ndarray) -> float:
    """The median less what a seed has to lose to have collapsed; scores turned to be higher."""
    middle = float(np.median(scores)) if len(scores) else 0.0
    return middle - (_LOST if middle > 0 else 1) * abs(middle)


def _saes(match: Match, member: str) -> dict[int, tuple[str, str]]:
    """Keys of a member's SAEs, by seed."""
    table, group = match.table, match.group
    seeds = table.seeds(group, member)
    return {seed: (table.panels[group, member, seed], member) for seed in seeds}


def _same(match: Match) -> Bar | None:
    known = match.table.same_weights
    tested = set(_saes(match, match.tested).values())
    equal = [
        s for s, sae in _saes(match, match.other).items() if known.get(sae, set()) & tested
    ]
    if not equal:
        return None
    held = question_of(match.table.constraints[match.other]) == "nearly free"
    why = "the cap never bound: " if held else ""
    return Bar(
        "one SAE", f"{why}{match.other} has the weights of {match.tested} at {_named(equal)}"
    )


def _unbound(match: Match) -> list[Bar]:
    shares = match.table.of_panel("cap_bound_share", match.group, match.other)
    free = {seed: share for seed, share in shares.items() if share < LEAST_BOUND}
    if not free:
        return []
    most = max(free.values())
    reason = (
        f"the cap never bound: at the end of training it holds {most:.2%} of the rows of "
        f"{match.other} at most at {_named(free)}, fewer than {LEAST_BOUND:.0%}, which could "
        "move no mean over latents"
    )
    return [Bar("cap never bound", reason)]


def _copies(match: Match, member: str) -> list[Bar]:
    saes, known = _saes(match, member), match.table.same_weights
    equal = [
        seed
        for seed, sae in saes.items()
        if any(other in known.get(sae, ()) for s, other in saes.items() if s != seed)
    ]
    if not equal:
        return []
    reason = f"{member} has the same weights at {_named(equal)}: copies, not replicates"
    return [Bar("copies", reason)]


def collapses(match: Match) -> list[Bar]:
    """Seeds of either member that collapsed."""
    table, group = match.table, match.group
    sign = table.direction(match.metric)
    pairs = [("this metric", *match.values, sign)]
    for name in _HEALTH:
        both = [table.of_panel(name, group, m) for m in (match.tested, match.other)]
        pairs.append((f"panel/{name}", both[0], both[1], 1))
    found: dict[Bar, None] = {}
    for what, tested, other, s in pairs:
        for member, own, partner in (
            (match.tested, tested, other),
            (match.other, other, tested),
        ):
            for seed in collapsed(own, partner, s):
                rest = float(np.median([v for k, v in own.items() if k != seed]))
                text = (
                    f"seed {seed} of {member} collapsed: {what} is {own[seed]:.4g}, where its "
                    f"other seeds have {rest:.4g}"
                )
                found[Bar("collapsed seed", text)] = None
    return list(found)


def trained_elsewhere(match: Match) -> list[Bar]:
    """Members whose L0 in training was not the one that they are measured at."""
    bars = []
    for member in (match.tested, match.other):
        for metric, (least, most) in ALLOWED.items():
            values = match.table.of_panel(metric, match.group, member)
            off = {s: v for s, v in values.items() if off_target(metric, v)}
            if off:
                worst = max(off.values(), key=lambda v: abs(math.log(max(v, 1e-9))))
                bars.append(
                    Bar(
                        "L0 in training",
                        f"{member} was not trained at its L0 at {_named(off)}: "
                        f"{OFF_TARGET[metric]} up to {worst:.3g}, where {least:g} to "
                        f"{most:g} is allowed",
                    )
                )
    return bars


def judges(match: Match) -> list[Bar]:
    """Scores of a judge that was not found to judge anything."""
    suite = match.metric[0]
    if not asks_judge(suite):
        return []
    unknown = []
    for member, values in zip((match.tested, match.other), match.values, strict=True):
        above = match.table.aggregates((suite, JUDGE_ABOVE), match.group, member)
        seeds = [seed for seed in values if not above.get(seed, 0) > 0]
        if seeds:
            unknown.append(f"{member} at {_named(seeds)}")
    if not unknown:
        return []
    asked = "" if suite == AUTOINTERP else f" --suite {suite}"
    text = (
        f"the judge of {' and '.join(unknown)} was not found to be above its floor on latents "
        f"that are known; run sae-baselines judge test{asked}, then eval again, which keeps "
        "the scores"
    )
    return [Bar("judge untested", text)]


def _named(seeds: Iterable[int]) -> str:
    text = sorted(seeds)
    return f"seed{'s'[: len(text) != 1]} {', '.join(map(str, text))}"
