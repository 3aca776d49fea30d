"""Where one SAE falls among the seeds of others: numbers, words, reasons."""

import dataclasses
import math
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sae_baselines.controls import Question
from sae_baselines.errors import UserError
from sae_baselines.stats import (
    Correct,
    Placement,
    differences,
    placed_against_random,
    placements,
    to_frame,
)
from sae_baselines.stats.decision import holm
from sae_baselines.stats.one_value import predicted, ranked, seeds_for
from tests.stats.tables import frame, rows

# Ratios to the target L0 of which a training or a measurement may be.
AT_L0 = (0.52, 0.92, 1.15)
# Of a simulation; an interval takes 5 ms.
_DRAWS = 600
NULL = (0.50, 0.53, 0.51, 0.55, 0.52)


def study(
    own: float,
    nulls: dict[str, Any],
    *,
    direction: int = 1,
    l0: dict[str, float] | None = None,
    **where: Any,
) -> pd.DataFrame:
    """One metric: a published SAE and members with their seeds' values (or tasks of each)."""
    values = {("published", -1): own}
    values.update({(m, s): v for m, vs in nulls.items() for s, v in enumerate(vs)})
    return frame(rows(values, direction=direction, **where), l0=l0)


def placed(own: float, *null: float, **options: Any) -> Placement:
    (found,) = placements(study(own, {"frozen_decoder": null}, **options))
    return found


# The numbers.


def test_prediction_p_is_the_two_sample_t_test_with_one_in_a_sample():
    for value in (0.4, 0.521, 0.56, 0.7):
        found = predicted(value, np.array(NULL))
        assert found is not None
        sd = float(np.std(NULL, ddof=1))
        test = stats.ttest_ind_from_stats(
            value, 0, 1, float(np.mean(NULL)), sd, len(NULL), alternative="greater"
        )
        assert found.p == pytest.approx(float(test.pvalue), rel=1e-12)
        assert found.z == pytest.approx((value - np.mean(NULL)) / sd)
        assert found.percentile == pytest.approx(float(stats.norm.cdf(found.z)))


def test_prediction_p_is_uniform_where_the_value_is_one_more_seed():
    rng = np.random.default_rng(1)
    for n in (2, 3, 5, 10):
        # Location and scale must not matter.
        draws = 7 + 0.01 * rng.normal(size=(2000, n + 1))
        sd = draws[:, 1:].std(axis=1, ddof=1)
        t = (draws[:, 0] - draws[:, 1:].mean(axis=1)) / (sd * math.sqrt(1 + 1 / n))
        found = [predicted(float(d[0]), d[1:]) for d in draws[:40]]
        assert [f.p for f in found if f] == pytest.approx(stats.t.sf(t[:40], n - 1))
        assert stats.kstest(stats.t.sf(t, n - 1), "uniform").pvalue > 0.001


@pytest.mark.parametrize(
    ("n", "share"),
    [
        (3, 0.9),
        *(pytest.param(*case, marks=pytest.mark.thorough) for case in [(5, 0.5), (10, 0.99)]),
    ],
)
def test_the_normal_interval_covers_as_often_as_it_says(n: int, share: float):
    rng = np.random.default_rng(n)
    value = 3 + 0.2 * float(stats.norm.ppf(share))
    hits = 0
    for others in 3 + 0.2 * rng.normal(size=(_DRAWS, n)):
        found = predicted(value, others)
        assert found is not None
        hits += found.interval.low <= share <= found.interval.high
    # Four standard errors of a share of so many.
    assert abs(hits / _DRAWS - 0.95) < 4 * math.sqrt(0.95 * 0.05 / _DRAWS)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
