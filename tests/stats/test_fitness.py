"""Two names for one SAE, copies, caps that never bound, seeds that collapsed."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_baselines.stats import (
    against_random,
    collapsed,
    placed_against_random,
    placements,
    verdicts,
)
from tests.stats.tables import frame, paired, rows

SEEDS = range(4)
NOISE = (0.001, -0.002, 0.0015, -0.0005)


def table(**levels: float) -> pd.DataFrame:
    """Members at these levels, with a little noise of their own."""
    values = {
        (m, s): level + NOISE[(s + i) % 4]
        for i, (m, level) in enumerate(levels.items())
        for s in SEEDS
    }
    return frame(rows(values))


def panel_row(member: str, seed: int, metric: str, value: float, task: str = "") -> Any:
    (one,) = rows({(member, seed): {task: value}}, suite="panel", metric=metric, direction=0)
    return one


def same(member: str, seed: int, as_member: str, as_seed: int | None = None) -> Any:
    panel = f"batchtopk_l0_32_seed_{seed if as_seed is None else as_seed}"
    return panel_row(member, seed, "same_weights", 1.0, f"{panel}/{as_member}")


def with_rows(results: pd.DataFrame, *more: Any) -> pd.DataFrame:
    return pd.concat([results, pd.DataFrame(more)], ignore_index=True)


@pytest.mark.parametrize("twin", ["soft_frozen_decoder", "frozen_encoder", "random"])
def test_a_twin_that_is_the_trained_sae_gets_no_verdict(twin: str) -> None:
    results = table(trained=0.9, frozen_decoder=0.5, **{twin: 0.9})
    results.loc[results.member == twin, "value"] = results.loc[
        results.member == "trained", "value"
    ].to_numpy()
    # On explained variance, members below an untrained one are failures.
    results["metric"] = results["metric"].replace("explained_variance", "cossim")
    assert {v.word for v in verdicts(results)} == {"beats", "inconclusive"}
    found = verdicts(with_rows(results, *(same(twin, s, "trained") for s in SEEDS)))
    by_baseline = {v.baseline: v for v in found}
    assert by_baseline["frozen_decoder"].word == "beats"
    assert by_baseline[twin].word == "no verdict"
    reason = by_baseline[twin].reason
    assert f"{twin} has the weights of trained at seeds 0, 1, 2, 3" in reason
    held = twin == "soft_frozen_decoder"
    assert reason.startswith("the cap never bound: ") == held
    # A twin that is none answers its own question, and only that.
    assert [a.beats for a in against_random(found)] == [True if held else None]
    nearly_free = against_random(found, "nearly free")
    assert [(a.beats, a.question) for a in nearly_free] == [(None, "nearly free")] * held


@pytest.mark.parametrize(
    ("share", "word"), [(0.0, "no verdict"), (0.0099, "no verdict"), (0.01, "beats")]
)
def test_a_cap_that_holds_too_few_rows_gives_no_verdict(share: float, word: str) -> None:
    results = table(trained=0.9, soft_frozen_decoder=0.8)
    shares = [panel_row("soft_frozen_decoder", s, "cap_bound_share", share) for s in SEEDS]
    (found,) = verdicts(with_rows(results, *shares), metrics=["core/*"])
    assert found.word == word
    assert found.mean_difference == pytest.approx(0.1, abs=0.01)  # numbers stay
    if word == "no verdict":
        assert found.reason.startswith("the cap never bound: at the end of training it holds")
        assert "fewer than 1%" in found.reason


def test_seeds_that_are_copies_of_each_other_give_no_verdict() -> None:
    results = table(trained=0.9, frozen_decoder=0.8)
    for member in ("trained", "frozen_decoder"):
        (found,) = verdicts(with_rows(results, same(member, 3, member, 1)))
        assert found.word == "no verdict"
        assert f"{member} has the same weights at seeds 1, 3: copies" in found.reason


def test_two_members_that_are_one_are_named_and_both_compared() -> None:
    results = table(trained=0.9, frozen_decoder=0.8, frozen_encoder=0.8)
    # Of three equal ones each is another's.
    equal = (same("frozen_encoder", s, "frozen_decoder") for s in SEEDS)
    found = verdicts(with_rows(results, *equal))
    assert [v.word for v in found] == ["beats"] * 2
    for v, other in zip(found, ("frozen_encoder", "frozen_decoder"), strict=True):
        assert f"has the weights of {other}: one SAE under two names" in v.caveats


def test_a_published_sae_that_is_a_member_has_no_placement() -> None:
    values = {("soft_frozen_decoder", s): 0.8 + NOISE[s] for s in SEEDS}
    values["frozen_decoder", 0] = 0.5
    results = frame(rows(values), rows({("published", -1): 0.9}))
    results.loc[results.member == "published", "panel"] = "published"
    one = panel_row("soft_frozen_decoder", 2, "same_weights", 1.0, "published/published")
    found = {p.member: p for p in placements(with_rows(results, one))}
    assert found["soft_frozen_decoder"].word == "no placement"
    assert found["soft_frozen_decoder"].reason.startswith("the cap never bound")
    assert found["frozen_decoder"].word == "above the one seed"
    items = list(found.values())
    assert [p.above_all for p in placed_against_random(items)] == [True]
    assert [p.above_all for p in placed_against_random(items, "nearly free")] == [None]


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("failing", ["trained", "frozen_decoder"])
def test_a_collapsed_seed_is_named_and_bars_the_verdict(n: int, failing: str) -> None:
    rng = np.random.default_rng(n)
    scores = {
        m: level + 0.01 * rng.normal(size=n)
        for m, level in (("trained", 0.8), ("frozen_decoder", 0.6))
    }
    (found,) = verdicts(frame(rows(paired(scores["trained"], scores["frozen_decoder"]))))
    assert found.word == "beats"
    scores[failing][1] = 0.05
    (found,) = verdicts(frame(rows(paired(scores["trained"], scores["frozen_decoder"]))))
    assert found.word == "no verdict"
    assert found.reason.startswith(f"seed 1 of {failing} collapsed: this metric is 0.05")


def test_a_collapse_that_only_the_panel_sees_bars_every_metric() -> None:
    results = table(trained=0.9, frozen_decoder=0.8)
    ev = {("trained", s): 0.8 + NOISE[s] for s in SEEDS} | {("trained", 2): 0.01}
    ev |= {("frozen_decoder", s): 0.7 - NOISE[s] for s in SEEDS}
    results = with_rows(results, *rows(ev, suite="panel"))
    (found,) = verdicts(results, metrics=["core/*"])
    assert found.word == "no verdict"
    assert "seed 2 of trained collapsed: panel/explained_variance is 0.01" in found.reason


def test_noise_is_no_collapse() -> None:
    rng = np.random.default_rng(0)
    hits = {}
    for mean in (0.0, 1.0, 100.0):
        for n in (3, 5, 10):
            scores = mean + rng.normal(size=(200, 2, n))
            runs = [collapsed(dict(enumerate(a)), dict(enumerate(b))) for a, b in scores]
            hits[mean, n] = np.mean([bool(r) for r in runs])
    assert max(hits.values()) <= 0.06
    assert max(v for (mean, _), v in hits.items() if mean == 100) == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_which_seeds_collapsed(sign: int) -> None:
    well = {0: 0.80, 1: 0.82, 2: 0.81, 3: 0.79, 4: 0.8}
    if sign == -1:
        well = {seed: 1 - value for seed, value in well.items()}
    bad = 0.02 if sign == 1 else 0.98
    assert collapsed(well, well, sign) == []
    assert collapsed({**well, 3: bad}, well, sign) == [3]
    assert collapsed({**well, 3: bad, 0: bad}, well, sign) == [0, 3]
    # Where most collapsed, that is what the recipe does.
    assert collapsed({**well, 3: bad, 0: bad, 1: bad}, well, sign) == []
    # One of the partner's does not hide it.
    assert collapsed({**well, 3: bad}, {**well, 1: bad}, sign) == [3]
    assert collapsed({0: 0.8, 1: bad}, well, sign) == []  # two seeds: which is it?
