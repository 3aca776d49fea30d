"""Members that start from the same directions, as SAELens configs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAEConfig

from sae_baselines.baselines import (
    SEEDED,
    baseline_name,
    covariance_of,
    get_baseline,
    load_covariance,
    save_covariance,
)
from sae_baselines.baselines.directions import InitScheme, start_directions
from sae_baselines.baselines.transcoder import PairStart, is_transcoder
from sae_baselines.errors import UserError
from sae_baselines.study.identity import COVARIANCE_FILE
from sae_baselines.study.plan import MemberKey
from sae_baselines.study.recipes import (
    DEFAULT_RECIPE,
    EncoderInit,
    RecipeName,
    Scales,
    bandwidth_of,
    encoder_init_of,
    is_controlled,
    moves_thresholds,
    options_of_transcoder,
    recipe_options,
)
from sae_baselines.study.spec import (
    TRAINED,
    MemberSpec,
    PanelSpec,
    StudySpec,
    has_integer_k,
)

# The initial threshold of a JumpReLU comes from this many calibration activations.
_THRESHOLD_SAMPLES = 2048
# What a transcoder's latents write at first, fitted: this share of the output's variance, with
# a skip, which is the best affine map already, and without (benchmarks/transcoders/start.csv).
FIRST_WRITES = {True: 0.01, False: 0.1}


@dataclass(frozen=True)
class Start:
    """What every member of a study starts from, besides its seed.

    Attributes:
        activations: ``[n, d_in]`` calibration activations as the encoder will see them.
        b_dec: ``[d_in]`` start of b_dec in that space.
        square_norm: Mean squared norm in that space; of transcoders, of what they write.
        covariance_path: File for ``cov`` members; None if there are none.
        pair: Of transcoders: what they start from instead of b_dec.
    """

    activations: torch.Tensor
    b_dec: torch.Tensor
    square_norm: float
    covariance_path: Path | None
    pair: PairStart | None = None

    @property
    def d_out(self) -> int | None:
        """Of transcoders."""
        return None if self.pair is None else len(self.pair.mean_out)


@dataclass(frozen=True)
class EncoderStart:
    """What the initial directions do to calibration activations at the target L0.

    Attributes:
        threshold: Pre-activation above which the target number of latents is, >= 0, with the
            encoder equal to the decoder transposed. A JumpReLU threshold moves by about one
            learning rate a step, so a start far from its target may never arrive.
        scale: Factor of the encoder at which the first reconstruction fits best.
    """

    threshold: float
    scale: float


# By target L0, seed and scheme.
Starts = dict[tuple[float, int, str], EncoderStart]


def prepare_start(
    spec: StudySpec, calibration: torch.Tensor, folder: Path, d_in: int | None = None
) -> Start:
    """Settle the common start from calibration activations.

    Args:
        spec: The study.
        calibration: ``[n, d_in]`` held-out activations, raw.
        folder: Where the covariance of ``cov`` members is kept.
        d_in: Of transcoders, whose activations are inputs and outputs side by side.
    """
    d_in = calibration.shape[1] if d_in is None else d_in
    if isinstance(spec, PanelSpec) and spec.hook_name_out is not None:
        return _prepare_pairs(spec, calibration, folder, d_in)
    x = calibration
    if spec.normalization == "expected_average_only_in":
        x = x * (d_in**0.5 / x.norm(dim=-1).mean())
    elif spec.normalization == "layer_norm":
        x = x - x.mean(dim=-1, keepdim=True)
        x = x / (x.std(dim=-1, keepdim=True) + 1e-5)
    elif spec.normalization == "constant_norm_rescale":
        x = x * (d_in**0.5 / x.norm(dim=-1, keepdim=True))
    elif spec.normalization == "covariance_whitening":
        x = x - x.mean(dim=0)
        values, vectors = torch.linalg.eigh(covariance_of(x))
        x = x @ (vectors * (values.clamp(min=0) + 1e-3).rsqrt()).float()
    b_dec = x.mean(dim=0) if spec.b_dec_init == "mean" else torch.zeros(d_in)
    path = None
    if any(m.init_scheme == "cov" for m in spec.member_specs):
        path = folder / COVARIANCE_FILE
        save_covariance(covariance_of(x), path)
    # A copy: a view would keep all of the normalised activations in memory.
    square_norm = float(x.pow(2).sum(dim=1).mean())
    return Start(x[:_THRESHOLD_SAMPLES].clone(), b_dec, square_norm, path)


def _prepare_pairs(
    spec: PanelSpec, calibration: torch.Tensor, folder: Path, d_in: int
) -> Start:
    pair = PairStart.of(calibration, d_in)
    if not spec.scales_sides:
        pair = replace(pair, input_scale=1.0, output_scale=1.0)
    scaled = _scaled(calibration, pair)
    path = None
    if any(m.init_scheme == "cov" for m in spec.member_specs):
        path = folder / COVARIANCE_FILE
        save_covariance(covariance_of(scaled), path)
    written = scaled[:, d_in:]
    square_norm = float(written.pow(2).sum(dim=1).mean())
    read = scaled[:_THRESHOLD_SAMPLES, :d_in].clone()
    return Start(read, written.new_zeros(written.shape[1]), square_norm, path, pair)


def _scaled(pairs: torch.Tensor, pair: PairStart) -> torch.Tensor:
    """Inputs and outputs, each less its mean and in the unit of a training step."""
    scales = torch.full((pairs.shape[1],), pair.input_scale)
    scales[len(pair.mean_in) :] = pair.output_scale
    return (pairs - torch.cat([pair.mean_in, pair.mean_out]).float()) * scales


def _pair_options(pair: PairStart) -> dict[str, Any]:
    """Fields of a transcoder's config that its pairs decide."""
    return {
        "d_out": len(pair.mean_out),
        "input_scale": pair.input_scale,
        "output_scale": pair.output_scale,
    }


