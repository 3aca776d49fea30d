"""Beats random: beats every baseline, and every random SAE that nobody trained."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sae_baselines.controls import is_control, is_random
from sae_baselines.stats.multiplicity import holm
from sae_baselines.stats.verdict import Verdict


@dataclass(frozen=True)
class AgainstRandom:
    """One metric, all baselines; an untrained random SAE counts as one.

    Attributes:
        architecture: Base architecture.
        l0: Target L0.
        suite: Suite.
        metric: Metric.
        beats: Whether the trained SAE beats random; None where a baseline has no verdict.
        reason: Why, in one sentence.
        p: Largest p-value over the baselines; None without a test.
        p_adjusted: After Holm over metrics.
        closest: Baseline with the least mean difference.
        unbeaten: Baselines whose verdict is not "beats".
        baselines: All of them.
    """

    architecture: str
    l0: float
    suite: str
    metric: str
    beats: bool | None
    reason: str
    p: float | None
    p_adjusted: float | None
    closest: str
    unbeaten: tuple[str, ...]
    baselines: tuple[str, ...]


def against_random(items: Sequence[Verdict]) -> list[AgainstRandom]:
    """Combine the verdicts on each metric over all baselines.

    Untrained random SAEs are in it: who claims to beat random has to beat those too, and one
    more hurdle can only make the claim harder. Controls that are the trained SAE with something
    broken (`permuted_decoder`, `permuted_pairing`) are not random SAEs: beating or not beating
    them decides nothing here.

    On one metric this is an intersection-union test (Berger 1982): the claim "better than all
    of them" is wrong only if it is wrong of at least one, and then that one test had to err,
    which it does with chance alpha at most. So three baselines need no correction; p is the
    largest of theirs (1 where the mean difference is not positive).

    Several metrics do. Correcting within each baseline would not be enough: if the trained SAE
    ties with another baseline on each metric, every metric's claim hangs on another family, and
    the chances to err add up over families. So Holm runs over these largest p-values. Where it
    rejects, every baseline's own verdict is "beats" too, because adjusted p-values only grow
    with raw ones; the reverse can fail, and then `reason` says so.
    """
    by_metric: dict[tuple[str, float, str, str], list[Verdict]] = defaultdict(list)
    for v in items:
        if not is_random(v.constraint):
            continue
        by_metric[v.architecture, v.l0, v.suite, v.metric].append(v)
    families: dict[tuple[str, float], list[tuple[str, float, str, str]]] = defaultdict(list)
    for key in by_metric:
        families[key[:2]].append(key)
    adjusted: dict[tuple[str, float, str, str], float] = {}
    for keys in families.values():
        # A metric that only some baselines were tested on stays in the family, unrejected.
        tested = [key for key in keys if any(v.p is not None for v in by_metric[key])]
        largest = [max(map(_one_way, by_metric[key])) for key in tested]
        adjusted.update(zip(tested, map(float, holm(largest)), strict=True))
    return [_combine(key, vs, adjusted.get(key)) for key, vs in by_metric.items()]


def _one_way(v: Verdict) -> float:
    """The two-sided p-value where trained is ahead, else 1."""
    return v.p if v.p is not None and v.mean_difference > 0 else 1.0


def _combine(
    key: tuple[str, float, str, str], vs: Sequence[Verdict], p_adjusted: float | None
) -> AgainstRandom:
    unbeaten = tuple(v.baseline for v in vs if v.word != "beats")
    mute = [v for v in vs if v.p is None]
    closest = min(vs, key=lambda v: v.mean_difference)
    beats: bool | None
    if mute:
        beats, p_adjusted = None, None
        reason = f"{mute[0].word} against {mute[0].baseline}: {mute[0].reason}"
    else:
        beats = p_adjusted is not None and p_adjusted <= vs[0].alpha
        if beats:
            reason = f"beats {_counted(vs)}; the closest is {closest.baseline}"
        elif unbeaten:
            words = ", ".join(f"{v.word} ({v.baseline})" for v in vs if v.word != "beats")
            reason = f"does not beat every baseline: {words}"
        else:
            reason = (
                "beats each baseline by itself, but the claim does not survive the correction "
                f"over metrics taken jointly (p = {p_adjusted:.2g})"
            )
    return AgainstRandom(
        *key,
        beats=beats,
        reason=reason,
        p=None if mute else max(map(_one_way, vs)),
        p_adjusted=p_adjusted,
        closest=closest.baseline,
        unbeaten=unbeaten,
        baselines=tuple(v.baseline for v in vs),
    )


def _counted(vs: Sequence[Verdict]) -> str:
    """All of them, in words: how many baselines, and how many that nobody trained."""
    untrained = sum(is_control(v.constraint) for v in vs)
    counts = ((len(vs) - untrained, "baseline"), (untrained, "untrained random SAE"))
    parts = [f"{n} {what}{'' if n == 1 else 's'}" for n, what in counts if n]
    return f"all {' and '.join(parts)}" if len(vs) > 1 else parts[0]
