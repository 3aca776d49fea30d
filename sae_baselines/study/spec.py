"""What a study trains: a typed spec, read from and written to YAML."""

import importlib
import re
from abc import ABC, abstractmethod
from dataclasses import field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic import Field as PydanticField
from pydantic.dataclasses import dataclass
from sae_lens import TopKTrainingSAE
from sae_lens.registry import get_sae_class

from sae_baselines.baselines import (
    CONSTRAINTS,
    base_architectures,
    baseline_name,
    get_baseline,
    register_baselines,
)
from sae_baselines.baselines.cap import validate_tau
from sae_baselines.baselines.directions import InitScheme
from sae_baselines.baselines.frozen_encoder import Learned
from sae_baselines.baselines.l0_control import THRESHOLD_RETURN
from sae_baselines.baselines.transcoder import TRANSCODERS, is_transcoder
from sae_baselines.controls import (
    PUBLISHED,
    SHUFFLED_MLP,
    SHUFFLED_PAIRS,
    TRAINED,
    check_control,
    control_names,
    get_control,
    is_control,
    is_random_model,
    is_trained_control,
    trained_control_names,
)
from sae_baselines.drift.record import checked_fractions
from sae_baselines.errors import UserError, did_you_mean, one_line
from sae_baselines.files import checksum_of
from sae_baselines.study.memory import check_memory
from sae_baselines.study.plan import PanelKey, Pass
from sae_baselines.study.recipes import (
    DEFAULT_RECIPE,
    EncoderInit,
    RecipeName,
    bandwidth_of,
    encoder_init_of,
    is_controlled,
    moves_thresholds,
    window_of,
)
from sae_baselines.study.redraw import RandomModel
from sae_baselines.study.values import (
    STORED,
    check_keys,
    check_values,
    flaw_of_option,
    shown,
)
from sae_baselines.yaml_text import read_yaml

# For ``max_panels_per_pass``: what fits.
AUTO = "auto"
PanelsPerPass = Annotated[int, PydanticField(gt=0)] | Literal["auto"] | None

# Normalisations of each activation by itself, undone after decoding.
PER_TOKEN_NORMS = ("layer_norm", "constant_norm_rescale")
DEFAULT_MEMBERS = (TRAINED, "frozen_decoder", "soft_frozen_decoder", "frozen_encoder")

# Options of a constraint that a member has a field for.
_OPTIONS = ("tau", "learned")

# Of every spec's dataclass.
SPEC_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)
# Of a study, an SAE or a model: letters, digits and so on, as every file system takes them.
_FOLDER = r"[A-Za-z0-9][\w.-]*"
_LONGEST_NAME = 80

# Set by the panel itself for every member; setting them by hand would break the comparison.
SET_BY_PANEL = {
    "d_in",
    "d_out",
    "d_sae",
    "dtype",
    "device",
    "metadata",
    "k",
    "target_l0",
    "tau",
    "learned",
    "init_seed",
    "init_scheme",
    "init_activations_path",
    "init_covariance_path",
    "init_cov_samples",
    "decoder_init_norm",
    "encoder_init_scale",
    "sparse_step",
    "normalize_activations",
    "input_scale",
    "output_scale",
    "hook_name_out",
    "shuffled_pairs",
    "reshape_activations",
    "rescale_acts_by_decoder_norm",
}


@dataclass(config=SPEC_CONFIG, kw_only=True)
class ModelSpec:
    """The language model.

    Args:
        name: Hub name or local folder.
        loader: SAELens' model class: ``HookedTransformer`` (what SAEBench uses) or
            ``AutoModelForCausalLM``.
        dtype: Weights' dtype.
        label: Name recorded in the SAEs; default the Hub name, or a local folder's name.
        center_writing_weights: Centre what is written to the residual stream, as
            TransformerLens does by default; some published SAEs read such activations.
    """

    name: str
    loader: Literal["HookedTransformer", "AutoModelForCausalLM"] = "HookedTransformer"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    label: str | None = None
    center_writing_weights: bool = False

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def recorded_name(self) -> str:
        return self.label or (Path(self.name).name if Path(self.name).exists() else self.name)


@dataclass(config=SPEC_CONFIG, kw_only=True)
class DatasetSpec:
    """The text.

    Args:
        path: Hub name, or a local folder or .parquet/.jsonl/.json/.csv/.txt file.
        name: Configuration of a Hub dataset.
        split: Split to train on.
        text_column: Column with text; ignored when there is a ``tokens`` or ``input_ids``
            column.
        streaming: Stream instead of downloading.
        shuffle_seed: Shuffle documents with this seed before anything else; None keeps
            their order.
    """

    path: str
    name: str | None = None
    split: str = "train"
    text_column: str = "text"
    streaming: bool = False
    shuffle_seed: int | None = PydanticField(default=0, ge=0)

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(config=SPEC_CONFIG, kw_only=True)
class PublishedSpec:
    """Somebody else's SAE, which the panels are built around (`sae_baselines.study.reference`).

    Args:
        source: Where it is: a SAELens folder, ``release:sae_id`` or ``user/repo:folder``.
        weights_sha256: Of its weights as they were loaded.
        input_scale: Factor of the activations that is folded into its weights, where its
            config asks for one that is nowhere recorded; None for none.
        facts: What its config and files record, for the report.
    """

    source: str
    weights_sha256: str
    input_scale: float | None = PydanticField(default=None, gt=0)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(config=SPEC_CONFIG, kw_only=True)
