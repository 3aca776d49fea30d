"""Where an SAE started: drawn again from its seed, or kept in a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import DTYPE_MAP, SAE_WEIGHTS_FILENAME
from sae_lens.saes.sae import TrainingSAE
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sae_baselines.baselines import load_covariance
from sae_baselines.baselines.directions import start_directions
from sae_baselines.drift.cosines import Drift, drift_of
from sae_baselines.errors import UserError
from sae_baselines.files import unreadable, write_atomically

START_FILE = "drift_start.safetensors"
_DETAILS = "training_architecture_details"


@dataclass(frozen=True)
class Rows:
    """Decoder rows and encoder columns, both as rows.

    Attributes:
        decoder: ``[d_sae, d_in]``; of a transcoder ``[d_sae, d_out]``.
        encoder: ``[d_sae, d_in]``; None for an SAE without W_enc.
        source: Where they are from, in words.
    """

    decoder: torch.Tensor
    encoder: torch.Tensor | None
    source: str


def rows_of(sae: TrainingSAE[Any], source: str = "") -> Rows:
    """The rows of an SAE as they are; views, not copies."""
    encoder = getattr(sae, "W_enc", None)
    has_encoder = isinstance(encoder, torch.Tensor)
    return Rows(sae.W_dec.detach(), encoder.detach().T if has_encoder else None, source)


def seeded_rows(cfg: Mapping[str, Any]) -> Rows | None:
    """The start of one of our twins, from its config; None if the config does not say.

    Args:
        cfg: Fields of a training config, or of an inference checkpoint's ``cfg.json``.
    """
    fields = dict(cfg)
    metadata = fields.get("metadata")
    if "init_seed" not in fields and isinstance(metadata, Mapping):
        fields |= dict(metadata.get(_DETAILS) or {})
    seed, scheme = fields.get("init_seed"), fields.get("init_scheme", "iso")
    if seed is None or fields.get("d_sae") is None:
        return None
    files = [fields.get("init_activations_path"), fields.get("init_covariance_path")]
    if scheme == "cov" and not any(f and Path(f).is_file() for f in files):
        return None
    sizes = fields["d_sae"], fields["d_in"], fields.get("d_out")
    directions = _directions(*sizes, seed, scheme, *files)
    dtype = DTYPE_MAP.get(str(fields.get("dtype")), torch.float32)
    scale = fields.get("encoder_init_scale") or 1.0
    return twin_rows(directions, dtype, scale, f"init_seed {seed}, {scheme}")


def twin_rows(
    directions: tuple[torch.Tensor, torch.Tensor],
    dtype: torch.dtype,
    encoder_init_scale: float,
    source: str,
) -> Rows:
    """Where our twins start, of `start_directions`."""
    decoder, encoder = (rows.to(dtype) for rows in directions)
    return Rows(
        decoder, encoder if encoder_init_scale == 1 else encoder_init_scale * encoder, source
    )


# Members of a panel share their start, and are recorded one after the other.
@lru_cache(maxsize=1)
def _directions(
    d_sae: int,
    d_in: int,
    d_out: int | None,
    seed: int,
    scheme: Any,
    activations_path: str | None,
    covariance_path: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    covariance = None
    if scheme == "cov":
        covariance = load_covariance(
            activations_path=activations_path, covariance_path=covariance_path
        )
    return start_directions(d_sae, d_in, d_out, seed=seed, scheme=scheme, covariance=covariance)


def forget_directions() -> None:
    """Free the start that was drawn last."""
    _directions.cache_clear()


def equal_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether both are equal bit for bit."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())


def save_rows(rows: Rows, folder: Path) -> None:
    """Keep a start in a file; an encoder that equals the decoder is kept once."""
    tensors = {"decoder": rows.decoder.cpu().contiguous()}
    if rows.encoder is not None and not equal_bits(rows.encoder, rows.decoder):
        tensors["encoder"] = rows.encoder.cpu().contiguous()
    facts = {"source": rows.source, "has_encoder": str(rows.encoder is not None)}
    write_atomically(folder / START_FILE, save(tensors, metadata=facts))


def load_rows(folder: Path) -> Rows:
    """Read what `save_rows` wrote.

    Raises:
        UserError: The file is damaged.
    """
    try:
        with safe_open(folder / START_FILE, framework="pt") as file:
            facts = file.metadata()
            decoder = file.get_tensor("decoder")
            encoder = file.get_tensor("encoder") if "encoder" in file.keys() else decoder  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        why = unreadable(folder / START_FILE, error, "delete it and train again")
        raise UserError(f"start: {why}") from error
    return Rows(decoder, encoder if facts["has_encoder"] == "True" else None, facts["source"])


def saved_sae_rows(folder: Path, source: str) -> Rows:
    """The rows of a SAELens folder (training checkpoint or inference SAE).

    Raises:
        UserError: No weights, damaged weights, or no W_dec among them.
    """
    path = folder / SAE_WEIGHTS_FILENAME
    if not path.is_file():
        raise UserError(f"start: {folder} has no {SAE_WEIGHTS_FILENAME}")
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if "W_dec" not in names:
                raise UserError(f"{path}: has no W_dec; it has {', '.join(sorted(names))}")
            decoder = file.get_tensor("W_dec")
            encoder = file.get_tensor("W_enc").T if "W_enc" in names else None
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error, "save it again") from error
    return Rows(decoder, encoder, source)


def compare(now: Rows, start: Rows) -> dict[str, Drift]:
    """Drift of each side that both have."""
    sides = {"decoder": drift_of(now.decoder, start.decoder, "decoder")}
    if now.encoder is not None and start.encoder is not None:
        sides["encoder"] = drift_of(now.encoder, start.encoder, "encoder")
    return sides
