"""How each base is trained in a study, so that its members are comparable.

``revived`` holds every member's L0 at its target while it trains (`baselines.l0_control`) with
penalties that leave that to the control, and has SAELens' own losses bring back latents that
fell silent while the run still lasts; it was chosen by the search in benchmarks/recipes.
``fair`` is the same without the second. ``saelens`` has SAELens' own defaults, told the target
where a base can be told one. ``first`` is what version 0.1.0-dev did.
"""

from collections.abc import Set
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal

from sae_lens import GatedTrainingSAE, JumpReLUTrainingSAE, TopKTrainingSAE

from sae_baselines.baselines import base_architectures, get_baseline
from sae_baselines.baselines.constraint import CONSTRAINTS
from sae_baselines.baselines.transcoder import is_transcoder

RecipeName = Literal["revived", "fair", "saelens", "first"]
DEFAULT_RECIPE: RecipeName = "revived"
EncoderInit = Literal["transposed", "fitted"]

# See benchmarks/recipes/README.md for what each was compared with.
_CONTROL = 0.1
_BANDWIDTH = 0.5
_L0_COEFFICIENT = 1 / 400
_L1_COEFFICIENT = {"standard": 0.2, "gated": 0.6}
_PRE_ACT_COEFFICIENT = 0.01
# Of transcoders with a k (benchmarks/transcoders/start.csv): with SAELens' 1 latents that are
# brought back take the step over: what they write has nothing to do with what they read.
_AUX_OF_TRANSCODERS = 0.003
# Of the steps, after which a silent latent is brought back; at most SAELens' number.
_WINDOW, _SAELENS_WINDOW = 25, 1000
_HELD = ("revived", "fair")


@dataclass(frozen=True)
class Scales:
    """What penalties are measured against, of calibration activations as the encoder sees them.

    Attributes:
        square_norm: Mean squared norm.
        threshold: Pre-activation of unit random directions that the target number is above.
    """

    square_norm: float
    threshold: float


def is_controlled(base: str) -> bool:
    """Whether the base's L0 is not its k, and can be held by `baselines.l0_control`."""
    return base in base_architectures() and "l0_control" in _fields(base)


def moves_thresholds(base: str, recipe: RecipeName) -> bool:
    """Whether the base's L0 is held by moving a threshold of each latent."""
    return recipe in _HELD and is_controlled(base) and "jumprelu_bandwidth" in _fields(base)


def encoder_init_of(
    base: str, recipe: RecipeName, constraint: str | None = None
) -> EncoderInit:
    """Start of the encoder where a study does not say.

    ``fitted`` where something else than its value decides on a latent (JumpReLU, gated; with
    ``revived`` also an SAE that has a k). A standard SAE is better from the decoder's
    transpose: fitted, half of its latents die (benchmarks/recipes). Transcoders start with
    little to unlearn (benchmarks/transcoders), whatever their base.

    A frozen encoder keeps the length that it starts with, while biases move by a learning rate
    a step: short columns are drowned by them, and with directions of the covariance nine
    latents of ten die. With ``revived`` it has unit columns (benchmarks/recipes).
    """
    if is_transcoder(base):
        return "fitted" if recipe == "revived" else "transposed"
    baseline = CONSTRAINTS.get(constraint or "")
    if recipe == "revived" and baseline is not None and baseline.keeps_encoder:
        return "transposed"
    kinds: tuple[type, ...] = ()
    if recipe in _HELD:
        kinds = (GatedTrainingSAE, JumpReLUTrainingSAE)
    if recipe == "revived":
        kinds = (*kinds, TopKTrainingSAE)
    fitted = issubclass(get_baseline(f"seeded_{base}").sae_class, kinds)
    return "fitted" if fitted else "transposed"


