"""Making a control from any SAE."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE

# These register the controls that they make.
from sae_baselines.controls import permuted, untrained  # noqa: F401
from sae_baselines.controls.kinds import ControlKind, get_control
from sae_baselines.controls.source import check_class, source_of
from sae_baselines.errors import UserError

# A random control is at its source's L0 on calibration activations, within this.
_L0_MISS = 0.01
# What the source's metadata says of the source alone.
_OF_SOURCE = (
    "training_architecture",
    "training_architecture_details",
    "sae_baselines",
    "neuronpedia_id",
    "l0",
)


@dataclass(frozen=True)
class Control:
    """An SAE that was never trained.

    Attributes:
        sae: A stock SAELens inference SAE on the CPU.
        kind: Which control.
        scheme: How it was drawn; "" where there is one way.
        seed: Its seed.
        facts: What its metadata says under ``sae_baselines``, plain data.
    """

    sae: SAE[Any]
    kind: ControlKind
    scheme: str
    seed: int
    facts: dict[str, Any]

    def save(self, folder: str | Path) -> Path:
        """Write a SAELens folder, which stock SAELens loads with this package absent."""
        self.sae.save_model(folder)
        return Path(folder)


def make_control(
    source: SAE[Any] | str | Path,
    kind: str,
    *,
    seed: int = 0,
    activations: torch.Tensor | None = None,
    l0: float | None = None,
) -> Control:
    """A control of an SAE: the same shape, nothing trained or something broken.

    A function of the source's weights, kind, seed and activations; random state is neither
    read nor changed.

    Args:
        source: An SAE (SAELens' inference or training SAE), a SAELens folder, or
            ``release:sae_id``.
        kind: ``random``, ``random:cov``, ``random:kaiming``, ``permuted_decoder`` or
            ``permuted_pairing`` (`CONTROLS` says what each is the null for).
        seed: Seed (>= 0).
        activations: Raw activations of the hook, ``[n, d_in]`` or ``[n, heads, d_head]``.
            Needed for ``random``; ``permuted_pairing`` tells live latents by them.
        l0: Target L0 of a ``random``; default: the source's on ``activations``.

    Raises:
        UserError: Unknown kind; a source that has no such control; activations that are
            missing, of another width or not finite; an L0 that cannot be met within 1 %.
    """
    made = build_control(source, kind, seed=seed, activations=activations, l0=l0)
    calibrated = made.facts.get("calibration")
    if calibrated is not None:
        got, target = calibrated["l0"], calibrated["target_l0"]
        if abs(got - target) > _L0_MISS * target:
            raise UserError(
                f"l0: {target:.4g} cannot be met by a random {made.sae.cfg.architecture()!r} "
                f"SAE on these activations, {got:.4g} can; give l0={got:.4g}"
            )
    return made


def check_control(kind: str, sae_class: type[SAE[Any]]) -> None:
    """Whether a control can be made of SAEs of a class, before there is one.

    Raises:
        UserError: It cannot, or there is no such control.
    """
    control, _ = get_control(kind)
    check_class(sae_class)
    if control.check is not None:
        control.check(sae_class)


def build_control(
    source: SAE[Any] | str | Path,
    kind: str,
    *,
    seed: int = 0,
    activations: torch.Tensor | None = None,
    l0: float | None = None,
) -> Control:
    """`make_control` that leaves it to the caller to look at the L0 in ``facts``."""
    control, scheme = get_control(kind)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed: {seed!r} is not a whole number >= 0")
    if l0 is not None and not control.untrained:
        raise UserError(
            f"l0: {control.name} has its source's latents, so its L0; leave it away"
        )
    given = source_of(source)
    x = None if activations is None else _as_rows(activations, given.sae.cfg.d_in)
    facts: dict[str, Any] = {
        # As in a panel file: the default scheme goes without saying.
        "control": f"{control.name}:{scheme}"
        if scheme in control.schemes[1:]
        else control.name,
        "seed": seed,
        "samples_seen": 0,
        "null_for": control.null_for,
        "source": given.described,
    }
    sae, more = control.build(given.sae, seed, scheme, x, l0)
    facts |= more
    # Where to use it, as the source says; what it is, as we say.
    for name in _OF_SOURCE:
        sae.cfg.metadata.__dict__.pop(name, None)
    sae.cfg.metadata.sae_baselines = facts
    return Control(sae, control, scheme, seed, facts)


def _as_rows(activations: torch.Tensor, d_in: int) -> torch.Tensor:
    """float32 on the CPU, ``[n, d_in]``."""
    shape = tuple(activations.shape)
    if len(shape) < 2 or shape[0] < 2 or activations[0].numel() != d_in:
        raise UserError(
            f"activations: shape {shape} is not [n, {d_in}] with n >= 2, which the source reads"
        )
    x = activations.detach().to("cpu", torch.float32).flatten(1)
    if not bool(torch.isfinite(x).all()):
        raise UserError("activations: contain NaN or infinity; check the model and the hook")
    return x