@pytest.mark.parametrize("z", [-40.0, -1.3, 0.0, 0.4, 8.0, 150.0])
def test_the_normal_interval_inverts_the_noncentral_t_distribution(n: int, z: float):
    others = np.linspace(0, 1, n)
    value = float(others.mean() + z * others.std(ddof=1))
    found = predicted(value, others)
    assert found is not None
    nodes, weights = np.polynomial.legendre.leggauss(800)
    root = np.sqrt(stats.chi2.ppf((nodes + 1) / 2, n - 1) / (n - 1))
    for end, q in ((found.interval.low, 0.975), (found.interval.high, 0.025)):
        if not 1e-12 < end < 1 - 1e-12:
            continue
        # P(T <= t) = E Phi(t W - d) over W, the root of a chi-square over its freedoms.
        d = float(stats.norm.ppf(end)) * math.sqrt(n)
        below = stats.norm.cdf(z * math.sqrt(n) * root - d)
        assert float((weights * below).sum() / 2) == pytest.approx(q, abs=2e-4)


@pytest.mark.parametrize("z", [1e3, 1e6, 1e12])
def test_a_value_far_away_has_an_interval_at_the_end(z: float):
    above, below = predicted(z, np.array(NULL)), predicted(-z, np.array(NULL))
    assert above is not None
    assert below is not None
    assert above.interval.low == above.interval.high == 1
    assert below.interval.low == below.interval.high == 0


def test_the_rank_interval_covers_the_share_below_at_least_as_often_as_it_says():
    for n in (1, 2, 5, 10):
        found = [ranked(k + 0.5, np.arange(1.0, n + 1)) for k in range(n + 1)]
        assert [f.below for f in found] == list(range(n + 1))
        for share in np.linspace(0.01, 0.99, 25):
            covers = [f.interval.low <= share <= f.interval.high for f in found]
            chance = stats.binom.pmf(range(n + 1), n, share)[covers].sum()
            assert chance >= 0.95 - 1e-12


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=6))
def test_the_rank_p_errs_no_more_often_than_it_says(values: list[int]):
    """Exchangeable: each of the values is the one in turn, ties or not."""
    every = np.array(values, dtype=float)
    p = [ranked(every[i], np.delete(every, i)).p for i in range(len(every))]
    for level in {*p, 0.05, 0.5}:
        assert sum(each <= level for each in p) / len(p) <= level + 1e-12
    assert min(p) >= 1 / len(every) - 1e-12


def test_nineteen_seeds_are_needed_for_five_per_cent():
    assert seeds_for(0.05) == 19
    assert ranked(1.0, np.zeros(19)).p <= 0.05 < ranked(1.0, np.zeros(18)).p
    assert seeds_for(0.5) == 1


# Placements.


def test_a_value_above_all_seeds():
    found = placed(0.6, *NULL)
    assert found.word == "above all 5 seeds"
    assert found.is_above
    assert (found.n_below, found.n_equal, found.n_seeds) == (5, 0, 5)
    assert found.percentile == 1
    exact = stats.binomtest(5, 5).proportion_ci(0.95, method="exact")
    assert (found.percentile_interval.low, found.percentile_interval.high) == exact[:2]
    assert found.p_exchangeable == pytest.approx(1 / 6)
    assert found.null_mean == pytest.approx(np.mean(NULL))
    assert found.null_sd == pytest.approx(np.std(NULL, ddof=1))
    assert (found.null_low, found.null_high) == (0.5, 0.55)
    assert found.caveats == ()


@pytest.mark.parametrize(
    ("own", "word", "share", "p"),
    [
        (0.4, "below all 5 seeds", 0.0, 1.0),
        (0.515, "within", 0.4, 4 / 6),
        (0.51, "within", 0.3, 5 / 6),
        (0.55, "within", 0.9, 2 / 6),
        (0.50, "within", 0.1, 1.0),
    ],
)
def test_words_and_ties(own: float, word: str, share: float, p: float):
    found = placed(own, *NULL)
    assert found.word == word
    assert found.percentile == pytest.approx(share)
    assert found.p_exchangeable == pytest.approx(p)
    tied = own in NULL
    assert [("equal to 1 of 5 seeds" in c) for c in found.caveats] == [True] * tied
    low = stats.binomtest(found.n_below or 0, 5).proportion_ci(method="exact").low
    high = stats.binomtest((found.n_below or 0) + tied, 5).proportion_ci(method="exact").high
    assert (found.percentile_interval.low, found.percentile_interval.high) == (low, high)


