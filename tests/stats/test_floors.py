"""Floors: when a metric cannot tell anything of the trained SAE, and what is said then."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_baselines.results import Results
from sae_baselines.stats import (
    against_random,
    placed_against_random,
    placements,
    room_of_member,
    to_frame,
    verdicts,
)
from tests.stats.tables import frame, paired, rows

SUITE = "sparse_probing_sae_probes"
SCORE = "sae_top_1_test_accuracy"
NULLS = (f"{SCORE}_null_random_latents", f"{SCORE}_null_permuted_labels")
NOISE = np.array([0.004, -0.003, 0.001, -0.002, 0.0])


def table(
    trained: Iterable[float],
    other: Iterable[float],
    floors: Iterable[float],
    ceiling: float = 0.95,
    **options: Any,
) -> pd.DataFrame:
    """Scores, both nulls (the second 0.02 lower) and the model's own probe."""
    floors = list(floors)
    of: dict[str, Any] = {"suite": SUITE, "direction": 0}
    parts = [rows(paired(trained, other), metric=SCORE, suite=SUITE)]
    for metric, lower in zip(NULLS, (0.0, 0.02), strict=True):
        parts.append(rows(paired([f - lower for f in floors], []), metric=metric, **of))
    tops = paired([ceiling] * len(floors), [])
    return frame(*parts, rows(tops, metric="llm_test_accuracy", **of), **options)


def test_a_score_that_is_not_above_its_floor_tells_nothing() -> None:
    found = verdicts(table(0.6 + NOISE, 0.5 - NOISE, 0.6 + NOISE[::-1]))[0]
    assert found.word == "cannot tell"
    assert "trained is not above its floor (random latents)" in found.reason
    assert found.floor == pytest.approx(0.6)
    assert found.floor_is == NULLS[0]
    assert found.ceiling == 0.95
    assert found.above_floor is not None
    assert found.above_floor.low < 0 < found.above_floor.high
    # The numbers stand.
    assert found.mean_difference == pytest.approx(0.1)
    assert found.p is not None
    (row,) = to_frame([found]).to_dict("records")
    assert row["word"] == "cannot tell"
    assert row["above_floor_low"] < 0
    (answer,) = against_random([found])
    assert answer.beats is None
    assert answer.cannot_tell
    assert answer.reason.startswith("cannot tell against frozen_decoder: trained is not above")


def test_above_its_floor_every_other_word_is_as_without_floors() -> None:
    scores = {"beats": 0.5, "falls short": 0.7, "matches": 0.6}
    for word, other in scores.items():
        with_floors = table(0.6 + NOISE, other - NOISE / 9, 0.5 + NOISE[::-1])
        found = verdicts(with_floors, metrics=[f"{SUITE}/{SCORE}"])[0]
        without = with_floors.loc[~with_floors.metric.isin(NULLS)]
        bare = verdicts(without)[0]
        assert found.word == bare.word == word
        assert (found.p_adjusted, found.interval) == (bare.p_adjusted, bare.interval)
        assert bare.floor_is == ""
        assert np.isnan(bare.floor)


def test_no_room_between_floor_and_ceiling_tells_nothing_unless_the_score_is_beyond() -> None:
    tight = table(0.6 + NOISE / 100, 0.5 - NOISE, 0.595 + NOISE / 100, ceiling=0.602)
    (found,) = verdicts(tight)
    assert found.word == "cannot tell"
    assert "less than the margin of 0.01" in found.reason
    (wider,) = verdicts(tight, margins={SCORE: 0.006})
    assert wider.word == "beats"
    beyond = table(0.7 + NOISE, 0.5 - NOISE, 0.595 + NOISE, ceiling=0.602)
    assert verdicts(beyond)[0].word == "beats"


def test_what_must_not_be_compared_at_all_is_said_first() -> None:
    apart = table(0.6 + NOISE, 0.5 - NOISE, 0.6 + NOISE[::-1], l0={"frozen_decoder": 40})
    assert verdicts(apart)[0].word == "no verdict"


def by_task(value: float, spread: float, n: int = 8) -> dict[str, float]:
    return {"": value, **{str(i): value + spread * (-1) ** i * (i % 4 + 1) for i in range(n)}}


def test_one_seed_is_held_against_its_floor_by_task() -> None:
    of: dict[str, Any] = {"suite": SUITE, "direction": 0}

    def with_floor(value: float, tasks: bool = True, n: int = 8) -> pd.DataFrame:
        floor = by_task(value, -0.03, n) if tasks else value
        scores = {"trained": by_task(0.7, 0.01, n), "frozen_decoder": by_task(0.6, 0.0, n)}
        return frame(
            rows(
                {(member, 0): score for member, score in scores.items()},
                metric=SCORE,
                suite=SUITE,
            ),
            rows({("trained", 0): floor}, metric=NULLS[0], **of),
        )

    (found,) = verdicts(with_floor(0.69))
    assert found.word == "cannot tell"
    assert "over 8 tasks" in found.reason
    assert verdicts(with_floor(0.2))[0].word == "single seed"
    # Few tasks, or an aggregate alone, have no spread to hold it against: what is not even
    # higher is not above.
    for tasks, n in ((True, 3), (False, 8)):
        assert verdicts(with_floor(0.69, tasks, n))[0].word == "single seed"
        assert verdicts(with_floor(0.7, tasks, n))[0].word == "cannot tell"


