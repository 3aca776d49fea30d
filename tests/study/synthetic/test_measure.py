"""What is measured on held-out synthetic samples, against SAELens' own evaluation."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE
from sae_lens.config import LoggingConfig
from sae_lens.synthetic import (
    ActivationGenerator,
    FeatureDictionary,
    HierarchyConfig,
    LowRankCorrelationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    SyntheticSAERunner,
    SyntheticSAERunnerConfig,
    ZipfianFiringProbabilityConfig,
    eval_sae_on_synthetic_data,
)

from sae_baselines.errors import UserError
from sae_baselines.study.synthetic.measure import PerFeature, ToyMeasurement, measure_toy
from sae_baselines.study.synthetic.recovery import THRESHOLDS, best_cosine, recovered_count
from sae_baselines.study.synthetic.stream import (
    HELD_OUT_STREAM,
    TRAINING_STREAM,
    SyntheticStream,
)
from tests.helpers import AnySAE, make_sae, make_trainer, randomise_, weights

N, FEATURES, LATENTS = 12, 30, 40
SAMPLES, BATCH = 1000, 256


def _config(**more: Any) -> SyntheticModelConfig:
    firing = ZipfianFiringProbabilityConfig(max_prob=0.2, min_prob=0.01)
    options: dict[str, Any] = {"std_firing_magnitudes": 0.2, "bias": False, "seed": 0, **more}
    return SyntheticModelConfig(FEATURES, N, firing, **options)


@pytest.fixture(scope="module")
def model() -> SyntheticModel:
    return SyntheticModel(_config())


def _trained(name: str, model: SyntheticModel, folder: Path, **sae: Any) -> AnySAE:
    """By SAELens' own runner, exported by it too."""
    config = SyntheticSAERunnerConfig(
        synthetic_model=model.cfg,
        sae=make_sae(name, d_in=N, d_sae=LATENTS, **sae).cfg,
        training_samples=200 * 128,
        batch_size=128,
        lr=1e-2,
        output_path=str(folder),
        checkpoint_path=None,
        eval_samples=0,
        n_batches_for_norm_estimate=4,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SyntheticSAERunner(config, override_synthetic_model=model).run().sae


@pytest.fixture(scope="module")
def folder(model: SyntheticModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    _trained("batchtopk", model, folder)
    return folder


@pytest.fixture
def sae(folder: Path) -> AnySAE:
    return SAE.load_from_disk(folder)


def _measure(sae: AnySAE, model: SyntheticModel, **more: Any) -> ToyMeasurement:
    options = {"n_samples": SAMPLES, "seed": 3, "batch_size": BATCH, **more}
    return measure_toy(sae, model, **options)


def _held_out(model: SyntheticModel, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    stream = SyntheticStream(model, seed, BATCH, HELD_OUT_STREAM)
    parts = [stream.batch_with_features(i) for i in range(-(-SAMPLES // BATCH))]
    x, active = (torch.cat(part)[:SAMPLES] for part in zip(*parts, strict=True))
    return x, active


class _Replay(ActivationGenerator):
    """Hands out stored feature activations, for SAELens' evaluation to see the same sample."""

    def __init__(self, stored: torch.Tensor) -> None:
        super().__init__(stored.shape[1], 0.5)
        self.rest = stored

    def sample(self, batch_size: int) -> torch.Tensor:
        out, self.rest = self.rest[:batch_size], self.rest[batch_size:]
        return out


class _Stored(FeatureDictionary):
    """Hands out the activations that belong to them, bit for bit."""

    def __init__(self, model: SyntheticModel, stored: torch.Tensor) -> None:
        super().__init__(FEATURES, N, bias=False, initializer=None)
        self.feature_vectors.data = model.feature_dict.feature_vectors.data
        self.rest = stored

    def forward(self, feature_activations: torch.Tensor) -> torch.Tensor:
        size = len(feature_activations)
        out, self.rest = self.rest[:size], self.rest[size:]
        return out


def test_saelens_evaluation_of_the_same_sample_gives_the_same_numbers(
    model: SyntheticModel, sae: AnySAE
) -> None:
    ours = _measure(sae, model)
    x, active = _held_out(model)
    theirs = eval_sae_on_synthetic_data(
        sae, _Stored(model, x), _Replay(active), num_samples=SAMPLES, batch_size=BATCH
    )
    assert ours.ev_saelens == theirs.explained_variance
    assert (ours.l0, ours.true_l0) == (theirs.sae_l0, theirs.true_l0)
    assert (ours.dead, ours.shrinkage) == (theirs.dead_latents, theirs.shrinkage)
    assert (ours.mcc, ours.uniqueness) == (theirs.mcc, theirs.uniqueness)
    quality = theirs.classification
    assert (ours.precision, ours.recall) == (quality.precision, quality.recall)
    assert (ours.f1, ours.accuracy) == (quality.f1_score, quality.accuracy)


def test_numbers_are_those_of_the_definitions(model: SyntheticModel, sae: AnySAE) -> None:
    ours = _measure(sae, model)
    x, active = _held_out(model)
    with torch.no_grad():
        latents = sae.encode(x)
        wide, x_hat = x.double(), sae.decode(latents).double()
    mean = wide.mean(dim=0)
    ev = 1 - ((wide - x_hat) ** 2).sum() / ((wide - mean) ** 2).sum()
    assert ours.ev == pytest.approx(float(ev), abs=1e-12)
    assert ours.ev == pytest.approx(ours.ev_saelens, abs=1e-6)
    assert 0.5 < ours.ev < 1
    assert ours.l0 == pytest.approx(float((latents != 0).sum()) / SAMPLES)

    assert ours.per_feature is not None
    best = best_cosine(sae.W_dec, model.feature_dict.feature_vectors).numpy()
    assert np.array_equal(ours.per_feature.best_cosine, best)
    assert ours.recovered == recovered_count(best) > 0
    assert ours.recovered_share == ours.recovered / FEATURES
    assert ours.curve[THRESHOLDS.index(0.8)] == pytest.approx(ours.recovered_share)
    assert ours.mean_best_cosine == best.mean()
    assert ours.recovered_one_to_one <= min(ours.recovered, ours.recovering_latents)
    assert ours.per_feature.firings.tolist() == (active > 0).sum(dim=0).tolist()
    assert ours.per_feature.latent_firings.tolist() == (latents != 0).sum(dim=0).tolist()


def test_the_paper_variance_is_about_the_mean() -> None:
    """An SAE that reconstructs the mean explains nothing, far from the origin too."""
    shifted = SyntheticModel(_config(bias=1000.0))
    sae = make_sae("topk", d_in=N, d_sae=LATENTS, k=1)
    x, _ = _held_out(shifted)
    with torch.no_grad():
        sae.W_dec.mul_(1e-6)
        sae.b_dec.copy_(x.mean(dim=0))
    assert _measure(sae, shifted, mcc=False).ev == pytest.approx(0.0, abs=1e-3)


def test_dead_latents_count_apart(model: SyntheticModel, sae: AnySAE) -> None:
    before = _measure(sae, model)
    feature = before.per_feature.best_cosine.argmin()  # type: ignore[union-attr]
    with torch.no_grad():
        # A latent that sits on a feature nobody found, and never fires.
        sae.W_dec[0] = model.feature_dict.feature_vectors[feature]
        sae.W_enc[:, 0] = 0
        sae.b_enc[0] = -100
    after = _measure(sae, model)
    assert after.dead >= 1
    assert after.per_feature is not None
    assert after.per_feature.latent_firings[0] == 0
    assert after.per_feature.best_cosine[feature] == pytest.approx(1.0)
    assert after.per_feature.best_cosine_alive[feature] < 0.99
    assert after.recovered > after.recovered_alive


def test_an_sae_that_never_fires_recovers_nothing_alive(
    model: SyntheticModel, sae: AnySAE
) -> None:
    with torch.no_grad():
        sae.b_enc.fill_(-100)
    ours = _measure(sae, model)
    assert (ours.dead, ours.l0, ours.recovered_alive) == (LATENTS, 0.0, 0)
    assert ours.recovered > 0
    assert ours.per_feature is not None
    assert np.isnan(ours.per_feature.best_cosine_alive).all()


def test_every_member_sees_one_sample_and_nothing_else_changes(
    model: SyntheticModel, sae: AnySAE
) -> None:
    other = make_sae("frozen_decoder_jumprelu", d_in=N, d_sae=17)
    other.train()
    torch.manual_seed(123)
    before, kept = torch.get_rng_state(), weights(sae)
    sae.eval()
    a = _measure(sae, model)
    b = _measure(other, model)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(4)
    again = _measure(sae, model)
    assert a == again
    assert a.per_feature is not None
    assert b.per_feature is not None
    assert np.array_equal(a.per_feature.firings, b.per_feature.firings)
    assert a.true_l0 == b.true_l0
    assert _measure(sae, model, seed=4).true_l0 != a.true_l0
    assert other.training
    assert not sae.training
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights(sae).items())


def test_the_sample_is_held_out(model: SyntheticModel) -> None:
    x, _ = _held_out(model, seed=0)
    some = {tuple(row) for row in x.tolist()} - {(0.0,) * N}
    assert len(some) > 500
    for seed, i in itertools.product((0, 1), range(4)):
        trained_on = SyntheticStream(model, seed, BATCH, TRAINING_STREAM).batch(i)
        assert some.isdisjoint(map(tuple, trained_on.tolist()))


def test_a_sample_does_not_depend_on_its_remainder(model: SyntheticModel, sae: AnySAE) -> None:
    """1000 = 3 * 256 + 232; the first batches are those of a longer measurement."""
    short, long = _measure(sae, model, n_samples=256), _measure(sae, model, n_samples=1000)
    assert short.per_feature is not None
    assert long.per_feature is not None
    assert (short.per_feature.firings <= long.per_feature.firings).all()
    assert long.n_samples == 1000
    assert long.true_l0 * 1000 == pytest.approx(long.per_feature.firings.sum())


@pytest.mark.parametrize("normalize", ["expected_average_only_in", "covariance_whitening"])
def test_normalised_activations_in_training_and_folded(
    model: SyntheticModel, normalize: str
) -> None:
    stream = SyntheticStream(model, 0, 128)
    sae = make_sae("topk", d_in=N, d_sae=LATENTS, normalize_activations=normalize)
    randomise_(sae)
    trainer = make_trainer(sae, 1, (5 * stream.batch(i) for i in range(8)))
    scaler = trainer.activation_scaler
    if normalize == "covariance_whitening":
        scaler.estimate_whitening(N, trainer.data_provider, 4)
    else:
        scaler.estimate_scaling_factor(N, trainer.data_provider, 4)
    with pytest.raises(UserError, match=f"normalize_activations: '{normalize}' is not folded"):
        _measure(sae, model)
    before = _measure(sae, model, activation_scaler=scaler)
    if scaler.whitening is not None:
        whitening = scaler.whitening
        sae.fold_activation_whitening(
            whitening.mean, whitening.matrix, whitening.inverse_matrix
        )
    else:
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    after = _measure(sae, model)
    assert after.ev == pytest.approx(before.ev, abs=1e-4)
    assert after.per_feature is not None
    assert before.per_feature is not None
    assert after.per_feature.best_cosine == pytest.approx(
        before.per_feature.best_cosine, abs=1e-5
    )


def test_normalised_training_through_the_runner_measures_on_raw_activations(
    model: SyntheticModel, tmp_path: Path
) -> None:
    sae = _trained("topk", model, tmp_path, normalize_activations="expected_average_only_in")
    exported = SAE.load_from_disk(tmp_path)
    ours = _measure(exported, model, mcc=False)
    assert ours.ev > 0.5
    # TopK selects sample by sample, so training and exported SAE are one function.
    assert _measure(sae, model, mcc=False).ev == pytest.approx(ours.ev, abs=1e-6)


@pytest.mark.parametrize("name", ["frozen_decoder_topk", "soft_frozen_decoder_jumprelu"])
def test_members_are_measured_in_training_and_exported(
    name: str, model: SyntheticModel, tmp_path: Path
) -> None:
    sae = _trained(name, model, tmp_path)
    training = _measure(sae, model, mcc=False)
    exported = _measure(SAE.load_from_disk(tmp_path), model, mcc=False)
    assert exported.recovered == training.recovered
    assert exported.ev == pytest.approx(training.ev, abs=1e-5)
    assert exported.l0 == pytest.approx(training.l0, rel=1e-3)


def test_a_model_with_hierarchy_and_correlations(sae: AnySAE) -> None:
    hierarchy = HierarchyConfig(total_root_nodes=3, branching_factor=3, max_depth=2)
    model = SyntheticModel(
        _config(hierarchy=hierarchy, correlation=LowRankCorrelationConfig(rank=4, seed=1))
    )
    ours = _measure(sae, model)
    x, active = _held_out(model)
    assert ours.per_feature is not None
    assert ours.per_feature.firings.tolist() == (active > 0).sum(dim=0).tolist()
    # Parents hold their children back, so nominal probabilities are too high.
    nominal = ours.per_feature.firing_probability.sum()
    assert ours.true_l0 < 0.95 * nominal
    assert torch.isfinite(x).all()


def test_lower_precision_is_measured_in_full(model: SyntheticModel, sae: AnySAE) -> None:
    full = _measure(sae, model)
    low = _measure(sae.to(torch.bfloat16), model)
    assert low.ev == pytest.approx(full.ev, abs=0.02)
    assert low.mean_best_cosine == pytest.approx(full.mean_best_cosine, abs=1e-3)


def test_mcc_can_be_left_out(model: SyntheticModel, sae: AnySAE) -> None:
    with_it, without = _measure(sae, model), _measure(sae, model, mcc=False)
    assert with_it.mcc is not None
    assert 0 < with_it.mcc <= 1
    assert without.to_dict() == {**with_it.to_dict(), "mcc": None}


def test_json_and_arrays_come_back_as_they_went(
    model: SyntheticModel, sae: AnySAE, tmp_path: Path
) -> None:
    ours = _measure(sae, model)
    assert json.loads(json.dumps(ours.to_dict())) == ours.to_dict()
    assert ours.per_feature is not None
    ours.per_feature.save(tmp_path / "features.npz")
    loaded = PerFeature.load(tmp_path / "features.npz")
    for name, array in vars(ours.per_feature).items():
        assert getattr(loaded, name).dtype == array.dtype
        np.testing.assert_array_equal(getattr(loaded, name), array)


def test_what_cannot_be_measured_is_refused(model: SyntheticModel, sae: AnySAE) -> None:
    with pytest.raises(UserError, match="n_samples: 0"):
        _measure(sae, model, n_samples=0)
    with pytest.raises(UserError, match="batch_size: 0"):
        _measure(sae, model, batch_size=0)
    with pytest.raises(UserError, match="d_in: 16 of the SAE, 12 of the synthetic model"):
        _measure(make_sae("topk"), model)
    with pytest.raises(UserError, match="one sample only"):
        _measure(sae, model, n_samples=1)
    with torch.no_grad():
        sae.b_dec[0] = float("nan")
    with pytest.raises(UserError, match="did training diverge"):
        _measure(sae, model)
    with torch.no_grad():
        sae.b_dec[0] = 0
        sae.W_dec[0, 0] = float("nan")
    with pytest.raises(UserError, match="did training diverge"):
        _measure(sae, model)
