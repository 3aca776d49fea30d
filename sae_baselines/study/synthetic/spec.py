"""What a synthetic study trains: a typed spec, read from and written to YAML."""

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field as PydanticField
from pydantic.dataclasses import dataclass as pydantic_dataclass
from sae_lens.synthetic import SyntheticModel, SyntheticModelConfig

from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.study.plan import PanelKey, Pass
from sae_baselines.study.recipes import EncoderInit, RecipeName
from sae_baselines.study.spec import SPEC_CONFIG, StudySpec
from sae_baselines.study.synthetic.generator import SETTINGS, Reading, paper_config

PAPER_ARCHITECTURES = ("batchtopk", "jumprelu", "topk", "matryoshka_batchtopk")


@dataclass(frozen=True)
class ToyPanelKey(PanelKey):
    """A panel on one setting's data."""

    setting: str

    @property
    def name(self) -> str:
        return f"{self.setting}_{super().name}"


@pydantic_dataclass(config=SPEC_CONFIG, kw_only=True)
class ToySpec(StudySpec):
    """A study on synthetic data: settings x architectures x members x seeds.

    The paper states the sizes (Section 3, Appendix B) and neither the number of samples, nor
    optimiser, nor learning rate. All members and seeds of a setting see the same batches.

    Args:
        settings: ``constant``, ``variable``, or names in ``models``.
        models: Further settings: a name to a SAELens `SyntheticModelConfig` as a mapping, or
            to a folder or Hub repository that SAELens' `SyntheticModel.load_from_source`
            reads.
        reading: Whether 0.25 in LogNormal(0, 0.25) is sigma or the variance.
        n: Width of the activations in the paper's settings.
        m: Ground-truth features in the paper's settings.
        mean_active: Mean number of active features in the paper's settings.
        model_seed: Of features and probabilities.
        d_sae: Number of latents.
        l0: Target L0.
        data_seed: Of the batches.
        jumprelu_bandwidth: Bandwidth of JumpReLU's straight-through estimator, in units of the
            initial threshold; default the recipe's. SAELens' 0.05 is for thresholds near 1.
        training_samples: Samples each member is trained on.
        train_batch_size: Samples per optimiser step.
        lr_decay_fraction: Share of training at its end in which the rate falls to a tenth.
        calibration_samples: Held-out samples for thresholds.
        eval_samples: Further held-out samples, which everything reported is measured on.
        n_snapshots: Points of the recovery-against-samples curve, evenly spaced in log samples.
    """

    name: str = "toy"
    settings: list[str] = field(default_factory=lambda: list(SETTINGS))
    models: dict[str, dict[str, Any] | str] = field(default_factory=dict)
    reading: Reading = "sigma"
    n: int = PydanticField(default=100, gt=1)
    m: int = PydanticField(default=3200, gt=1)
    mean_active: float = PydanticField(default=20.0, gt=0)
    model_seed: int = PydanticField(default=0, ge=0)

    architecture: str | list[str] = field(default_factory=lambda: list(PAPER_ARCHITECTURES))
    d_sae: int = PydanticField(default=3200, gt=1)
    l0: float = PydanticField(default=20, gt=0)
    data_seed: int = PydanticField(default=0, ge=0)
    # Most latents wait for a feature here; bringing them back costs EV (benchmarks/recipes).
    recipe: RecipeName = "fair"
    encoder_init: EncoderInit | None = "fitted"
    sparse_step: Literal["baselines", "all", "none"] = "all"
    jumprelu_bandwidth: float | None = PydanticField(default=None, gt=0)

    training_samples: int = PydanticField(default=8_000_000, gt=0)
    train_batch_size: int = PydanticField(default=256, gt=0)
    lr: float = PydanticField(default=1e-3, gt=0)
    lr_decay_fraction: float = PydanticField(default=0.2, ge=0, le=1)
    calibration_samples: int = PydanticField(default=32_768, gt=0)
    eval_samples: int = PydanticField(default=102_400, gt=0)
    n_snapshots: int = PydanticField(default=16, ge=0, le=10_000)

    source: ClassVar[str] = "sae_baselines.study.sources.synthetic:SyntheticSource"

    def check(self) -> None:
        super().check()
        known = [*SETTINGS, *self.models]
        for setting in self.settings:
            if setting not in known:
                hint = did_you_mean(setting, known)
                raise UserError(f"settings: {setting!r} is unknown; {hint}")
            if not re.fullmatch(r"[A-Za-z0-9][\w-]*", setting):
                raise UserError(f"models: {setting!r} names folders; use letters, digits, _-")
        if not self.settings or len(set(self.settings)) != len(self.settings):
            raise UserError(f"settings: {self.settings}: name at least one, each once")
        if shadowed := set(SETTINGS) & set(self.models):
            raise UserError(f"models: {sorted(shadowed)[0]!r} is one of the paper's settings")
        if self.training_samples < self.train_batch_size:
            raise UserError(
                f"training_samples: {self.training_samples} is less than one batch of "
                f"{self.train_batch_size}"
            )

    @property
    def steps(self) -> int:
        return -(-self.training_samples // self.train_batch_size)

    @property
    def l0s(self) -> list[float]:
        return [self.l0]

    @property
    def fixed_width(self) -> int | None:
        return self.d_sae

    def width(self, d_in: int) -> int:
        del d_in
        return self.d_sae

    @property
    def bandwidth(self) -> float | None:
        return self.jumprelu_bandwidth or super().bandwidth

    @property
    def source_names(self) -> list[str]:
        return self.settings

    def panels(self, source: str = "") -> list[PanelKey]:
        return [
            ToyPanelKey(architecture, self.l0, seed, source)
            for seed in self.seeds
            for architecture in self.architectures
        ]

    def passes(self, source: str = "") -> list[Pass]:
        """Members of a setting and seed advance in lockstep."""
        panels = self.panels(source)
        return [
            Pass(
                f"{source}_seed_{seed}",
                self.data_seed,
                tuple(panel for panel in panels if panel.seed == seed),
            )
            for seed in self.seeds
        ]

    @property
    def lr_decay_steps(self) -> int:
        """Optimiser steps in which the rate falls."""
        return int(self.lr_decay_fraction * self.steps)

    def model_of(self, setting: str, device: str) -> SyntheticModel:
        """The ground truth of a setting.

        Raises:
            UserError: A config or source that SAELens cannot make a model of.
        """
        given = self.models.get(setting)
        if given is None:
            config = paper_config(
                setting,
                n=self.n,
                m=self.m,
                mean_active=self.mean_active,
                reading=self.reading,
                seed=self.model_seed,
            )
            return SyntheticModel(config, device=device)
        try:
            if isinstance(given, str):
                return SyntheticModel.load_from_source(given, device=device)
            return SyntheticModel(SyntheticModelConfig.from_dict(given), device=device)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise UserError(f"models: {setting}: {type(error).__name__}: {error}") from error


def quick_spec() -> ToySpec:
    """The whole study, small: the paper's ratios at a quarter of its width."""
    return ToySpec(
        name="toy-quick",
        n=25,
        m=800,
        d_sae=800,
        mean_active=5.0,
        l0=5,
        training_samples=400_000,
        train_batch_size=256,
        lr=2e-3,
        calibration_samples=16_384,
        eval_samples=32_768,
        n_snapshots=8,
        n_checkpoints=4,
    )
