"""Pairing, and what is refused."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_baselines.errors import UserError
from sae_baselines.stats import Comparison, differences
from sae_baselines.stats.matched import l0_apart
from tests.stats.tables import BASELINES, frame, paired, rows


def one(table: Any, **options: Any) -> Comparison:
    (found,) = differences(table, **options)
    return found


def test_pairs_by_seed_whatever_the_order_of_rows() -> None:
    table = frame(rows(paired([0.8, 0.9, 0.7], [0.5, 0.7, 0.6])))
    for order in (table, table[::-1], table.sample(frac=1, random_state=1)):
        found = one(order)
        assert found.seeds == (0, 1, 2)
        np.testing.assert_allclose(found.differences, [0.3, 0.2, 0.1])
        assert found.tasks == ()
        assert found.crossed


@pytest.mark.parametrize("direction", [-1, "lower", -1.0, "-1"])
def test_lower_is_better(direction: object) -> None:
    found = one(frame(rows(paired([0.1, 0.2], [0.4, 0.4]), direction=direction)))
    np.testing.assert_allclose(found.differences, [0.3, 0.2])
    np.testing.assert_allclose(found.trained, [0.1, 0.2])


def test_tasks_are_paired_within_a_seed() -> None:
    values = {
        ("trained", 0): {"b": 0.9, "a": 0.5},
        ("trained", 1): {"a": 0.6, "b": 0.8},
        ("frozen_decoder", 0): {"a": 0.4, "b": 0.7},
        ("frozen_decoder", 1): {"a": 0.6, "b": 0.5},
    }
    found = one(frame(rows(values)))
    assert found.tasks == ("a", "b")
    np.testing.assert_allclose(np.stack(found.rows), [[0.1, 0.2], [0.0, 0.3]])
    np.testing.assert_allclose(found.differences, [0.15, 0.15])


def test_aggregate_that_is_the_mean_keeps_the_tasks() -> None:
    values = {
        (m, s): {"": 0.5 + s / 10, "a": 0.4 + s / 10, "b": 0.6 + s / 10}
        for m in ("trained", "frozen_decoder")
        for s in (0, 1)
    }
    found = one(frame(rows(values)))
    assert found.tasks == ("a", "b")
    assert found.caveats == ()


def test_aggregate_that_is_something_else_stands_alone() -> None:
    values = {
        (m, s): {"": 0.9, "a": 0.4, "b": 0.6}
        for m in ("trained", "frozen_decoder")
        for s in (0, 1)
    }
    found = one(frame(rows(values)))
    assert found.tasks == ()
    np.testing.assert_allclose(found.trained, [0.9, 0.9])
    assert "not the mean over tasks" in found.caveats[0]


def test_unpaired_suite_averages_within_each_member() -> None:
    values = {
        ("trained", 0): {"latent_3": 0.9, "latent_7": 0.7},
        ("trained", 1): {"latent_4": 0.8},
        ("frozen_decoder", 0): {"latent_1": 0.5},
        ("frozen_decoder", 1): {"latent_1": 0.6, "latent_9": 0.8},
    }
    table = frame(rows(values, suite="autointerp", metric="autointerp_score"))
    found = one(table)
    np.testing.assert_allclose(found.differences, [0.3, 0.1])
    assert found.tasks == ()
    assert "only seeds are paired" in found.caveats[0]
    with pytest.raises(UserError, match="has no score for seed 0 task 'latent_3'"):
        differences(table, unpaired_suites=())


def test_each_architecture_and_l0_is_its_own_comparison() -> None:
    parts = [
        rows(paired([0.8, 0.9], [0.5, 0.5]), architecture=a, l0=l0, metric=m)
        for a in ("topk", "batchtopk")
        for l0 in (16, 32)
        for m in ("explained_variance", "ce_loss_score")
    ]
    found = differences(frame(*parts))
    keys = [(c.architecture, c.l0, c.metric) for c in found]
    assert keys == sorted(keys)
    assert len(set(keys)) == 8
    kept = differences(frame(*parts), metrics=["core/ce*"])
    assert {c.metric for c in kept} == {"ce_loss_score"}


def test_rows_without_direction_are_not_compared() -> None:
    table = frame(
        rows(paired([0.8, 0.9], [0.5, 0.5])),
        rows(paired([7, math.nan], [8, 8]), metric="frac_alive", direction=math.nan),
    )
    assert one(table).metric == "explained_variance"


def test_task_and_direction_survive_a_csv(tmp_path: Path) -> None:
    table = frame(rows(paired([0.8, 0.9], [0.5, 0.5])))
    table.to_csv(tmp_path / "r.csv", index=False)
    found = one(pd.read_csv(tmp_path / "r.csv"))
    np.testing.assert_allclose(found.differences, [0.3, 0.4])
    assert found.tasks == ()


def test_baselines_are_all_that_are_not_trained() -> None:
    values: dict[tuple[str, int], float] = {}
    for i, name in enumerate(("trained", "frozen_decoder:cov", *BASELINES)):
        values.update({(name, s): i / 10 for s in (0, 1)})
    found = differences(frame(rows(values)))
    assert [c.baseline for c in found] == sorted(["frozen_decoder:cov", *BASELINES])
    assert {c.constraint for c in found} == set(BASELINES)


def test_seed_that_both_lack_is_told() -> None:
    table = frame(
        rows(paired([0.8, 0.9, 0.8], [0.5, 0.5, 0.4])),
        rows(paired([0.8, 0.9], [0.5, 0.5]), metric="ce_loss_score"),
    )
    short, full = differences(table)
    assert short.metric == "ce_loss_score"
    assert short.seeds == (0, 1)
    assert short.caveats == ("neither member has this metric for seed 2",)
    assert full.caveats == ()


def test_l0_apart_excludes_the_seed_and_says_by_how_much() -> None:
    table = frame(rows(paired([0.8, 0.9], [0.5, 0.5])), l0={"frozen_decoder": 34})
    found = one(table)
    assert found.seeds == ()
    assert [e.seed for e in found.excluded] == [0, 1]
    assert "32" in found.excluded[0].reason
    assert "34" in found.excluded[0].reason
    assert "6.1% apart" in found.excluded[0].reason
    near = one(frame(rows(paired([0.8, 0.9], [0.5, 0.5])), l0={"frozen_decoder": 33}))
    assert near.excluded == ()


def test_l0_from_a_mapping_or_not_at_all() -> None:
    table = frame(rows(paired([0.8, 0.9], [0.5, 0.5])))
    l0 = dict.fromkeys(zip(table.panel, table.member, table.seed, strict=True), 32.0)
    panel = "batchtopk_l0_32_seed_1"
    l0[panel, "trained", 1] = 40.0
    found = one(table, measured_l0=l0)
    assert found.seeds == (0,)
    assert [e.seed for e in found.excluded] == [1]
    del l0[panel, "trained", 1]
    assert one(table, measured_l0=l0).excluded[0].reason == (
        "no measured L0 of trained at seed 1"
    )
    unknown = one(table[table.metric != "l0"])
    assert unknown.seeds == ()
    assert len(unknown.excluded) == 2


def test_l0_apart_is_symmetric() -> None:
    assert l0_apart(40, 42) == l0_apart(42, 40) == pytest.approx(2 / 41)


GOOD = rows(paired([0.8, 0.9], [0.5, 0.5]))


def spoiled(index: int, **changes: object) -> pd.DataFrame:
    found = [dict(row) for row in GOOD]
    found[index].update(changes)
    return frame(found)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (frame(GOOD[:-1]), "frozen_decoder has no score for seed 1, trained has"),
        (frame(GOOD[1:]), "trained has no score for seed 0, frozen_decoder has"),
        (frame(GOOD, GOOD[:1]), "duplicate row: core/explained_variance of .*, seed 0"),
        (spoiled(0, value=math.nan), "trained has no finite value for seed 0"),
        (spoiled(3, value=math.inf), "frozen_decoder has no finite value for seed 1"),
        (spoiled(0, value="oops"), "value of .* is 'oops', not a number"),
        (spoiled(0, direction="up"), "direction of .* is 'up'"),
        (spoiled(0, direction=-1), "rows of different direction"),
        (spoiled(0, seed=0.5), "seed is 0.5, not a whole number"),
        (spoiled(0, constraint=None), "constraint is empty in row 0"),
        (spoiled(0, constraint="frozen_decoder"), "member trained has two constraints"),
        (
            pd.concat([frame(GOOD), frame(GOOD[:1]).assign(panel="other", suite="b")]),
            "trained of batchtopk at L0 32, seed 0, is in two panels",
        ),
        (frame(GOOD).drop(columns=["task", "value"]), "no column task, value"),
        (frame(GOOD[2:]), "no member 'trained'; it has frozen_decoder"),
        (frame(GOOD[:2]), "no baseline to compare 'trained' with"),
        (frame(rows(paired([1], [2]), direction=0)), "no metric to compare"),
        (
            frame(
                rows({("trained", 0): {"a": 1.0, "b": 1.0}, ("frozen_decoder", 0): {"a": 1.0}})
            ),
            "has no score for seed 0 task 'b'",
        ),
        (
            frame(
                rows(
                    {
                        (m, s): {"a": 1.0, **({"": 1.0} if s else {})}
                        for m in ("trained", "frozen_decoder")
                        for s in (0, 1)
                    }
                )
            ),
            "aggregate for some seeds, but not for seed 0",
        ),
    ],
)
def test_refused_in_one_line(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(UserError) as caught:
        differences(table)
    assert re.search(message, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_unknown_metric_pattern() -> None:
    with pytest.raises(UserError, match="did you mean core/explained_variance"):
        differences(frame(GOOD), metrics=["core/explained_varianse"])
    with pytest.raises(UserError, match="must be a list"):
        differences(frame(GOOD), metrics="core/*")


def test_many_missing_are_counted() -> None:
    table = frame(rows(paired(np.ones(9), np.ones(2))))
    with pytest.raises(UserError, match="for seed 2, seed 3, seed 4 and 4 more, trained has"):
        differences(table)


def test_missing_may_be_excluded_but_is_told() -> None:
    table = frame(GOOD, rows(paired([0.8, 0.9], [0.5]), metric="ce_loss_score"))
    bad, good = differences(table, on_missing="exclude")
    assert bad.failure is not None
    assert "frozen_decoder has no score for seed 1" in bad.failure
    assert bad.seeds == ()
    assert good.failure is None
    assert good.seeds == (0, 1)


def test_tasks_that_only_some_seeds_share_say_nothing_of_others() -> None:
    """Their interval would cover 40 to 90 %, as if each seed had tasks of its own."""
    effect = dict(zip("abcde", np.linspace(-0.3, 0.4, 5), strict=True))
    values: dict[tuple[str, int], Any] = {}
    for s in range(5):
        tasks = {t: e for t, e in effect.items() if s or t != "e"}
        values["trained", s] = {t: 0.5 + e + 0.001 * s for t, e in tasks.items()}
        values["frozen_decoder", s] = dict.fromkeys(tasks, 0.5)
    (found,) = differences(frame(rows(values)))
    assert found.tasks == ()
    assert "different tasks, so nothing is said of other tasks" in found.caveats[0]
