"""Beats random = beats every baseline."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_baselines.stats import AgainstRandom, against_random, verdicts
from sae_baselines.stats.decision import holm
from sae_baselines.stats.match import Bar
from tests.stats.tables import frame, rows

# All random; a soft-frozen member answers another question.
BASELINES = ("frozen_decoder", "frozen_decoder_cov", "frozen_encoder")

NOISE = np.array([0.001, -0.002, 0.0015, -0.0005])


def table(gaps: dict[str, dict[str, Any]]) -> list[Any]:
    """Metric -> baseline -> how far it trails."""
    parts = []
    for metric, by_baseline in gaps.items():
        values = {("trained", s): 0.9 for s in range(4)}
        for i, (name, gap) in enumerate(by_baseline.items()):
            values.update({(name, s): 0.9 - gap + NOISE[(s + i) % 4] for s in range(4)})
        parts.append(rows(values, metric=metric))
    return verdicts(frame(*parts))


def combined(*gaps: float) -> AgainstRandom:
    (found,) = against_random(table({"ev": dict(zip(BASELINES, gaps, strict=True))}))
    return found


def test_beats_all() -> None:
    found = combined(0.1, 0.2, 0.3)
    assert found.beats is True
    assert found.closest == BASELINES[0]
    assert found.unbeaten == ()
    assert found.baselines == tuple(sorted(BASELINES))
    assert found.p == found.p_adjusted


def test_one_that_is_not_beaten_is_enough() -> None:
    found = combined(0.1, 0.0, 0.3)
    assert found.beats is False
    assert found.closest == found.unbeaten[0] == BASELINES[1]
    assert f"matches ({BASELINES[1]})" in found.reason
    assert combined(0.1, -0.2, 0.3).p == 1


def test_no_verdict_where_a_baseline_has_none() -> None:
    vs = table({"ev": dict.fromkeys(BASELINES, 0.1)})
    values = {(m, s): s / 10 for m in ("trained", "frozen_decoder") for s in (0,)}
    (single,) = against_random(verdicts(frame(rows(values))))
    assert single.beats is None
    assert single.reason.startswith("single seed against frozen_decoder")
    mismatch = frame(
        rows({(m, s): s * len(m) for m in ("trained", *BASELINES) for s in range(3)}),
        l0={BASELINES[2]: 50},
    )
    (found,) = against_random(verdicts(mismatch))
    assert found.beats is None
    assert found.p is None
    assert "no verdict against frozen_encoder" in found.reason
    assert against_random(vs)[0].beats is True


def test_what_bars_every_baseline_is_said_once() -> None:
    failed = [Bar("failed run", f"trained failed at seed {seed}") for seed in range(3)]
    own = {BASELINES[1]: (Bar("L0 apart", "L0 differs"),)}
    (found,) = against_random(
        [
            replace(
                v,
                word="no verdict",
                reason="",
                p=None,
                bars=(*failed, *own.get(v.baseline, ())),
            )
            for v in table({"ev": dict.fromkeys(BASELINES, 0.1)})
        ]
    )
    assert found.reason == (
        f"no verdict against {', '.join(sorted(BASELINES))}: trained failed at seed 0 "
        f"(and 2 more); {BASELINES[1]} besides: L0 differs"
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(0, 0.02))
def test_never_says_more_than_the_verdicts(seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    parts = [
        rows(
            {
                (m, s): 0.5 + shift * (m == "trained") + rng.normal() * 0.005
                for m in ("trained", *BASELINES)
                for s in range(4)
            },
            metric=f"m{i}",
        )
        for i in range(4)
    ]
    vs = verdicts(frame(*parts))
    found = against_random(vs)
    largest = [
        max(v.p if v.mean_difference > 0 else 1.0 for v in vs if v.metric == f.metric)  # type: ignore[type-var]
        for f in found
    ]
    assert [f.p_adjusted for f in found] == pytest.approx(holm(largest))
    for f in found:
        words = {v.word for v in vs if v.metric == f.metric}
        if f.beats:
            assert words == {"beats"}
        elif words == {"beats"}:
            assert "does not survive" in f.reason
        else:
            assert f.unbeaten


def test_the_closest_is_one_that_has_a_difference() -> None:
    values = {("trained", s): 0.9 for s in range(4)}
    values |= {("frozen_decoder", 0): 0.5}
    values |= {("frozen_encoder", s): 0.5 + NOISE[s] for s in range(4)}
    (found,) = against_random(verdicts(frame(rows(values)), on_missing="exclude"))
    assert found.beats is None
    assert found.closest == "frozen_encoder"