class MemberSpec:
    """One SAE of a panel.

    Args:
        constraint: ``trained``, one of the constraints, or a control (``random``,
            ``random:cov``, ``random:kaiming``, ``permuted_decoder``, ``permuted_pairing``;
            `sae_baselines.controls`), or ``random_model`` or ``random_model:embeddings_kept``:
            the trained architecture on the language model with random weights; of
            transcoders also ``shuffled_pairs`` and ``shuffled_mlp``: trained towards outputs of
            other tokens, or of the MLP with its weights permuted.
        init_scheme: ``iso`` or ``cov`` (paper, Appendix E).
        tau: Cap of a soft-frozen decoder or encoder; default the panel's.
        learned: Of a frozen encoder: ``biases`` (default), or only the activation
            ``threshold``, as the paper says.
        label: Folder name; default the constraint, with ``_cov``, ``_tau0.9`` and
            ``_threshold`` as needed, or the control, with ``_`` for the colon.
    """

    constraint: str
    init_scheme: InitScheme = "iso"
    tau: float | None = None
    learned: Learned | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def name(self) -> str:
        if self.label:
            return self.label
        cov = "_cov" if self.init_scheme == "cov" else ""
        tau = f"_tau{self.tau:g}" if self.tau is not None else ""
        learned = "_threshold" if self.learned == "threshold" else ""
        return f"{self.constraint.replace(':', '_')}{cov}{tau}{learned}"

    @property
    def options(self) -> dict[str, Any]:
        """What it says of its constraint's own options."""
        return {
            name: getattr(self, name) for name in _OPTIONS if getattr(self, name) is not None
        }

    @property
    def is_control(self) -> bool:
        """Whether it is made after training, not trained."""
        return is_control(self.constraint) and not self.is_trained_control

    @property
    def is_trained_control(self) -> bool:
        """Whether it is trained as ``trained`` is, on something that is random."""
        return is_trained_control(self.constraint)

    @property
    def on_random_model(self) -> bool:
        """Whether that is a language model with random weights, if only in one MLP."""
        return is_random_model(self.constraint) or self.constraint == SHUFFLED_MLP.name

    @property
    def on_shuffled_pairs(self) -> bool:
        """Whether that is the pairing of a transcoder's inputs with outputs."""
        return self.constraint == SHUFFLED_PAIRS.name


Schedule = Literal["constant", "cosineannealing", "cosineannealingwarmrestarts"]


@dataclass(config=SPEC_CONFIG, kw_only=True)
class StudySpec(ABC):
    """What every study says, wherever its activations come from.

    A member is a constraint name, ``<constraint>:cov``, a control's name, or a `MemberSpec`.
    Training fields have SAELens' names and meaning; only ``lr``'s default differs (the
    paper's 2e-4).

    Args:
        name: Name of the study.
        architecture: One base architecture, or a list.
        seeds: Training seeds: initial weights, and data order if ``data_order`` says so.
        members: Members of each panel; ``trained`` must be one, unless there is a
            ``published`` SAE to compare with.
        tau: Default cap of soft-frozen members.
        b_dec_init: Start of b_dec for every member: the mean of calibration activations,
            or zeros (SAELens). From zeros a frozen decoder needs a long run to find the mean
            (SmolLM2-135M, 100k tokens: EV -0.17 against 0.37; trained 0.70 against 0.73).
        recipe: How JumpReLU, standard and gated SAEs reach their L0 (`study.recipes`):
            ``revived`` and ``fair`` hold it in training, ``saelens`` has SAELens' defaults,
            ``first`` is what version 0.1.0-dev did. ``sae`` goes before either.
        encoder_init: Start of W_enc: the decoder transposed, or that times one factor, the
            same for every member, at which the first reconstruction fits best
            (``encoder_init_scale`` in the SAELens config); of a transcoder, at which latents
            write a hundredth of the output's variance, without a skip a tenth. Default:
            the recipe's.
        threshold_return: Share of the way back to their mean that a JumpReLU's thresholds go
            before each step while its L0 is held.
        sparse_step: Which members train on active entries only (same numbers up to float32
            rounding, faster): the ``baselines``, ``all`` with the trained member, or ``none``.
        clip_grad_norm: Norm that the gradient of each SAE is clipped at; SAELens' is fixed at
            1. null does not clip.
        dead_feature_window: Batches without firing after which SAELens' own losses try to
            bring a latent back. Default: a 25th of the training with recipe ``revived``, and
            at most SAELens' 1000, which the others have.
        drift: Record cos(row, its start), EV and L0 at these fractions of training, in each
            member's ``drift.json`` and ``drift.npz``, e.g. [0.05, 0.1, 0.25, 0.5, 1.0]
            (paper, Appendix D); empty records nothing. Training is the same either way.
        n_checkpoints: Checkpoints during each pass; a killed run resumes from the last.
        keep_checkpoints: How many to keep on disk.
    """

    name: str
    architecture: str | list[str] = "batchtopk"
    seeds: list[int] = field(default_factory=lambda: [0])
    members: list[str | MemberSpec] = field(default_factory=lambda: list(DEFAULT_MEMBERS))
    tau: float = 0.8
    b_dec_init: Literal["zeros", "mean"] = "mean"
    recipe: RecipeName = DEFAULT_RECIPE
    encoder_init: EncoderInit | None = None
    threshold_return: float = PydanticField(default=THRESHOLD_RETURN, ge=0, le=1)
    sparse_step: Literal["baselines", "all", "none"] = "baselines"
    lr: float = PydanticField(default=2e-4, gt=0)
    clip_grad_norm: float | None = PydanticField(default=1.0, gt=0)
    lr_warm_up_steps: int = PydanticField(default=0, ge=0)
    adam_beta1: float = PydanticField(default=0.9, ge=0, lt=1)
    adam_beta2: float = PydanticField(default=0.999, ge=0, lt=1)
    dead_feature_window: int | None = PydanticField(default=None, gt=0)
    device: str = "auto"
    autocast: bool = False
    drift: list[float] = field(default_factory=list)
    n_checkpoints: int = PydanticField(default=10, ge=0, le=10_000)
    keep_checkpoints: int = PydanticField(default=1, ge=1)

    # "module:class" of the `Source` that these studies read (`sae_baselines.study.engine`).
    source: ClassVar[str]

    def __post_init__(self) -> None:
        check_values(self)
        self.check()
        validate_architectures(self)
        validate_members(self)
        validate_l0(self)
        if not self.seeds:
            raise UserError("seeds: the list is empty; give at least one seed")
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"seeds: {shown(self.seeds)}: use distinct seeds >= 0")
        if self.drift:
            checked_fractions(self.drift)
        if self.dead_feature_window is None:
            self.dead_feature_window = window_of(self.recipe, self.steps)

    def check(self) -> None:
        """What can be wrong in a field before a model is loaded.

        Raises:
            UserError: One line that names the field, the value and the remedy.
        """
        validate_name(self.name)

    @property
    def architectures(self) -> list[str]:
        return [self.architecture] if isinstance(self.architecture, str) else self.architecture

    @property
    def member_specs(self) -> list[MemberSpec]:
        return [parse_member(m) for m in self.members]

    @property
    @abstractmethod
    def steps(self) -> int:
        """Optimiser steps of each member."""

    @property
    @abstractmethod
    def l0s(self) -> list[float]:
        """Target L0s."""

    @property
    @abstractmethod
    def fixed_width(self) -> int | None:
        """d_sae, where it does not depend on the hook."""

    @abstractmethod
    def width(self, d_in: int) -> int:
        """d_sae for activations of this width."""

    @abstractmethod
    def passes(self, source: str = "") -> list[Pass]:
        """Panels of a source that are trained together."""

    @property
    def source_names(self) -> list[str]:
        """The study's sources; one without a name, unless there are several."""
        return [""]

    def members_on(self, source: str) -> list[MemberSpec]:
        """The members whose activations are a source's; all of them, unless it differs."""
        del source
        return self.member_specs

    def caches(self, source: str) -> bool:
        """Whether the passes on a source read activations that were written once for all."""
        del source
        return False

    def panels(self, source: str = "") -> list[PanelKey]:
        """Every panel on a source, seeds outermost."""
        del source
        return [
            PanelKey(architecture, l0, seed)
            for seed in self.seeds
            for architecture in self.architectures
            for l0 in self.l0s
        ]

    def encoder_init_for(self, base: str, constraint: str | None = None) -> EncoderInit:
        """Start of the encoder of a base, or of its baseline."""
        return self.encoder_init or encoder_init_of(base, self.recipe, constraint)

    @property
    def bandwidth(self) -> float | None:
        """Of JumpReLU's estimator in units of the initial threshold; None for SAELens' own."""
        return bandwidth_of(self.recipe)

    @property
    def sae_options(self) -> dict[str, Any]:
        """Extra fields of the base's SAELens config, for every member alike."""
        return {}

    @property
    def sae_dtype(self) -> str:
        """Dtype of the members' weights."""
        return "float32"

    @property
    def normalization(self) -> str:
        """SAELens' ``normalize_activations`` of every member."""
        return "none"

    @property
    def reference(self) -> PublishedSpec | None:
        """Somebody else's SAE that the study is built around."""
        return None


