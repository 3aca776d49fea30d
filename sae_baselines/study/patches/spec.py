"""What a vision study trains: a typed spec, read from and written to YAML."""

import hashlib
import json
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic import Field as PydanticField
from pydantic.dataclasses import dataclass

from sae_baselines.drift.record import checked_fractions
from sae_baselines.errors import UserError
from sae_baselines.study.spec import (
    DEFAULT_MEMBERS,
    MemberSpec,
    import_plugins,
    parse_member,
    spec_to_dict,
    validate_architectures,
    validate_l0,
    validate_members,
    validate_name,
    validate_seeds,
)
from sae_baselines.study.stream import StreamTraining

UNTRAINED = ("random:kaiming", "random")

_CONFIG = ConfigDict(extra="forbid")


@dataclass(config=_CONFIG, kw_only=True)
class VisionModelSpec:
    """The vision transformer.

    Args:
        name: Hub name or local folder of any model with square patches that transformers'
            ``AutoModel`` loads: DINOv2, CLIP, SigLIP, ViT and others.
        dtype: Weights' dtype.
        label: Name recorded in the SAEs; default the Hub name, or a local folder's name.
    """

    name: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    label: str | None = None

    @property
    def recorded_name(self) -> str:
        return self.label or (Path(self.name).name if Path(self.name).exists() else self.name)


@dataclass(config=_CONFIG, kw_only=True)
class ImagesSpec:
    """The photographs.

    Args:
        path: Local folder (searched with its subfolders), or name of a dataset.
        name: Configuration of a dataset.
        split: Split of a dataset.
        column: Column of a dataset that holds pictures.
        held_out: Photographs never trained on: a share, or patterns of names
            (``["birds/*", "cat.png"]``). Near-duplicates, such as two views of one house,
            belong on one side: name them.
        crops_per_photo: Crops of each training photograph; default: as many as training
            needs to see no patch twice.
        min_crop: Side of the smallest crop as a share of the photograph's shorter side.
        size: Side in pixels to which crops are scaled; default: the model's.
        seed: Decides the split and the crops.
        licence: Of the photographs; a page that shows them says so.
    """

    path: str
    name: str | None = None
    split: str = "train"
    column: str = "image"
    held_out: float | list[str] = 0.2
    crops_per_photo: int | None = PydanticField(default=None, gt=0)
    min_crop: float = PydanticField(default=0.3, gt=0, le=1)
    size: int | None = PydanticField(default=None, gt=0)
    seed: int = PydanticField(default=0, ge=0)
    licence: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.held_out, float) and not 0 < self.held_out < 1:
            raise UserError(f"images.held_out: {self.held_out} is not between 0 and 1")
        if isinstance(self.held_out, list) and not self.held_out:
            raise UserError("images.held_out: the list is empty; name at least one photograph")