def test_rounding_is_no_difference():
    found = placed(0.1 + 0.2, 0.3, 0.4)
    assert (found.n_below, found.n_equal) == (0, 1)
    assert found.reason == "better than 0, equal to 1 and worse than 1 of 2 seeds"


@settings(deadline=None, max_examples=25)
@given(
    st.floats(0, 4).map(lambda x: round(x, 2)),
    st.lists(st.floats(0, 4).map(lambda x: round(x, 2)), min_size=1, max_size=6),
)
def test_lower_is_better_is_the_mirror_image(own: float, null: list[float]):
    higher = placed(own, *null)
    lower = placed(-own, *(-v for v in null), direction=-1)
    for field in ("word", "n_below", "n_equal", "percentile", "p_exchangeable", "reason"):
        assert getattr(higher, field) == getattr(lower, field)
    for field in ("z", "p_prediction", "normal_percentile"):
        assert getattr(higher, field) == getattr(lower, field)
    assert lower.null_mean == -higher.null_mean
    for field in ("percentile_interval", "normal_interval"):
        a, b = getattr(higher, field), getattr(lower, field)
        assert (a.low, a.high) == pytest.approx((b.low, b.high), nan_ok=True)


def test_a_lower_value_is_above_where_lower_is_better():
    assert placed(0.1, *NULL, direction=-1).word == "above all 5 seeds"
    assert placed(0.9, *NULL, direction=-1).word == "below all 5 seeds"


def test_one_seed_has_ranks_and_nothing_normal():
    found = placed(0.6, 0.5)
    assert found.word == "above the one seed"
    assert found.p_exchangeable == 0.5
    assert (found.z, found.p_prediction, found.normal_percentile) == (None, None, None)
    assert math.isnan(found.normal_interval.low)
    assert math.isnan(found.null_sd)
    assert "one seed has no spread" in found.caveats[0]


def test_seeds_without_spread_are_no_replicates():
    found = placed(0.6, 0.5, 0.5, 0.5)
    assert found.word == "above all 3 seeds"
    assert found.p_prediction is found.p_exchangeable is found.normal_percentile is None
    assert math.isnan(found.percentile_interval.low)
    assert "copies" in found.caveats[0]


@pytest.mark.parametrize(
    ("own", "null", "says"),
    [
        (math.nan, NULL, "the value of published is not a finite number"),
        (0.6, (0.5, math.inf, 0.4), "frozen_decoder at seed 1 is not a finite number"),
    ],
)
def test_what_is_no_number_is_not_placed(own: float, null: tuple[float, ...], says: str):
    table = study(own, {"frozen_decoder": null})
    with pytest.raises(UserError, match=says):
        placements(table)
    (found,) = placements(table, on_missing="exclude")
    assert found.word == "no placement"
    assert not found.placed
    assert says in found.reason
    assert found.percentile is found.p_exchangeable is found.p_prediction is None


def test_a_missing_score_is_not_placed():
    other = rows({("published", -1): 1.0, ("frozen_decoder", 0): 1.0}, metric="other")
    scored = [r for r in other if r["member"] == "frozen_decoder"]
    table = pd.concat([study(0.6, {"frozen_decoder": NULL}), pd.DataFrame(scored)])
    with pytest.raises(UserError, match="core/other of batchtopk at L0 32: published has no"):
        placements(table)
    first, second = placements(table, on_missing="exclude")
    assert (first.metric, first.word) == ("explained_variance", "above all 5 seeds")
    assert (second.metric, second.word) == ("other", "no placement")
    assert math.isnan(second.value)