def member_configs(
    spec: StudySpec,
    members: Mapping[MemberKey, MemberSpec],
    start: Start,
    d_in: int,
    device: str,
) -> dict[MemberKey, TrainingSAEConfig]:
    """SAELens configs of members, in order."""
    starts: Starts = {}
    return {
        key: member_config(spec, key, member, start, d_in, device, starts)
        for key, member in members.items()
    }


def member_config(
    spec: StudySpec,
    key: MemberKey,
    member: MemberSpec,
    start: Start,
    d_in: int,
    device: str,
    starts: Starts | None = None,
) -> TrainingSAEConfig:
    """SAELens config of one member.

    Raises:
        UserError: A combination that the architecture's own config refuses.
    """
    panel = key.panel
    base = panel.architecture
    is_trained = member.constraint == TRAINED or member.is_trained_control
    constraint = SEEDED.name if is_trained else member.constraint
    config_class = get_baseline(baseline_name(constraint, base)).config_class
    known = {f.name for f in fields(config_class)}
    starts = {} if starts is None else starts
    width = spec.width(d_in)

    def begin(scheme: InitScheme) -> EncoderStart:
        which = (panel.l0, panel.seed, scheme)
        if which not in starts:
            centred = start.pair is None and spec.sae_options.get("apply_b_dec_to_input", True)
            x = start.activations - (start.b_dec if centred else 0.0)
            drawn = panel.seed, scheme, start.covariance_path, start.d_out
            skip = bool(spec.sae_options.get("skip", False))
            starts[which] = encoder_start(x, width, panel.l0, *drawn, skip=skip)
        return starts[which]

    options: dict[str, Any] = {
        "d_in": d_in,
        "d_sae": width,
        "dtype": spec.sae_dtype,
        "device": device,
        "normalize_activations": spec.normalization,
        "init_seed": panel.seed,
        "init_scheme": member.init_scheme,
        **architecture_options(base, panel.l0, width, known),
    }
    if start.pair is not None:
        options |= {
            **_pair_options(start.pair),
            "hook_name_out": getattr(spec, "hook_name_out", None),
            "shuffled_pairs": member.on_shuffled_pairs,
        }
    if member.init_scheme == "cov":
        options["init_covariance_path"] = str(start.covariance_path)
    if "sparse_step" in known:
        with_step = ("all",) if is_trained else ("baselines", "all")
        options["sparse_step"] = spec.sparse_step in with_step
    if "tau" in known:
        options["tau"] = spec.tau if member.tau is None else member.tau
    if member.learned is not None:
        options["learned"] = member.learned
    normed = spec.recipe == "first" and spec.normalization != "none"
    options |= _start_options(
        base,
        spec.recipe,
        spec.encoder_init_for(base, constraint),
        spec.bandwidth,
        panel.l0,
        d_in if normed else start.square_norm,
        begin,
        member.init_scheme,
        known,
    )
    if moves_thresholds(base, spec.recipe):
        options["threshold_return"] = spec.threshold_return
    options |= spec.sae_options
    if getattr(spec, "hook_name", "").endswith("hook_z"):
        # Trained on flattened heads; says that users of the export need not flatten.
        options["reshape_activations"] = "hook_z"
    try:
        return config_class(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"members: {member.name} of {base}: {error}") from error


