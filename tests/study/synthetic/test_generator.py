"""The paper's generator inside SAELens: moments, isotropy, persistence (Section 3)."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sae_lens.synthetic import SyntheticModel, SyntheticModelConfig, SyntheticSAERunnerConfig
from sae_lens.util import temporary_seed
from scipy import stats

import sae_baselines  # noqa: F401  (registers the generators)
from sae_baselines.errors import UserError
from sae_baselines.study.synthetic.generator import (
    LogNormalMagnitudeConfig,
    LogUniformFiringProbabilityConfig,
    paper_config,
    register_generators,
)


@pytest.mark.parametrize("setting", ["constant", "variable"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_about_twenty_features_are_active(setting: str, seed: int) -> None:
    model = SyntheticModel(paper_config(setting, seed=seed))
    probabilities = model.activation_generator.firing_probabilities
    assert float(probabilities.double().sum()) == pytest.approx(20, abs=1e-3)
    with temporary_seed(seed):
        active = (model.activation_generator.sample(4096) > 0).float().sum(dim=1)
    # The tolerance; the standard error of this mean is about 0.07.
    assert float(active.mean()) == pytest.approx(20, abs=0.2)


def test_the_papers_range_alone_would_not_give_twenty() -> None:
    """E[p] of LogUniform(a, b) is (b - a) / log(b / a): 20.39 active of 3200."""
    a, b = 10**-5.5, 10**-1.2
    p = LogUniformFiringProbabilityConfig().generate(400_000, seed=0).double()
    expected = (b - a) / math.log(b / a)
    assert float(p.mean()) == pytest.approx(expected, rel=0.01)
    assert 3200 * expected == pytest.approx(20.39, abs=0.01)
    assert a <= float(p.min())
    assert float(p.max()) <= b * (1 + 1e-6)


def test_probabilities_are_log_uniform() -> None:
    config = LogUniformFiringProbabilityConfig(min_prob=1e-4, max_prob=1e-1)
    p = config.generate(20_000, seed=3).double().numpy()
    test = stats.kstest(np.log(p), stats.uniform(math.log(1e-4), math.log(1e3)).cdf)
    assert test.pvalue > 1e-3


def test_a_common_factor_brings_the_sum_to_its_target() -> None:
    free = LogUniformFiringProbabilityConfig().generate(3200, seed=5).double()
    scaled = LogUniformFiringProbabilityConfig(mean_active=20).generate(3200, seed=5).double()
    ratio = scaled / free
    assert float(ratio.max() / ratio.min()) == pytest.approx(1, abs=1e-5)
    assert float(scaled.sum()) == pytest.approx(20, rel=1e-6)


@pytest.mark.parametrize(("reading", "sigma"), [("sigma", 0.25), ("variance", 0.5)])
def test_each_firing_has_its_own_log_normal_magnitude(reading: str, sigma: float) -> None:
    model = SyntheticModel(paper_config("constant", reading=reading))  # type: ignore[arg-type]
    with temporary_seed(0):
        acts = model.activation_generator.sample(4096)
    log_c = acts[acts > 0].double().log().numpy()
    assert stats.kstest(log_c, stats.norm(0, sigma).cdf).pvalue > 1e-3
    # Fresh at every firing: a feature's own magnitudes vary as all of them do.
    feature = acts[:, 0][acts[:, 0] > 0].double().log()
    assert float(feature.std()) == pytest.approx(sigma, rel=0.5)
    # Moments of a log-normal (its second argument is what the two readings differ in).
    c = np.exp(log_c)
    assert c.mean() == pytest.approx(math.exp(sigma**2 / 2), rel=0.01)
    assert c.var() == pytest.approx((math.exp(sigma**2) - 1) * math.exp(sigma**2), rel=0.05)


def test_a_magnitude_per_feature_is_fixed() -> None:
    config = LogNormalMagnitudeConfig(sigma=0.25, per="feature")
    values = config.generate(50_000, seed=1)
    assert torch.equal(values, config.generate(50_000, seed=1))
    assert stats.kstest(values.double().log().numpy(), stats.norm(0, 0.25).cdf).pvalue > 1e-3
    assert torch.equal(
        values[torch.tensor([3, 3, 7])], torch.stack([values[i] for i in (3, 3, 7)])
    )


def test_features_are_isotropic_unit_vectors() -> None:
    features = (
        SyntheticModel(paper_config("constant")).feature_dict.feature_vectors.detach().double()
    )
    assert torch.allclose(features.norm(dim=1), torch.ones(3200, dtype=torch.float64))
    # 100 E[f f^T] is the identity; an entry of its estimate has a deviation below 1 / sqrt(32).
    moment = 100 * features.T @ features / 3200
    assert float((moment - torch.eye(100)).abs().max()) < 5 * math.sqrt(2 / 3200)
    assert float(features.mean(dim=0).norm()) < 3 / math.sqrt(3200)


def test_samples_have_the_second_moment_of_the_formula() -> None:
    """Var[x] = sum_i Var[b_i c_i] f_i f_i^T."""
    config = paper_config("variable", n=12, m=96, mean_active=6, seed=1)
    model = SyntheticModel(config)
    p = model.activation_generator.firing_probabilities.double()
    sigma = 0.25
    first, second = math.exp(sigma**2 / 2), math.exp(2 * sigma**2)
    features = model.feature_dict.feature_vectors.detach().double()
    expected = features.T @ ((p * second - (p * first) ** 2)[:, None] * features)
    with temporary_seed(0):
        x = model.sample(200_000).double()
    scale = float(expected.diagonal().mean())
    assert float((torch.cov(x.T) - expected).abs().max()) < 0.03 * scale
    assert torch.allclose(x.mean(dim=0), (p * first) @ features, atol=0.02)


def test_probability_is_independent_of_direction() -> None:
    model = SyntheticModel(paper_config("variable"))
    p = model.activation_generator.firing_probabilities.double().log().numpy()
    features = model.feature_dict.feature_vectors.detach().double().numpy()
    worst = max(abs(np.corrcoef(p, features[:, i])[0, 1]) for i in range(100))
    assert worst < 4.5 / math.sqrt(3200)


def test_anybody_can_load_the_setting(tmp_path) -> None:
    config = paper_config("variable", n=8, m=32, mean_active=0.3)
    text = json.dumps(config.to_dict())
    assert SyntheticModelConfig.from_dict(json.loads(text)) == config
    model = SyntheticModel(config)
    model.save(tmp_path)
    again = SyntheticModel.load_from_disk(tmp_path)
    with temporary_seed(0):
        x = model.sample(16)
    with temporary_seed(0):
        assert torch.equal(again.sample(16), x)
    runner = {"synthetic_model": json.loads(text), "sae": {"architecture": "frozen_decoder"}}
    runner["sae"] |= {"d_in": 8, "d_sae": 16}
    assert SyntheticSAERunnerConfig.from_dict(runner).synthetic_model == config


def test_registering_again_is_harmless() -> None:
    register_generators()
    register_generators()


@given(
    low=st.floats(1e-6, 0.5),
    ratio=st.floats(1, 100),
    n=st.integers(1, 200),
    seed=st.integers(0, 2**31),
)
def test_probabilities_stay_in_range(low: float, ratio: float, n: int, seed: int) -> None:
    high = min(1.0, low * ratio)
    p = LogUniformFiringProbabilityConfig(low, high).generate(n, seed=seed)
    assert p.shape == (n,)
    assert float(p.min()) >= low * (1 - 1e-6)
    assert float(p.max()) <= high * (1 + 1e-6)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: LogUniformFiringProbabilityConfig(0.5, 0.1), "min_prob"),
        (lambda: LogUniformFiringProbabilityConfig(mean_active=0), "mean_active"),
        (lambda: LogNormalMagnitudeConfig(sigma=-1), "sigma"),
        (lambda: LogNormalMagnitudeConfig(per="sample"), "per"),  # type: ignore[arg-type]
        (
            lambda: LogUniformFiringProbabilityConfig(mean_active=31).generate(32, seed=0),
            "mean_active",
        ),
    ],
)
def test_bad_values_are_named(make, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


def test_unknown_setting_says_what_is_known() -> None:
    with pytest.raises(UserError, match="did you mean variable"):
        paper_config("varable")
    with pytest.raises(UserError, match="reading"):
        paper_config("constant", reading="sd")  # type: ignore[arg-type]