def test_a_floor_that_one_seed_lacks_is_no_floor() -> None:
    whole = table(0.6 + NOISE, 0.5 - NOISE, 0.6 + NOISE[::-1])
    part = whole.loc[~(whole.metric.isin(NULLS) & (whole.seed == 2))]
    assert (verdicts(whole)[0].word, verdicts(part)[0].word) == ("cannot tell", "beats")


def test_a_baseline_with_nothing_to_measure_wins_nothing_where_random_saes_do() -> None:
    absorbed: dict[str, Any] = {"suite": "absorption"}
    name = "mean_absorption_fraction_score"
    floor = rows(
        paired(0.95 + NOISE, 0.005 + NOISE[::-1] / 10),
        metric=f"{name}_null_shuffled_letters",
        direction=0,
        **absorbed,
    )
    of_scores = {"metric": name, "direction": -1, **absorbed}
    blind = rows(paired(0.105 + NOISE, 0.005 - NOISE / 10), **of_scores)
    (found,) = verdicts(frame(blind, floor))
    assert found.word == "cannot tell"
    assert "frozen_decoder is not above its floor (shuffled letters)" in found.reason
    # On a metric that means something of a random SAE too, its own floor is not asked for.
    low = table(0.8 + NOISE, 0.5 - NOISE, 0.6 + NOISE)
    other = rows(paired([], 0.5 - NOISE), metric=NULLS[0], suite=SUITE, direction=0)
    assert verdicts(pd.concat([low, pd.DataFrame(other)]))[0].word == "beats"


def test_placements_are_corrected_over_metrics_that_cannot_tell_too() -> None:
    of: dict[str, Any] = {"suite": SUITE}
    parts = []
    for k, floor in ((1, 0.2), (2, 0.6), (5, 0.6)):
        name = f"sae_top_{k}_test_accuracy"
        scores = {("published", -1): 0.6, **paired([], 0.57 + NOISE)}
        parts.append(rows(scores, metric=name, **of))
        known = {("published", -1): floor}
        parts.append(rows(known, metric=f"{name}_null_random_latents", direction=0, **of))
    both = frame(*parts)
    bare = both.loc[~both.metric.str.contains("_null_")]
    told, untold = (placed_against_random(placements(t)) for t in (both, bare))
    assert [p.cannot_tell for p in told] == [False, True, True]
    assert told[0].p_adjusted == untold[0].p_adjusted == pytest.approx(3 * (told[0].p or 0))
    assert told[1].p_adjusted is None


def test_a_published_sae_that_its_metric_cannot_see_is_not_placed() -> None:
    of: dict[str, Any] = {"suite": SUITE, "direction": 0}
    scores = {("published", -1): by_task(0.7, 0.01)}
    others = {("frozen_decoder", s): by_task(0.6 + x, 0.0) for s, x in enumerate(NOISE)}
    words = {}
    for floor in (0.69, 0.2):
        known = rows({("published", -1): by_task(floor, -0.03)}, metric=NULLS[0], **of)
        both = frame(rows({**scores, **others}, metric=SCORE, suite=SUITE), known)
        (placed,) = placements(both)
        (joint,) = placed_against_random([placed])
        words[floor] = placed.word
        assert placed.placed is not joint.cannot_tell
        assert joint.above_all is (None if joint.cannot_tell else True)
    assert words == {0.69: "cannot tell", 0.2: "above all 5 seeds"}


def test_room_is_each_members_own() -> None:
    results = Results.of(table(0.8 + NOISE, 0.5 - NOISE, 0.6 + NOISE))
    (group,) = results.groups
    room = room_of_member(results, group, (SUITE, SCORE), "trained")
    assert room.share == pytest.approx((0.8 - 0.6) / (0.95 - 0.6))
    other = room_of_member(results, group, (SUITE, SCORE), "frozen_decoder")
    assert np.isnan(other.share)
    assert other.highest is None


def test_where_lower_is_better_a_floor_is_above() -> None:
    turned = table(0.6 + NOISE, 0.7 - NOISE, 0.9 + NOISE[::-1], ceiling=0.1)
    turned.loc[turned.metric == SCORE, "direction"] = -1
    (found,) = verdicts(turned)
    assert found.word == "beats"
    # The lower of two floors is the harder one.
    assert found.floor == pytest.approx(0.88)
    worse = table(0.6 + NOISE, 0.7 - NOISE, 0.5 + NOISE[::-1], ceiling=0.1)
    worse.loc[worse.metric == SCORE, "direction"] = -1
    assert verdicts(worse)[0].word == "cannot tell"