@dataclass(config=SPEC_CONFIG, kw_only=True)
class HookSpec(StudySpec):
    """A study on what a model computes at one of its hooks.

    Args:
        hook_name: Where activations are taken.
        d_sae: Number of latents; or give ``expansion``.
        expansion: d_sae / d_in; give one of the two.
        d_in: Checked against the hook if given.
        l0: Target L0, one or a list.
        data_order: ``shared``: all seeds see one stream (one pass). ``per_seed``: each seed
            shuffles for itself (one pass per seed).
        sae: Extra fields of the base's SAELens config, for every member alike.
        max_panels_per_pass: Train at most this many panels at once (memory); ``auto``: as
            many as fit the device, measured when training begins, and that number is the
            study's from then on.
        plugins: Modules with architectures of your own; imported when your own file is read,
            never when a stored study is.
    """

    hook_name: str
    d_sae: int | None = PydanticField(default=None, gt=1)
    expansion: float | None = PydanticField(default=None, gt=0)
    d_in: int | None = PydanticField(default=None, gt=0)
    l0: float | list[float] = 160
    data_order: Literal["shared", "per_seed"] = "shared"
    sae: dict[str, Any] = field(default_factory=dict)
    n_batches_for_norm_estimate: int = PydanticField(default=100, gt=0)
    lr_scheduler_name: Schedule = "constant"
    lr_decay_steps: int = PydanticField(default=0, ge=0)
    feature_sampling_window: int = PydanticField(default=2000, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_panels_per_pass: PanelsPerPass = None
    plugins: list[str] = field(default_factory=list)

    def check(self) -> None:
        super().check()
        if (self.d_sae is None) == (self.expansion is None):
            raise UserError("d_sae, expansion: give exactly one of the two")

    @property
    def l0s(self) -> list[float]:
        return [self.l0] if isinstance(self.l0, int | float) else list(self.l0)

    @property
    def fixed_width(self) -> int | None:
        return self.d_sae

    def width(self, d_in: int) -> int:
        return self.d_sae if self.d_sae is not None else round(d_in * (self.expansion or 0))

    def check_hook(self, d_in: int, d_out: int | None = None) -> None:
        """Whether the spec fits the width of its hook.

        Raises:
            UserError: Another width than the spec's, or an L0 that is not below d_sae.
        """
        if self.d_in is not None and self.d_in != d_in:
            raise UserError(
                f"d_in: {self.d_in} does not match {self.hook_name}, which has {d_in}"
            )
        for l0 in self.l0s:
            check_width(l0, self.width(d_in))
        check_memory(self, d_in, d_out)

    def passes(self, source: str = "") -> list[Pass]:
        """One stream each, at most ``max_panels_per_pass`` panels."""
        panels = self.panels(source)
        groups = [(self.seeds[0], panels)]
        if self.data_order == "per_seed":
            groups = [(seed, [p for p in panels if p.seed == seed]) for seed in self.seeds]
        passes: list[Pass] = []
        for data_seed, group in groups:
            if self.max_panels_per_pass == AUTO:
                raise UserError(
                    "max_panels_per_pass: auto is measured where training begins; to know it "
                    "before, use sae-baselines plan --probe"
                )
            size = self.max_panels_per_pass or len(group)
            for first in range(0, len(group), size):
                part = tuple(group[first : first + size])
                name = f"{source}_pass_{len(passes)}" if source else f"pass_{len(passes)}"
                passes.append(Pass(name, data_seed, part))
        return passes

    @property
    def sae_options(self) -> dict[str, Any]:
        return self.sae

    @property
    def sae_dtype(self) -> str:
        return self.dtype


@dataclass(config=SPEC_CONFIG, kw_only=True)
class PanelSpec(HookSpec):
    """A study on text: panels over architectures, L0s and seeds on one model and hook.

    Args:
        model: The language model.
        hook_name: Where activations are taken, e.g. ``blocks.12.hook_resid_post``.
        hook_name_out: Of a study of transcoders: where they write, e.g.
            ``blocks.12.hook_mlp_out``; they read at ``hook_name``.
        d_out: Checked against that hook if given.
        dataset: The text.
        training_tokens: Activations each member is trained on.
        calibration_tokens: Held-out tokens for thresholds and covariance.
        eval_tokens: Further held-out tokens, which EV and L0 are measured on.
        held_out_spread: How many times the text of these is held out; they are drawn from all
            of it, since the L0 of a few long documents is not that of others (at most a tenth
            of a dataset of known length, where that is enough).
        ce_tokens: Of these, tokens on which reconstructions are spliced into the model.
        llm_device: Torch device of the language model in training and measuring, where it is
            not that of the SAEs (``device``), such as ``cuda:1``.
        cache_activations: Run the language model over the training text once and keep its
            activations in the study's folder, where there are several passes; the numbers are
            the same. They are deleted when everything is measured.
        published: An SAE of somebody else that is measured beside the panels and that their
            controls are made of; `sae-baselines check` writes it.
    """

    model: ModelSpec
    dataset: DatasetSpec
    hook_name_out: str | None = None
    d_out: int | None = PydanticField(default=None, gt=0)
    training_tokens: int = PydanticField(default=500_000_000, gt=0)

    context_size: int = PydanticField(default=128, gt=1)
    prepend_bos: bool = True
    seqpos_slice: list[int | None] = field(default_factory=lambda: [None])
    exclude_special_tokens: bool = False
    store_batch_size_prompts: int = PydanticField(default=32, gt=0)
    n_batches_in_buffer: int = PydanticField(default=64, gt=0)
    normalize_activations: Literal[
        "none",
        "expected_average_only_in",
        "layer_norm",
        "constant_norm_rescale",
        "covariance_whitening",
    ] = "expected_average_only_in"
    train_batch_size_tokens: int = PydanticField(default=4096, gt=0)
    llm_device: str | None = None
    autocast_lm: bool = False
    compile_llm: bool = False
    cache_activations: bool = False

    calibration_tokens: int = PydanticField(default=65_536, gt=0)
    eval_tokens: int = PydanticField(default=65_536, gt=0)
    held_out_spread: int = PydanticField(default=8, gt=0, le=1000)
    ce_tokens: int = PydanticField(default=16_384, ge=0)
    published: PublishedSpec | None = None

    source: ClassVar[str] = "sae_baselines.study.sources.text:TextSource"

    def check(self) -> None:
        super().check()
        self._check_hook_out()
        steps = self.seqpos_slice[2:]
        if not 1 <= len(self.seqpos_slice) <= 3 or any(s is not None and s < 1 for s in steps):
            raise UserError(
                f"seqpos_slice: {self.seqpos_slice} is not [stop], [start, stop] or [start, "
                "stop, step > 0]"
            )
        ends = [p for p in self.seqpos_slice[:2] if p is not None]
        beyond = [p for p in ends if abs(p) > self.context_size]
        if beyond and not STORED.get():
            raise UserError(
                f"seqpos_slice: {self.seqpos_slice}: {beyond[0]} is beyond context_size, "
                f"{self.context_size}"
            )
        if self.training_context_size == 0:
            raise UserError(
                f"seqpos_slice: {self.seqpos_slice} keeps no position of the context"
            )
        if self.data_order == "per_seed" and self.dataset.streaming:
            # datasets shuffles underneath skip(), so held-out documents would be trained on.
            raise UserError(
                "data_order: 'per_seed' is not possible with dataset.streaming; use 'shared', "
                "or download the dataset (streaming: false)"
            )
        if self.cache_activations and self.data_order == "per_seed":
            raise UserError(
                "cache_activations: with data_order 'per_seed' no two passes read the same; "
                "use data_order: shared, or cache_activations: false"
            )

    def _check_hook_out(self) -> None:
        if self.hook_name_out is None:
            if self.d_out is not None:
                raise UserError(
                    f"d_out: {self.d_out} is of the hook that transcoders write at; give "
                    "hook_name_out, or leave it out"
                )
            return
        if self.hook_name_out == self.hook_name:
            raise UserError(
                f"hook_name_out: {self.hook_name!r} is hook_name too, which is an SAE; leave "
                "hook_name_out out, or name another hook"
            )
        if self.normalize_activations not in ("none", "expected_average_only_in"):
            raise UserError(
                f"normalize_activations: {self.normalize_activations!r} is for SAEs; input and "
                "output of a transcoder are scaled by a factor each, or with 'none' not at all"
            )
        if self.cache_activations:
            raise UserError(
                "cache_activations: SAELens caches one hook, and a transcoder has two; leave "
                "it out"
            )
        if self.model.loader != "HookedTransformer":
            raise UserError(
                f"model.loader: {self.model.loader!r} is not possible with hook_name_out; use "
                "HookedTransformer"
            )

    def __post_init__(self) -> None:
        super().__post_init__()
        _validate_batches(self)

    @property
    def steps(self) -> int:
        return -(-self.training_tokens // self.train_batch_size_tokens)

    @property
    def random_models(self) -> dict[str, RandomModel]:
        """By source: one for each seed, so that spreads over seeds are over random models."""
        drawn = dict.fromkeys(m.constraint for m in self.member_specs if m.on_random_model)
        of = self.model.recorded_name
        models = [RandomModel(of, how, seed) for how in drawn for seed in self.seeds]
        return {model.source: model for model in models}

    @property
    def source_names(self) -> list[str]:
        """The model as it is, then random ones."""
        return ["", *self.random_models]

    def members_on(self, source: str) -> list[MemberSpec]:
        if not source:
            return [m for m in self.member_specs if not m.on_random_model]
        how = self.random_models[source].constraint
        return [m for m in self.member_specs if m.constraint == how]

    def panels(self, source: str = "") -> list[PanelKey]:
        panels = super().panels(source)
        if not source:
            return panels
        return [panel for panel in panels if panel.seed == self.random_models[source].seed]

    def caches(self, source: str) -> bool:
        return self.cache_activations and len(self.passes(source)) > 1

    @property
    def normalization(self) -> str:
        # Sides of a transcoder have a scale each (`build.prepare_start`).
        return "none" if self.hook_name_out else self.normalize_activations

    @property
    def hook_written(self) -> str:
        """Where a reconstruction belongs: an SAE writes where it reads."""
        return self.hook_name if self.hook_name_out is None else self.hook_name_out

    @property
    def block_of_mlp(self) -> int | None:
        """The block whose MLP's output transcoders write; None where they write another."""
        found = _MLP_OUT.fullmatch(self.hook_written)
        return None if found is None else int(found[1])

    @property
    def scales_sides(self) -> bool:
        """Whether input and output of a transcoder are scaled."""
        return self.normalize_activations != "none"

    @property
    def reference(self) -> PublishedSpec | None:
        return self.published

    @property
    def training_context_size(self) -> int:
        return len(range(self.context_size)[slice(*self.seqpos_slice)])


def parse_member(member: str | MemberSpec) -> MemberSpec:
    return member if isinstance(member, MemberSpec) else _named(member)


@cache  # every task asks for all members
def _named(member: str) -> MemberSpec:
    if is_control(member):
        return MemberSpec(constraint=member)
    constraint, _, scheme = member.partition(":")
    if scheme not in ("", "iso", "cov"):
        raise UserError(f"members: {member!r}: scheme {scheme!r} is unknown; use iso or cov")
    return MemberSpec(constraint=constraint, init_scheme="cov" if scheme == "cov" else "iso")


def import_plugins(modules: list[str]) -> None:
    """Import modules that register architectures.

    Raises:
        UserError: One cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a module of the user's may raise anything
            raise UserError(f"plugins: cannot import {module!r}: {one_line(error)}") from error


def _checked_here(architectures: list[str]) -> list[str]:
    """Those that can be checked: all, or of a stored spec those that are known."""
    if not STORED.get():
        return architectures
    return [a for a in architectures if a in base_architectures()]


def validate_name(name: str) -> None:
    """A study's name is a folder's.

    Raises:
        UserError: It cannot be.
    """
    if not re.fullmatch(_FOLDER, name):
        raise UserError(
            f"name: {shown(name)} names a folder; use letters, digits, '.', '_' and '-'"
        )
    _validate_length("name", name)


def _validate_length(field: str, name: str) -> None:
    if len(name.encode()) > _LONGEST_NAME and not STORED.get():
        raise UserError(
            f"{field}: {shown(name, 40)} names a folder and has {len(name):,} characters; use "
            f"at most {_LONGEST_NAME}"
        )


def validate_architectures(spec: StudySpec) -> None:
    """Known bases that can be told an L0, and ``sae`` options that all of them have.

    Raises:
        UserError: Otherwise.
    """
    if not spec.architectures:
        raise UserError("architecture: the list is empty; name at least one, e.g. batchtopk")
    if len(set(spec.architectures)) != len(spec.architectures):
        raise UserError(f"architecture: {spec.architectures}: names repeat; give each once")
    for architecture in _checked_here(spec.architectures):
        if architecture not in base_architectures():
            if architecture.startswith(tuple(CONSTRAINTS)):
                raise UserError(
                    f"architecture: {architecture!r} is a baseline; name its base here and the "
                    "constraint under members"
                )
            hint = did_you_mean(architecture, base_architectures())
            raise UserError(f"architecture: {architecture!r} is unknown; {hint}")
        _validate_hooks(spec, architecture)
        register_baselines(architecture)
        config_class = get_baseline(f"seeded_{architecture}").config_class
        known = {f.name for f in fields(config_class)}
        if not known & {"k", "target_l0"}:
            raise UserError(
                f"architecture: {architecture!r} cannot be told a target L0; its baselines "
                "train through SAELens' runners, but not as a panel at matched L0"
            )
        hints = get_type_hints(config_class)
        for option in spec.sae_options:
            if option in SET_BY_PANEL:
                raise UserError(
                    f"sae: {option!r} is set by the panel for every member; use the panel's "
                    "own fields"
                )
            if option not in known:
                hint = did_you_mean(option, sorted(known - SET_BY_PANEL))
                raise UserError(f"sae: {architecture} has no field {option!r}; {hint}")
            checked = value = spec.sae_options[option]
            try:
                checked = TypeAdapter(hints[option]).validate_python(value)
                flaw = flaw_of_option(checked)
            except ValidationError as error:
                flaw = error.errors()[0]["msg"]
            if isinstance(value, bool) and hints[option] is not bool:
                flaw = "is a truth value; a number is needed"
            if flaw is not None:
                raise UserError(f"sae: {option}: {shown(value)}: {flaw}")
            if isinstance(value, str):
                spec.sae_options[option] = checked  # YAML takes 1e-2 for text


def _validate_hooks(spec: StudySpec, architecture: str) -> None:
    """A transcoder has two hooks, an SAE one."""
    writes = getattr(spec, "hook_name_out", None)
    if is_transcoder(architecture) and writes is None:
        raise UserError(
            f"architecture: {architecture!r} writes at another hook than it reads; give "
            "hook_name_out, in a study on text"
        )
    if writes is not None and not is_transcoder(architecture):
        hint = f"transcoder_{architecture}"
        known = hint if is_transcoder(hint) else ", ".join(TRANSCODERS)
        raise UserError(
            f"architecture: {architecture!r} is an SAE, and with hook_name_out a panel is of "
            f"transcoders; use {known}, or leave hook_name_out out"
        )


def validate_members(spec: StudySpec) -> None:
    """Known constraints and schemes, distinct names, one trained member.

    Raises:
        UserError: Otherwise.
    """
    try:
        validate_tau(spec.tau)
    except ValueError as error:
        raise UserError(str(error)) from error
    names = [m.name for m in spec.member_specs]
    # They name folders, and some disks know no capitals; a study that is there is on another.
    if len(set(names) if STORED.get() else {n.casefold() for n in names}) != len(names):
        raise UserError(f"members: {', '.join(names)}: names repeat; give one a label")
    if spec.reference is None and TRAINED not in [m.constraint for m in spec.member_specs]:
        raise UserError("members: 'trained' is missing; a panel compares it with its baselines")
    for member in spec.member_specs:
        if not re.fullmatch(_FOLDER, member.name):
            raise UserError(
                f"members: {shown(member.name)} names a folder; use letters, digits, ._-"
            )
        _validate_length("members", member.name)
        if member.name == PUBLISHED:
            raise UserError(f"members: {PUBLISHED!r} is kept for an SAE that is checked")
        if STORED.get() and not is_known(member):
            continue  # a plugin's: its name is all that is known of it
        if member.is_trained_control:
            _validate_trained_control(spec, member)
        elif member.is_control:
            _validate_control(member, _checked_here(spec.architectures))
        elif member.constraint != TRAINED and member.constraint not in CONSTRAINTS:
            known = [TRAINED, *CONSTRAINTS, *control_names(), *trained_control_names()]
            hint = did_you_mean(member.constraint, known)
            raise UserError(f"members: {member.constraint!r} is unknown; {hint}")
        for option in member.options:
            having = [c.name for c in CONSTRAINTS.values() if option in c.options]
            if member.constraint not in having:
                raise UserError(
                    f"members: {member.name}: {option} belongs to {', '.join(having)}, not to "
                    f"{member.constraint}"
                )
        validate_tau_of(member)
        whitened = spec.normalization == "covariance_whitening"
        constraint = CONSTRAINTS.get(member.constraint)
        survives = constraint is None or constraint.survives_whitening
        if whitened and (not survives or member.init_scheme == "cov"):
            raise UserError(
                "normalize_activations: 'covariance_whitening' is not possible with "
                f"{member.name}; use 'expected_average_only_in'"
            )
        if member.constraint in CONSTRAINTS:
            for architecture in _checked_here(spec.architectures):
                try:
                    baseline_name(member.constraint, architecture)
                except ValueError as error:
                    raise UserError(f"members: {error}") from error


def is_known(member: MemberSpec) -> bool:
    """Whether its constraint or control is registered here; else it is some plugin's."""
    return is_control(member.constraint) or member.constraint in (TRAINED, *CONSTRAINTS)


# Where the output of a whole MLP is, and its block.
_MLP_OUT = re.compile(r"blocks\.(\d+)\.hook_mlp_out")


def _validate_trained_control(spec: StudySpec, member: MemberSpec) -> None:
    if not isinstance(spec, PanelSpec):
        raise UserError(
            f"members: {member.name}: only a study on text has a language model whose weights "
            "can be drawn anew; leave it out"
        )
    if member.constraint not in trained_control_names():
        hint = did_you_mean(member.constraint, trained_control_names())
        raise UserError(f"members: {member.constraint!r} is unknown; {hint}")
    if not is_random_model(member.constraint) and spec.hook_name_out is None:
        raise UserError(
            f"members: {member.name}: is of transcoders, whose inputs and outputs are pairs; "
            "give hook_name_out, or leave it out"
        )
    if member.constraint == SHUFFLED_MLP.name and spec.block_of_mlp is None:
        raise UserError(
            f"members: {member.name}: hook_name_out is {spec.hook_name_out}, not the output of "
            "an MLP, whose weights could be permuted; use one such as blocks.0.hook_mlp_out, "
            "or leave it out"
        )
    inside = f"blocks.{spec.block_of_mlp}.mlp."
    if member.constraint == SHUFFLED_MLP.name and spec.hook_name.startswith(inside):
        # What a name does not say is found when the model is there (`redraw.shuffle_mlp`).
        raise UserError(
            f"members: {member.name}: hook_name is {spec.hook_name}, inside the MLP whose "
            "weights are permuted, so inputs would not be the true ones; use one before it, "
            f"such as blocks.{spec.block_of_mlp}.ln2.hook_normalized, or leave it out"
        )
    if member.init_scheme != "iso":
        raise UserError(f"members: {member.name}: init_scheme belongs to baselines")


def _validate_control(member: MemberSpec, architectures: list[str]) -> None:
    try:
        get_control(member.constraint)
        if member.init_scheme != "iso":
            raise UserError(
                f"init_scheme: belongs to baselines; name the control {member.constraint}:"
                f"{member.init_scheme}"
            )
        for architecture in architectures:
            check_control(member.constraint, inference_class(architecture))
    except UserError as error:
        raise UserError(f"members: {error}") from error


def inference_class(architecture: str) -> type[Any]:
    """The SAELens class that a training architecture is exported as."""
    config: Any = get_baseline(f"seeded_{architecture}").config_class
    # A function of the class alone in SAELens; a config instance would need every option.
    return get_sae_class(config.get_inference_config_class(config).architecture())[0]


def validate_tau_of(member: MemberSpec) -> None:
    """Raises `UserError` if the member's own tau is out of range."""
    try:
        validate_tau(member.tau if member.tau is not None else 0.8)
    except ValueError as error:
        raise UserError(f"members: {member.name}: {error}") from error


def validate_l0(spec: StudySpec) -> None:
    """Distinct positive targets below d_sae.

    Raises:
        UserError: Otherwise.
    """
    if not spec.l0s:
        raise UserError("l0: the list is empty; give at least one target")
    # As they name folders.
    if len({f"{l0:g}" for l0 in spec.l0s}) != len(spec.l0s):
        raise UserError(f"l0: {shown(spec.l0s)}: values repeat; give each once, 6 digits count")
    for l0 in spec.l0s:
        if not l0 > 0:
            raise UserError(f"l0: {l0:g} is out of range; use a target above 0")
        if spec.fixed_width is not None:
            check_width(l0, spec.fixed_width)
        for architecture in _checked_here(spec.architectures):
            if has_integer_k(architecture) and l0 != int(l0):
                raise UserError(f"l0: {l0:g} is not an integer, but k of {architecture} is one")


def check_width(l0: float, d_sae: int) -> None:
    """Raises `UserError` unless there are more latents than shall be active."""
    if l0 >= d_sae:
        raise UserError(f"l0: {l0:g} is not below d_sae={d_sae}; use a smaller target")


def has_integer_k(architecture: str) -> bool:
    """Whether the base's config has a ``k`` that must be an integer (TopK, not BatchTopK)."""
    return get_type_hints(get_baseline(f"seeded_{architecture}").config_class).get("k") is int


def _validate_batches(spec: PanelSpec) -> None:
    batch = spec.train_batch_size_tokens
    if spec.training_tokens < batch:
        raise UserError(
            f"training_tokens: {spec.training_tokens} is less than one batch of {batch}; raise "
            "it or lower train_batch_size_tokens"
        )
    if spec.context_size > spec.training_tokens:
        raise UserError(
            f"context_size: {spec.context_size} is more than all of training_tokens, "
            f"{spec.training_tokens}; lower it or raise those"
        )
    buffer = spec.n_batches_in_buffer * spec.training_context_size
    if buffer < batch:
        need = -(-batch // spec.training_context_size)
        raise UserError(
            f"n_batches_in_buffer: {spec.n_batches_in_buffer} contexts hold {buffer} tokens, "
            f"less than one batch of {batch}; use at least {need}"
        )
    topk_family = [
        a
        for a in _checked_here(spec.architectures)
        if issubclass(get_baseline(f"seeded_{a}").sae_class, TopKTrainingSAE)
    ]
    if spec.normalize_activations in PER_TOKEN_NORMS and topk_family:
        raise UserError(
            f"normalize_activations: {spec.normalize_activations!r} stops SAELens' dead-latent "
            f"loss of {topk_family[0]} as soon as a latent dies; use 'expected_average_only_in'"
        )


AnySpec = TypeVar("AnySpec")
# Names of types in pydantic's places of an error.
_TYPE = re.compile(r".*Spec|str|int|float|(?:list|dict)\[.*\]")


@cache
def _adapter(kind: type[AnySpec]) -> TypeAdapter[AnySpec]:
    return TypeAdapter(kind)


def spec_from_dict(
    data: Any,
    where: str = "panel",
    kind: type[AnySpec] = PanelSpec,
    *,
    stored: bool = False,
) -> AnySpec:
    """Build a spec from plain data.

    Args:
        data: What YAML or JSON gave.
        where: Name for error messages.
        kind: Dataclass to build; a study of another kind has its own.
        stored: It is a study folder's own record, which may come from anybody: its ``plugins``
            are not imported, and architectures that only they know are taken as they are.

    Raises:
        UserError: On the first thing that is wrong.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where}: is not a mapping of fields; see 'sae-baselines preset'")
    if stored:
        # What it was made with, where its version had no choice.
        known = get_type_hints(kind)
        data = {**{k: _AS_BEFORE[k] for k in _CHOSEN_LATER if k in known}, **data}
    token = STORED.set(stored)
    try:
        check_keys(data, kind)
        plugins = data.get("plugins")
        if isinstance(plugins, list) and not stored:
            import_plugins([str(plugin) for plugin in plugins])
        return _adapter(kind).validate_python(data)
    except ValidationError as error:
        raise UserError(f"{where}: {first_problem(error)}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    finally:
        STORED.reset(token)


def first_problem(error: ValidationError) -> str:
    """What is wrong with a spec, in one line: field, value, and why."""
    first, *others = error.errors()
    # Of a field that may be several things, the one that came closest.
    same = [first, *(e for e in others if e["loc"][:1] == first["loc"][:1])]
    problem = max(same, key=lambda e: len(e["loc"]))
    parts = [p if (p := str(part)).isprintable() else repr(p) for part in problem["loc"]]
    location = ".".join(p for p in parts if not _TYPE.fullmatch(p))
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        # Those of a field inside name it alone.
        inside = location and not str(cause).startswith(f"{location}.")
        return f"{location}.{cause}" if inside else str(cause)
    if problem["type"] in ("missing", "missing_argument"):
        return f"{location}: is missing"
    if not location:
        return " ".join(problem["msg"].split())
    return f"{location}: {shown(problem.get('input'))}: {problem['msg']}"


# Of a panel file, besides what is trained.
SECTIONS = ("evals", "cluster")


def load_spec(
    path: str | Path,
    kind: type[AnySpec] = PanelSpec,
) -> AnySpec:
    """Read a spec from YAML.

    Sections ``evals`` and ``cluster`` of a panel are left alone: they say how to evaluate
    (`sae_baselines.evals`) and where (`sae_baselines.work`); other studies have none.

    Raises:
        UserError: No such file, not YAML, or not a valid spec.
    """
    data = read_yaml(path)
    if isinstance(data, dict) and issubclass(kind, PanelSpec):
        data = {name: value for name, value in data.items() if name not in SECTIONS}
    return spec_from_dict(data, Path(path).name, kind)


def spec_to_dict(spec: StudySpec) -> dict[str, Any]:
    """Plain data, complete: every default is written out; the source's own fields first."""
    data = _adapter(type(spec)).dump_python(spec, mode="json")
    own = [name for name in data if name == "name" or name in _own_fields(type(spec))]
    return {name: data[name] for name in dict.fromkeys([*own, *data])}


def _own_fields(kind: type[StudySpec]) -> set[str]:
    """Fields that this kind of study adds to what all have."""
    return {f.name for f in fields(kind)} - {f.name for f in fields(StudySpec)}


def spec_to_yaml(spec: Any) -> str:
    """YAML of `spec_to_dict`."""
    return yaml.safe_dump(spec_to_dict(spec), sort_keys=False, allow_unicode=True)


def json_schema() -> dict[str, Any]:
    """JSON schema of a panel file, for editors."""
    return _adapter(PanelSpec).json_schema()


# What may change between two runs in one folder: they name things, say how fast to go, or
# what to look at on the way.
_NOT_IN_HASH = {
    "name",
    "device",
    "llm_device",
    "drift",
    "n_checkpoints",
    "keep_checkpoints",
    "compile_llm",
    "sparse_step",
    "cache_activations",
}


# Fields that came later, with the values that are as before.
_AS_BEFORE = {
    "recipe": "first",
    "encoder_init": "transposed",
    "threshold_return": 0.01,
    "published": None,
    "held_out_spread": 1,
    "clip_grad_norm": 1.0,
    "hook_name_out": None,
    "d_out": None,
}
_CHOSEN_LATER = ("recipe", "threshold_return", "held_out_spread")
_MODEL_AS_BEFORE = {"center_writing_weights": False}
_MEMBER_AS_BEFORE = {"learned": None}
# Where a published SAE was found and what it says of itself change nothing.
_OF_PUBLISHED = ("weights_sha256", "input_scale")


def spec_hash(spec: Any) -> str:
    """SHA-256 over everything in the spec that can change a result by more than rounding."""
    data = {k: v for k, v in spec_to_dict(spec).items() if k not in _NOT_IN_HASH}
    if data.get("published"):
        data["published"] = {k: data["published"][k] for k in _OF_PUBLISHED}
    data = _as_before(data)
    return checksum_of(data)


def _as_before(data: dict[str, Any]) -> dict[str, Any]:
    """Without later fields, where they say what was so before them."""
    bases = data.get("architecture", [])
    bases = [bases] if isinstance(bases, str) else bases
    recipe = data.get("recipe", "first")
    if not any(is_controlled(base) for base in bases):
        # Recipes differ in nothing but two fields that stand there themselves.
        data = {**data, "recipe": "first"}
        if "jumprelu_bandwidth" in data:
            data["jumprelu_bandwidth"] = 1.0
    if data.get("encoder_init") is None:
        members = data.get("members") or DEFAULT_MEMBERS
        baselines = {c for c in map(_constraint_of, members) if c in CONSTRAINTS}
        inits = {encoder_init_of(b, recipe, c) for b in bases for c in (None, *baselines)}
        data = {**data, "encoder_init": "/".join(sorted(inits))}
    if not any(moves_thresholds(base, recipe) for base in bases):
        data = {**data, "threshold_return": _AS_BEFORE["threshold_return"]}
    if isinstance(data.get("model"), dict):
        data = {**data, "model": _without(data["model"], _MODEL_AS_BEFORE)}
    if isinstance(members := data.get("members"), list):
        as_before = [
            _without(m, _MEMBER_AS_BEFORE) if isinstance(m, dict) else m for m in members
        ]
        data = {**data, "members": as_before}
    return _without(data, _AS_BEFORE)


def _constraint_of(member: Any) -> str:
    return member["constraint"] if isinstance(member, dict) else parse_member(member).constraint


def _without(data: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that have just these values."""
    return {k: v for k, v in data.items() if k not in values or v != values[k]}


def spec_difference(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of the fields that differ and matter, for an error message; what a field that is
    not in the first stands for, since nobody could find it there."""
    a, b = _as_before(a), _as_before(b)
    differing = sorted(
        k
        for k in a.keys() | b.keys()
        if k not in _NOT_IN_HASH and ((k in a) != (k in b) or a.get(k) != b.get(k))
    )
    return [
        f"{k}, which is {_AS_BEFORE[k]} there" if k in _AS_BEFORE and k not in a else k
        for k in differing
    ]