def test_a_seed_that_others_have_must_not_be_missing_but_one_that_none_has_may():
    table = study(0.6, {"frozen_decoder": NULL, "frozen_encoder": NULL})
    scored = table["metric"] == "explained_variance"
    last = scored & (table["seed"] == 4)
    one = table.loc[~(last & (table["member"] == "frozen_decoder"))]
    found = {p.member: p for p in placements(one, on_missing="exclude")}
    assert found["frozen_decoder"].word == "no placement"
    assert "no score for seed 4" in found["frozen_decoder"].reason
    assert found["frozen_encoder"].word == "above all 5 seeds"
    for each in placements(table.loc[~last]):
        assert each.word == "above all 4 seeds"
        assert each.caveats == ("no member has this metric for seed 4",)


@pytest.mark.parametrize(("l0", "apart"), [(33.6, False), (33.7, True), (30.5, False)])
def test_l0_may_differ_by_five_per_cent(l0: float, apart: bool):
    found = placed(0.6, *NULL, l0={"published": l0})
    assert found.placed is not apart
    assert found.published_l0 == l0
    assert found.member_l0 == 32
    if apart:
        assert found.reason.startswith("L0 differs: published 33.7, frozen_decoder 32")
        assert found.percentile is found.p_prediction is None
        # A mismatch is a fact, not a table that is broken: it never raises.


@pytest.mark.parametrize(
    ("metric", "value", "barred"),
    [
        *((m, v, v != 0.92) for m in ("threshold_factor", "l0_in_training") for v in AT_L0),
        *(("l0_as_trained", v, not 0.8 <= v <= 1.25) for v in (*AT_L0, 0.79, 1.26)),
    ],
)
def test_members_that_were_trained_at_another_l0_are_no_null(
    metric: str, value: float, barred: bool
):
    facts = {("frozen_decoder", seed): value if seed == 2 else 1.0 for seed in range(5)}
    table = frame(
        rows(
            {("published", -1): 0.6, **{("frozen_decoder", s): v for s, v in enumerate(NULL)}}
        ),
        rows(facts, suite="panel", metric=metric, direction=0),
    )
    (found,) = placements(table, metrics=["core/*"])
    assert found.placed is not barred
    assert not barred or "not trained at its L0 at seed 2" in found.reason


@pytest.mark.parametrize(("above", "placed"), [(None, False), (-0.1, False), (0.2, True)])
def test_scores_of_a_judge_that_judges_nothing_place_nothing(above: float | None, placed: bool):
    scores = {("published", -1): 0.9, **{("frozen_decoder", s): v for s, v in enumerate(NULL)}}
    of = {"suite": "autointerp", "direction": 1}
    known = (
        ()
        if above is None
        else rows(
            dict.fromkeys(scores, above),
            suite="autointerp",
            metric="judge_above_floor",
            direction=0,
        )
    )
    table = frame(rows(scores, metric="autointerp_score", **of), known)
    (found,) = placements(table, metrics=["autointerp/autointerp_score"])
    assert found.placed is placed
    assert placed or "the judge of published" in found.reason


def test_one_seed_at_another_l0_is_enough():
    table = study(0.6, {"frozen_decoder": NULL})
    given = {("published_x", "published", -1): 32.0}
    panel = dict(zip(table["member"], table["panel"], strict=True))
    given = {(panel["published"], "published", -1): 32.0}
    given |= {(f"batchtopk_l0_32_seed_{s}", "frozen_decoder", s): 32.0 for s in range(5)}
    assert placements(table, measured_l0=given)[0].placed
    given[("batchtopk_l0_32_seed_3", "frozen_decoder", 3)] = 40.0
    assert "at seed 3" in placements(table, measured_l0=given)[0].reason
    del given[("batchtopk_l0_32_seed_3", "frozen_decoder", 3)]
    found = placements(table, measured_l0=given)[0]
    assert found.reason == "no measured L0 of frozen_decoder at seed 3"


