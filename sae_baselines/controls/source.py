"""The SAE that a control is made from, as stock SAELens would run it."""

import difflib
import hashlib
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_lens.registry import get_sae_class
from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE
from sae_lens.saes.sae import SAEMetadata, TrainingSAE
from sae_lens.saes.temporal_sae import TemporalSAE
from sae_lens.saes.transcoder import Transcoder

from sae_baselines.compat.folder import (
    ODD_CONTENTS,
    check_fields,
    check_tensors,
    not_finite,
    saved_config,
)
from sae_baselines.errors import UserError, nearest, one_line
from sae_baselines.files import failed, flaw_of, unreadable
from sae_baselines.provenance import samples_seen
from sae_baselines.reach import say_if_silent

# Normalisations that SAELens folds into the weights at the end of training.
FOLDED_LATER = ("expected_average_only_in", "covariance_whitening")
_REFUSED: tuple[tuple[type[SAE[Any]], str], ...] = (
    (Transcoder, "a transcoder writes in another space than it reads, so it has no such null"),
    (TemporalSAE, "a temporal SAE's latents depend on its decoder and on other positions"),
    (
        MatchingPursuitSAE,
        "a matching-pursuit SAE reads with its decoder, so its directions cannot be changed "
        "without its latents",
    ),
)


@dataclass(frozen=True)
class Source:
    """A stock inference SAE, and what to call it.

    Attributes:
        sae: A copy on the CPU.
        described: Plain data for metadata: where it is from, a hash of its weights.
    """

    sae: SAE[Any]
    described: dict[str, Any] = field(default_factory=dict)


# Weights without a word of where they are from.
_GEMMA_SCOPE = "params.npz"


def source_of(source: SAE[Any] | str | Path) -> Source:
    """A source from an SAE (training or inference), a SAELens folder or ``release:sae_id``.

    Raises:
        UserError: It cannot be loaded, is not an autoencoder of the kind that controls are
            made of, or still has an activation scale to fold in.
    """
    if isinstance(source, SAE):
        found, where = source, {}
    else:
        found, where = load_sae(source)
    if isinstance(found, TrainingSAE):
        found = _inference(found)
    check_class(type(found))
    stock = rebuilt(found)
    refuse_not_finite(stock, "source")
    ours = getattr(found.cfg.metadata, "sae_baselines", None)
    known = ours if isinstance(ours, dict) else {}
    named = {k: known[k] for k in ("panel", "member", "control") if k in known}
    if (seen := samples_seen(known)) is not None:
        named["samples_seen"] = seen
    described = {**where, **named, "weights_sha256": hash_of_weights(stock)}
    return Source(stock, described)


def refuse_not_finite(sae: SAE[Any], field: str) -> None:
    """Raises `UserError` for weights with NaN or infinity."""
    if odd := not_finite(sae.state_dict()):
        raise UserError(f"{field}: {', '.join(odd)}; use a sound SAE")


def check_class(sae_class: type[SAE[Any]]) -> None:
    """Raises `UserError` for an inference class that no control can be made of, saying why."""
    for refused, why in _REFUSED:
        if issubclass(sae_class, refused):
            raise UserError(f"source: {sae_class.__name__} has no control: {why}")


def load_sae(source: str | Path) -> tuple[SAE[Any], dict[str, Any]]:
    """An SAE from a SAELens folder, ``release:sae_id`` or ``user/repo:folder``, and which.

    Raises:
        UserError: Neither, or it cannot be loaded.
    """
    text = str(source)
    if Path(text).is_dir():
        # The folder's own name: its path says nothing on another machine.
        return from_folder(Path(text)), {"folder": Path(text).resolve().name}
    release, separator, sae_id = text.partition(":")
    if not separator:
        raise UserError(
            f"sae: {text!r} is neither a folder, nor a release:sae_id such as "
            "gpt2-small-res-jb:blocks.8.hook_resid_pre, nor a user/repo:folder of the Hub"
        )
    return from_release(release, sae_id), {"release": release, "sae_id": sae_id}


