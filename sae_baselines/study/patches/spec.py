"""What a vision study trains: a typed spec, read from and written to YAML."""

from dataclasses import field
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field as PydanticField
from pydantic.dataclasses import dataclass

from sae_baselines.errors import UserError
from sae_baselines.files import checksum_of
from sae_baselines.study.spec import (
    DEFAULT_MEMBERS,
    SPEC_CONFIG,
    HookSpec,
    MemberSpec,
    spec_to_dict,
)
from sae_baselines.study.values import check_values

UNTRAINED = ("random:kaiming", "random")


@dataclass(config=SPEC_CONFIG, kw_only=True)
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

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def recorded_name(self) -> str:
        return self.label or (Path(self.name).name if Path(self.name).exists() else self.name)


@dataclass(config=SPEC_CONFIG, kw_only=True)
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
        check_values(self)
        if isinstance(self.held_out, float) and not 0 < self.held_out < 1:
            raise UserError(f"images.held_out: {self.held_out} is not between 0 and 1")
        if isinstance(self.held_out, list) and not self.held_out:
            raise UserError("images.held_out: the list is empty; name at least one photograph")


@dataclass(config=SPEC_CONFIG, kw_only=True)
class VisionSpec(HookSpec):
    """A study on patches: panels over architectures, L0s and seeds.

    Args:
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

    model: VisionModelSpec
    images: ImagesSpec
    l0: float | list[float] = 32
    training_samples: int = PydanticField(default=10_000_000, gt=0)
    members: list[str | MemberSpec] = field(
        default_factory=lambda: [*DEFAULT_MEMBERS, *UNTRAINED]
    )
    normalize_activations: Literal["none", "expected_average_only_in"] = (
        "expected_average_only_in"
    )
    n_batches_for_norm_estimate: int = PydanticField(default=10, gt=0)
    train_batch_size: int = PydanticField(default=4096, gt=0)
    forward_batch: int = PydanticField(default=16, gt=0)
    activation_dtype: Literal["float32", "float16"] = "float32"
    max_norm_ratio: float | None = PydanticField(default=None, gt=1)
    calibration_samples: int = PydanticField(default=65_536, gt=0)
    eval_samples: int = PydanticField(default=131_072, gt=0)

    source: ClassVar[str] = "sae_baselines.study.sources.patches:PatchSource"

    def check(self) -> None:
        super().check()
        if self.training_samples < self.train_batch_size:
            raise UserError(
                f"training_samples: {self.training_samples} is less than one batch of "
                f"{self.train_batch_size}; raise it or lower train_batch_size"
            )

    @property
    def steps(self) -> int:
        return -(-self.training_samples // self.train_batch_size)

    @property
    def normalization(self) -> str:
        return self.normalize_activations


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
    return checksum_of({k: data[k] for k in _OF_ACTIVATIONS})
