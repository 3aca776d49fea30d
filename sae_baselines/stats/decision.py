"""The words of one family of metrics, from differences over seeds.

A **family** is all metrics of one architecture, L0 and baseline (of the answers in
`against_random`: and question). Two lists of p-values are
corrected by Holm, each within its family:

1. two-sided paired t tests of "no difference" (one per metric). Adjusted p <= alpha makes
   **beats** where the mean is positive and **falls short** where it is negative. The chance of
   any false *beats* or *falls short* in the family is at most alpha, and of any false *beats*
   about half of that. Two-sided, because the answer may go either way and the interval printed
   beside it, (1 - alpha), is two-sided too.
2. two one-sided tests of "apart by the margin or more" (one per metric that has a margin).
   Adjusted p <= alpha makes **matches**, unless list 1 already gave a word. The chance of any
   false *matches* in the family is at most alpha.

So *beats* always means an interval above 0, and *matches* a (1 - 2 alpha) interval inside the
margin, both with room to spare for the number of metrics. A metric can be both: more than 0 and
less than the margin; the word is then *beats*, flagged as within the margin.

Families are not corrected for one another: each baseline, architecture and L0 is a question of
its own. With four panels of 8 metrics, the chance of some false *beats* in a report is 9 %, of
any false word 18 %. ``correct="study"`` makes one family of them all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.stats.intervals import paired_t, tost
from sae_baselines.stats.rounding import farther, is_coarse, nearer

ALPHA = 0.05

# What is corrected together: each baseline's metrics, or all of a study.
Correct = Literal["baseline", "study"]

Word = Literal[
    "beats",
    "matches",
    "falls short",
    "inconclusive",
    "cannot tell",
    "single seed",
    "no verdict",
]


def corrected(name: str) -> Correct:
    """What a name says is corrected together.

    Raises:
        UserError: It is no such name.
    """
    known: tuple[Correct, ...] = get_args(Correct)
    for value in known:
        if name == value:
            return value
    raise UserError(f"correct: {name!r} is unknown; {did_you_mean(name, list(known))}")


@dataclass(frozen=True)
class Decision:
    """What the tests say about one metric.

    Attributes:
        word: One of the first four words.
        p: Two-sided p-value of the paired t test.
        p_adjusted: After Holm over the family.
        p_equivalence: p-value of the two one-sided tests; None without a margin.
        p_equivalence_adjusted: After Holm over the metrics with a margin.
        within_margin: Whether the equivalence test rejects, whatever the word.
    """

    word: Word
    p: float
    p_adjusted: float
    p_equivalence: float | None
    p_equivalence_adjusted: float | None
    within_margin: bool


def decide(
    differences: Sequence[np.ndarray],
    margins: Sequence[float | None],
    alpha: float = ALPHA,
    steps: Sequence[float] = (),
) -> list[Decision]:
    """Decide one family.

    Args:
        differences: Per metric, oriented differences per seed, ``[n_seeds >= 2]`` each.
        margins: Per metric, the equivalence margin or None.
        alpha: Chance of a false word.
        steps: Per metric, of how scores are rounded (`stats.rounding`); default: not at all.
            Where the spread is of that size, a word has to hold whatever was rounded away.
    """
    coarse = [
        step if is_coarse(d, step) else 0.0
        for d, step in zip(differences, steps or [0.0] * len(differences), strict=True)
    ]
    tests = [
        paired_t(nearer(d, step) if step else d)
        for d, step in zip(differences, coarse, strict=True)
    ]
    means, p = ([float(test[i]) for test in tests] for i in (0, 1))
    same = [
        None if margin is None else float(tost(farther(d, step) if step else d, margin))
        for d, margin, step in zip(differences, margins, coarse, strict=True)
    ]
    return words(means, p, same, alpha)


def words(
    means: Sequence[float],
    p: Sequence[float],
    p_equivalence: Sequence[float | None],
    alpha: float = ALPHA,
) -> list[Decision]:
    """The words of one family, from its p-values.

    Args:
        means: Per metric, the oriented mean difference.
        p: Of `paired_t`.
        p_equivalence: Of `tost`, or None without a margin.
        alpha: Chance of a false word.
    """
    adjusted = holm(p)
    equal = iter(holm([value for value in p_equivalence if value is not None]))
    decisions = []
    for i, mean in enumerate(means):
        same = None if p_equivalence[i] is None else float(next(equal))
        within = same is not None and same <= alpha
        word: Word = "matches" if within else "inconclusive"
        if adjusted[i] <= alpha:
            word = "beats" if mean > 0 else "falls short"
        decisions.append(
            Decision(word, float(p[i]), float(adjusted[i]), p_equivalence[i], same, within)
        )
    return decisions


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values (*Scandinavian Journal of Statistics* 6, 1979).

    Sorted ascending, adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)). Rejecting
    where adjusted p <= alpha keeps the chance of even one false rejection at most alpha,
    however the metrics are correlated.

    The tests hold it to ``statsmodels.stats.multitest.multipletests(method="holm")``, which is
    not called because it runs a full garbage collection each time: up to half a second in a
    process that has torch loaded.

    Args:
        p: ``[m]``, m >= 0.

    Returns:
        Adjusted p-values, ``[m]``.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
