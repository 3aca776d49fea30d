"""Does the trained SAE beat this baseline on this metric, and how sure are we?"""

import dataclasses
import zlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.results import Results
from sae_baselines.stats.decision import ALPHA, Decision, Word, decide
from sae_baselines.stats.differences import (
    UNPAIRED_SUITES,
    Comparison,
    MeasuredL0,
    differences,
)
from sae_baselines.stats.intervals import (
    RESAMPLES,
    Interval,
    hierarchical_bootstrap,
    spread,
    t_interval,
)
from sae_baselines.stats.margins import Margin, margin_for, override_matches
from sae_baselines.stats.power import MOST_SEEDS, POWER, seeds_to_differ, seeds_to_match


@dataclass(frozen=True)
class Verdict:
    """One metric, one baseline. Differences are oriented: positive means trained is better.

    Attributes:
        architecture: Base architecture.
        l0: Target L0.
        suite: Suite.
        metric: Metric.
        direction: +1 where higher is better, -1 where lower is.
        baseline: Member compared with: a baseline or a control.
        constraint: Its constraint, or which control it is.
        word: beats, matches, falls short, inconclusive; "single seed" and "no verdict" where
            none is given.
        reason: The word explained, in one sentence.
        trained: Mean over seeds of the trained member.
        other: Mean over seeds of the baseline.
        mean_difference: Mean over seeds of the oriented difference.
        sd_difference: Its standard deviation over seeds; NaN with fewer than two.
        interval: Paired t interval over seeds, the one the word rests on (before Holm).
        bootstrap: Hierarchical bootstrap over seeds and tasks.
        equivalence_interval: (1 - 2 alpha) t interval, to hold against the margin.
        p: Two-sided p-value of no difference; None without a test.
        p_adjusted: After Holm over the metrics of this baseline.
        p_equivalence: p-value of a difference of the margin or more.
        p_equivalence_adjusted: After Holm.
        margin: The equivalence margin used.
        within_margin: Whether the difference is proved smaller than the margin, also where the
            word is beats or falls short.
        alpha: Chance of a false word in this baseline's family.
        n_metrics: Metrics in that family.
        n_seeds: Seeds compared.
        n_tasks: Paired tasks that are resampled; 0 for an aggregate alone.
        seeds_needed: Where inconclusive, seeds for a word with 80 % power; None if more than
            100 or if there is no answer.
        seeds_needed_for: The word that they would give.
        caveats: What a reader must know.
    """

    architecture: str
    l0: float
    suite: str
    metric: str
    direction: int
    baseline: str
    constraint: str
    word: Word
    reason: str
    trained: float
    other: float
    mean_difference: float
    sd_difference: float
    interval: Interval
    bootstrap: Interval
    equivalence_interval: Interval
    p: float | None
    p_adjusted: float | None
    p_equivalence: float | None
    p_equivalence_adjusted: float | None
    margin: Margin | None
    within_margin: bool
    alpha: float
    n_metrics: int
    n_seeds: int
    n_tasks: int
    seeds_needed: int | None
    seeds_needed_for: str | None
    caveats: tuple[str, ...]


