"""What a control is, and which there are; each is registered in the file that makes it."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sae_lens import SAE

from sae_baselines.baselines.constraint import CONSTRAINTS
from sae_baselines.errors import UserError, did_you_mean

# What the constraint column says of SAEs that are neither a baseline nor a control: the panel's
# own trained SAE, and somebody else's.
TRAINED = "trained"
PUBLISHED = "published"

# What a metric is computed from: the reconstruction; what a latent's direction does to the
# model; latents alone, without chance; or something else, which is not compared with permuted
# SAEs although it may read the decoder: absorption (a foreign direction absorbs nothing, which
# is its good end), MDL (quantises until it reconstructs, which these cannot) and meta-SAEs
# (they see the dictionary's inner geometry, which these keep).
Depends = Literal["reconstruction", "edits", "latents", "other"]

# From a stock SAE on the CPU, seed, scheme, ``[n, d_in]`` activations and wanted L0 (both None
# where they were not given) to the control and what its metadata says of it.
Build = Callable[
    [SAE[Any], int, str, torch.Tensor | None, float | None], tuple[SAE[Any], dict[str, Any]]
]


@dataclass(frozen=True)
class ControlKind:
    """One way to make an SAE without training it.

    Attributes:
        name: What it is called in specs, tables and metadata.
        what: What is done, in a clause.
        null_for: What a score must exceed it to show.
        build: Makes it.
        untrained: Whether nothing in it is trained: a random SAE, so that a claim to beat
            random has to beat it too. The others are the trained SAE with something broken.
        schemes: Ways to draw it; the first is the default.
        compared_on: What metrics depend on that it is a null for; None for all. Nothing else
            is compared.
        unchanged: What metrics depend on that are the source's by construction.
        check: Raises `UserError` for an inference class that it cannot be made of;
            None where it can be made of any.
    """

    name: str
    what: str
    null_for: str
    build: Build
    untrained: bool = False
    schemes: tuple[str, ...] = ()
    compared_on: tuple[Depends, ...] | None = None
    unchanged: tuple[Depends, ...] = ()
    check: Callable[[type[SAE[Any]]], None] | None = None


# Who beats a random dictionary need not beat one that was trained within a cap.
Question = Literal["random", "nearly free"]

CONTROLS: dict[str, ControlKind] = {}


def _trained_not_made(*_: object) -> tuple[SAE[Any], dict[str, Any]]:
    raise UserError(
        f"kind: {RANDOM_MODEL.name!r} is not made of an SAE but trained; name it under members "
        "of a study on text"
    )


# Not among CONTROLS, which are made of a finished SAE: it is trained as the panel's own SAE is.
RANDOM_MODEL = ControlKind(
    "random_model",
    what="a new SAE of the trained one's architecture, trained in the same way on the same "
    "text, but on activations of the language model with random weights: each weight matrix "
    "drawn anew from a normal distribution with that matrix's own mean and standard deviation, "
    "by the panel's seed; biases and norms are kept, and with `embeddings_kept` embeddings and "
    "unembedding too. Suites evaluate it with that model",
    null_for="what the language model has learned: a score that an SAE of a model without "
    "knowledge has as well shows what text and architecture carry alone",
    build=_trained_not_made,
    schemes=("all", "embeddings_kept"),
    # A suite says for itself whether it can be compared (`Suite.on_random_model`).
    compared_on=(),
)


def register_control(kind: ControlKind) -> ControlKind:
    """Make a control known by its name, wherever controls are named.

    Raises:
        UserError: The name is taken, or not a plain name.
    """
    if not kind.name.isidentifier() or kind.name in (TRAINED, PUBLISHED, RANDOM_MODEL.name):
        raise UserError(f"control: {kind.name!r} cannot be a name; use letters and underscores")
    if kind.name in CONTROLS:
        raise UserError(f"control: {kind.name!r} is registered already; use another name")
    # Random ones are named first everywhere.
    kinds = sorted([*CONTROLS.values(), kind], key=lambda known: not known.untrained)
    CONTROLS.clear()
    CONTROLS.update({known.name: known for known in kinds})
    return kind


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
    if base == RANDOM_MODEL.name:
        _trained_not_made()
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
    name = constraint.partition(":")[0]
    return RANDOM_MODEL if name == RANDOM_MODEL.name else CONTROLS.get(name)


def is_random_model(constraint: str) -> bool:
    """Whether a constraint column names SAEs of a language model with random weights."""
    return kind_of(constraint) is RANDOM_MODEL


def random_model_names() -> list[str]:
    """Every way to draw such a model: ``random_model``, ``random_model:embeddings_kept``."""
    name, (_, *others) = RANDOM_MODEL.name, RANDOM_MODEL.schemes
    return [name, *(f"{name}:{scheme}" for scheme in others)]


def is_control(constraint: str) -> bool:
    """Whether a constraint column names a control."""
    return kind_of(constraint) is not None


def is_random(constraint: str) -> bool:
    """Whether "beats random" has to beat a member of this constraint: all but broken SAEs."""
    kind = kind_of(constraint)
    return kind is None or kind.untrained


def question_of(constraint: str) -> Question | None:
    """What beating a member of this constraint says something about.

    "random": it has directions that nobody trained. "nearly free": training moved all of it,
    only not far from a random start (soft-frozen). None: a broken SAE, which is neither.
    """
    if not is_random(constraint):
        return None
    known = CONSTRAINTS.get(constraint)
    return "nearly free" if known is not None and known.holds else "random"


def generator_of(kind: str, seed: int) -> np.random.Generator:
    """A stream that is a function of kind and seed; numpy's, as `sample_directions`."""
    entropy = np.random.SeedSequence([seed, zlib.crc32(kind.encode())])
    return np.random.Generator(np.random.Philox(entropy))
