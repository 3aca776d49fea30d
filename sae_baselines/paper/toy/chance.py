"""How many features random directions recover: the null beside each count (paper, Section 3).

For directions uniform on the sphere every feature has the same chance p of being recovered
(`sae_baselines.drift.sphere.chance_of_best`), whatever the features are, so that N p of N are
expected. How the count *varies* is another matter: features in a common cap are hit together.
Seen from the dictionary, features are hit (nearly) independently, but the share of the sphere
that it covers varies, and the count with it. Where its caps hardly overlap, as at n = 100 and
cos > 0.8, coverage is constant and the count binomial; in few dimensions or at loose
thresholds a binomial is too narrow. The simulation, with real dictionaries and these very
features, is right everywhere. Markov's inequality, P(count >= k) <= N p / k, needs no
independence and reaches chances that no simulation can.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats

from sae_baselines.baselines.directions import InitScheme, sample_directions
from sae_baselines.drift.sphere import chance_of_best, expected_best_cosine
from sae_baselines.errors import UserError
from sae_baselines.study.synthetic.recovery import (
    RECOVERED_ABOVE,
    THRESHOLDS,
    best_cosine,
    recovery_curve,
)


def chance_curve(d_in: int, d_sae: int, thresholds: ArrayLike = THRESHOLDS) -> np.ndarray:
    """Expected share of features recovered by ``d_sae`` directions uniform on the sphere.

    Exact for any features, by symmetry.

    Args:
        d_in: Dimension n (>= 2).
        d_sae: Number of directions m.
        thresholds: Cosines in [-1, 1], ``[n_thresholds]``.

    Returns:
        ``[n_thresholds]``.

    Raises:
        ValueError: A size or threshold out of range.
    """
    return np.asarray(chance_of_best(d_in, d_sae, np.asarray(thresholds, dtype=np.float64)))


@dataclass(frozen=True)
class SimulatedRecovery:
    """Recovery by random dictionaries, one row per dictionary.

    Attributes:
        thresholds: ``[n_thresholds]``.
        share: Share of features above each threshold, ``[draws, n_thresholds]``.
        mean_best_cosine: Mean over features of the best cosine, ``[draws]``.
        n_features: Number of features.
        seed: Seed of the draws.
    """

    thresholds: np.ndarray
    share: np.ndarray
    mean_best_cosine: np.ndarray
    n_features: int
    seed: int

    @property
    def draws(self) -> int:
        return len(self.share)

    def counts(self, threshold: float = RECOVERED_ABOVE) -> np.ndarray:
        """Features recovered by each dictionary, ``[draws]``.

        Raises:
            UserError: The threshold was not simulated.
        """
        (where,) = np.nonzero(self.thresholds == threshold)
        if not len(where):
            raise UserError(f"threshold: {threshold} was not simulated; pass it in thresholds")
        return np.rint(self.share[:, where[0]] * self.n_features).astype(np.int64)


def simulate_recovery(
    features: torch.Tensor,
    d_sae: int,
    *,
    seed: int,
    draws: int = 100,
    thresholds: ArrayLike = THRESHOLDS,
    scheme: InitScheme = "iso",
    covariance: torch.Tensor | None = None,
) -> SimulatedRecovery:
    """Recovery of these features by random dictionaries, drawn as the baselines draw theirs.

    It is the null of any count, and the distribution itself of a frozen decoder's: that
    member *is* one such dictionary. With ``scheme='cov'`` there is no closed form beside it.

    Args:
        features: ``[n_features, d_in]``.
        d_sae: Directions per dictionary.
        seed: Of the draws.
        draws: Number of dictionaries (>= 2).
        thresholds: Cosines, ``[n_thresholds]``.
        scheme: ``iso`` or ``cov`` (paper, Appendix E).
        covariance: ``[d_in, d_in]`` for ``cov``.

    Raises:
        UserError: Fewer than two draws, or features that `best_cosine` refuses.
        ValueError: A scheme or covariance that `sample_directions` refuses.
    """
    if draws < 2:
        raise UserError(f"draws: {draws} has no spread; use 2 or more")
    levels = np.asarray(thresholds, dtype=np.float64)
    share, means = np.empty((draws, len(levels))), np.empty(draws)
    # Seeds of the dictionaries: far from the small ones that members are started from.
    seeds = np.random.SeedSequence(seed).generate_state(draws, dtype=np.uint64)
    for i, dictionary_seed in enumerate(seeds):
        rows = sample_directions(
            d_sae,
            features.shape[1],
            seed=int(dictionary_seed),
            scheme=scheme,
            covariance=covariance,
        )
        best = best_cosine(rows.to(features.device), features).numpy()
        share[i], means[i] = recovery_curve(best, levels), best.mean()
    return SimulatedRecovery(levels, share, means, len(features), seed)


@dataclass(frozen=True)
class CountAndChance:
    """A count of recovered features and what chance makes of it.

    Attributes:
        observed: The count.
        n_features: Of how many.
        threshold: Cosine.
        expected: Count expected from random directions, closed form.
        low: 2.5 % point of the binomial null count.
        high: 97.5 % point.
        p_binomial: P(null count >= observed) if features were hit independently.
        p_bound: Bound on that chance without independence, ``min(1, expected / observed)``.
        expected_mean_best_cosine: Of random directions, closed form.
        simulated_mean: Mean count over simulated dictionaries; None without a simulation.
        simulated_sd: Its standard deviation over dictionaries.
        simulated_low: 2.5 % quantile of the simulated counts.
        simulated_high: 97.5 % quantile.
        p_simulated: ``(1 + #{simulated >= observed}) / (1 + draws)``, valid at any number of
            draws and never below ``1 / (1 + draws)``.
        draws: Simulated dictionaries.
    """

    observed: int
    n_features: int
    threshold: float
    expected: float
    low: int
    high: int
    p_binomial: float
    p_bound: float
    expected_mean_best_cosine: float
    simulated_mean: float | None = None
    simulated_sd: float | None = None
    simulated_low: float | None = None
    simulated_high: float | None = None
    p_simulated: float | None = None
    draws: int | None = None

    @property
    def p_value(self) -> float:
        """What to report; holds without independence.

        The simulated one, unless there is none or the bound is below what so many draws can
        resolve.
        """
        if self.p_simulated is None or self.draws is None:
            return self.p_bound
        return self.p_bound if self.p_bound < 1 / (1 + self.draws) else self.p_simulated


def count_and_chance(
    observed: int,
    *,
    n_features: int,
    d_in: int,
    d_sae: int,
    threshold: float = RECOVERED_ABOVE,
    simulation: SimulatedRecovery | None = None,
) -> CountAndChance:
    """The null of a recovered count: closed form, and simulation where one is given.

    Args:
        observed: From `recovered_count`.
        n_features: Number of features.
        d_in: Dimension.
        d_sae: Latents of the SAE that was counted.
        threshold: The count's.
        simulation: From `simulate_recovery`, at the same sizes.

    Raises:
        UserError: A count outside [0, n_features], or a simulation of other sizes.
        ValueError: A size or threshold out of range.
    """
    if not 0 <= observed <= n_features:
        raise UserError(f"observed: {observed} of {n_features} features; use 0 to {n_features}")
    p = float(chance_of_best(d_in, d_sae, threshold))
    null = stats.binom(n_features, p)
    out = {
        "observed": observed,
        "n_features": n_features,
        "threshold": threshold,
        "expected": n_features * p,
        "low": int(null.ppf(0.025)),
        "high": int(null.ppf(0.975)),
        "p_binomial": float(null.sf(observed - 1)),
        "p_bound": min(1.0, n_features * p / observed) if observed else 1.0,
        "expected_mean_best_cosine": expected_best_cosine(d_in, d_sae),
    }
    if simulation is not None:
        if simulation.n_features != n_features:
            raise UserError(
                f"simulation: of {simulation.n_features} features, the count is of "
                f"{n_features}; simulate with the same features"
            )
        counts = simulation.counts(threshold)
        low, high = np.quantile(counts, [0.025, 0.975])
        out |= {
            "simulated_mean": float(counts.mean()),
            "simulated_sd": float(counts.std(ddof=1)),
            "simulated_low": float(low),
            "simulated_high": float(high),
            "p_simulated": float((1 + (counts >= observed).sum()) / (1 + len(counts))),
            "draws": len(counts),
        }
    return CountAndChance(**out)


def reachable_curve(
    d_in: int, d_sae: int, tau: float, thresholds: ArrayLike = THRESHOLDS
) -> np.ndarray:
    """Expected share of features that a soft-frozen decoder *could* bring above a threshold.

    A row may turn by arccos(tau) from its start (paper, Section 4.1), hence it comes as close
    to a feature as cos(max(0, angle - arccos(tau))). A ceiling feature by feature, over starts
    uniform on the sphere: one row cannot go to two places. The floor is the chance of random
    directions, since a row that is turned without regard to the features stays uniform.

    Args:
        d_in: Dimension n (>= 2).
        d_sae: Number of directions m.
        tau: Least cosine to the start, in [-1, 1].
        thresholds: Cosines, ``[n_thresholds]``.

    Returns:
        ``[n_thresholds]``; the chance of random directions for tau = 1.

    Raises:
        UserError: tau or a threshold out of range.
        ValueError: A size out of range.
    """
    angle = np.arccos(_cosines(thresholds, "thresholds")) + _angle(tau)
    return chance_curve(d_in, d_sae, np.cos(np.minimum(angle, math.pi)))


def _angle(tau: float) -> float:
    return float(np.arccos(_cosines(tau, "tau")))


def _cosines(values: ArrayLike, name: str) -> np.ndarray:
    out = np.asarray(values, dtype=np.float64)
    if not (np.abs(out) <= 1).all():
        raise UserError(f"{name}: outside [-1, 1]; give cosines")
    return out
