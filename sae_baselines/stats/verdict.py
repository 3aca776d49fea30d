"""Does the trained SAE beat this baseline on this metric, and how sure are we?"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.evals.metrics import Margin
from sae_baselines.evals.registry import margin_for, override_matches
from sae_baselines.results import Results
from sae_baselines.stats.decision import ALPHA, Correct, Word, corrected, decide
from sae_baselines.stats.differences import (
    Comparison,
    MeasuredL0,
    Paired,
    comparisons_of,
)
from sae_baselines.stats.fitness import dominant
from sae_baselines.stats.floors import CANNOT_TELL, above, cannot_tell
from sae_baselines.stats.intervals import (
    Interval,
    spread,
    t_interval,
    tasks_interval,
)
from sae_baselines.stats.match import Bar
from sae_baselines.stats.method import METHOD
from sae_baselines.stats.power import seeds_to_differ, seeds_to_match
from sae_baselines.stats.rounding import is_coarse, moved

_UNTESTED: dict[str, Any] = {
    **dict.fromkeys(("p", "p_adjusted", "p_equivalence", "p_equivalence_adjusted")),
    "reason": "",
    "within_margin": False,
    "n_metrics": 0,
}


# A seed so far from others that are equal but for rounding stands out whatever it hides.
_STEPS_APART = 20


@dataclass(frozen=True)
class Verdict(Paired):
    """One metric, one baseline (`Paired`).

    Differences are oriented: positive means trained is better.

    Attributes:
        word: beats, matches, falls short, inconclusive; "cannot tell" where the metric tells
            nothing of the trained SAE (`stats.floors`); "single seed" and "no verdict" where
            none is given.
        reason: The word explained, in one sentence.
        trained: Mean over seeds of the trained member.
        other: Mean over seeds of the baseline.
        mean_difference: Mean over seeds of the oriented difference.
        sd_difference: Its standard deviation over seeds; NaN with fewer than two.
        interval: Paired t interval over seeds, the one the word rests on (before Holm).
        over_tasks: Interval over seeds and tasks: of other tasks of the kind.
        equivalence_interval: (1 - 2 alpha) t interval, to hold against the margin.
        p: Two-sided p-value of no difference; None without a test.
        p_adjusted: After Holm over the metrics of this baseline.
        p_equivalence: p-value of a difference of the margin or more.
        p_equivalence_adjusted: After Holm.
        margin: The equivalence margin used.
        within_margin: Whether the difference is proved smaller than the margin, also where the
            word is beats or falls short.
        alpha: Chance of a false word in this family.
        correct: What that family is: "baseline" or "study".
        n_metrics: Metrics in that family, or tests of the study; 0 where nothing was tested.
        n_seeds: Seeds compared.
        n_tasks: Paired tasks; 0 for an aggregate alone.
        seeds_needed: Where inconclusive, seeds for a word with 80 % power; None if more than
            100 or if there is no answer.
        seeds_needed_for: The word that they would give.
        caveats: What a reader must know.
        bars: Kind and reason of all that forbids a word; their reasons are in ``reason``.
        step: How far off rounding to half precision can put a difference; 0 for not at all.
        floor: The trained member's highest floor, mean over seeds; NaN where none was measured.
        floor_is: Its metric; "" where none was measured.
        above_floor: (1 - 2 alpha) interval of the trained score - that floor, over seeds or,
            of one seed, tasks; None where that cannot be had.
        ceiling: What bounds the metric, mean over seeds; NaN where nothing was measured.
    """

    word: Word
    reason: str
    trained: float
    other: float
    mean_difference: float
    sd_difference: float
    interval: Interval
    over_tasks: Interval
    equivalence_interval: Interval
    p: float | None
    p_adjusted: float | None
    p_equivalence: float | None
    p_equivalence_adjusted: float | None
    margin: Margin | None
    within_margin: bool
    alpha: float
    correct: Correct
    n_metrics: int
    n_seeds: int
    n_tasks: int
    seeds_needed: int | None
    seeds_needed_for: str | None
    caveats: tuple[str, ...]
    bars: tuple[Bar, ...] = ()
    step: float = 0.0
    floor: float = math.nan
    floor_is: str = ""
    above_floor: Interval | None = None
    ceiling: float = math.nan

    @property
    def short_reason(self) -> str:
        """Of several reasons of a kind, which differ in their seed, the first."""
        return shortly(self.bars) or self.reason


def shortly(bars: Sequence[Bar]) -> str:
    """The first reason of each kind, and how many more there are."""
    by_kind: dict[str, list[str]] = defaultdict(list)
    for bar in bars:
        by_kind[bar.kind].append(bar.reason)
    return "; ".join(map(first_of, by_kind.values()))


def first_of(reasons: Sequence[str]) -> str:
    """The first reason, and how many more there are."""
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"{reasons[0]}{more}"


def verdicts(
    results: pd.DataFrame | Results | Sequence[Comparison],
    *,
    tested: str = "trained",
    margins: Mapping[str, float | Margin] | None = None,
    metrics: Collection[str] | None = None,
    measured_l0: MeasuredL0 | None = None,
    unpaired_suites: Collection[str] | None = None,
    on_missing: Literal["error", "exclude"] = "error",
    alpha: float = ALPHA,
    correct: Correct = "baseline",
) -> list[Verdict]:
    """A verdict for every architecture, L0, suite, metric and baseline or control.

    How the words are made is told in `sae_baselines.stats.decision`. One seed gives numbers and
    "single seed"; a pair of SAEs whose measured L0 is more than 5 % apart gives "no verdict".

    Args:
        results: Results, a tidy table, or what `differences` made of one.
        tested: Member to test.
        margins: Margins in place of the defaults, by pattern; see `margin_for`.
        metrics: Patterns ``suite/metric`` that make up the family to correct over. Choose them
            before looking: every metric more makes each verdict harder to earn.
        measured_l0: See `differences`.
        unpaired_suites: See `differences`.
        on_missing: See `differences`.
        alpha: Chance of a false word per family.
        correct: Which metrics are corrected together: those of one baseline, architecture and
            L0 ("baseline"), or all of the study ("study").

    Raises:
        UserError: As `differences`; a margin for a metric that is not there; an unknown name
            in ``correct``.
    """
    comparisons = comparisons_of(
        results,
        tested=tested,
        measured_l0=measured_l0,
        metrics=metrics,
        unpaired_suites=unpaired_suites,
        on_missing=on_missing,
    )
    _check_margins(margins, comparisons)
    margin = [margin_for(c.suite, c.metric, margins) for c in comparisons]
    barred = [_barred(c) for c in comparisons]
    families: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, c in enumerate(comparisons):
        if not barred[i]:
            key = (c.architecture, c.l0, c.baseline) if correct == "baseline" else ()
            families[key].append(i)
    # What stands in a verdict without a test.
    family_of = corrected(correct)
    tests = [{**_UNTESTED, "correct": family_of, **word} for word in barred]
    for family in families.values():
        decisions = decide(
            [comparisons[i].differences for i in family],
            [None if (m := margin[i]) is None else m.value for i in family],
            alpha,
            [comparisons[i].step for i in family],
        )
        for i, decision in zip(family, decisions, strict=True):
            c = comparisons[i]
            if decision.word == "inconclusive" and is_coarse(c.differences, c.step):
                bar = Bar("rounded", _rounded(c))
                tests[i] |= {"word": "no verdict", "reason": bar.reason, "bars": (bar,)}
            else:
                tests[i] |= vars(decision)
            tests[i]["n_metrics"] = len(family)
    for i, c in enumerate(comparisons):
        limit = None if (m := margin[i]) is None else m.value
        unseen = c.blind or cannot_tell(c.rooms, limit, alpha)
        if unseen and tests[i].get("word") != "no verdict":
            word = {"word": CANNOT_TELL, "reason": unseen, "within_margin": False}
            tests[i] = {**tests[i], **word}
    return [_verdict(c, margin[i], tests[i], alpha) for i, c in enumerate(comparisons)]


def n_families(items: Sequence[Verdict]) -> int:
    """Families of tests that were corrected each by itself: one under ``correct="study"``.

    Without an effect each has a chance of alpha to give a false word.
    """
    tested = [v for v in items if v.n_metrics]
    keys = {
        (v.architecture, v.l0, v.baseline) if v.correct == "baseline" else () for v in tested
    }
    return len(keys)


def to_frame(items: Sequence[Any]) -> pd.DataFrame:
    """One row per verdict (or other record of this room), intervals as two columns each."""
    return pd.DataFrame([_flat(item) for item in items])


def _flat(item: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for field in fields(item):
        value = getattr(item, field.name)
        if field.name == "above_floor":
            value = value or Interval(np.nan, np.nan, np.nan)
        if isinstance(value, Interval):
            row[f"{field.name}_low"], row[f"{field.name}_high"] = value.low, value.high
        elif field.name == "margin":
            row["margin"] = None if value is None else value.value
            row["margin_why"] = None if value is None else value.why
        elif field.name == "bars":
            continue  # in the reason
        elif isinstance(value, tuple):
            row[field.name] = "; ".join(value)
        else:
            row[field.name] = value
    return row


def _barred(c: Comparison) -> dict[str, str]:
    """Word and reason of a comparison that gets no test, if it gets none."""
    if c.barred is not None:
        return {"word": "no verdict", "reason": c.barred}
    if len(c.seeds) == 1:
        return {"word": "single seed", "reason": "one seed gives numbers, not a verdict"}
    d = c.differences
    if spread(d) > 0 or d[0] == 0 or c.step:
        return {}
    return {
        "word": "no verdict",
        "reason": f"the difference is the same to the last digit in all {len(d)} seeds: these "
        "are copies, not replicates, or a score with so few values that it has no spread",
    }


def _verdict(
    c: Comparison,
    margin: Margin | None,
    test: Mapping[str, Any],
    alpha: float,
) -> Verdict:
    d = c.differences
    coarse = is_coarse(d, c.step)

    def interval(level: float) -> Interval:
        if not coarse:
            return t_interval(d, level)
        low, high = (t_interval(moved(d, by, c.step), level) for by in (-c.step, c.step))
        return Interval(low.low, high.high, level)

    told: dict[str, Any] = {"bars": c.bars, **test}
    verdict = Verdict(
        **c.pair,
        **told,
        trained=float(c.trained.mean()) if len(d) else np.nan,
        other=float(c.other.mean()) if len(d) else np.nan,
        mean_difference=float(d.mean()) if len(d) else np.nan,
        sd_difference=float(spread(d)) if len(d) > 1 else np.nan,
        interval=interval(1 - alpha),
        # Scores that are rounded have no tasks.
        over_tasks=interval(1 - alpha)
        if coarse
        else tasks_interval(c.rows, level=1 - alpha, crossed=c.crossed),
        equivalence_interval=interval(1 - 2 * alpha),
        margin=margin,
        alpha=alpha,
        n_seeds=len(d),
        n_tasks=len(c.tasks),
        seeds_needed=None,
        seeds_needed_for=None,
        caveats=c.caveats,
        step=c.step,
        **_floor(c, alpha),
    )
    if verdict.word == "inconclusive":
        needed, goal = _needed(verdict)
        verdict = replace(verdict, seeds_needed=needed, seeds_needed_for=goal)
    return replace(
        verdict,
        reason=verdict.reason or _reason(verdict),
        caveats=(*c.caveats, *_caveats(verdict, c)),
    )


def _floor(c: Comparison, alpha: float) -> dict[str, Any]:
    """What is told of the trained member's floor and ceiling, where they were measured."""
    if not c.rooms:
        return {}
    told: dict[str, Any] = {"ceiling": c.rooms[0].ceiling}
    highest = c.rooms[0].highest
    if highest is not None:
        interval = above(highest, alpha)
        told |= {"floor": highest.value, "floor_is": highest.metric, "above_floor": interval}
    return told


