"""Which controls there are, and what each is the null for."""

from dataclasses import dataclass
from typing import Literal

from sae_baselines.errors import UserError, did_you_mean

# What the constraint column says of SAEs that are neither a baseline nor a control: the panel's
# own trained SAE, and somebody else's.
TRAINED = "trained"
PUBLISHED = "published"
RANDOM_SCHEMES = ("iso", "cov", "kaiming")

# What a metric is computed from: the reconstruction; what a latent's direction does to the
# model; latents alone, without chance; or something else, which is not compared with permuted
# SAEs although it may read the decoder: absorption (a foreign direction absorbs nothing, which
# is its good end), MDL (quantises until it reconstructs, which these cannot) and meta-SAEs
# (they see the dictionary's inner geometry, which these keep).
Depends = Literal["reconstruction", "edits", "latents", "other"]


@dataclass(frozen=True)
class ControlKind:
    """One way to make an SAE without training it.

    Attributes:
        name: What it is called in specs, tables and metadata.
        what: What is done, in a clause.
        null_for: What a score must exceed it to show.
        untrained: Whether nothing in it is trained: a random SAE, so that a claim to beat
            random has to beat it too. The others are the trained SAE with something broken.
        schemes: Ways to draw it; the first is the default.
        compared_on: What metrics depend on that it is a null for; None for all. Nothing else
            is compared.
        unchanged: What metrics depend on that are the source's by construction.
    """

    name: str
    what: str
    null_for: str
    untrained: bool
    schemes: tuple[str, ...] = ()
    compared_on: tuple[Depends, ...] | None = None
    unchanged: tuple[Depends, ...] = ()


CONTROLS: dict[str, ControlKind] = {
    kind.name: kind
    for kind in (
        ControlKind(
            "random",
            what="random directions, read and written alike, with the source's shape and L0, "
            "the mean of the activations and one best scale",
            null_for="training as such: what the architecture scores with nothing learned but "
            "a mean, a threshold and a scale",
            untrained=True,
            schemes=RANDOM_SCHEMES,
        ),
        ControlKind(
            "permuted_decoder",
            what="the source with the coordinates of all decoder rows permuted (and their "
            "signs flipped) alike, which keeps every norm and every angle between rows",
            null_for="writing in the model's own space: reconstruction and editing by "
            "directions that belong to the model, beyond the latents and the dictionary's "
            "inner geometry",
            untrained=False,
            compared_on=("reconstruction", "edits"),
            unchanged=("latents",),
        ),
        ControlKind(
            "permuted_pairing",
            what="the source with its decoder directions dealt anew among its latents, none to "
            "its own, each latent keeping its decoder norm",
            null_for="the pairing: that a latent writes the direction that belongs to what it "
            "reads, beyond the latents and the set of directions",
            untrained=False,
            compared_on=("reconstruction", "edits"),
            unchanged=("latents",),
        ),
    )
}


def control_names() -> list[str]:
    """Every control that can be asked for: ``random``, ``random:cov``, ..."""
    return [
        name
        for kind in CONTROLS.values()
        for name in (kind.name, *(f"{kind.name}:{s}" for s in kind.schemes[1:]))
    ]


def get_control(name: str) -> tuple[ControlKind, str]:
    """The kind and the scheme behind a name such as ``random:cov``.

    Returns:
        The kind, and its scheme; "" for a kind without schemes.

    Raises:
        UserError: An unknown kind or scheme, naming the nearest known ones.
    """
    base, colon, scheme = str(name).partition(":")
    kind = CONTROLS.get(base)
    if kind is None:
        raise UserError(f"kind: {name!r} is unknown; {did_you_mean(base, control_names())}")
    if not colon:
        return kind, kind.schemes[0] if kind.schemes else ""
    if scheme not in kind.schemes:
        hint = did_you_mean(scheme, list(kind.schemes)) if kind.schemes else "leave it away"
        raise UserError(f"kind: {base} has no scheme {scheme!r}; {hint}")
    return kind, scheme


def kind_of(constraint: str) -> ControlKind | None:
    """The control that a constraint column names (``random:cov``), or None."""
    return CONTROLS.get(constraint.partition(":")[0])


def is_control(constraint: str) -> bool:
    """Whether a constraint column names a control."""
    return kind_of(constraint) is not None


def is_random(constraint: str) -> bool:
    """Whether "beats random" has to beat a member of this constraint: all but broken SAEs."""
    kind = kind_of(constraint)
    return kind is None or kind.untrained