def verdicts(
    results: pd.DataFrame | Results | Sequence[Comparison],
    *,
    tested: str = "trained",
    margins: Mapping[str, float | Margin] | None = None,
    metrics: Collection[str] | None = None,
    measured_l0: MeasuredL0 | None = None,
    unpaired_suites: Collection[str] = UNPAIRED_SUITES,
    on_missing: Literal["error", "exclude"] = "error",
    alpha: float = ALPHA,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Verdict]:
    """A verdict for every architecture, L0, suite, metric and baseline or control.

    How the words are made is told in `sae_baselines.stats.decision`. One seed gives numbers and
    "single seed"; a pair of SAEs whose measured L0 is more than 5 % apart gives "no verdict".

    Args:
        results: A tidy results table, or what `differences` made of one.
        tested: Member to test.
        margins: Margins in place of the defaults, by pattern; see `margin_for`.
        metrics: Patterns ``suite/metric`` that make up the family to correct over. Choose them
            before looking: every metric more makes each verdict harder to earn.
        measured_l0: See `differences`.
        unpaired_suites: See `differences`.
        on_missing: See `differences`.
        alpha: Chance of a false word per family.
        resamples: Bootstrap replicates.
        seed: Of the bootstrap.

    Raises:
        UserError: As `differences`; a margin for a metric that is not there.
    """
    if isinstance(results, pd.DataFrame | Results):
        comparisons = differences(
            results,
            tested=tested,
            measured_l0=measured_l0,
            metrics=metrics,
            unpaired_suites=unpaired_suites,
            on_missing=on_missing,
        )
    else:
        comparisons = list(results)
    _check_margins(margins, comparisons)
    margin = [margin_for(c.suite, c.metric, margins) for c in comparisons]
    barred = [_barred(c) for c in comparisons]
    families: dict[tuple[str, float, str], list[int]] = defaultdict(list)
    for i, c in enumerate(comparisons):
        if barred[i] is None:
            families[c.architecture, c.l0, c.baseline].append(i)
    decisions: dict[int, tuple[Decision, int]] = {}
    for members in families.values():
        family = decide(
            [comparisons[i].differences for i in members],
            [_value(margin[i]) for i in members],
            alpha,
        )
        decisions.update(
            (i, (decision, len(members))) for i, decision in zip(members, family, strict=True)
        )
    return [
        _verdict(c, margin[i], barred[i], *decisions.get(i, (None, 0)), alpha, resamples, seed)
        for i, c in enumerate(comparisons)
    ]


def to_frame(items: Sequence[Any]) -> pd.DataFrame:
    """One row per verdict (or other record of this room), intervals as two columns each."""
    return pd.DataFrame([_flat(item) for item in items])


