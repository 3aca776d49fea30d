"""Latents matched in firing rate, and verdicts within decades of it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_baselines.results import Results
from sae_baselines.stats.by_rate import (
    NEVER,
    Choice,
    Rated,
    by_rate,
    choices,
    decades,
    like,
    like_rows,
    matched,
    strata,
)
from tests.stats.tables import frame, paired, rows

RATES = st.lists(st.integers(0, 1000), min_size=1, max_size=60)


def test_decades_hold_their_lower_edge():
    rates = np.array([0, 1 / 100_000, 0.001, 0.00099, 0.01, 0.5, 1])
    assert decades(rates)[1:].tolist() == [-5, -3, -4, -2, -1, -1]
    assert np.isnan(decades(rates)[0])


@settings(max_examples=30)
@given(RATES)
def test_strata_hold_every_latent_once(firings: list[int]):
    rates = np.array(firings) / 1000
    rated = Rated(rates, rates**2, np.ones(len(rates)))
    found = strata(rated)
    assert sum(s.n for s in found.values()) == len(rates)
    assert sum(s.explained for s in found.values()) == pytest.approx(rated.explained.sum())
    assert (NEVER in found) == (0 in firings)


@settings(max_examples=30)
@given(RATES, RATES)
def test_an_sae_that_explains_twice_as_much_at_every_rate_is_twice_as_good_matched(
    few: list[int], many: list[int]
):
    a, b = np.array(few) / 1000, np.array([*many, *few]) / 1000

    def size(rates: np.ndarray) -> np.ndarray:
        # A rate of 1 is with those just below.
        return np.floor(10 * np.log10(np.maximum(rates, 1e-9)) + 1e-9).clip(max=-1)

    # What an SAE explains depends on the bin alone here, so that matching must take it out.
    found = matched((a, b), (2 * size(a), size(b)))
    assert sum(n for n, _, _ in found.values()) == (a > 0).sum()
    for _, first, second in found.values():
        assert first == pytest.approx(2 * second)
    mirrored = matched((b, a), (size(b), 2 * size(a)))
    for decade, (n, first, second) in found.items():
        assert mirrored[decade] == pytest.approx((n, second, first))


def study(gain: float, seeds: int = 5) -> tuple[Results, dict[tuple[str, str], Rated]]:
    """A trained SAE whose latents that fire on less than 1 % explain more by ``gain``."""
    ev = rows(
        paired(np.full(seeds, 0.8), np.full(seeds, 0.7)),
        suite="panel",
        metric="explained_variance",
    )
    latents = {}
    for seed in range(seeds):
        for member in ("trained", "frozen_decoder"):
            random = np.random.default_rng([seed, len(member)])
            rates = 10 ** random.uniform(-4, -0.01, 400)
            noise = 1 + 0.01 * random.standard_normal(400)
            rare = 1 + gain * (rates < 1e-2) * (member == "trained")
            explained = 1e-3 * noise * rare
            key = (f"batchtopk_l0_32_seed_{seed}", member)
            latents[key] = Rated(rates, explained, np.full(400, np.nan))
    return Results.of(frame(ev)), latents


def test_verdicts_are_on_strata():
    results, latents = study(gain=0.1)
    found = {item.decade: item.verdict for item in by_rate(results, latents)}
    assert list(found) == [-1, -2, -3, -4]
    assert [found[d].word for d in (-3, -4)] == ["beats", "beats"]
    assert [found[d].word for d in (-1, -2)] == ["inconclusive", "inconclusive"]
    assert all(v.n_metrics == 4 for v in found.values())
    # The largest of four p-values stays, the least is multiplied by four.
    p = sorted(v.p or 0 for v in found.values())
    assert min(v.p_adjusted or 0 for v in found.values()) == pytest.approx(4 * p[0])


def test_without_a_difference_holm_keeps_false_words_rare():
    false = 0
    for trial in range(40):
        results, latents = study(gain=0.0, seeds=3)
        random = np.random.default_rng(trial)
        shuffled = {
            key: Rated(r.rates, 1e-3 + 1e-4 * random.standard_normal(400), r.cosines)
            for key, r in latents.items()
        }
        false += any(i.verdict.word == "beats" for i in by_rate(results, shuffled))
    # At most 2.5 % of families; 5 of 40 has a chance of 0.3 % then.
    assert false < 5


def test_scores_of_single_latents_are_compared_at_their_rates():
    results, latents = study(gain=0.0, seeds=3)
    scored = {}
    for (panel, member), rated in latents.items():
        seed = int(panel[-1])
        rare = rated.rates < 1e-2
        value = 0.9 - 0.2 * rare * (member == "trained") + 0.001 * seed
        scored[member, seed] = {f"latent_{j}": value[j] for j in range(0, 400, 3)}
    table = Results.of(
        pd.concat(
            [results.frame, pd.DataFrame(rows(scored, suite="autointerp", metric="score"))],
            ignore_index=True,
        )
    )
    found = [i for i in by_rate(table, latents) if i.verdict.suite == "autointerp"]
    means = {i.decade: i.verdict.mean_difference for i in found}
    assert means == pytest.approx({-1: 0, -2: 0, -3: -0.2, -4: -0.2}, abs=0.06)


def test_saes_that_must_not_be_compared_are_not_compared_by_rate():
    results, latents = study(gain=0.1)
    apart = results.frame.copy()
    off = (apart["metric"] == "l0") & (apart["member"] == "trained")
    apart.loc[off, "value"] = 40.0
    words = {i.verdict.word for i in by_rate(Results.of(apart), latents)}
    assert words == {"no verdict"}


def test_what_probes_chose_stands_beside_what_there_was() -> None:
    rates = np.array([0.5, 0.2, 0.05, 0.002, 0.0])
    nothing = np.zeros(5)
    chosen = {"probing": {"a": [0, 2], "b": [2, 2], "c": [4, 3], "d": [2, 0]}}
    found = choices([Rated(rates, nothing, nothing, chosen)] * 2, "probing")
    assert found == {
        -1: Choice(0.5, 0.25, 0.25),
        -2: Choice(0.25, 0.5, 0.5),
        -3: Choice(0.25, 0.0, 0.125),
        NEVER: Choice(0.0, 0.25, 0.125),
    }
    assert list(found) == [-1, -2, -3, NEVER]
    # A seed without latents of a decade counts as none.
    other = Rated(np.full(5, 0.5), nothing, nothing, chosen)
    assert choices([Rated(rates, nothing, nothing, chosen), other], "probing")[-1] == Choice(
        0.75, 0.625, 0.625
    )


@settings(max_examples=20)
@given(
    st.lists(st.integers(0, 500), min_size=2, max_size=40).filter(any),
    st.data(),
)
def test_shares_of_choices_sum_to_one(firings: list[int], data: st.DataObject) -> None:
    rates = np.array(firings) / 500
    pick = st.lists(st.integers(0, len(rates) - 1), min_size=1, max_size=4)
    chosen = {"s": data.draw(st.dictionaries(st.text("abc"), pick, min_size=1))}
    found = choices([Rated(rates, rates, rates, chosen)], "s").values()
    for name in ("live", "first", "every"):
        assert sum(getattr(c, name) for c in found) == pytest.approx(1)


def test_probes_are_compared_on_datasets_for_which_both_chose_alike() -> None:
    """Hard datasets get rare latents: what is compared must not be the datasets."""
    results, latents = study(gain=0.0, seeds=3)
    suite = "sparse_probing_sae_probes"
    scored, told = {}, {}
    for (panel, member), rated in latents.items():
        seed = int(panel[-1])
        of_decade = [np.flatnonzero(decades(rated.rates) == d)[0] for d in (-1, -2, -3)]
        tasks = {}
        for i in range(24):
            which = i % 3
            tasks[f"task_{i}"] = of_decade[which]
            gain = 0.1 * (member == "trained" and which == 2) + 0.001 * seed
            scored.setdefault((member, seed), {})[f"task_{i}"] = 0.9 - 0.2 * which + gain
        if member == "trained":
            # Where the twin's first is of another decade the trained SAE gets everything.
            tasks["task_24"] = of_decade[0]
            scored[member, seed]["task_24"] = 1.0
        else:
            tasks["task_24"] = of_decade[1]
            scored[member, seed]["task_24"] = 0.0
        chosen = {suite: {task: [int(j)] for task, j in tasks.items()}}
        told[panel, member] = Rated(rated.rates, rated.explained, rated.cosines, chosen)
    metric = "sae_top_1_test_accuracy"
    table = Results.of(
        pd.concat(
            [results.frame, pd.DataFrame(rows(scored, suite=suite, metric=metric))],
            ignore_index=True,
        )
    )
    found = [i for i in by_rate(table, told) if i.verdict.suite == suite]
    assert {i.decade: i.verdict.mean_difference for i in found} == pytest.approx(
        {-1: 0, -2: 0, -3: 0.1}, abs=1e-9
    )
    assert {(i.n, i.n_of) for i in found} == {(8, "datasets")}
    assert {i.verdict.margin for i in found} == {None}
    assert not [i for i in by_rate(table, latents) if i.verdict.suite == suite]


def test_features_are_compared_at_the_rates_at_which_they_fire() -> None:
    """The trained SAE recovers what is frequent; the twin a fifth of all."""
    results, latents = study(gain=0.0, seeds=3)
    metric = ("toy_variable", "recovered_share")
    rates = np.repeat([0.5, 0.03, 0.002, 0.0], 10)
    every, told = {}, {}
    for (panel, member), rated in latents.items():
        found = rates > 0.01 if member == "trained" else np.arange(40) % 5 == 0
        truth = {metric: (rates, found)}
        told[panel, member] = replace(rated, truth=truth, recovers=rated.rates > 0.1)
        every[member, int(panel[-1])] = float(found.mean())
    frame_ = pd.concat(
        [results.frame, pd.DataFrame(rows(every, suite=metric[0], metric=metric[1]))],
        ignore_index=True,
    )
    found = [i for i in by_rate(Results.of(frame_), told) if i.verdict.suite == metric[0]]
    assert {i.decade: i.verdict.mean_difference for i in found} == pytest.approx(
        {-1: 0.8, -2: 0.8, -3: -0.2}
    )
    assert {(i.n, i.n_of) for i in found} == {(10, "features")}
    shares = {d: s.recovers for d, s in strata(next(iter(told.values()))).items()}
    assert shares == {-1: 1, -2: 0, -3: 0, -4: 0}


@given(
    st.lists(
        st.lists(st.sampled_from([0, 1e-4, 2e-4, 0.003, 0.004, 0.09, 0.5, 1.0])), min_size=2
    ),
    st.integers(0, 5),
    st.integers(0, 3),
)
@settings(max_examples=60)
def test_rows_of_latents_to_look_at_fire_about_as_often(
    every: list[list[float]], per_decade: int, seed: int
):
    rates = {i: np.array(r, dtype=float) for i, r in enumerate(every)}
    found = like_rows(rates, per_decade, seed)
    assert found == like_rows(rates, per_decade, seed)
    assert [d for d, _ in found] == sorted((d for d, _ in found), reverse=True)
    for decade, row in found:
        shown = [rates[k][i] for k, i in row.items()]
        assert set(row) == set(rates)
        assert all(decades(np.array(shown)) == decade)
    for k in rates:
        used = [row[k] for _, row in found]
        assert len(used) == len(set(used))
    # As many as asked for, or as the SAE with the fewest has.
    for decade in {d for r in rates.values() for d in decades(r) if np.isfinite(d)}:
        fewest = min(int((decades(r) == decade).sum()) for r in rates.values())
        assert sum(d == decade for d, _ in found) == min(per_decade, fewest)


def test_rows_are_matched_as_narrowly_as_there_are_latents_for():
    many = 10 ** np.linspace(-3, -2.001, 200)
    found = like_rows({"a": many, "b": many[::-1].copy()}, 8, seed=0)
    apart = [abs(np.log10(many[r["a"]] / many[::-1][r["b"]])) for _, r in found]
    assert max(apart) <= 0.1
    assert like(many, 0.005, seed=0) == np.abs(np.log(many / 0.005)).argmin()
    assert like(np.zeros(3), 0.1, seed=0) is None


def test_where_a_metric_tells_nothing_its_decades_do_not():
    results, latents = study(gain=0.0, seeds=3)
    parts = [results.frame]
    for metric, of_trained in (("autointerp_score", 0.73), ("null", 0.729)):
        scores = {
            (member, int(panel[-1])): {
                "": of_trained if member == "trained" else 0.6,
                **{
                    f"latent_{j}": (of_trained if member == "trained" else 0.6) + 1e-5 * j
                    for j in range(0, 400, 3)
                    if metric != "null"
                },
            }
            for panel, member in latents
        }
        name = "autointerp_score_null_exchanged" if metric == "null" else metric
        of = {"suite": "autointerp", "metric": name, "direction": int(metric != "null")}
        parts.append(pd.DataFrame(rows(scores, **of)))
    judge = {(member, int(panel[-1])): 0.1 for panel, member in latents}
    of = {"suite": "autointerp", "metric": "judge_above_floor", "direction": 0}
    parts.append(pd.DataFrame(rows(judge, **of)))
    table = pd.concat(parts, ignore_index=True)
    null = table["metric"].str.contains("_null_")
    words = {}
    for floor in (0.6, 0.74):
        table.loc[null, "value"] = floor
        found = [i.verdict for i in by_rate(Results.of(table), latents)]
        words[floor] = {v.word for v in found if v.suite == "autointerp"}
    assert words[0.74] == {"cannot tell"}
    assert "cannot tell" not in words[0.6]
