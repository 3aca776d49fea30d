"""L0 on the tokens of each suite, and scores that are those of a failed run."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_baselines.results import L0_TOLERANCE
from sae_baselines.stats import placements, verdicts
from sae_baselines.stats.matched import l0_apart
from tests.stats.tables import frame, paired, rows

NOISE = np.array([0.001, -0.002, 0.0015, -0.0005, 0.0])
HIGH, LOW = 0.6 + NOISE, np.full(5, 0.5)
PROBING = "sparse_probing_sae_probes"


def scored(suite: str = "core", metric: str = "explained_variance_paper") -> list[Any]:
    return rows(paired(HIGH, LOW), suite=suite, metric=metric)


def on(suite: str, trained: float, other: float) -> list[Any]:
    """L0 on the tokens of a suite, the same in every seed."""
    both = paired([trained] * 5, [other] * 5)
    return rows(both, suite=suite, metric="l0", direction=0)


def words(*parts: Any, **options: Any) -> dict[str, tuple[str, str]]:
    """Word and reason by suite; all members have L0 32 on held-out text."""
    return {v.suite: (v.word, v.reason) for v in verdicts(frame(*parts), **options)}


def test_core_at_an_l0_8_per_cent_apart_loses_its_word() -> None:
    assert words(scored(), on("core", 30, 31))["core"][0] == "beats"
    word, reason = words(scored(), on("core", 30, 32.5))["core"]
    assert word == "no verdict"
    assert "L0 differs on the tokens of core at seed 0: trained 30, frozen_decoder 32.5" in (
        reason
    )
    assert "8.0% apart, at most 5% allowed" in reason


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["core", PROBING, "ravel", "a_suite_of_somebody"]),
    st.floats(1, 500),
    st.floats(0.8, 1.25),
)
def test_every_suite_is_held_to_its_own_l0(suite: str, l0: float, ratio: float) -> None:
    near = l0_apart(l0, l0 * ratio) <= L0_TOLERANCE
    metrics = [f"{suite}/explained_variance"]
    table = (scored(suite, "explained_variance"), on(suite, l0, l0 * ratio))
    for options in ({}, {"metrics": metrics}):
        assert words(*table, **options)[suite][0] == ("beats" if near else "no verdict")


def test_a_suite_without_l0_is_held_to_what_others_measured() -> None:
    probing = scored(PROBING, "sae_top_1_test_accuracy")
    assert words(probing)[PROBING][0] == "beats"  # as before there was any
    word, reason = words(scored(), probing, on("core", 30.7, 24.8))[PROBING]
    assert word == "no verdict"
    assert f"on the tokens of core ({PROBING} measured none)" in reason
    own = on(PROBING, 20, 20.5)
    assert words(scored(), probing, on("core", 30.7, 24.8), own)[PROBING][0] == "beats"


def test_held_out_scores_are_held_to_the_held_out_l0() -> None:
    panel = scored("panel", "explained_variance")
    found = words(panel, scored(), on("core", 30.7, 24.8))
    assert (found["panel"][0], found["core"][0]) == ("beats", "no verdict")


@pytest.mark.parametrize("value", [None, float("nan"), 0.0])
def test_an_l0_that_only_one_member_has_is_missing(value: float | None) -> None:
    table: Any = frame(scored(), on("core", 30, 30))
    lost = (table.suite == "core") & (table.metric == "l0") & (table.member != "trained")
    if value is None:
        table = table[~lost]
    else:
        table.loc[lost, "value"] = value
    (found,) = verdicts(table)
    assert found.word == "no verdict"
    assert "no measured L0 of frozen_decoder on the tokens of core at seed 0" in found.reason


def test_a_placement_is_held_to_the_suites_l0() -> None:
    seeds = {("frozen_decoder", s): 0.5 + v for s, v in enumerate(NOISE)}

    def placed(l0: float) -> Any:
        l0s = {("published", -1): 30.0, **dict.fromkeys(seeds, l0)}
        values = {("published", -1): 0.7, **seeds}
        table = frame(rows(values), rows(l0s, metric="l0", direction=0))
        return placements(table)[0]

    assert placed(31).is_above
    assert placed(33).word == "no placement"
    assert "33 at seed 0" in placed(33).reason
    assert "on the tokens of core" in placed(33).reason


def table_with(values: dict[str, float], metric: str) -> pd.DataFrame:
    """A metric of these members, with a little noise, and probing."""
    scores = {
        (member, seed): value + d * (i + 1)
        for i, (member, value) in enumerate(values.items())
        for seed, d in enumerate(NOISE)
    }
    probing = {key: 0.6 + 0.001 * i for i, key in enumerate(scores)}
    return frame(
        rows(scores, metric=metric),
        rows(probing, suite=PROBING, metric="sae_top_1_test_accuracy"),
    )


@pytest.mark.parametrize(
    ("metric", "values", "who"),
    [
        ("explained_variance_paper", {"trained": 0.6, "frozen_decoder": -169}, "no SAE at all"),
        ("ce_loss_score", {"trained": 0.9, "frozen_decoder": -0.02}, "no SAE at all"),
        ("kl_div_score", {"trained": -0.1, "frozen_decoder": 0.5}, "no SAE at all"),
        (
            "explained_variance_paper",
            {"trained": 0.6, "frozen_decoder": 0.1, "random": 0.3},
            "untrained random (0.303)",
        ),
    ],
)
def test_an_absurd_score_is_a_failure_and_no_score(
    metric: str, values: dict[str, float], who: str
) -> None:
    found = {v.suite: v for v in verdicts(table_with(values, metric)) if v.baseline != "random"}
    assert found["core"].word == "no verdict"
    assert "failed at seed 0" in found["core"].reason
    assert who in found["core"].reason
    assert "failed" not in found[PROBING].reason


def test_a_broken_control_has_not_failed() -> None:
    table = table_with(
        {"trained": 0.6, "permuted_decoder": -1.3, "frozen_decoder": 0.4},
        "explained_variance_paper",
    )
    found = {v.baseline: v.word for v in verdicts(table) if v.suite == "core"}
    assert found == {"permuted_decoder": "beats", "frozen_decoder": "beats"}


@pytest.mark.parametrize("known_by", ["untrained control", "panel"])
def test_a_failed_run_has_no_error_to_compare_either(known_by: str) -> None:
    """Where lower is better there is no value of "no SAE": others show that the run failed."""
    values = {"trained": 0.1, "frozen_decoder": 1e6, "random": 0.5}
    ev = {("trained", s): 0.8 for s in range(5)} | {("frozen_decoder", s): -3 for s in range(5)}
    if known_by == "panel":
        del values["random"]
    scores = {(m, s): v * (1 + d) for m, v in values.items() for s, d in enumerate(NOISE)}
    more = rows(ev, suite="panel") if known_by == "panel" else []
    table = frame(rows(scores, metric="mse", direction=-1), more)
    found = {v.baseline: v for v in verdicts(table, metrics=["core/*"])}
    assert found["frozen_decoder"].word == "no verdict"
    assert "frozen_decoder failed at seed 0: " in found["frozen_decoder"].reason
    assert {bar.kind for bar in found["frozen_decoder"].bars} == {"failed run"}
    if known_by != "panel":
        assert found["random"].word == "beats"


@pytest.mark.parametrize(("skip", "word"), [(1.0, "no verdict"), (None, "beats")])
def test_a_transcoder_below_the_affine_map_that_it_contains_has_failed(
    skip: float | None, word: str
) -> None:
    def of_panel(metric: str, trained: float, other: float, direction: int = 0) -> list[Any]:
        both = paired(trained + NOISE, other - NOISE)
        return rows(both, suite="panel", metric=metric, direction=direction)

    parts = [
        of_panel("explained_variance", 0.75, 0.62, 1),
        of_panel("explained_variance_null_affine", 0.635, 0.635),
        *(
            []
            if skip is None
            else [
                rows(paired([skip] * 5, [skip] * 5), suite="panel", metric="skip", direction=0)
            ]
        ),
    ]
    (found,) = verdicts(frame(*parts), metrics=["panel/explained_variance"])
    assert found.word == word
    if skip:
        assert {bar.kind for bar in found.bars} == {"failed run"}
        assert (
            "frozen_decoder failed at seed 0: panel/explained_variance is 0.619" in found.reason
        )
        assert "worse than the affine map alone, which its skip can be (0.634)" in found.reason


def of_training(metric: str, trained: float, other: float) -> list[Any]:
    """A fact of training, the same in every seed."""
    both = paired([trained] * 5, [other] * 5)
    return rows(both, suite="panel", metric=metric, direction=0)


@pytest.mark.parametrize(
    ("trained", "other", "barred"),
    [(1.0, 1.0, None), (0.91, 1.09, None), (0.52, 0.95, "trained"), (1.0, 1.2, "frozen")],
)
@pytest.mark.parametrize("metric", ["threshold_factor", "l0_in_training"])
def test_members_that_were_trained_at_another_l0_get_no_word(
    metric: str, trained: float, other: float, barred: str | None
) -> None:
    table = (
        scored(),
        scored(PROBING, "sae_top_1_test_accuracy"),
        of_training(metric, trained, other),
    )
    for word, reason in words(*table).values():
        assert word == ("beats" if barred is None else "no verdict")
        if barred:
            assert reason.startswith(f"{barred}")
            assert "was not trained at its L0 at seeds 0, 1, 2, 3, 4" in reason
            assert "0.9 to 1.1 is allowed" in reason


@pytest.mark.parametrize(
    ("trained", "other", "barred"),
    [(0.81, 1.24, None), (0.79, 1.0, "trained"), (1.0, 1.26, "frozen")],
)
def test_members_that_were_moved_far_to_their_l0_get_no_word(
    trained: float, other: float, barred: str | None
) -> None:
    moved = of_training("l0_as_trained", trained, other)
    word, reason = words(scored(PROBING, "sae_top_1_test_accuracy"), moved)[PROBING]
    assert word == ("beats" if barred is None else "no verdict")
    if barred:
        assert reason.startswith(barred)
        assert "on held-out text, before anything was moved, was up to" in reason
        assert "0.8 to 1.25 is allowed" in reason


@pytest.mark.parametrize(("share", "fails"), [(0.5, False), (0.51, True)])
def test_a_member_more_than_half_dead_has_failed_on_every_metric(
    share: float, fails: bool
) -> None:
    probing = scored(PROBING, "sae_top_1_test_accuracy")
    word, reason = words(probing, of_training("dead_share", 0.1, share))[PROBING]
    assert word == ("no verdict" if fails else "beats")
    if fails:
        assert "frozen_decoder failed at seed 0: 51% of its latents fired on no" in reason


def test_a_member_below_its_untrained_control_has_failed_on_every_metric() -> None:
    probing = scored(PROBING, "sae_top_1_test_accuracy")
    random = paired(HIGH, LOW, "random")
    probing += rows(random, suite=PROBING, metric="sae_top_1_test_accuracy")[5:]
    control = rows(
        paired(HIGH, [0.4] * 5, "random"), suite="panel", metric="explained_variance"
    )
    panel = rows(paired(HIGH, [0.3] * 5), suite="panel", metric="explained_variance")
    kept = [row for row in control if row["member"] == "random"]
    found = verdicts(frame(probing, panel, kept), metrics=[f"{PROBING}/*"])
    (one,) = (v for v in found if v.baseline == "frozen_decoder")
    assert one.word == "no verdict"
    assert "explained_variance is 0.3, worse than untrained random (0.4)" in one.reason
    found = verdicts(frame(probing, panel), metrics=[f"{PROBING}/*"])
    assert {v.word for v in found} == {"beats"}


@pytest.mark.parametrize(
    ("above", "word"),
    [(0.1, "beats"), (0.0, "no verdict"), (-0.2, "no verdict"), (None, "no verdict")],
)
@pytest.mark.parametrize("suite", ["autointerp", "interp_detection"])
def test_a_judge_must_have_been_found_above_its_floor(
    suite: str, above: float | None, word: str
) -> None:
    metric = {"autointerp": "autointerp_score", "interp_detection": "detection_auc"}[suite]
    known = [] if above is None else on_judge(suite, above)
    (found,) = verdicts(frame(scored(suite, metric), known), metrics=[f"{suite}/{metric}"])
    assert found.word == word
    if word == "no verdict":
        assert {bar.kind for bar in found.bars} == {"judge untested"}
        command = {"autointerp": "judge test,", "interp_detection": "--suite interp_detection,"}
        assert command[suite] in found.reason


def on_judge(suite: str, above: float) -> list[Any]:
    both = paired([above] * 5, [above] * 5)
    return rows(both, suite=suite, metric="judge_above_floor", direction=0)