def _flat(item: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for field in dataclasses.fields(item):
        value = getattr(item, field.name)
        if isinstance(value, Interval):
            row[f"{field.name}_low"], row[f"{field.name}_high"] = value.low, value.high
        elif field.name == "margin":
            row["margin"] = None if value is None else value.value
            row["margin_why"] = None if value is None else value.why
        elif isinstance(value, tuple):
            row[field.name] = "; ".join(value)
        else:
            row[field.name] = value
    return row


def _barred(c: Comparison) -> tuple[Word, str] | None:
    """Why a comparison gets no test, if it gets none."""
    if c.failure is not None:
        return "no verdict", c.failure
    if c.excluded:
        return "no verdict", "; ".join(e.reason for e in c.excluded)
    if len(c.seeds) == 1:
        return "single seed", "one seed gives numbers, not a verdict"
    d = c.differences
    if spread(d) == 0 and d[0] != 0:
        return "no verdict", (
            f"the difference is the same to the last digit in all {len(d)} seeds: these are "
            "copies, not replicates, or a score with so few values that it has no spread"
        )
    return None


def _verdict(
    c: Comparison,
    margin: Margin | None,
    barred: tuple[Word, str] | None,
    decision: Decision | None,
    n_metrics: int,
    alpha: float,
    resamples: int,
    seed: int,
) -> Verdict:
    d = c.differences
    n = len(d)
    level = 1 - alpha
    mean = float(d.mean()) if n else np.nan
    sd = float(spread(d)) if n > 1 else np.nan
    interval = t_interval(d, level)
    # Of the comparison alone: what else is in the table must not move the interval.
    key = f"{c.architecture}|{c.l0:g}|{c.suite}|{c.metric}|{c.baseline}"
    bootstrap = hierarchical_bootstrap(
        c.rows,
        level=level,
        resamples=resamples,
        seed=[seed, zlib.crc32(key.encode())],
        crossed=c.crossed,
    )
    needed, goal = None, None
    if decision is None:
        assert barred is not None
        word, reason = barred
    else:
        word = decision.word
        if word == "inconclusive":
            needed, goal = _needed(mean, sd, margin, n, alpha / n_metrics)
        reason = _reason(decision, interval, margin, n, n_metrics, needed, goal, alpha)
    return Verdict(
        architecture=c.architecture,
        l0=c.l0,
        suite=c.suite,
        metric=c.metric,
        direction=c.direction,
        baseline=c.baseline,
        constraint=c.constraint,
        word=word,
        reason=reason,
        trained=float(c.trained.mean()) if n else np.nan,
        other=float(c.other.mean()) if n else np.nan,
        mean_difference=mean,
        sd_difference=sd,
        interval=interval,
        bootstrap=bootstrap,
        equivalence_interval=t_interval(d, 1 - 2 * alpha),
        p=None if decision is None else decision.p,
        p_adjusted=None if decision is None else decision.p_adjusted,
        p_equivalence=None if decision is None else decision.p_equivalence,
        p_equivalence_adjusted=None if decision is None else decision.p_equivalence_adjusted,
        margin=margin,
        within_margin=decision is not None and decision.within_margin,
        alpha=alpha,
        n_metrics=n_metrics,
        n_seeds=n,
        n_tasks=len(c.tasks),
        seeds_needed=needed,
        seeds_needed_for=goal,
        caveats=(*c.caveats, *_caveats(decision, d, interval, bootstrap, margin, len(c.tasks))),
    )


def _needed(
    mean: float, sd: float, margin: Margin | None, n: int, alpha: float
) -> tuple[int | None, str | None]:
    """The cheaper of two ways out, at the level of Holm's hardest step."""
    goals: list[tuple[int, str]] = []
    if mean != 0:
        seeds = seeds_to_differ(mean, sd, alpha=alpha, at_least=n + 1)
        if seeds is not None:
            goals.append((seeds, "beats" if mean > 0 else "falls short"))
    if margin is not None:
        seeds = seeds_to_match(mean, sd, margin.value, alpha=alpha, at_least=n + 1)
        if seeds is not None:
            goals.append((seeds, "matches"))
    return min(goals, default=(None, None))


def _reason(
    decision: Decision,
    interval: Interval,
    margin: Margin | None,
    n: int,
    n_metrics: int,
    needed: int | None,
    goal: str | None,
    alpha: float,
) -> str:
    over = f"over {n_metrics} metrics" if n_metrics > 1 else "one metric"
    span = f"{interval.level:.0%} interval [{interval.low:+.4g}, {interval.high:+.4g}]"
    if decision.word in ("beats", "falls short"):
        side = "above" if decision.word == "beats" else "below"
        small = ""
        if decision.within_margin and margin is not None:
            small = f", though by less than the margin of {margin.value:g}"
        return f"{span} lies {side} 0 (Holm {over}: p = {decision.p_adjusted:.2g}){small}"
    if decision.word == "matches" and margin is not None:
        return (
            f"the difference is smaller than the margin of {margin.value:g} either way "
            f"(two one-sided tests, Holm {over}: p = {decision.p_equivalence_adjusted:.2g})"
        )
    if interval.low > 0 or interval.high < 0:
        what = f"{span} excludes 0 on its own, but not after Holm {over}"
    else:
        what = f"{span} includes 0"
    if needed is None:
        more = f"more than {MOST_SEEDS} seeds would be needed"
    else:
        more = f"about {needed} seeds would be needed for '{goal}'"
    return (
        f"{what}; at the observed mean and spread of {n} seeds {more} "
        f"({POWER:.0%} power at level {alpha:g}/{n_metrics})"
    )


def _caveats(
    decision: Decision | None,
    d: np.ndarray,
    interval: Interval,
    bootstrap: Interval,
    margin: Margin | None,
    n_tasks: int,
) -> list[str]:
    found = []
    if len(d) == 2:
        found.append("two seeds: the spread rests on one degree of freedom")
    if len(d) > 1 and not d.any():
        found.append("equal in every seed: check that these are different SAEs")
    if decision is None:
        return found
    if margin is None:
        found.append("no equivalence margin is set for this metric, so it can never match")
    decided = decision.word in ("beats", "falls short")
    if decided and n_tasks and bootstrap.low <= 0 <= bootstrap.high:
        found.append("holds on these tasks; with tasks resampled the interval includes 0")
    if decided and decision.within_margin:
        found.append("within the margin")
    if decision.word == "matches" and (interval.low > 0 or interval.high < 0):
        found.append("the interval excludes 0 on its own, but not after Holm")
    return found


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


def _value(margin: Margin | None) -> float | None:
    return None if margin is None else margin.value
