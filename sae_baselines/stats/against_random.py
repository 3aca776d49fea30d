"""Against random as such: verdicts and placements combined over all random members."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sae_baselines.controls import PUBLISHED, TRAINED, Question, is_control, question_of
from sae_baselines.stats.decision import Correct, holm
from sae_baselines.stats.differences import OnMetric
from sae_baselines.stats.floors import CANNOT_TELL
from sae_baselines.stats.placement import Placement
from sae_baselines.stats.verdict import Verdict, shortly

_Key = tuple[str, float, str, str]
_Item = TypeVar("_Item", Verdict, Placement)


@dataclass(frozen=True)
class AgainstRandom(OnMetric):
    """One metric (`OnMetric`), all baselines of one question; an untrained random SAE counts.

    Attributes:
        question: "random" (frozen and untrained members) or "nearly free" (soft-frozen).
        beats: Whether the trained SAE beats random; None where a baseline has no verdict.
        reason: Why, in one sentence.
        p: Largest p-value over the baselines; None without a test.
        p_adjusted: After Holm over metrics.
        closest: Baseline with the least mean difference.
        unbeaten: Baselines whose verdict is not "beats".
        worse: Those whose verdict is "falls short".
        silent: Those without a verdict.
        baselines: All of them.
        cannot_tell: Whether the metric tells nothing of the trained SAE (`stats.floors`).
    """

    question: Question
    beats: bool | None
    reason: str
    p: float | None
    p_adjusted: float | None
    closest: str
    unbeaten: tuple[str, ...]
    worse: tuple[str, ...]
    silent: tuple[str, ...]
    baselines: tuple[str, ...]
    cannot_tell: bool = False


@dataclass(frozen=True)
class PlacedAgainstRandom(OnMetric):
    """One metric (`OnMetric`) of the published SAE among all members of one question.

    Attributes:
        question: As of `AgainstRandom`.
        above_all: Whether it is better than every seed of every random member; None where that
            hangs on one that gives no placement.
        reason: Why, in one sentence.
        p: Largest prediction p-value over the members; None where one has none.
        p_adjusted: After Holm over metrics.
        p_exchangeable: Largest exchangeability p-value; None where one has none.
        closest: Member with the largest prediction p-value (without those, the one that it is
            better than the smallest share of): the one that the published SAE is least above.
        not_above: Members that it is not above all seeds of.
        below: Those that it is below all seeds of.
        members: All of them.
        silent: Those that give no placement.
        cannot_tell: Whether the metric tells nothing of the published SAE.
    """

    question: Question
    above_all: bool | None
    reason: str
    p: float | None
    p_adjusted: float | None
    p_exchangeable: float | None
    closest: str
    not_above: tuple[str, ...]
    below: tuple[str, ...]
    members: tuple[str, ...]
    silent: tuple[str, ...]
    cannot_tell: bool = False


def against_random(
    items: Sequence[Verdict], question: Question = "random", correct: Correct = "baseline"
) -> list[AgainstRandom]:
    """Combine the verdicts on each metric over all baselines of one question.

    There are two, and the answers may differ. **random**: frozen decoder, frozen encoder and
    untrained SAEs, which have a random dictionary or encoder. **nearly free**: soft-frozen
    members, whose weights are all trained, within a cap around a random start.

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

    Args:
        items: Verdicts, made with the same ``correct``.
        question: Which baselines.
        correct: "baseline": Holm over the metrics of one architecture and L0. "study": over
            all metrics, architectures and L0s and both questions.
    """
    return [
        _combine_verdicts(question, key, vs, p)
        for key, vs, p in _adjusted(items, question, correct, _p_of_verdicts)
    ]


def _p_of_verdicts(vs: Sequence[Verdict]) -> float | None:
    """Over the baselines; a metric that only some were tested on stays, unrejected."""
    return max(map(_one_way, vs)) if any(v.n_metrics for v in vs) else None


def placed_against_random(
    items: Sequence[Placement], question: Question = "random", correct: Correct = "baseline"
) -> list[PlacedAgainstRandom]:
    """Combine the placements on each metric over all members of one question.

    Questions are those of `against_random`. ``trained`` is an SAE like the one placed, permuted
    controls are an SAE with something broken: neither is a random SAE.

    "Better than one more seed of any of them" is an intersection-union test (Berger 1982): its
    p-value is the largest of theirs. Holm runs over metrics as in `against_random`, whose
    ``correct`` this is; a metric that lacks a test with some member stays in the family,
    unrejected.
    """
    others = [p for p in items if p.constraint not in (TRAINED, PUBLISHED)]
    return [
        _combine_placements(question, key, ps, p)
        for key, ps, p in _adjusted(others, question, correct, _p_of_placements)
    ]


def _p_of_placements(ps: Sequence[Placement]) -> float | None:
    some = any(p.p_prediction is not None for p in ps)
    return max(_or_one(p.p_prediction) for p in ps) if some else None


def _adjusted(
    items: Sequence[_Item],
    question: Question,
    correct: Correct,
    largest: Callable[[Sequence[_Item]], float | None],
) -> Iterator[tuple[_Key, list[_Item], float | None]]:
    """The metrics of a question, with their items and the largest p after Holm.

    A family is one architecture, L0 and question; or all, whichever is asked.
    """
    families: dict[tuple[Any, ...], dict[tuple[Question, _Key], float]] = defaultdict(dict)
    by_metric: dict[tuple[Question, _Key], list[_Item]] = defaultdict(list)
    for item in items:
        of = question_of(item.constraint)
        if of is not None:
            key = (item.architecture, item.l0, item.suite, item.metric)
            by_metric[of, key].append(item)
    for (of, key), some in by_metric.items():
        p = largest(some)
        if p is not None:
            families[() if correct == "study" else (of, *key[:2])][of, key] = p
    adjusted = {
        which: float(p)
        for family in families.values()
        for which, p in zip(family, holm(list(family.values())), strict=True)
    }
    for (of, key), some in by_metric.items():
        if of == question:
            yield key, some, adjusted.get((of, key))


def _one_way(v: Verdict) -> float:
    """The two-sided p-value where trained is ahead, else 1."""
    return v.p if v.p is not None and v.mean_difference > 0 else 1.0


def _or_one(p: float | None) -> float:
    return 1.0 if p is None else p


def _combine_verdicts(
    question: Question, key: _Key, vs: Sequence[Verdict], p_adjusted: float | None
) -> AgainstRandom:
    unbeaten = {v.baseline: v.word for v in vs if v.word != "beats"}
    worse = tuple(v.baseline for v in vs if v.word == "falls short")
    mute = [v for v in vs if v.p is None or v.word == CANNOT_TELL]
    # Last, one that has no difference.
    closest = min(vs, key=lambda v: (math.isnan(v.mean_difference), v.mean_difference)).baseline
    beats: bool | None = None
    if mute:
        p_adjusted = None
        reason = _why_not(mute)
        if worse:
            reason += f"; falls short of {', '.join(worse)}"
    elif beats := not unbeaten and p_adjusted is not None and p_adjusted <= vs[0].alpha:
        reason = f"beats {_counted(vs)}; the closest is {closest}"
    elif unbeaten:
        words = ", ".join(f"{word} ({baseline})" for baseline, word in unbeaten.items())
        reason = f"does not beat every baseline: {words}"
    else:
        reason = (
            "beats each baseline by itself, but the claim does not survive the correction "
            f"over metrics taken jointly (p = {p_adjusted:.2g})"
        )
    return AgainstRandom(
        *key,
        question=question,
        beats=beats,
        reason=reason,
        p=None if mute else max(map(_one_way, vs)),
        p_adjusted=p_adjusted,
        closest=closest,
        unbeaten=tuple(unbeaten),
        worse=worse,
        silent=tuple(v.baseline for v in mute),
        baselines=tuple(v.baseline for v in vs),
        cannot_tell=any(v.word == CANNOT_TELL for v in vs),
    )


def _why_not(mute: Sequence[Verdict]) -> str:
    """Every baseline without a verdict, those of one reason together.

    What bars all of them, as a trained SAE that failed does, is said once.
    """
    parts: list[str] = []
    by_word: dict[str, list[Verdict]] = defaultdict(list)
    for v in mute:
        by_word[v.word].append(v)
    for word, vs in by_word.items():
        shared = [bar for bar in vs[0].bars if len(vs) > 1 and all(bar in v.bars for v in vs)]
        if shared:
            parts.append(f"{word} against {_names(vs)}: {shortly(shared)}")
        by_reason: dict[str, list[Verdict]] = defaultdict(list)
        for v in vs:
            own = [bar for bar in v.bars if bar not in shared]
            by_reason[shortly(own) if shared else v.short_reason].append(v)
        for why, some in by_reason.items():
            if why:
                names = _names(some)
                what = f"{names} besides" if shared else f"{word} against {names}"
                parts.append(f"{what}: {why}")
    return "; ".join(parts)


def _names(vs: Sequence[Verdict]) -> str:
    return ", ".join(v.baseline for v in vs)


def _counted(vs: Sequence[Verdict]) -> str:
    """All of them, in words: how many baselines, and how many that were never trained."""
    untrained = sum(is_control(v.constraint) for v in vs)
    counts = ((len(vs) - untrained, "baseline"), (untrained, "untrained random SAE"))
    parts = [f"{n} {what}{'' if n == 1 else 's'}" for n, what in counts if n]
    return f"all {' and '.join(parts)}" if len(vs) > 1 else parts[0]


def _combine_placements(
    question: Question, key: _Key, ps: Sequence[Placement], p_adjusted: float | None
) -> PlacedAgainstRandom:
    mute = [p for p in ps if not p.placed]
    untested = [p for p in ps if p.p_prediction is None]
    ranks = [p.p_exchangeable for p in ps if p.p_exchangeable is not None]
    below = {p.member: p.word for p in ps if p.placed and not p.is_above}
    # One that it is not above settles it, whatever the others would say.
    closest = max([p for p in ps if p.placed] if below else ps, key=_closeness).member
    reasons = []
    if below:
        words = ", ".join(f"{word} ({member})" for member, word in below.items())
        reasons.append(f"not above every {question} seed: {words}")
    elif not mute:
        reasons.append(
            f"above all {sum(p.n_seeds for p in ps)} seeds of {len(ps)} {question} "
            f"member{'' if len(ps) == 1 else 's'}; the closest is {closest}"
        )
    if mute:
        reasons += [f"{p.word} among {p.member}: {p.reason}" for p in mute]
    elif untested:
        why = "one seed" if untested[0].n_seeds == 1 else "no spread over seeds"
        reasons.append(f"no prediction p, as {untested[0].member} has {why}")
    return PlacedAgainstRandom(
        *key,
        question=question,
        above_all=False if below else None if mute else True,
        reason="; ".join(reasons),
        p=None if untested or mute else max(_or_one(p.p_prediction) for p in ps),
        p_adjusted=None if untested or mute else p_adjusted,
        p_exchangeable=max(ranks) if len(ranks) == len(ps) else None,
        closest=closest,
        not_above=tuple(below),
        below=tuple(p.member for p in ps if p.is_below),
        members=tuple(p.member for p in ps),
        silent=tuple(p.member for p in mute),
        cannot_tell=any(p.word == CANNOT_TELL for p in ps),
    )


def _closeness(p: Placement) -> tuple[bool, float, float]:
    """Larger for members that the published SAE is less above; those that cannot say first."""
    share = 0.0 if p.percentile is None else p.percentile
    return not p.placed, _or_one(p.p_prediction), -share
