"""Controls are compared on what they are a null for, and decide no more than that."""

from typing import Any

import pandas as pd
import pytest

from sae_baselines.errors import UserError
from sae_baselines.stats import against_random, differences, verdicts
from tests.stats.tables import frame, rows

PROBING: dict[str, Any] = {"suite": "sparse_probing", "metric": "sae_top_1_test_accuracy"}
RAVEL: dict[str, Any] = {"suite": "ravel", "metric": "disentanglement_score"}
_NOISE = (0.001, -0.002, 0.0015, 0.0004)


def _table(**levels: tuple[float, float]) -> pd.DataFrame:
    """Probing and RAVEL per member, four seeds; a control has the name of its kind."""
    probing, ravel = {}, {}
    for i, (member, (first, second)) in enumerate(levels.items()):
        for seed, noise in enumerate(_NOISE):
            # Permuted controls have the trained SAE's probing scores to the digit.
            own = noise * (1 if member.startswith("permuted") else 1 + i)
            probing[member, seed] = first + own
            ravel[member, seed] = second + noise * (1 + i)
    return frame(rows(probing, **PROBING), rows(ravel, **RAVEL))


LEVELS = {"trained": (0.8, 0.7), "frozen_decoder": (0.7, 0.5), "random": (0.6, 0.3)}


def test_a_permuted_control_is_not_compared_where_it_ties_by_construction():
    table = _table(**LEVELS, permuted_decoder=(0.8, 0.1), permuted_pairing=(0.8, 0.1))
    found = {(c.metric, c.baseline) for c in differences(table)}
    assert ("disentanglement_score", "permuted_decoder") in found
    assert ("disentanglement_score", "permuted_pairing") in found
    assert {b for m, b in found if m == PROBING["metric"]} == {"frozen_decoder", "random"}


def test_permuted_controls_change_no_other_verdict_and_not_the_headline():
    plain = verdicts(_table(**LEVELS))
    # They even do better than the trained SAE here.
    more = verdicts(_table(**LEVELS, permuted_decoder=(0.8, 0.9), permuted_pairing=(0.8, 0.9)))
    assert [v for v in more if not v.constraint.startswith("permuted")] == plain
    assert {v.word for v in more if v.constraint.startswith("permuted")} == {"falls short"}
    assert against_random(more) == against_random(plain)
    assert all(a.beats for a in against_random(plain))


def test_who_does_not_beat_an_untrained_sae_does_not_beat_random():
    levels = {**LEVELS, "random": (0.9, 0.3)}
    found = {a.metric: a for a in against_random(verdicts(_table(**levels)))}
    lost = found[PROBING["metric"]]
    assert (lost.beats, lost.closest, lost.unbeaten) == (False, "random", ("random",))
    won = found[RAVEL["metric"]]
    assert won.beats
    assert "beats all 1 baseline and 1 untrained random SAE;" in won.reason


def test_a_table_of_permuted_controls_alone_has_no_headline():
    found = verdicts(_table(trained=(0.8, 0.7), permuted_decoder=(0.8, 0.1)))
    assert [(v.metric, v.word) for v in found] == [("disentanglement_score", "beats")]
    assert against_random(found) == []
    with pytest.raises(UserError, match="is a null for none of them"):
        differences(
            _table(trained=(0.8, 0.7), permuted_decoder=(0.8, 0.1)),
            metrics=["sparse_probing/*"],
        )
