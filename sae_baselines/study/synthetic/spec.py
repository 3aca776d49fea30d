"""What a synthetic study trains: a typed spec, read from and written to YAML."""

import re
from dataclasses import field
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic import Field as PydanticField
from pydantic.dataclasses import dataclass
from sae_lens.synthetic import SyntheticModel, SyntheticModelConfig

from sae_baselines.drift.record import checked_fractions
from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.study.spec import (
    DEFAULT_MEMBERS,
    MemberSpec,
    parse_member,
    validate_architectures,
    validate_l0,
    validate_members,
    validate_seeds,
)
from sae_baselines.study.stream import StreamTraining
from sae_baselines.study.synthetic.generator import SETTINGS, Reading, paper_config

PAPER_ARCHITECTURES = ("batchtopk", "jumprelu", "topk", "matryoshka_batchtopk")


@dataclass(config=ConfigDict(extra="forbid"), kw_only=True)
class ToySpec:
    """A study on synthetic data: settings x architectures x members x seeds.

    Training fields have SAELens' names and meaning. The paper states the sizes (Section 3,
    Appendix B) and neither the number of samples, nor optimiser, nor learning rate.

    Args:
        name: Name of the study.
        settings: ``constant``, ``variable``, or names in ``models``.
        models: Further settings: a name to a SAELens `SyntheticModelConfig` as a mapping, or
            to a folder or Hub repository that SAELens' `SyntheticModel.load_from_source`
            reads.
        reading: Whether 0.25 in LogNormal(0, 0.25) is sigma or the variance.
        n: Width of the activations in the paper's settings.
        m: Ground-truth features in the paper's settings.
        mean_active: Mean number of active features in the paper's settings.
        model_seed: Of features and probabilities.
        architecture: Base architectures.
        d_sae: Number of latents.
        l0: Target L0.
        seeds: Training seeds (initial weights). All members and seeds of a setting see the
            same batches.
        data_seed: Of the batches.
        members: Members of each panel, controls among them; ``trained`` must be one.
        tau: Default cap of soft-frozen decoders.
        b_dec_init: Start of b_dec for every member: the mean of calibration samples, or zeros.
        encoder_init: As in a panel: the start of W_enc.
        sparse_step: As in a panel: same numbers up to rounding, faster.
        jumprelu_bandwidth: Bandwidth of JumpReLU's straight-through estimator, in units of the
            initial threshold. SAELens' 0.05 is for thresholds near 1; wider was better here.
        training_samples: Samples each member is trained on.
        train_batch_size: Samples per optimiser step.
        calibration_samples: Held-out samples for thresholds.
        eval_samples: Further held-out samples, which everything reported is measured on.
        n_snapshots: Points of the recovery-against-samples curve, evenly spaced in log samples.
        drift: As in a panel: fractions of training at which to record cos(row, its start).
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
    seeds: list[int] = field(default_factory=lambda: [0])
    data_seed: int = PydanticField(default=0, ge=0)
    members: list[str | MemberSpec] = field(default_factory=lambda: list(DEFAULT_MEMBERS))
    tau: float = 0.8
    b_dec_init: Literal["zeros", "mean"] = "mean"
    encoder_init: Literal["transposed", "fitted"] = "fitted"
    sparse_step: Literal["baselines", "all", "none"] = "all"

    jumprelu_bandwidth: float = PydanticField(default=1.0, gt=0)

    training_samples: int = PydanticField(default=8_000_000, gt=0)
    train_batch_size: int = PydanticField(default=256, gt=0)
    lr: float = PydanticField(default=1e-3, gt=0)
    lr_warm_up_steps: int = PydanticField(default=0, ge=0)
    lr_decay_fraction: float = PydanticField(default=0.2, ge=0, le=1)
    adam_beta1: float = PydanticField(default=0.9, ge=0, lt=1)
    adam_beta2: float = PydanticField(default=0.999, ge=0, lt=1)
    dead_feature_window: int = PydanticField(default=1000, gt=0)
    device: str = "auto"
    autocast: bool = False

    calibration_samples: int = PydanticField(default=32_768, gt=0)
    eval_samples: int = PydanticField(default=102_400, gt=0)
    n_snapshots: int = PydanticField(default=16, ge=0)
    drift: list[float] = field(default_factory=list)
    n_checkpoints: int = PydanticField(default=10, ge=0)
    keep_checkpoints: int = PydanticField(default=1, ge=1)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise UserError(
                f"name: {self.name!r} names a folder; use letters, digits, '.', '_' and '-'"
            )
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
        validate_architectures(self)
        validate_members(self, controls=True)
        if self.drift:
            checked_fractions(self.drift)
        validate_l0(self)
        validate_seeds(self)

    @property
    def architectures(self) -> list[str]:
        return [self.architecture] if isinstance(self.architecture, str) else self.architecture

    @property
    def member_specs(self) -> list[MemberSpec]:
        return [parse_member(m) for m in self.members]

    @property
    def l0s(self) -> list[float]:
        return [self.l0]

    # Said as a panel says it, so that members are built by the same code.

    @property
    def sae(self) -> dict[str, Any]:
        return {}

    @property
    def dtype(self) -> str:
        return "float32"

    @property
    def normalize_activations(self) -> str:
        return "none"

    def width(self, d_in: int) -> int:
        """d_sae, whatever the width of the activations."""
        del d_in
        return self.d_sae

    def training(self, device: str) -> StreamTraining:
        """The same hyperparameters for every member of every panel."""
        steps = -(-self.training_samples // self.train_batch_size)
        return StreamTraining(
            training_samples=self.training_samples,
            train_batch_size=self.train_batch_size,
            lr=self.lr,
            lr_warm_up_steps=self.lr_warm_up_steps,
            lr_decay_steps=int(self.lr_decay_fraction * steps),
            adam_beta1=self.adam_beta1,
            adam_beta2=self.adam_beta2,
            dead_feature_window=self.dead_feature_window,
            device=device,
            autocast=self.autocast,
            n_checkpoints=self.n_checkpoints,
            keep_checkpoints=self.keep_checkpoints,
        )

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