@dataclass(config=_CONFIG, kw_only=True)
class VisionSpec:
    """A study on patches: panels over architectures, L0s and seeds.

    Fields that a panel of text has too mean the same (`sae_baselines.study.PanelSpec`).

    Args:
        name: Name of the study.
        model: The vision transformer.
        hook_name: Dotted module of the model whose output is taken, e.g. ``encoder.layer.9``
            (DINOv2) or ``vision_model.encoder.layers.5`` (CLIP). Tokens before the patches
            (class and register tokens) are dropped.
        images: The photographs.
        training_samples: Patches each member is trained on.
        members: Members of each panel; ``random:kaiming`` is the paper's untrained SAE.
        calibration_samples: Patches of held-out photographs for thresholds and covariance.
        eval_samples: Patches of further crops of held-out photographs, which everything
            reported is measured on.
        forward_batch: Crops in one forward pass.
        activation_dtype: Dtype in which training activations wait on disk.
        max_norm_ratio: Leave out patches whose norm is more than this many times the median
            of training patches: some models keep a few artefact tokens with enormous norms,
            which swamp explained variance. None keeps every patch.
    """

    name: str
    model: VisionModelSpec
    hook_name: str
    images: ImagesSpec
    architecture: str | list[str] = "batchtopk"
    d_sae: int | None = PydanticField(default=None, gt=1)
    expansion: float | None = PydanticField(default=None, gt=0)
    d_in: int | None = PydanticField(default=None, gt=0)
    l0: float | list[float] = 32
    seeds: list[int] = field(default_factory=lambda: [0])
    training_samples: int = PydanticField(default=10_000_000, gt=0)
    members: list[str | MemberSpec] = field(
        default_factory=lambda: [*DEFAULT_MEMBERS, *UNTRAINED]
    )
    tau: float = 0.8
    data_order: Literal["shared", "per_seed"] = "shared"
    b_dec_init: Literal["zeros", "mean"] = "mean"
    encoder_init: Literal["transposed", "fitted"] = "transposed"
    sae: dict[str, Any] = field(default_factory=dict)
    sparse_step: Literal["baselines", "all", "none"] = "baselines"

    normalize_activations: Literal["none", "expected_average_only_in"] = (
        "expected_average_only_in"
    )
    n_batches_for_norm_estimate: int = PydanticField(default=10, gt=0)
    train_batch_size: int = PydanticField(default=4096, gt=0)
    lr: float = PydanticField(default=2e-4, gt=0)
    lr_scheduler_name: Literal["constant", "cosineannealing", "cosineannealingwarmrestarts"] = (
        "constant"
    )
    lr_warm_up_steps: int = PydanticField(default=0, ge=0)
    lr_decay_steps: int = PydanticField(default=0, ge=0)
    adam_beta1: float = PydanticField(default=0.9, ge=0, lt=1)
    adam_beta2: float = PydanticField(default=0.999, ge=0, lt=1)
    dead_feature_window: int = PydanticField(default=1000, gt=0)
    feature_sampling_window: int = PydanticField(default=2000, gt=0)

    forward_batch: int = PydanticField(default=16, gt=0)
    activation_dtype: Literal["float32", "float16"] = "float32"
    max_norm_ratio: float | None = PydanticField(default=None, gt=1)
    calibration_samples: int = PydanticField(default=65_536, gt=0)
    eval_samples: int = PydanticField(default=131_072, gt=0)

    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    autocast: bool = False
    drift: list[float] = field(default_factory=list)
    n_checkpoints: int = PydanticField(default=10, ge=0)
    keep_checkpoints: int = PydanticField(default=1, ge=1)
    max_panels_per_pass: int | None = PydanticField(default=None, gt=0)
    plugins: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.drift:
            checked_fractions(self.drift)
        import_plugins(self.plugins)
        validate_name(self.name)
        if (self.d_sae is None) == (self.expansion is None):
            raise UserError("d_sae, expansion: give exactly one of the two")
        validate_architectures(self)
        validate_members(self, controls=True)
        validate_l0(self)
        validate_seeds(self)
        if self.training_samples < self.train_batch_size:
            raise UserError(
                f"training_samples: {self.training_samples} is less than one batch of "
                f"{self.train_batch_size}; raise it or lower train_batch_size"
            )

    @property
    def architectures(self) -> list[str]:
        return [self.architecture] if isinstance(self.architecture, str) else self.architecture

    @property
    def l0s(self) -> list[float]:
        return [self.l0] if isinstance(self.l0, int | float) else list(self.l0)

    @property
    def member_specs(self) -> list[MemberSpec]:
        return [parse_member(m) for m in self.members]

    def width(self, d_in: int) -> int:
        """d_sae for a hook of this width."""
        return self.d_sae if self.d_sae is not None else round(d_in * (self.expansion or 0))

    def training(self, device: str) -> StreamTraining:
        """How members are trained on the stream."""
        return StreamTraining(
            training_samples=self.training_samples,
            train_batch_size=self.train_batch_size,
            lr=self.lr,
            lr_scheduler_name=self.lr_scheduler_name,
            lr_warm_up_steps=self.lr_warm_up_steps,
            lr_decay_steps=self.lr_decay_steps,
            adam_beta1=self.adam_beta1,
            adam_beta2=self.adam_beta2,
            dead_feature_window=self.dead_feature_window,
            feature_sampling_window=self.feature_sampling_window,
            n_batches_for_norm_estimate=self.n_batches_for_norm_estimate,
            device=device,
            autocast=self.autocast,
            n_checkpoints=self.n_checkpoints,
            keep_checkpoints=self.keep_checkpoints,
        )


# What activations depend on, and how many of them there are.
_OF_ACTIVATIONS = (
    "model",
    "hook_name",
    "images",
    "forward_batch",
    "activation_dtype",
    "training_samples",
    "calibration_samples",
    "eval_samples",
    "train_batch_size",
    "normalize_activations",
    "n_batches_for_norm_estimate",
)


def activations_hash(spec: VisionSpec) -> str:
    """SHA-256 of everything that the activations kept on disk depend on."""
    data = spec_to_dict(spec)
    text = json.dumps({k: data[k] for k in _OF_ACTIVATIONS}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
