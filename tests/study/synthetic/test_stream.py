"""Batches by number, distributed as SAELens' generator distributes them."""

import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.synthetic import (
    HierarchyConfig,
    LowRankCorrelationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
)
from sae_lens.util import temporary_seed
from scipy import stats

from sae_baselines.study.synthetic.generator import paper_config
from sae_baselines.study.synthetic.stream import (
    CALIBRATION_STREAM,
    HELD_OUT_STREAM,
    TRAINING_STREAM,
    SyntheticStream,
)


def _model(setting: str = "variable", **change: float) -> SyntheticModel:
    sizes: dict[str, Any] = {"n": 16, "m": 128, "mean_active": 6, **change}
    return SyntheticModel(paper_config(setting, **sizes))


def test_a_batch_is_a_function_of_its_number() -> None:
    model = _model()
    first, second = (SyntheticStream(model, 3, 64) for _ in range(2))
    expected = [first.batch(i) for i in range(3)]
    torch.rand(5)
    assert torch.equal(second.batch(2), expected[2])
    assert torch.equal(second.batch(0), expected[0])
    assert not torch.equal(expected[0], expected[1])


def test_streams_and_seeds_share_no_batch() -> None:
    model = _model()
    streams = [
        SyntheticStream(model, seed, 32, stream).batch(i)
        for seed in (0, 1, 2)
        for stream in (TRAINING_STREAM, HELD_OUT_STREAM, CALIBRATION_STREAM)
        for i in (0, 1)
    ]
    distinct = {tuple(x.flatten().tolist()) for x in streams}
    assert len(distinct) == len(streams)


def test_the_global_generator_is_left_alone() -> None:
    stream = SyntheticStream(_model(), 0, 32)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    stream.batch(0)
    stream.batch_with_features(1)
    assert torch.equal(torch.rand(3), expected)


def test_activations_are_the_features_times_the_dictionary() -> None:
    model = _model()
    stream = SyntheticStream(model, 0, 256)
    x, truth = stream.batch_with_features(4)
    assert torch.equal(x, stream.batch(4))
    wide = truth.double() @ model.feature_dict.feature_vectors.double()
    assert torch.allclose(x.double(), wide, atol=1e-5)


def test_firing_counts_are_binomial_and_independent() -> None:
    model = _model("constant")
    stream = SyntheticStream(model, 0, 500)
    fired = torch.cat([stream.batch_with_features(i)[1] > 0 for i in range(40)]).double()
    p, n = 6 / 128, len(fired)
    z = (fired.mean(dim=0) - p) / math.sqrt(p * (1 - p) / n)
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    active = fired.sum(dim=1).numpy()
    assert abs(active.var() / (128 * p * (1 - p)) - 1) < 0.05
    covariance = torch.cov(fired.T) - torch.diag(torch.cov(fired.T).diagonal())
    assert float(covariance.abs().max()) < 6 * p * (1 - p) / math.sqrt(n)


def test_same_distribution_as_saelens() -> None:
    """Two-sample tests on norms and on single coordinates, against SAELens' own sample()."""
    model = _model()
    ours = torch.cat([SyntheticStream(model, 1, 2000).batch(i) for i in range(5)])
    with temporary_seed(0):
        theirs = model.sample(10_000)
    pairs = [(ours.norm(dim=1), theirs.norm(dim=1))]
    pairs += [(ours[:, column], theirs[:, column]) for column in (0, 7, 15)]
    for a, b in pairs:
        test: Any = stats.ks_2samp(a.numpy(), b.numpy())
        assert test.pvalue > 1e-3


@settings(max_examples=30, deadline=None)
@given(p=st.floats(0.3, 0.99), size=st.integers(1, 20), index=st.integers(0, 10**6))
def test_a_feature_fires_at_most_once_in_a_sample(p: float, size: int, index: int) -> None:
    """Where most of a batch fires, collisions are the rule."""
    model = _model("constant", n=4, m=6, mean_active=6 * p)
    _, truth = SyntheticStream(model, 0, size).batch_with_features(index)
    x, _ = SyntheticStream(model, 0, size).batch_with_features(index)
    wide = truth.double() @ model.feature_dict.feature_vectors.double()
    # A firing counted twice would be in x twice and in the truth once.
    assert torch.allclose(x.double(), wide, atol=1e-5)


def test_hierarchies_and_correlations_are_saelens_own() -> None:
    config = SyntheticModelConfig(
        num_features=64,
        hidden_dim=16,
        firing_probability=ZipfianFiringProbabilityConfig(max_prob=0.3, min_prob=0.05),
        hierarchy=HierarchyConfig(total_root_nodes=4, branching_factor=3, max_depth=2),
        correlation=LowRankCorrelationConfig(rank=4, correlation_scale=0.2),
        std_firing_magnitudes=0.1,
        seed=0,
    )
    model = SyntheticModel(config)
    stream = SyntheticStream(model, 0, 128)
    x, truth = stream.batch_with_features(0)
    assert torch.equal(x, stream.batch(0))
    assert model.hierarchy is not None
    # A child fires only where its parent does: that is what the hierarchy means.
    checked = 0
    for root in model.hierarchy.roots:
        for child in root.children:
            fires = truth[:, child.feature_index] > 0
            assert bool((truth[fires][:, root.feature_index] > 0).all())
            checked += int(fires.sum())
    assert checked > 0
