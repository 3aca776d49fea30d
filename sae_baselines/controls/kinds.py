"""What a control is, and which there are; each is registered in the file that makes it."""

import zlib
from collections.abc import Callable, Iterable
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
        learnable: Whether it is trained on something that can be learned, so that a bad score
            may be that of a run that failed.
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
    learnable: bool = False


# Who beats a random dictionary need not beat one that was trained within a cap.
Question = Literal["random", "nearly free"]

CONTROLS: dict[str, ControlKind] = {}


def _trained_not_made(*_: object) -> tuple[SAE[Any], dict[str, Any]]:
    raise UserError(
        f"kind: {', '.join(TRAINED_CONTROLS)} are not made of an SAE but trained; name them "
        "under members of a study on text"
    )


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
    learnable=True,
)
SHUFFLED_PAIRS = ControlKind(
    "shuffled_pairs",
    what="a new transcoder of the trained one's architecture, trained in the same way on the "
    "same batches, but each input towards the output of another token; measured on true pairs",
    null_for="the pairing of a token's input with its output: the most that it can learn is "
    "the mean output, so a score that it has as well owes nothing to what the layer computes",
    build=_trained_not_made,
)
SHUFFLED_MLP = ControlKind(
    "shuffled_mlp",
    what="a new transcoder of the trained one's architecture, trained in the same way on the "
    "same inputs, but towards the outputs of the MLP with the entries of each of its weight "
    "matrices permuted, by the panel's seed; biases are kept",
    null_for="what the MLP has learned: a score of latents that a transcoder of an MLP without "
    "knowledge has as well is carried by the inputs, the width and the L0",
    build=_trained_not_made,
    # Its outputs are another function's, which is easier or harder to fit by itself.
    compared_on=("latents",),
    learnable=True,
)
# Not among CONTROLS, which are made of a finished SAE: they are trained as the panel's own SAE
# is.
TRAINED_CONTROLS = {k.name: k for k in (RANDOM_MODEL, SHUFFLED_PAIRS, SHUFFLED_MLP)}


def register_control(kind: ControlKind) -> ControlKind:
    """Make a control known by its name, wherever controls are named.

    Raises:
        UserError: The name is taken, or not a plain name.
    """
    if not kind.name.isidentifier() or kind.name in (
        TRAINED,
        PUBLISHED,
        *TRAINED_CONTROLS,
    ):
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
    return _names(CONTROLS.values())


def _names(kinds: Iterable[ControlKind]) -> list[str]:
    return [
        name
        for kind in kinds
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
    if base in TRAINED_CONTROLS:
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
    return TRAINED_CONTROLS.get(name) or CONTROLS.get(name)


def is_random_model(constraint: str) -> bool:
    """Whether a constraint column names SAEs of a language model with random weights."""
    return kind_of(constraint) is RANDOM_MODEL


def is_trained_control(constraint: str) -> bool:
    """Whether a constraint column names a control that is trained, not made."""
    kind = kind_of(constraint)
    return kind is not None and kind.name in TRAINED_CONTROLS


def trained_control_names() -> list[str]:
    """Every control that is trained: ``random_model``, ``random_model:embeddings_kept``, ..."""
    return _names(TRAINED_CONTROLS.values())


def is_control(constraint: str) -> bool:
    """Whether a constraint column names a control."""
    return kind_of(constraint) is not None


def is_random(constraint: str) -> bool:
    """Whether "beats random" has to beat a member of this constraint: all but broken SAEs."""
    kind = kind_of(constraint)
    return kind is None or kind.untrained


def question_of(constraint: str) -> Question | None:
    """What beating a member of this constraint says something about.

    "random": it has directions that were never trained. "nearly free": training moved all of
    it, only not far from a random start (soft-frozen). None: a broken SAE, which is neither.
    """
    if not is_random(constraint):
        return None
    known = CONSTRAINTS.get(constraint)
    return "nearly free" if known is not None and known.holds else "random"


def generator_of(kind: str, seed: int) -> np.random.Generator:
    """A stream that is a function of kind and seed; numpy's, as `sample_directions`."""
    entropy = np.random.SeedSequence([seed, zlib.crc32(kind.encode())])
    return np.random.Generator(np.random.Philox(entropy))
