"""The words."""

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sae_baselines.controls import Question
from sae_baselines.errors import UserError
from sae_baselines.stats import (
    METHOD,
    Verdict,
    against_random,
    decide,
    n_families,
    to_frame,
    verdicts,
)
from sae_baselines.stats.decision import holm
from tests.stats.tables import BASELINES, frame, paired, rows

NOISE = np.array([0.001, -0.002, 0.0015, -0.0005, 0.0])
FLIPPED = {"beats": "falls short", "falls short": "beats"}


def judged(d: Any, **options: Any) -> Verdict:
    """The verdict on these differences of explained variance, above a baseline of 0.5."""
    base = 0.5 + np.linspace(0, 0.1, len(d))
    (found,) = verdicts(frame(rows(paired(base + np.asarray(d), base))), **options)
    return found


def test_beats() -> None:
    found = judged(0.1 + NOISE)
    assert found.word == "beats"
    assert not found.within_margin
    assert found.interval.low > 0
    assert found.over_tasks == found.interval
    assert found.p == pytest.approx(stats.ttest_1samp(0.1 + NOISE, 0)[1], rel=1e-6)
    assert found.p_adjusted == found.p
    assert found.margin is not None
    assert found.margin.value == 0.02
    assert (found.n_seeds, found.n_tasks, found.n_metrics) == (5, 0, 1)
    assert found.seeds_needed is None
    assert found.caveats == ()
    assert "lies above 0" in found.reason


def test_the_method_that_texts_print_is_the_one_used() -> None:
    found = judged(0.1 + NOISE)
    assert found.alpha == METHOD.alpha
    assert found.interval.level == found.over_tasks.level == METHOD.level
    assert found.equivalence_interval.level == METHOD.equivalence_level
    assert 1 / (METHOD.seeds_for_ranks + 1) <= METHOD.alpha < 1 / METHOD.seeds_for_ranks
    apart = {"frozen_decoder": 32 * (1 + 0.9 * METHOD.l0_tolerance)}
    table = rows(paired(0.6 + NOISE, np.full(5, 0.5)))
    assert verdicts(frame(table, l0=apart))[0].word == "beats"
    apart = {"frozen_decoder": 32 * (1 + 1.1 * METHOD.l0_tolerance)}
    assert verdicts(frame(table, l0=apart))[0].word == "no verdict"


def test_falls_short() -> None:
    assert judged(-0.1 + NOISE).word == "falls short"


def test_matches() -> None:
    found = judged(NOISE)
    assert found.word == "matches"
    assert found.within_margin
    assert found.equivalence_interval.inside(0.02)
    assert "margin of 0.02" in found.reason


def test_beats_within_the_margin_is_flagged() -> None:
    found = judged(0.01 + NOISE)
    assert found.word == "beats"
    assert found.within_margin
    assert "within the margin" in found.caveats
    assert "by less than the margin of 0.02" in found.reason
    assert judged(0.01 + NOISE, margins={"explained_variance": 0.005}).within_margin is False


def test_inconclusive_says_how_many_seeds() -> None:
    found = judged([0.01, 0.09, 0.12])
    assert found.word == "inconclusive"
    assert found.interval.low < 0
    assert found.seeds_needed is not None
    assert 3 < found.seeds_needed < 20
    assert found.seeds_needed_for == "beats"
    assert f"about {found.seeds_needed} seeds" in found.reason
    inside = judged([0.02, -0.015, 0.001])
    assert inside.word == "inconclusive"
    assert inside.seeds_needed_for == "matches"
    hopeless = judged([0.3, -0.3, 0.06])
    assert hopeless.seeds_needed is None
    assert "more than 100 seeds" in hopeless.reason


def test_single_seed_gives_numbers_and_no_verdict() -> None:
    found = judged([0.1])
    assert found.word == "single seed"
    assert found.mean_difference == pytest.approx(0.1)
    assert found.p is found.p_adjusted is found.p_equivalence is None
    assert np.isnan(found.interval.low)
    assert np.isnan(found.over_tasks.high)
    assert not found.within_margin


def test_two_seeds_are_told() -> None:
    assert "two seeds" in judged([0.1, 0.2]).caveats[0]


def test_l0_mismatch_gives_no_verdict_and_why() -> None:
    table = frame(rows(paired(0.6 + NOISE, np.full(5, 0.5))), l0={"frozen_decoder": 40})
    (found,) = verdicts(table)
    assert found.word == "no verdict"
    assert "L0 differs at seed 0: trained 32, frozen_decoder 40" in found.reason