def test_tasks_are_averaged_and_must_be_the_same():
    own: Any = {"a": 0.5, "b": 0.7}
    null: list[Any] = [{"a": 0.3, "b": 0.5}, {"a": 0.4, "b": 0.5}]
    found = placed(own, *null)
    assert (found.value, found.null_mean) == pytest.approx((0.6, 0.425))
    null[1] = {"a": 0.4, "c": 0.5}
    with pytest.raises(UserError, match="not scored on the same tasks"):
        placed(own, *null)
    # Latents of one SAE each.
    assert placed(own, *null, suite="interp_embedding").word == "above all 2 seeds"


def test_a_control_counts_where_it_is_a_null():
    nulls = {"permuted_decoder": NULL, "random": NULL, "trained": NULL}
    on_ev = {p.member for p in placements(study(0.6, nulls))}
    assert on_ev == {"permuted_decoder", "random", "trained"}
    probing = study(0.6, nulls, suite="sparse_probing")
    assert {p.member for p in placements(probing)} == {"random", "trained"}


def test_a_published_sae_and_its_broken_copies_are_never_paired():
    nulls = {"frozen_decoder": NULL, "random": NULL, "permuted_decoder": NULL}
    table = study(0.6, {**nulls, "trained": [v + 0.1 for v in NULL]})
    assert {c.baseline for c in differences(table)} == {"frozen_decoder", "random"}
    without = table.loc[table["member"] != "published"]
    assert {c.baseline for c in differences(without)} == set(nulls)


def test_what_cannot_be_placed_is_refused():
    with pytest.raises(UserError, match=r"no member 'published'.*frozen_decoder"):
        placements(study(0.6, {"frozen_decoder": NULL}).query("member != 'published'"))
    several = frame(rows({("published", s): 0.5 for s in (0, 1)}))
    with pytest.raises(UserError, match="has 2 seeds"):
        placements(several)


def test_patterns_choose_metrics_and_groups_without_it_are_left_out():
    table = pd.concat(
        [
            study(0.6, {"frozen_decoder": NULL}),
            study(0.6, {"frozen_decoder": NULL}, metric="other").query("direction != 0"),
            study(0.6, {"frozen_decoder": NULL}, architecture="topk").query(
                "member != 'published'"
            ),
        ]
    )
    assert [p.metric for p in placements(table)] == ["explained_variance", "other"]
    assert [p.metric for p in placements(table, metrics=["core/o*"])] == ["other"]
    assert {p.architecture for p in placements(table)} == {"batchtopk"}


def test_a_table_has_a_row_each():
    found = placements(study(0.6, {"frozen_decoder": NULL, "trained": (0.5,)}))
    table = to_frame(found)
    assert list(table["word"]) == ["above all 5 seeds", "above the one seed"]
    assert table["normal_interval_low"][0] == found[0].normal_interval.low
    assert not any(isinstance(v, tuple) for v in table.iloc[0])
    assert {f.name for f in dataclasses.fields(Placement)} - set(table.columns) == {
        "percentile_interval",
        "normal_interval",
    }


# All random members at once.


def test_the_member_it_is_least_above_decides():
    nulls = {
        "frozen_decoder": NULL,
        "frozen_encoder": [v + 0.04 for v in NULL],
        "random": [v - 0.2 for v in NULL],
        "trained": [v + 0.5 for v in NULL],
        "permuted_decoder": [v + 0.5 for v in NULL],
    }
    items = placements(study(0.6, nulls))
    (found,) = placed_against_random(items)
    assert found.members == ("frozen_decoder", "frozen_encoder", "random")
    assert found.closest == "frozen_encoder"
    own = {p.member: p.p_prediction for p in items}
    assert found.p == found.p_adjusted == own["frozen_encoder"]
    assert found.above_all is True
    assert found.not_above == ()
    assert "above all 15 seeds of 3 random members" in found.reason
    assert found.p_exchangeable == pytest.approx(1 / 6)