def fair_options(
    architecture: str,
    activations: torch.Tensor,
    l0: float,
    d_sae: int,
    *,
    constraint: str = SEEDED.name,
    seed: int = 0,
    init_scheme: InitScheme = "iso",
    covariance_path: str | Path | None = None,
    d_in: int | None = None,
    skip: bool = False,
) -> dict[str, Any]:
    """Fields of a SAELens config that train a baseline, or its SAE, as panels do.

    L0 is held at ``l0`` in every batch, whatever is frozen (JumpReLU, standard and gated bases;
    others have a k), and encoders start as in panels (`study.recipes`). SAELens' runners train
    the result as any other config::

        options = fair_options("jumprelu", activations, l0=64, d_sae=8192)
        config = get_sae_training_class("frozen_decoder_jumprelu")[1](d_in=512, **options)

    A panel also has a trainer's ``dead_feature_window`` of a 25th of the steps. A transcoder
    is given the rest of its start by its own ``set_start`` (docs/transcoders.md).

    Args:
        architecture: The base, e.g. ``jumprelu``.
        activations: ``[n, d_in]`` some thousand activations as the encoder will see them:
            normalised if the config says so, less b_dec's start. Of transcoders
            ``[n, d_in + d_out]`` inputs and outputs side by side, raw.
        l0: Target.
        d_sae: Number of latents.
        constraint: Of the baseline, e.g. ``frozen_encoder``, whose encoder starts otherwise.
        seed: ``init_seed`` of the SAE.
        init_scheme: Its directions' scheme.
        covariance_path: For ``cov``; see `save_covariance`. Of transcoders that of inputs and
            outputs side by side.
        d_in: Of transcoders, and of no others: how many columns of activations are inputs.
        skip: Of transcoders: with an affine skip.

    Returns:
        Fields for `get_baseline(...).config_class`; with ``d_sae``, ``init_seed`` and
        ``init_scheme``, and of transcoders ``d_out``, ``skip`` and both scales.

    Raises:
        UserError: No base, no constraint that it has, or pairs where it takes none.
    """
    try:
        baseline = get_baseline(baseline_name(constraint, architecture))
    except ValueError as error:  # names the field, and what is near
        raise UserError(str(error)) from error
    paired = is_transcoder(architecture)
    if paired and not (d_in is not None and 0 < d_in < activations.shape[1]):
        raise UserError(
            f"d_in: {d_in} is no width of inputs: {architecture!r} takes inputs and outputs "
            f"side by side; give how many of the {activations.shape[1]} columns are inputs"
        )
    if not paired and (d_in is not None or skip):
        raise UserError(
            f"architecture: {architecture!r} is an SAE, and d_in and skip are of transcoders; "
            "leave them out"
        )
    known = {f.name for f in fields(baseline.config_class)}
    path = None if covariance_path is None else Path(covariance_path)
    x = written = activations.float()
    options: dict[str, Any] = {"d_sae": d_sae, "init_seed": seed, "init_scheme": init_scheme}
    d_out = None
    if d_in is not None:  # so it is a transcoder
        pair = PairStart.of(x, d_in)
        x, written = _scaled(x, pair).tensor_split([d_in], dim=1)
        options |= {**_pair_options(pair), "skip": skip}
        d_out = written.shape[1]

    @cache
    def begin(scheme: InitScheme) -> EncoderStart:
        some = x[:_THRESHOLD_SAMPLES]
        return encoder_start(some, d_sae, l0, seed, scheme, path, d_out, skip=skip)

    if path is not None:
        options["init_covariance_path"] = str(path)
    return {
        **options,
        **architecture_options(architecture, l0, d_sae, known),
        **_start_options(
            architecture,
            DEFAULT_RECIPE,
            encoder_init_of(architecture, DEFAULT_RECIPE, constraint),
            bandwidth_of(DEFAULT_RECIPE),
            l0,
            float(written.pow(2).sum(dim=1).mean()),
            begin,
            init_scheme,
            known,
        ),
    }