def test_one_seed_at_another_l0_is_enough_for_none() -> None:
    table = frame(rows(paired(0.6 + NOISE, np.full(5, 0.5))))
    table.loc[(table.metric == "l0") & (table.seed == 3), "value"] = [32.0, 40.0]
    (found,) = verdicts(table)
    assert found.word == "no verdict"
    assert found.n_seeds == 4
    assert found.mean_difference == pytest.approx(0.1 + NOISE[[0, 1, 2, 4]].mean())
    assert "seed 3" in found.reason
    assert "seed 0" not in found.reason


def test_missing_results_may_be_excluded_but_stay_visible() -> None:
    table = frame(
        rows(paired(0.6 + NOISE, np.full(5, 0.5))),
        rows(paired([0.9, 0.9], [0.8]), metric="ce_loss_score"),
    )
    with pytest.raises(UserError, match="no score for seed 1"):
        verdicts(table)
    bad, good = verdicts(table, on_missing="exclude")
    assert bad.word == "no verdict"
    assert "frozen_decoder has no score for seed 1" in bad.reason
    assert good.word == "beats"
    assert good.n_metrics == 1


def test_copies_are_not_replicates() -> None:
    found = judged([0.1, 0.1, 0.1])
    assert found.word == "no verdict"
    assert "copies" in found.reason


def test_equal_scores_match_with_a_caveat() -> None:
    found = judged([0.0, 0.0, 0.0])
    assert found.word == "matches"
    assert "equal in every seed" in found.caveats[0]


def test_without_margin_nothing_matches() -> None:
    table = frame(rows(paired(0.5 + NOISE, np.full(5, 0.5)), metric="mse", direction="lower"))
    (found,) = verdicts(table)
    assert found.word == "inconclusive"
    assert found.margin is None
    assert "never match" in found.caveats[0]
    assert verdicts(table, margins={"core/mse": 0.1})[0].word == "matches"
    with pytest.raises(UserError, match="did you mean core/mse"):
        verdicts(table, margins={"core/msee": 0.1})


def test_direction() -> None:
    table = frame(rows(paired(0.1 + NOISE, np.full(5, 0.3)), direction=-1))
    (found,) = verdicts(table)
    assert found.word == "beats"
    assert found.mean_difference == pytest.approx(0.2)
    assert (found.trained, found.other) == pytest.approx((0.1, 0.3))


def test_holm_over_the_metrics_of_a_baseline() -> None:
    """The same p-value that decides alone does not decide among ten."""
    d = np.array([0.06, 0.08, 0.11])
    alone = judged(d)
    assert alone.word == "beats"
    rng = np.random.default_rng(0)
    others = [
        rows(paired(rng.normal(size=3), rng.normal(size=3)), metric=f"noise_{i}")
        for i in range(9)
    ]
    table = frame(rows(paired(0.5 + d, np.full(3, 0.5))), *others)
    (among,) = [v for v in verdicts(table) if v.metric == "explained_variance"]
    assert among.word == "inconclusive"
    assert among.p == pytest.approx(alone.p)
    assert among.n_metrics == 10
    assert "not after Holm over 10 metrics" in among.reason
    assert among.seeds_needed is not None
    (chosen,) = verdicts(table, metrics=["core/explained_variance"])
    assert chosen.word == "beats"


def test_baselines_do_not_weigh_on_each_other() -> None:
    values = paired(0.6 + NOISE, np.full(5, 0.5))
    one = verdicts(frame(rows(values)))[0]
    values.update({("frozen_encoder", s): 0.6 for s in range(5)})
    two = verdicts(frame(rows(values)))
    assert two[0] == one
    assert two[1].baseline == "frozen_encoder"


def table_of(seed: int, n: int, shift: float) -> Any:
    rng = np.random.default_rng(seed)
    parts = []
    for metric, sign in (("explained_variance", 1), ("mse", -1), ("ce_loss_score", 1)):
        values = {
            (m, s): dict(
                zip(
                    "abcd",
                    rng.normal(size=4) * 0.02 + sign * shift * (m == "trained"),
                    strict=True,
                )
            )
            for m in ("trained", *BASELINES)
            for s in range(n)
        }
        parts.append(rows(values, metric=metric, direction=sign))
    return frame(*parts)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(2, 6), st.sampled_from([0.0, 0.01, 0.1]))