def test_one_that_it_is_not_above_is_named():
    (found,) = placed_against_random(
        placements(study(0.52, {"frozen_decoder": NULL, "random": [v - 0.2 for v in NULL]}))
    )
    assert found.above_all is False
    assert found.not_above == ("frozen_decoder",)
    assert found.reason == "not above every random seed: within (frozen_decoder)"


def test_no_placement_among_one_is_none_among_all():
    nulls = {"frozen_decoder": NULL, "random": NULL}
    (found,) = placed_against_random(placements(study(0.6, nulls, l0={"random": 40})))
    assert found.above_all is found.p is found.p_adjusted is found.p_exchangeable is None
    assert found.reason.startswith("no placement among random: L0 differs")
    assert found.closest == "random"


def test_one_that_it_is_not_above_settles_it_though_another_gives_no_placement():
    nulls = {"frozen_decoder": NULL, "random": NULL}
    (found,) = placed_against_random(placements(study(0.1, nulls, l0={"random": 40})))
    assert found.above_all is False
    assert found.p is found.p_adjusted is found.p_exchangeable is None
    assert (found.closest, found.not_above) == ("frozen_decoder", ("frozen_decoder",))
    start = (
        "not above every random seed: below all 5 seeds (frozen_decoder); no placement among"
    )
    assert found.reason.startswith(start)


def test_one_seed_gives_no_prediction_over_all():
    (found,) = placed_against_random(
        placements(study(0.6, {"frozen_decoder": NULL, "random": (0.1,)}))
    )
    assert found.above_all is True
    assert found.p is None
    assert found.p_exchangeable == 0.5
    assert "no prediction p, as random has one seed" in found.reason


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.floats(-0.02, 0.05))
def test_holm_runs_over_the_metrics(seed: int, shift: float):
    rng = np.random.default_rng(seed)
    parts = []
    for i in range(4):
        values = {("published", -1): 0.5 + shift}
        values |= {
            (m, s): 0.5 + 0.01 * rng.normal()
            for m in ("frozen_decoder", "frozen_encoder", "trained")
            for s in range(4)
        }
        parts.append(rows(values, metric=f"m{i}"))
    items = placements(frame(*parts))
    found = placed_against_random(items)
    largest = [
        max(
            p.p_prediction or 0 for p in items if p.metric == f.metric and p.member != "trained"
        )
        for f in found
    ]
    assert [f.p for f in found] == largest
    assert [f.p_adjusted for f in found] == pytest.approx(holm(largest))


def test_the_correction_keeps_its_word():
    """Published drawn like the baselines: any Holm p at most .05 is an error, rarely made."""
    rng = np.random.default_rng(5)
    errors, studies = 0, 200
    for _ in range(studies):
        p = []
        for value, *null in zip(rng.normal(size=3), *rng.normal(size=(2, 3, 5)), strict=True):
            found = [predicted(float(value), others) for others in null]
            p.append(max(f.p for f in found if f is not None))
        errors += bool(min(holm(p)) <= 0.05)
    assert errors / studies <= 0.05


def test_one_correction_over_both_questions() -> None:
    parts = []
    for i, metric in enumerate(("explained_variance", "cossim")):
        values = {("published", -1): 0.7}
        for j, member in enumerate(("frozen_decoder", "soft_frozen_decoder")):
            values |= {(member, s): 0.6 + 0.03 * i + 0.02 * j * s + 0.01 * s for s in range(4)}
        parts.append(rows(values, metric=metric))
    found = placements(frame(*parts))
    each, study = (
        [p for q in get_args(Question) for p in placed_against_random(found, q, correct)]
        for correct in get_args(Correct)
    )
    assert [p.p for p in each] == [p.p for p in study]
    assert [p.p_adjusted for p in study] == pytest.approx(holm([p.p or 0.0 for p in study]))
    assert any(
        (a.p_adjusted or 0) < (b.p_adjusted or 0) for a, b in zip(each, study, strict=True)
    )