def options_of_transcoder(base: str, recipe: RecipeName, known: Set[str]) -> dict[str, Any]:
    """Fields of the base's SAELens config that a recipe sets for transcoders that have a k.

    Args:
        base: Base architecture.
        recipe: Its name.
        known: Fields that its config has.
    """
    if recipe == "revived" and is_transcoder(base) and "aux_loss_coefficient" in known:
        return {"aux_loss_coefficient": _AUX_OF_TRANSCODERS}
    return {}


def recipe_options(
    base: str, recipe: RecipeName, l0: float, scales: Scales, known: Set[str]
) -> dict[str, Any]:
    """Fields of the base's SAELens config that a recipe sets, the target L0 and k apart.

    Args:
        base: Base architecture.
        recipe: Its name.
        l0: Target.
        scales: Of the activations.
        known: Fields that its config has.
    """
    options: dict[str, Any] = {}
    if "jumprelu_sparsity_loss_mode" in known:
        options["jumprelu_sparsity_loss_mode"] = "quadratic"
    if recipe == "saelens":
        # Steering a coefficient is this package's: SAELens' own leads where it leads.
        return {**options, "target_l0": None} if "l0_steering_rate" in known else options
    if "jumprelu_sparsity_loss_mode" in known:
        # SAELens' penalty is 2 / L0 * (l0 - L0)^2 against a squared error of this order.
        share = _L0_COEFFICIENT if recipe in _HELD else 1.0
        options["l0_coefficient"] = share * scales.square_norm / l0
    if recipe in _HELD:
        if "l0_control" in known:
            options["l0_control"] = _CONTROL
        if "l1_coefficient" in known:
            share = _L1_COEFFICIENT["standard" if _is_relu(base) else "gated"]
            options["l1_coefficient"] = share * scales.threshold
    if recipe == "revived" and "pre_act_loss_coefficient" in known:
        options["pre_act_loss_coefficient"] = _PRE_ACT_COEFFICIENT * scales.threshold
    return options


def window_of(recipe: RecipeName, steps: int) -> int:
    """SAELens' ``dead_feature_window``: batches after which a silent latent is a dead one."""
    if recipe != "revived":
        return _SAELENS_WINDOW
    return min(_SAELENS_WINDOW, max(1, steps // _WINDOW))


def bandwidth_of(recipe: RecipeName) -> float | None:
    """Of JumpReLU's estimator in units of the initial threshold; None for SAELens' own."""
    return _BANDWIDTH if recipe in _HELD else None


def in_words(recipe: RecipeName) -> str:
    """What a recipe does, for a report."""
    if recipe == "saelens":
        return "SAELens' own defaults; L0 is where its penalty leads"
    if recipe == "first":
        return (
            "L0 is led to the target by a penalty (quadratic for JumpReLU, with a coefficient "
            "of E|x|^2 / L0; a steered L1 coefficient for standard and gated SAEs)"
        )
    revived = (
        f"; latents that are silent for one {_WINDOW}th of the training are brought back by "
        f"SAELens' own losses (JumpReLU's times {_PRE_ACT_COEFFICIENT:g} of the initial "
        "threshold)"
    )
    return (
        "L0 is held at the target in every batch, by one factor on all thresholds (JumpReLU) "
        "or one shift of all biases (standard, gated; gradients are those at constant L0); the "
        "penalty only tells latents apart "
        f"(quadratic with a coefficient of E|x|^2 / L0 times {_L0_COEFFICIENT:g}; L1 of "
        f"{_L1_COEFFICIENT['standard']:g} and {_L1_COEFFICIENT['gated']:g} times the initial "
        f"threshold){revived if recipe == 'revived' else ''}"
    )


def _is_relu(base: str) -> bool:
    sae_class = get_baseline(f"seeded_{base}").sae_class
    return not issubclass(sae_class, GatedTrainingSAE | JumpReLUTrainingSAE)


@cache
def _fields(base: str) -> frozenset[str]:
    return frozenset(f.name for f in fields(get_baseline(f"seeded_{base}").config_class))