def _start_options(
    base: str,
    recipe: RecipeName,
    encoder_init: EncoderInit,
    bandwidth: float | None,
    l0: float,
    square_norm: float,
    begin: Callable[[InitScheme], EncoderStart],
    scheme: InitScheme,
    known: set[str],
) -> dict[str, Any]:
    """What a recipe sets, and the start of encoder and thresholds."""
    options = options_of_transcoder(base, recipe, known)
    if is_controlled(base):
        # Of isotropic directions, so that members of either scheme have the same penalty.
        scales = Scales(square_norm, begin("iso").threshold)
        options |= recipe_options(base, recipe, l0, scales, known)
    scale = 1.0
    if encoder_init == "fitted":
        scale = options["encoder_init_scale"] = begin(scheme).scale
    if "jumprelu_init_threshold" in known and recipe != "saelens":
        threshold = options["jumprelu_init_threshold"] = scale * begin(scheme).threshold
        if threshold == 0:
            raise UserError(
                f"l0: {l0:g} is more than {base!r} can start at: fewer latents are above 0, "
                "and a threshold cannot be below; use a smaller l0, or more latents"
            )
        if bandwidth is not None:
            options["jumprelu_bandwidth"] = bandwidth * threshold
    return options


def architecture_options(base: str, l0: float, d_sae: int, known: set[str]) -> dict[str, Any]:
    """How a base is told its target L0, and defaults where SAELens has none."""
    if "k" in known:
        options: dict[str, Any] = {"k": int(l0) if has_integer_k(base) else l0}
    elif "target_l0" in known:
        options = {"target_l0": l0}
    else:
        options = {}
    if "matryoshka_widths" in known:
        # Group fractions 0.5 / 0.3 / 0.2 (paper, Appendix B).
        options["matryoshka_widths"] = [d_sae // 2, int(0.8 * d_sae), d_sae]
    return options


@torch.no_grad()
def encoder_start(
    encoder_in: torch.Tensor,
    d_sae: int,
    l0: float,
    seed: int,
    scheme: InitScheme,
    covariance_path: Path | None,
    d_out: int | None = None,
    skip: bool = False,
) -> EncoderStart:
    """Threshold and scale of the initial encoder; the same rule for every member.

    A transcoder's first latents write directions that have nothing to do with what they read,
    so that the best factor is none. Its scale lets them write a share of the output's variance
    (`FIRST_WRITES`): little to unlearn, and an encoder that turns in few steps.

    Args:
        encoder_in: ``[n, d_in]`` what the encoder multiplies with W_enc.
        d_sae: Number of latents.
        l0: Target.
        seed: Seed of the initial directions.
        scheme: Their scheme.
        covariance_path: Their covariance, for ``cov``.
        d_out: Of a transcoder.
        skip: Whether it has one.
    """
    covariance = None
    if scheme == "cov":
        covariance = load_covariance(covariance_path=str(covariance_path))
    _, directions = start_directions(
        d_sae, encoder_in.shape[1], d_out, seed=seed, scheme=scheme, covariance=covariance
    )
    pre = encoder_in @ directions.T
    wanted = max(1, round(l0 * pre.shape[0]))
    threshold = max(0.0, float(pre.flatten().topk(wanted).values[-1]))
    pre[pre < threshold] = 0
    if d_out is not None:
        # Decoder rows are unit and independent of what is read: latents write sum z^2, and the
        # scaled output has a variance of d_out.
        written = float(pre.pow(2).sum(dtype=torch.float64)) / len(pre)
        scale = math.sqrt(FIRST_WRITES[skip] * d_out / written) if written > 0 else 1.0
        return EncoderStart(threshold, scale)
    # <x, x_hat> = sum of z^2, as each z is <x, d>.
    square = float((pre @ directions).pow(2).sum(dtype=torch.float64))
    scale = float(pre.pow(2).sum(dtype=torch.float64)) / square if square > 0 else 1.0
    return EncoderStart(threshold, scale)


@torch.no_grad()
def set_b_dec(saes: Mapping[str, Any], start: Start) -> None:
    """Give every member the common b_dec; a transcoder what else it starts with."""
    for sae in saes.values():
        if start.pair is None:
            sae.set_start_b_dec(start.b_dec)
        else:
            sae.set_start(start.pair)
