"""Where one published SAE falls among all random members at once."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sae_baselines.controls import PUBLISHED, TRAINED, is_random
from sae_baselines.stats.multiplicity import holm
from sae_baselines.stats.placement import Placement


@dataclass(frozen=True)
class PlacedAgainstRandom:
    """One metric of the published SAE among all random members.

    Attributes:
        architecture: Base architecture.
        l0: Target L0.
        suite: Suite.
        metric: Metric.
        above_all: Whether it is better than every seed of every random member; None where that
            hangs on one that gives no placement.
        reason: Why, in one sentence.
        p: Largest prediction p-value over the members; None where one has none.
        p_adjusted: After Holm over metrics.
        p_exchangeable: Largest exchangeability p-value; None where one has none.
        closest: Member with the largest prediction p-value (without those, the one that it is
            better than the smallest share of): the one that the published SAE is least above.
        not_above: Members that it is not above all seeds of.
        members: All of them.
        silent: Those that give no placement.
    """

    architecture: str
    l0: float
    suite: str
    metric: str
    above_all: bool | None
    reason: str
    p: float | None
    p_adjusted: float | None
    p_exchangeable: float | None
    closest: str
    not_above: tuple[str, ...]
    members: tuple[str, ...]
    silent: tuple[str, ...]


def placed_against_random(items: Sequence[Placement]) -> list[PlacedAgainstRandom]:
    """Combine the placements on each metric over all random members.

    Random members are the baselines and the controls that nobody trained
    (`sae_baselines.controls.is_random`). ``trained`` is an SAE like the one placed, permuted
    controls are an SAE with something broken: neither is a random SAE.

    "Better than one more seed of any of them" is an intersection-union test (Berger 1982): its
    p-value is the largest of theirs. Holm runs over the metrics of one architecture and L0, as
    in `against_random`; a metric that lacks a test with some member stays in the family,
    unrejected.
    """
    by_metric: dict[tuple[str, float, str, str], list[Placement]] = defaultdict(list)
    for item in items:
        if item.constraint not in (TRAINED, PUBLISHED) and is_random(item.constraint):
            by_metric[item.architecture, item.l0, item.suite, item.metric].append(item)
    families: dict[tuple[str, float], list[tuple[str, float, str, str]]] = defaultdict(list)
    for key in by_metric:
        families[key[:2]].append(key)
    adjusted: dict[tuple[str, float, str, str], float] = {}
    for keys in families.values():
        tested = [k for k in keys if any(i.p_prediction is not None for i in by_metric[k])]
        largest = [max(_or_one(i.p_prediction) for i in by_metric[k]) for k in tested]
        adjusted.update(zip(tested, map(float, holm(largest)), strict=True))
    return [_combine(key, each, adjusted.get(key)) for key, each in by_metric.items()]


def _or_one(p: float | None) -> float:
    return 1.0 if p is None else p


def _combine(
    key: tuple[str, float, str, str], items: Sequence[Placement], p_adjusted: float | None
) -> PlacedAgainstRandom:
    mute = [i for i in items if not i.placed]
    untested = [i for i in items if i.p_prediction is None]
    ranks = [i.p_exchangeable for i in items if i.p_exchangeable is not None]
    below = tuple(i.member for i in items if i.placed and not i.is_above)
    # One that it is not above settles it, whatever the others would say.
    closest = max([i for i in items if i.placed] if below else items, key=_closeness)
    reasons = []
    if below:
        named = ", ".join(
            f"{i.word} ({i.member})" for i in items if i.placed and not i.is_above
        )
        reasons.append(f"not above every random seed: {named}")
    elif not mute:
        seeds = sum(i.n_seeds for i in items)
        reasons.append(
            f"above all {seeds} seeds of {len(items)} random "
            f"member{'' if len(items) == 1 else 's'}; the closest is {closest.member}"
        )
    if mute:
        reasons.append(f"no placement among {mute[0].member}: {mute[0].reason}")
    elif untested:
        why = _why_untested(untested[0])
        reasons.append(f"no prediction p, as {untested[0].member} has {why}")
    return PlacedAgainstRandom(
        *key,
        above_all=False if below else None if mute else True,
        reason="; ".join(reasons),
        p=None if untested else max(_or_one(i.p_prediction) for i in items),
        p_adjusted=None if untested else p_adjusted,
        p_exchangeable=max(ranks) if len(ranks) == len(items) else None,
        closest=closest.member,
        not_above=below,
        members=tuple(i.member for i in items),
        silent=tuple(i.member for i in mute),
    )


def _closeness(item: Placement) -> tuple[bool, float, float]:
    """Larger for members that the published SAE is less above; those that cannot say first."""
    share = 0.0 if item.percentile is None else item.percentile
    return not item.placed, _or_one(item.p_prediction), -share


def _why_untested(item: Placement) -> str:
    return "one seed" if item.n_seeds == 1 else "no spread over seeds"
