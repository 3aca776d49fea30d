"""Latents matched in firing rate, and verdicts within decades of it."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_baselines.results import Results
from sae_baselines.stats.by_rate import NEVER, Rated, by_rate, decades, matched, strata
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
