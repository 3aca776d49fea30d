"""Scores that are means in half precision: the steps are known, and decide nothing."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from sae_baselines.stats import decide, placements, verdicts
from sae_baselines.stats.intervals import paired_t
from sae_baselines.stats.rounding import nearer
from tests.stats.tables import frame, rows

ABLATED, CLEAN = 10.8125, 3.4375
SCORE = ["core/ce_loss_score"]
# JumpReLU of benchmarks/smollm2: seeds 0, 1, 2.
TRAINED, SOFT = [4.09375, 4.125, 4.1875], [4.15625, 4.1875, 4.1875]


def study(
    trained: Any, other: Any, member: str = "soft_frozen_decoder", tested: str = "trained"
) -> pd.DataFrame:
    """`core`'s rows of two members with these cross-entropies."""
    losses = {(tested, seed): float(x) for seed, x in enumerate(trained)}
    losses |= {(member, seed): float(x) for seed, x in enumerate(other)}
    scores = {sae: (ABLATED - x) / (ABLATED - CLEAN) for sae, x in losses.items()}
    return frame(
        rows(scores, metric="ce_loss_score"),
        rows(losses, metric="ce_loss_with_sae", direction=-1),
        rows(dict.fromkeys(losses, ABLATED), metric="ce_loss_with_ablation", direction=0),
        rows(dict.fromkeys(losses, CLEAN), metric="ce_loss_without_sae", direction=0),
    )


def half(x: Any) -> np.ndarray:
    return torch.tensor(np.asarray(x), dtype=torch.bfloat16).double().numpy()


def test_where_rounding_decides_there_is_no_verdict_and_no_dominance():
    (found,) = verdicts(study(TRAINED, SOFT), metrics=SCORE)
    assert found.step == pytest.approx(1 / 32 / (ABLATED - CLEAN))
    assert found.word == "no verdict"
    assert "rounding decides" in found.reason
    assert "llm_dtype: float32" in found.reason
    assert not any("dominated" in text for text in found.caveats)
    # The same losses with the digits that a float32 mean has.
    digits = np.array([1e-5, -2e-5, 3e-5])
    (fine,) = verdicts(study(TRAINED + digits, SOFT), metrics=SCORE)
    assert (fine.step, fine.word) == (0, "inconclusive")


def test_a_difference_of_many_steps_stands_with_a_wider_interval():
    trained, other = half([3.75, 3.8125, 3.75]), half([4.75, 4.75, 4.75])
    (found,) = verdicts(study(trained, other), metrics=SCORE)
    assert found.word == "beats"
    assert any("come in steps of 0.0042" in text for text in found.caveats)
    (fine,) = verdicts(study(trained + 1e-5, other), metrics=SCORE)
    assert found.interval.low == pytest.approx(fine.interval.low - found.step, abs=1e-5)
    assert found.interval.high == pytest.approx(fine.interval.high + found.step, abs=1e-5)
    # Equal differences are rounded ones, not copies.
    (equal,) = verdicts(study(half([3.75] * 3), other), metrics=SCORE)
    assert equal.word == "beats"


def test_equal_but_for_rounding_matches_where_the_margin_is_wide_enough():
    table = study(half([3.75] * 3), half([3.75] * 3))
    for margin, word in ((0.02, "matches"), (0.003, "no verdict")):
        (found,) = verdicts(table, metrics=SCORE, margins={"core/ce_loss_score": margin})
        assert found.word == word
    assert not any("different SAEs" in text for text in found.caveats)


def test_rounding_alone_makes_no_word():
    """Losses on either side of where they round apart, a fifteenth of a step off each other."""
    rng = np.random.default_rng(0)
    middle, apart = 3.25 + 1 / 128, 1 / 64 / 15
    blind = aware = 0
    for _ in range(100):
        losses = middle + rng.normal(0, 0.0005, (2, 5)) + [[-apart / 2], [apart / 2]]
        d = np.subtract(*half(losses))
        if d.std() > 0:
            blind += float(paired_t(d)[1]) <= 0.05
        aware += decide([d], [None], steps=[1 / 64])[0].word != "inconclusive"
    # The rounded differences alone, whose mean is ten times the true one, would often decide.
    assert blind > 20
    assert aware == 0
    assert nearer(np.array([1.0, 2.0, 3.0]), 0.5).mean() == pytest.approx(1.5)


def test_only_values_that_all_lie_on_a_grid_are_rounded():
    values = {("trained", s): 0.5 for s in range(3)} | {
        ("frozen_decoder", s): 0.3 for s in range(3)
    }
    (found,) = verdicts(frame(rows(values, metric="cossim")))
    assert found.step == 0
    # Shares of few examples are such fractions too, and no means in half precision.
    halves = {sae: 0.75 if sae[0] == "trained" else 0.5 + sae[1] / 8 for sae in values}
    probing = rows(halves, metric="sae_top_1_test_accuracy", suite="sparse_probing")
    assert verdicts(frame(probing))[0].step == 0
    assert verdicts(frame(rows(halves, metric="cossim")))[0].step == 2**-8


def test_a_published_value_one_step_from_a_seed_ties_with_it():
    table = study([3.75], half([3.765625, 3.78125, 3.8125]), "frozen_decoder", "published")
    (found,) = placements(table, metrics=SCORE)
    assert (found.n_below, found.n_equal) == (2, 1)
    assert any("one step apart tie" in text for text in found.caveats)
    (fine,) = placements(
        study([3.75001], [3.765625, 3.78125, 3.8125], "frozen_decoder", "published"),
        metrics=SCORE,
    )
    assert (fine.n_below, fine.n_equal) == (3, 0)
    assert found.p_prediction is not None
    assert fine.p_prediction is not None
    assert found.p_prediction > fine.p_prediction