def _rounded(c: Comparison) -> str:
    """What rounding leaves of a difference, in words."""
    return (
        f"rounding decides: {c.suite}/{c.metric} comes in steps of {c.step:.2g} (a mean in "
        f"half precision), and the difference is {c.differences.mean():.2g} with a standard "
        f"deviation of {spread(c.differences):.2g} over seeds; evaluate again with llm_dtype: "
        "float32"
    )


def _needed(v: Verdict) -> tuple[int | None, str | None]:
    """The cheaper of two ways out, at the level of Holm's hardest step."""
    goals: list[tuple[int, str]] = []
    mean, sd, alpha = v.mean_difference, v.sd_difference, v.alpha / v.n_metrics
    if mean != 0:
        seeds = seeds_to_differ(mean, sd, alpha=alpha, at_least=v.n_seeds + 1)
        if seeds is not None:
            goals.append((seeds, "beats" if mean > 0 else "falls short"))
    if v.margin is not None:
        seeds = seeds_to_match(mean, sd, v.margin.value, alpha=alpha, at_least=v.n_seeds + 1)
        if seeds is not None:
            goals.append((seeds, "matches"))
    return min(goals, default=(None, None))


def _reason(v: Verdict) -> str:
    over = f"over {v.n_metrics} metrics" if v.n_metrics > 1 else "one metric"
    if v.correct == "study":
        over = f"over {v.n_metrics} tests of the study"
    holm = f"{METHOD.correction} {over}"
    low, high = v.interval.low, v.interval.high
    span = f"{v.interval.level:.0%} interval [{low:+.4g}, {high:+.4g}]"
    if v.word in ("beats", "falls short"):
        side = "above" if v.word == "beats" else "below"
        small = ""
        if v.within_margin and v.margin is not None:
            small = f", though by less than the margin of {v.margin.value:g}"
        return f"{span} lies {side} 0 ({holm}: p = {v.p_adjusted:.2g}){small}"
    if v.word == "matches" and v.margin is not None:
        return (
            f"the difference is smaller than the margin of {v.margin.value:g} either way "
            f"({METHOD.equivalence}, {holm}: p = {v.p_equivalence_adjusted:.2g})"
        )
    what = f"{span} includes 0"
    if low > 0 or high < 0:
        what = f"{span} excludes 0 on its own, but not after {holm}"
    more = f"about {v.seeds_needed} seeds would be needed for '{v.seeds_needed_for}'"
    if v.seeds_needed is None:
        more = f"more than {METHOD.most_seeds} seeds would be needed"
    return (
        f"{what}; at the observed mean and spread of {v.n_seeds} seeds {more} "
        f"({METHOD.power:.0%} power at level {v.alpha:g}/{v.n_metrics})"
    )


