"""The paper's synthetic data inside SAELens' `sae_lens.synthetic` (Section 3, Appendix B).

Two generators join SAELens' own registries, so that the setting is a `SyntheticModelConfig`
like any other: it is saved, loaded, trained on by `SyntheticSAERunner`, and combined with
SAELens' hierarchies and correlations.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from sae_lens.synthetic import (
    ConstantFiringProbabilityConfig,
    FiringProbabilityConfig,
    MagnitudeConfig,
    SyntheticModelConfig,
    register_firing_probability,
    register_magnitude,
)
from sae_lens.synthetic.registry import FIRING_PROB_REGISTRY, MAGNITUDE_REGISTRY

from sae_baselines.errors import UserError, did_you_mean

Setting = Literal["constant", "variable"]
Reading = Literal["sigma", "variance"]
SETTINGS: tuple[Setting, ...] = ("constant", "variable")

# SAELens seeds features, probabilities and magnitudes with neighbouring numbers; another
# stream keeps a feature's probability independent of its direction.
_SEED_OFFSET = 7_919


@dataclass
class LogUniformFiringProbabilityConfig(FiringProbabilityConfig):
    """Firing probabilities p_i ~ LogUniform(min_prob, max_prob), one per feature.

    The paper's range has a mean of 20.39 active features over 3200, and a draw of 3200
    probabilities strays from it by about 0.7; ``mean_active`` scales a draw to what the
    paper says of it.

    Args:
        min_prob: Lower end.
        max_prob: Upper end.
        mean_active: If given, all probabilities are multiplied by one factor so that they sum
            to this.
    """

    min_prob: float = 10**-5.5
    max_prob: float = 10**-1.2
    mean_active: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.min_prob <= self.max_prob <= 1:
            raise ValueError(
                f"min_prob={self.min_prob}, max_prob={self.max_prob}: need "
                "0 < min_prob <= max_prob <= 1"
            )
        if self.mean_active is not None and not self.mean_active > 0:
            raise ValueError(f"mean_active={self.mean_active} must be positive, or None")

    @classmethod
    def generator_name(cls) -> str:
        return "log_uniform"

    def generate(self, num_features: int, seed: int | None = None) -> torch.Tensor:
        """Draw ``[num_features]`` probabilities, float32.

        Raises:
            ValueError: ``mean_active`` would need a probability above 1.
        """
        uniform = torch.rand(num_features, generator=_generator(seed), dtype=torch.float64)
        log_ratio = torch.tensor(self.max_prob / self.min_prob, dtype=torch.float64).log()
        p = self.min_prob * (uniform * log_ratio).exp()
        if self.mean_active is not None:
            p = p * (self.mean_active / p.sum())
            if p.max() > 1:
                raise ValueError(
                    f"mean_active={self.mean_active}: {num_features} features between "
                    f"{self.min_prob:g} and {self.max_prob:g} cannot reach it"
                )
        return p.float()


@dataclass
class LogNormalMagnitudeConfig(MagnitudeConfig):
    """Magnitudes c ~ LogNormal(mu, sigma): exp of a normal with standard deviation sigma.

    Args:
        mu: Mean of log c.
        sigma: Standard deviation of log c.
        per: ``firing``: a fresh c each time a feature fires (the paper's c_i, which stands
            beside b_i in the sum for one sample). ``feature``: one c per feature.
    """

    mu: float = 0.0
    sigma: float = 0.25
    per: Literal["firing", "feature"] = "firing"

    def __post_init__(self) -> None:
        if not self.sigma >= 0:
            raise ValueError(f"sigma={self.sigma} must be at least 0")
        if self.per not in ("firing", "feature"):
            raise ValueError(f"per={self.per!r} must be 'firing' or 'feature'")

    @classmethod
    def generator_name(cls) -> str:
        return "log_normal"

    def generate(self, num_features: int, seed: int | None = None) -> torch.Tensor:
        """Magnitudes ``[num_features]``, for ``mean_firing_magnitudes``."""
        mu = torch.full((num_features,), float(self.mu))
        if self.per == "firing":
            return _DrawnAtEachFiring.of(mu, self.sigma)
        noise = torch.randn(num_features, generator=_generator(seed))
        return (mu + self.sigma * noise).exp()


class _DrawnAtEachFiring(torch.Tensor):
    """Values ``[num_features]`` of mu; an index into them draws exp(mu + sigma * N(0, 1)).

    SAELens looks magnitudes up by the indices of what fires, and can add Gaussian noise only;
    this is how a registered generator gives each firing its own log-normal magnitude.
    """

    sigma: float

    @staticmethod
    def of(mu: torch.Tensor, sigma: float) -> "_DrawnAtEachFiring":
        out = mu.as_subclass(_DrawnAtEachFiring)
        out.sigma = sigma
        return out

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
            if func is torch.Tensor.__getitem__:
                mu = out.as_subclass(torch.Tensor)
                return (mu + args[0].sigma * torch.randn_like(mu)).exp()
        if func in (torch.Tensor.to, torch.Tensor.clone, torch.Tensor.detach):
            return cls.of(out.as_subclass(torch.Tensor), args[0].sigma)
        return out


def register_generators() -> None:
    """Add both generators to SAELens' registries. Idempotent, also when modules are reloaded.

    Raises:
        ValueError: Another package has one of the names.
    """
    firing, magnitude = LogUniformFiringProbabilityConfig, LogNormalMagnitudeConfig
    if _is_ours(FIRING_PROB_REGISTRY.get(firing.generator_name()), firing):
        FIRING_PROB_REGISTRY[firing.generator_name()] = firing
    else:
        register_firing_probability(firing.generator_name(), firing)
    if _is_ours(MAGNITUDE_REGISTRY.get(magnitude.generator_name()), magnitude):
        MAGNITUDE_REGISTRY[magnitude.generator_name()] = magnitude
    else:
        register_magnitude(magnitude.generator_name(), magnitude)


def _is_ours(found: type[Any] | None, mine: type[Any]) -> bool:
    """Whether it is this class, or the same one before a reload."""
    return found is not None and (found.__module__, found.__qualname__) == (
        mine.__module__,
        mine.__qualname__,
    )


def paper_config(
    setting: str,
    *,
    n: int = 100,
    m: int = 3200,
    mean_active: float = 20.0,
    reading: Reading = "sigma",
    seed: int = 0,
) -> SyntheticModelConfig:
    """The paper's generator as a SAELens config (Section 3, Appendix B).

    Features are uniform on the unit sphere, without bias. LogNormal(0, 0.25) is read as
    sigma = 0.25 by default, which is how numpy, scipy, torch and most texts write the
    distribution's parameters; ``reading='variance'`` takes sigma^2 = 0.25.

    Args:
        setting: ``constant`` (p_i = mean_active / m) or ``variable`` (log-uniform over the
            paper's 4.3 decades, scaled so that ``mean_active`` features fire on average).
        n: Width of the activations.
        m: Number of ground-truth features.
        mean_active: Mean number of features in a sample.
        reading: Meaning of 0.25.
        seed: Of features and probabilities.

    Raises:
        UserError: An unknown setting or reading.
    """
    if setting not in SETTINGS:
        raise UserError(
            f"setting: {setting!r} is unknown; {did_you_mean(setting, list(SETTINGS))}"
        )
    if reading not in ("sigma", "variance"):
        raise UserError(f"reading: {reading!r} is unknown; use sigma or variance")
    firing: FiringProbabilityConfig
    if setting == "constant":
        firing = ConstantFiringProbabilityConfig(probability=mean_active / m)
    else:
        firing = LogUniformFiringProbabilityConfig(mean_active=mean_active)
    return SyntheticModelConfig(
        num_features=m,
        hidden_dim=n,
        firing_probability=firing,
        mean_firing_magnitudes=LogNormalMagnitudeConfig(
            sigma=0.25 if reading == "sigma" else 0.5
        ),
        std_firing_magnitudes=0.0,
        bias=False,
        seed=seed,
    )


def _generator(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(seed + _SEED_OFFSET)
