"""What is reported about one SAE on synthetic data whose truth is known (paper, Section 3)."""

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.evals import ExplainedVarianceCalculator
from sae_lens.synthetic import (
    ClassificationMetricsCalculator,
    L0Calculator,
    ShrinkageCalculator,
    SyntheticModel,
    feature_uniqueness,
    mean_correlation_coefficient,
)
from sae_lens.training.activation_scaler import ActivationScaler

from sae_baselines.controls.source import FOLDED_LATER
from sae_baselines.errors import UserError
from sae_baselines.files import new_file, reading
from sae_baselines.reconstruction import RunningVariance
from sae_baselines.study.folder import MEASURE_AGAIN
from sae_baselines.study.synthetic.recovery import (
    THRESHOLDS,
    best_cosine,
    one_to_one,
    recovered_count,
    recovery_curve,
)
from sae_baselines.study.synthetic.stream import HELD_OUT_STREAM, SyntheticStream

FEATURES_FILE = "toy_features.npz"


@dataclass(frozen=True, eq=False)
class PerFeature:
    """One entry per ground-truth feature, and per latent.

    Attributes:
        best_cosine: Largest signed cosine with a decoder row, ``[n_features]``.
        best_cosine_alive: The same with the rows of latents that fired; NaN if none did.
        firing_probability: The generator's, ``[n_features]``. With a hierarchy or
            correlations a feature may fire less often than that.
        firings: Samples of the held-out ones in which it was active, ``[n_features]``.
        latent_firings: Samples in which each latent was active, ``[d_sae]``.
    """

    best_cosine: np.ndarray
    best_cosine_alive: np.ndarray
    firing_probability: np.ndarray
    firings: np.ndarray
    latent_firings: np.ndarray

    def save(self, path: str | Path) -> None:
        """Write an npz file."""
        with new_file(Path(path)) as scratch:
            np.savez_compressed(
                scratch, **{f.name: getattr(self, f.name) for f in fields(self)}
            )

    @classmethod
    def load(cls, path: str | Path) -> "PerFeature":
        """Read what `save` wrote."""
        with reading(Path(path), MEASURE_AGAIN), np.load(path, allow_pickle=False) as stored:
            return cls(**{f.name: stored[f.name] for f in fields(cls)})