def from_folder(folder: Path) -> SAE[Any]:
    """An inference SAE in a SAELens folder, on the CPU.

    Raises:
        UserError: There is none that SAELens can load.
    """
    if not (folder / SAE_CFG_FILENAME).exists():
        inside = sorted(p.parent for p in folder.glob(f"**/{SAE_CFG_FILENAME}"))[:1]
        hint = f"name an SAE in it, such as {inside[0]}" if inside else "name an SAE's folder"
        if (folder / _GEMMA_SCOPE).exists():
            hint = (
                f"its {_GEMMA_SCOPE}, as of Gemma Scope, says neither model nor hooks; name it "
                "as release:sae_id of SAELens' list, or save it with SAELens' save_model"
            )
        raise UserError(f"{folder}: has no {SAE_CFG_FILENAME}; {hint}")
    surplus = check_tensors(folder, saved_config(folder))
    if surplus:
        raise UserError(
            f"{folder / SAE_WEIGHTS_FILENAME}: holds {', '.join(surplus)}, which an SAE of its "
            "architecture has not, and SAELens refuses to load it"
        )
    try:
        return SAE.load_from_disk(folder, device="cpu")
    except UserError:
        raise
    except ODD_CONTENTS as error:
        why = unreadable(folder, error, "save it again")
        raise UserError(f"{folder}: is not an SAE that SAELens can load: {why}") from error


def from_release(release: str, sae_id: str) -> SAE[Any]:
    """A published SAE, on the CPU.

    Args:
        release: Of SAELens' list, or ``user/repo`` of the Hub.
        sae_id: SAE of the release, or folder in the repository.

    Raises:
        UserError: There is no such SAE, or it cannot be fetched or read.
    """
    known = get_pretrained_saes_directory()
    if release in known and sae_id not in known[release].saes_map:
        hint = nearest(sae_id, list(known[release].saes_map))
        raise UserError(f"sae: {release} has no SAE {sae_id!r}; {hint}")
    if release not in known and "/" not in release:
        near = difflib.get_close_matches(release, list(known), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "give user/repo:folder"
        raise UserError(f"sae: {release!r} is no release that SAELens knows; {hint}")
    say_if_silent([f"{release}:{sae_id}"])
    try:
        sae = SAE.from_pretrained(release, sae_id, device="cpu")
    except Exception as error:  # each of SAELens' loaders has its own
        repo = known[release].repo_id if release in known else release
        why = _flaw_in_cache(repo) or one_line(error, 300) or type(error).__name__
        if isinstance(error, OSError) and isinstance(error.filename, str):
            why = f"{error.filename}: {failed(error)}"
        raise UserError(f"sae: {release}:{sae_id} cannot be loaded: {why}") from error
    check_fields(sae.cfg.to_dict(), f"sae: {release}:{sae_id}")
    return sae


def _flaw_in_cache(repo: str) -> str | None:
    """Which file of a repository is damaged where the Hub's client keeps it, if one is."""
    cache = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type="model"))
    for path in (
        p for p in sorted(cache.rglob("*.*")) if p.suffix in (".json", ".safetensors")
    ):
        with suppress(OSError):
            if (flaw := flaw_of(path, ours=False)) is not None:
                return (
                    f"{path.resolve()} is damaged ({flaw}); delete it and run again, which "
                    "fetches it"
                )
    return None


def hash_of_weights(sae: SAE[Any]) -> str:
    """SHA-256 over every weight's name, shape, dtype and bytes."""
    digest = hashlib.sha256()
    add_weights(digest, sae)
    return digest.hexdigest()


def add_weights(digest: Any, sae: SAE[Any]) -> None:
    """Add every weight, with its name, shape and dtype, to a hash of hashlib."""
    add_tensors(digest, sorted(sae.state_dict().items()))


def add_tensors(digest: Any, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """The same of tensors as they come, one in memory at a time."""
    for name, value in tensors:
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(flat.view(torch.uint8).numpy().data)


def rebuilt(
    sae: SAE[Any], weights: dict[str, torch.Tensor] | None = None, **config: Any
) -> SAE[Any]:
    """A new SAE on the CPU of the same architecture; touches no random state.

    Not a deep copy: SAELens' normalisation closures would go on pointing at the original.

    Args:
        sae: Inference SAE.
        weights: Its state dict; default: a copy of ``sae``'s.
        config: Config fields to change.
    """
    if weights is None:
        weights = {k: v.detach().cpu().clone() for k, v in sae.state_dict().items()}
    sae_class, config_class = get_sae_class(sae.cfg.architecture())
    described = {**sae.cfg.to_dict(), **config, "device": "meta"}
    cfg = config_class.from_dict(described)
    cfg.metadata = SAEMetadata(**sae.cfg.metadata.to_dict())
    cfg.device = "meta"
    new = sae_class(cfg)
    new.load_state_dict(weights, assign=True)
    return new.to(device="cpu", dtype=next(iter(weights.values())).dtype)


def _inference(sae: TrainingSAE[Any]) -> SAE[Any]:
    """What SAELens exports of a training SAE."""
    if sae.cfg.normalize_activations in FOLDED_LATER:
        raise UserError(
            f"source: normalize_activations={sae.cfg.normalize_activations!r} is not folded "
            "into this training SAE yet; give the SAE after training, or its exported folder"
        )
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return rebuilt(from_folder(Path(folder)))