def test_swapping_trained_and_baseline_flips_the_word(seed: int, n: int, shift: float) -> None:
    table = table_of(seed, n, shift)
    table = table[table.member.isin(["trained", "frozen_decoder"])]
    swapped = table.replace({"trained": "frozen_decoder", "frozen_decoder": "trained"})
    for a, b in zip(verdicts(table), verdicts(swapped), strict=True):
        assert b.word == FLIPPED.get(a.word, a.word)
        assert b.mean_difference == pytest.approx(-a.mean_difference)
        assert b.interval.low == pytest.approx(-a.interval.high)
        assert b.p_adjusted == pytest.approx(a.p_adjusted)
        assert b.p_equivalence_adjusted == pytest.approx(a.p_equivalence_adjusted)
        assert b.within_margin == a.within_margin
        assert b.seeds_needed == a.seeds_needed


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000))
def test_order_of_rows_does_not_matter(seed: int) -> None:
    table = table_of(seed, 3, 0.02)
    shuffled = table.sample(frac=1, random_state=seed)
    assert verdicts(shuffled) == verdicts(table)


def test_tasks_enter_one_interval_alone() -> None:
    """Task effects widen the interval over tasks, not the one that words rest on."""
    effect = dict(zip("abcdef", np.linspace(-0.3, 0.4, 6), strict=True))
    values: dict[tuple[str, int], Any] = {}
    for s in range(5):
        values["trained", s] = {t: 0.5 + e + NOISE[s] for t, e in effect.items()}
        values["frozen_decoder", s] = dict.fromkeys(effect, 0.5)
    (found,) = verdicts(frame(rows(values)))
    assert found.n_tasks == 6
    assert found.word == "beats"
    assert found.over_tasks.low < 0 < found.interval.low
    assert "holds on these tasks" in found.caveats[0]


def test_frame_has_everything() -> None:
    found = verdicts(table_of(0, 3, 0.05))
    table = to_frame(found)
    assert len(table) == len(found) == 9
    assert {"interval_low", "over_tasks_high", "margin", "margin_why", "word"} <= set(table)
    assert table.word.tolist() == [v.word for v in found]
    assert table.interval_low.tolist() == [v.interval.low for v in found]
    assert table.margin.isna().sum() == 3
    random = to_frame(against_random(found))
    assert len(random) == 3
    assert random.baselines[0] == "frozen_decoder; frozen_encoder"
    assert set(to_frame(against_random(found, "nearly free")).baselines) == {
        "soft_frozen_decoder"
    }


def test_decide_directly() -> None:
    found = decide([0.1 + NOISE, NOISE, -0.1 + NOISE], [0.02, 0.02, None])
    assert [f.word for f in found] == ["beats", "matches", "falls short"]
    assert found[2].p_equivalence is None
    assert decide([], []) == []


def test_one_correction_over_all_families() -> None:
    """Three baselines of two metrics each: three families of two, or one of six."""
    values = {
        (m, s): 0.5 + 0.006 * (m == "trained") + NOISE[(s + 2 * i) % 5]
        for i, m in enumerate(("trained", *BASELINES))
        for s in range(5)
    }
    parts = [rows(values, metric=m) for m in ("explained_variance", "cossim")]
    each, study = verdicts(frame(*parts)), verdicts(frame(*parts), correct="study")
    assert ({v.n_metrics for v in each}, n_families(each)) == ({2}, 3)
    assert ({v.n_metrics for v in study}, n_families(study)) == ({6}, 1)
    assert [v.p for v in each] == [v.p for v in study]
    assert [v.p_adjusted for v in study] == pytest.approx(holm([v.p or 0.0 for v in study]))
    assert all(
        (a.p_adjusted or 0) <= (b.p_adjusted or 0) for a, b in zip(each, study, strict=True)
    )
    assert "over 6 tests of the study" in study[0].reason
    # Jointly: both questions, all metrics, one correction, and never more than the words say.
    answers = [a for q in get_args(Question) for a in against_random(study, q, "study")]
    largest = [a.p for a in answers]
    assert [a.p_adjusted for a in answers] == pytest.approx(holm([p or 0.0 for p in largest]))
    assert all(not a.unbeaten for a in answers if a.beats)
    with pytest.raises(UserError, match="correct: 'studdy' is unknown; did you mean study"):
        verdicts(frame(*parts), correct="studdy")  # type: ignore[arg-type]


def test_spread_that_one_seed_makes_is_a_caveat_of_that_seed() -> None:
    found = judged([0.1, 0.101, 0.099, 0.1, 0.16])
    assert "the spread is dominated by seed 4" in found.caveats[0]
    assert judged(0.1 + NOISE).caveats == ()


def test_few_seeds_leave_a_rate_of_failing_runs_open() -> None:
    assert [METHOD.failures_unseen(n) for n in (3, 5, 10)] == pytest.approx(
        [0.632, 0.451, 0.259], abs=1e-3
    )
    assert judged([0.1, 0.2]).caveats[0] == METHOD.two_seeds
    assert f"up to {METHOD.failures_unseen(2):.0%} open" in METHOD.two_seeds