@dataclass(frozen=True)
class ToyMeasurement:
    """One SAE on held-out synthetic samples.

    Attributes:
        n_samples: Held-out samples.
        seed: Seed of the sample.
        d_sae: Number of latents.
        n_features: Number of ground-truth features.
        ev: 1 - E||x - x_hat||^2 / E||x - E[x]||^2 (the paper's EV), float64.
        l0: Mean number of active latents.
        true_l0: Mean number of active ground-truth features.
        dead: Latents that never fired on the sample.
        recovered: Features with a best cosine above 0.8 (the paper's count).
        recovered_share: The same over ``n_features``.
        recovered_alive: The same with latents that fired only.
        recovered_one_to_one: Features that have a latent of their own above 0.8 (largest
            matching).
        recovering_latents: Latents above 0.8 with any feature.
        mean_best_cosine: Mean over features of the best cosine.
        curve: Share of features above each of ``recovery.THRESHOLDS``.
        ev_saelens: SAELens' explained variance.
        shrinkage: SAELens': mean of ||x_hat|| / ||x||.
        uniqueness: SAELens': ground-truth features that are the best match (by absolute
            cosine) of some latent, over latents.
        mcc: SAELens': mean absolute cosine under the best one-to-one matching; None where it
            was not asked for.
        precision: SAELens': mean over latents, each as a detector of its best match.
        recall: The same.
        f1: The same.
        accuracy: The same.
        per_feature: Arrays behind these, kept apart in a npz file.
    """

    n_samples: int
    seed: int
    d_sae: int
    n_features: int
    ev: float
    l0: float
    true_l0: float
    dead: int
    recovered: int
    recovered_share: float
    recovered_alive: int
    recovered_one_to_one: int
    recovering_latents: int
    mean_best_cosine: float
    curve: tuple[float, ...]
    ev_saelens: float
    shrinkage: float
    uniqueness: float
    mcc: float | None
    precision: float
    recall: float
    f1: float
    accuracy: float
    per_feature: PerFeature | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; without the arrays."""
        out = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "per_feature"}
        return {**out, "curve": list(self.curve)}


@torch.no_grad()
def measure_toy(
    sae: SAE[Any],
    model: SyntheticModel,
    *,
    n_samples: int = 100_000,
    seed: int = 0,
    batch_size: int = 2048,
    mcc: bool = True,
    activation_scaler: ActivationScaler | None = None,
) -> ToyMeasurement:
    """Measure an SAE on held-out samples of a synthetic model.

    The samples are a function of (model, n_samples, seed, batch_size), the same for every
    member and never those of training; global RNG state and the SAE's mode are left as they
    were. All of it is one pass, in which SAELens' own calculators see what they would see in
    ``eval_sae_on_synthetic_data``. A training SAE is measured as it encodes: BatchTopK
    then selects per batch, where the exported one has a threshold.

    Args:
        sae: Exported or training SAE, any dtype, on any device.
        model: SAELens' synthetic model.
        n_samples: Held-out samples; a latent that fires in none of them is counted as dead.
        seed: Of the samples.
        batch_size: Samples at a time.
        mcc: Whether to compute SAELens' MCC, a Hungarian matching: about a second at
            3200 x 3200, and it grows with the cube.
        activation_scaler: The trainer's, for a training SAE in the middle of a run with
            normalised activations. SAELens folds it into the weights at the end.

    Raises:
        UserError: Sizes that do not fit, no sample, weights that are not finite, or an SAE
            of normalised activations without a scaler.
    """
    _check(sae, model, n_samples, batch_size, activation_scaler)
    scaler = activation_scaler or ActivationScaler()
    device = sae.W_dec.device
    truth = model.feature_dict.feature_vectors.detach().to(device)
    directions = _in_activation_space(sae.W_dec.detach(), scaler)
    totals = _Totals(directions, truth)
    stream = SyntheticStream(model, seed, batch_size, HELD_OUT_STREAM)
    training = sae.training
    sae.eval()
    try:
        for index in range(math.ceil(n_samples / batch_size)):
            x, active = stream.batch_with_features(index)
            kept = min(batch_size, n_samples - index * batch_size)
            x = x[:kept].to(device)
            latents = sae.encode(scaler.scale(x))
            totals.add(
                x, active[:kept].to(device), latents, scaler.unscale(sae.decode(latents))
            )
    finally:
        sae.train(training)

    best = best_cosine(directions, truth).numpy()
    fired = totals.latent_firings > 0
    alive = np.full_like(best, np.nan)
    if fired.any():
        alive = best_cosine(directions[fired.to(device)], truth).numpy()
    matched, recovering = one_to_one(directions, truth)
    classification = totals.classification.compute()
    return ToyMeasurement(
        n_samples=n_samples,
        seed=seed,
        d_sae=len(directions),
        n_features=len(truth),
        ev=totals.explained_variance,
        l0=totals.l0.compute(),
        true_l0=totals.true_l0.compute(),
        dead=int((~fired).sum()),
        recovered=recovered_count(best),
        recovered_share=recovered_count(best) / len(best),
        recovered_alive=recovered_count(alive) if fired.any() else 0,
        recovered_one_to_one=matched,
        recovering_latents=recovering,
        mean_best_cosine=float(best.mean()),
        curve=tuple(recovery_curve(best, THRESHOLDS).tolist()),
        ev_saelens=totals.saelens_variance.compute(),
        shrinkage=totals.shrinkage.compute(),
        uniqueness=feature_uniqueness(directions, truth.to(directions.dtype)),
        mcc=mean_correlation_coefficient(directions, truth.to(directions.dtype))
        if mcc
        else None,
        **_renamed(asdict(classification)),
        per_feature=PerFeature(
            best_cosine=best,
            best_cosine_alive=alive,
            firing_probability=model.activation_generator.firing_probabilities.double()
            .cpu()
            .numpy(),
            firings=totals.firings.numpy(),
            latent_firings=totals.latent_firings.numpy(),
        ),
    )


class _Totals:
    """Running sums over batches: SAELens' calculators, and the paper's EV without them."""

    def __init__(self, directions: torch.Tensor, truth: torch.Tensor) -> None:
        self.l0, self.true_l0 = L0Calculator(), L0Calculator()
        self.shrinkage = ShrinkageCalculator()
        self.saelens_variance = ExplainedVarianceCalculator()
        self.classification = ClassificationMetricsCalculator(
            directions, truth.to(directions.dtype)
        )
        self.latent_firings = torch.zeros(len(directions), dtype=torch.int64)
        self.firings = torch.zeros(len(truth), dtype=torch.int64)
        self._variance = RunningVariance(torch.zeros(truth.shape[1]))

    def add(
        self, x: torch.Tensor, active: torch.Tensor, latents: torch.Tensor, x_hat: torch.Tensor
    ) -> None:
        if active.is_sparse:
            active = active.to_dense()
        if latents.is_sparse:
            latents = latents.to_dense()
        x_hat = x_hat.to(x.dtype)
        self.true_l0.add_batch(active)
        self.l0.add_batch(latents)
        self.shrinkage.add_batch(x_hat, x)
        self.saelens_variance.add_batch(x_hat, x)
        self.classification.add_batch(latents, active)
        self.latent_firings += (latents != 0).sum(dim=0).cpu()
        self.firings += (active > 0).sum(dim=0).cpu()
        self._variance.add(x.cpu(), x_hat.cpu())

    @property
    def explained_variance(self) -> float:
        """
        Raises:
            UserError: No finite one.
        """
        total = self._variance
        if not (total.variance > 0 and math.isfinite(total.residual)):
            raise UserError(
                f"ev: residual {total.residual:g}, variance {total.variance:g} over {total.n} "
                "samples; did training diverge, or is there one sample only?"
            )
        return total.explained_variance


def _in_activation_space(W_dec: torch.Tensor, scaler: ActivationScaler) -> torch.Tensor:
    # As SAELens folds it; a scalar factor turns nothing. SAELens' metrics need float32.
    W_dec = W_dec.to(torch.promote_types(W_dec.dtype, torch.float32))
    if scaler.whitening is None:
        return W_dec
    return W_dec @ scaler.whitening.inverse_matrix.to(W_dec)


def _renamed(classification: dict[str, float]) -> dict[str, float]:
    return {"f1" if name == "f1_score" else name: v for name, v in classification.items()}


def _check(
    sae: SAE[Any],
    model: SyntheticModel,
    n_samples: int,
    batch_size: int,
    scaler: ActivationScaler | None,
) -> None:
    for name, value in (("n_samples", n_samples), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name}: {value} measures nothing; use 1 or more")
    if sae.cfg.d_in != model.cfg.hidden_dim:
        raise UserError(
            f"d_in: {sae.cfg.d_in} of the SAE, {model.cfg.hidden_dim} of the synthetic model; "
            "measure on the model it was trained on"
        )
    normalize = getattr(sae.cfg, "normalize_activations", "none")
    if normalize in FOLDED_LATER and scaler is None:
        raise UserError(
            f"normalize_activations: {normalize!r} is not folded into these weights yet; "
            "pass the trainer's activation_scaler, or measure the exported SAE"
        )
