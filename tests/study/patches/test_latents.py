"""Rare latents and percentiles, against brute force."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from sae_lens import SAE

from sae_baselines.controls import make_control
from sae_baselines.study.patches.latents import (
    PERCENTILES,
    Firing,
    activations_of,
    at_percentiles,
    choose,
    firing,
)
from tests.helpers import activations, make_sae

_VALUES = st.floats(0, 100, width=32)


@given(values=st.lists(_VALUES, min_size=1, max_size=60).filter(lambda v: max(v) > 0))
def test_percentiles_are_of_positive_activations(values: list[float]):
    rows = at_percentiles(torch.tensor(values))
    positive = sorted(v for v in values if v > 0)
    assert len(rows) == len(PERCENTILES) == 4
    for percentile, row in zip(PERCENTILES, rows, strict=True):
        place = percentile / 100 * (len(positive) - 1)
        ranks = [i for i, v in enumerate(positive) if v == values[row]]
        assert ranks, "not an activation of the latent"
        assert min(abs(rank - place) for rank in ranks) <= 0.5
        assert row == values.index(values[row])  # of equal ones the first
    assert values[rows[0]] == max(values)


def _random_sae() -> SAE:
    x = activations(512)
    return make_control(make_sae("topk"), "random", seed=1, activations=x, l0=4).sae


def test_counts_are_those_of_a_plain_loop():
    sae, rows = _random_sae(), activations(3000, seed=2)
    photos = torch.from_numpy(np.random.default_rng(0).choice([3, 7, 8, 20], 3000))
    fired = firing(sae, rows, photos)
    acts = sae.encode(rows)
    for latent in range(sae.cfg.d_sae):
        where = (acts[:, latent] > 0).nonzero().flatten().tolist()
        assert int(fired.count[latent]) == len(where)
        assert int(fired.photographs[latent]) == len({int(photos[i]) for i in where})
    assert (fired.n_patches, fired.n_photographs) == (3000, 4)
    chosen = torch.tensor([5, 0, 31])
    assert torch.equal(activations_of(sae, rows, chosen), acts[:, chosen])


def test_rare_is_below_a_thousandth_and_not_dead():
    count = torch.tensor([0, 1, 99, 100, 101, 5000])
    photographs = torch.tensor([0, 1, 3, 4, 4, 4])
    fired = Firing(count, photographs, n_patches=100_000, n_photographs=4)
    assert fired.rare.tolist() == [1, 2]  # 100 of 100,000 is not below 0.1 %
    summary = fired.summary()
    assert (summary["dead"], summary["rare"]) == (1, 2)
    assert summary["rare_patches"] == 50
    assert summary["rare_photographs"] == 2
    assert summary["rare_on_one_photograph"] == 0.5
    none = Firing(torch.tensor([0]), torch.tensor([0]), 10, 1).summary()
    assert none["rare_patches"] is None


@given(n=st.integers(1, 30), many=st.integers(1, 30), seed=st.integers(0, 99))
def test_the_seed_chooses(n: int, many: int, seed: int):
    latents = torch.arange(many) * 3
    chosen = choose(latents, n, [seed, 0]).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(n, many)
    assert set(chosen) <= set(latents.tolist())
    assert chosen == choose(latents, n, [seed, 0]).tolist()


def test_every_rare_latent_can_be_chosen():
    seen = {int(i) for s in range(200) for i in choose(torch.arange(10), 2, [s, 0])}
    assert seen == set(range(10))