def _caveats(v: Verdict, c: Comparison) -> list[str]:
    d, seeds, caveats = c.differences, c.seeds, []
    if len(d) == 2:
        caveats.append(METHOD.two_seeds)
    if v.p is not None and is_coarse(d, c.step):
        caveats.append(
            f"scores come in steps of {c.step:.2g} (means in half precision), and the spread "
            f"over seeds is {v.sd_difference:.2g}: intervals and tests allow for a step either "
            "way"
        )
    if len(d) > 1 and not d.any() and not c.step:
        caveats.append("equal in every seed: check that these are different SAEs")
    if v.p is None:
        return caveats
    i = dominant(d)
    others = d if i is None else np.delete(d, i)
    rest = float(others.std(ddof=1))
    # What varies by less than a step varies by an unknown amount.
    far = i is not None and abs(d[i] - others.mean()) >= _STEPS_APART * c.step
    if i is not None and (far or rest >= c.step):
        rest = max(rest, c.step)
        caveats.append(
            f"the spread is dominated by seed {seeds[i]}: {v.sd_difference:.3g} with it, "
            f"{rest:.3g} without; words assume differences that are about normal"
        )
    if v.margin is None:
        caveats.append("no equivalence margin is set for this metric, so it can never match")
    decided = v.word in ("beats", "falls short")
    if decided and v.n_tasks and v.over_tasks.low <= 0 <= v.over_tasks.high:
        caveats.append("holds on these tasks; over other tasks too the interval includes 0")
    if decided and v.within_margin:
        caveats.append("within the margin")
    if v.word == "matches" and (v.interval.low > 0 or v.interval.high < 0):
        caveats.append(f"the interval excludes 0 on its own, but not after {METHOD.correction}")
    return caveats


def _check_margins(
    margins: Mapping[str, float | Margin] | None, comparisons: Sequence[Comparison]
) -> None:
    names = sorted({f"{c.suite}/{c.metric}" for c in comparisons})
    for pattern in margins or {}:
        if not any(override_matches(pattern, c.suite, c.metric) for c in comparisons):
            raise UserError(
                f"margin for {pattern!r}, which is no metric here; "
                f"{did_you_mean(pattern, names)}"
            )
