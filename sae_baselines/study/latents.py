"""What each latent of a member does on held-out activations: measured once, kept beside it."""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE

from sae_baselines.controls.latents import chunks, flat_copy
from sae_baselines.errors import UserError
from sae_baselines.files import new_file, reading
from sae_baselines.reconstruction import sides, skip_of
from sae_baselines.study.spec import PER_TOKEN_NORMS

LATENTS_FILE = "latents.npz"
# Activations whose active latents are kept one by one, to be compared between seeds.
SAMPLE = 2048
LATENTS_AGAIN = "delete it and run sae-baselines latents on the study"
_SEAL = "sha256"
# Relative square by which a decoder may miss being linear in latents.
_LINEAR = 1e-6
_ROWS_PER_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class Latents:
    """One SAE's latents on held-out activations.

    Attributes:
        n_tokens: Activations, ``[]``.
        firings: Of these, how many each latent is active on, int64 ``[d_sae]``.
        explained: Share of the variance that each latent explains, float64 ``[d_sae]``; NaN
            where the reconstruction is not linear in latents. See `latents_of`.
        offset: What the mean of the reconstruction loses (0 or less), ``[]``:
            ``explained.sum() + offset`` is the explained variance.
        cos_to_start: Of each decoder row, ``[d_sae]``; NaN where its start is not known.
        rows: First entry of ``indices`` of each of the first `SAMPLE` activations, and the end,
            int64 ``[n_sample + 1]``.
        indices: Latents active on these, int32.
        values: How strongly, float32.
    """

    n_tokens: np.ndarray
    firings: np.ndarray
    explained: np.ndarray
    offset: np.ndarray
    cos_to_start: np.ndarray
    rows: np.ndarray
    indices: np.ndarray
    values: np.ndarray

    @property
    def rates(self) -> np.ndarray:
        """Share of activations that each latent is active on, ``[d_sae]``."""
        return self.firings / self.n_tokens

    @property
    def explained_variance(self) -> float:
        """Of the SAE, as `reconstruction.explained_variance` has it."""
        return float(self.explained.sum() + self.offset)

    def save(self, path: Path) -> None:
        """Write an npz file with its checksum in it."""
        with new_file(path) as scratch:
            np.savez_compressed(scratch, **vars(self), **{_SEAL: np.array(self._checksum())})

    @classmethod
    def load(cls, folder: Path) -> "Latents | None":
        """What `save` wrote to a member's folder; None if nothing is there.

        Raises:
            UserError: It cannot be read, or was changed after it was written.
        """
        path = folder / LATENTS_FILE
        if not path.exists():
            return None
        with reading(path, LATENTS_AGAIN), np.load(path, allow_pickle=False) as stored:
            latents = cls(**{f.name: stored[f.name] for f in fields(cls)})
            if str(stored[_SEAL]) != latents._checksum():
                raise UserError(f"{path}: was changed after it was written; {LATENTS_AGAIN}")
        return latents

    def _checksum(self) -> str:
        digest = hashlib.sha256()
        for name, array in vars(self).items():
            digest.update(f"{name}{array.shape}{array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@torch.no_grad()
def latents_of(
    sae: SAE[Any], activations: torch.Tensor, cosines: torch.Tensor | None = None
) -> Latents:
    """Count firings and share out the explained variance.

    With y = sum_j a_j d_j + b the reconstruction of x, both less their means, EV is
    E[y . (2x - y)] / E||x||^2, less what the mean of the error costs. The share of latent j is
    the same with a_j d_j, less its mean, in the place of the first y. So shares sum to EV, and
    each is the latent's Shapley value in the game whose players are the latents and whose pay
    is the variance that a set of them explains: the mean, over all orders of adding latents, of
    what adding this one explains. It is negative where a latent makes matters worse.

    Args:
        sae: Inference SAE.
        activations: ``[n, d_in]``, raw; for a transcoder `reconstruction.sides`.
        cosines: Of decoder rows with their start, ``[d_sae]``.
    """
    sae = flat_copy(sae).to(sae.device)
    d_sae, n = sae.cfg.d_sae, len(activations)
    decoder, bias = _linear_decoder(sae)
    mean = sides(sae, activations)[1].double().mean(dim=0).to(sae.device)
    firings = torch.zeros(d_sae, dtype=torch.int64)
    gain, total = torch.zeros(d_sae).double(), torch.zeros(d_sae).double()
    error, of_skip = torch.zeros(2, len(mean)).double()
    variance = unlike = size = by_skip = 0.0
    sample: list[tuple[torch.Tensor, torch.Tensor]] = []
    left = SAMPLE
    for both in chunks(sae, activations):
        x, written = sides(sae, both)
        acts = sae.encode(x)
        acts = acts.to_dense() if acts.is_sparse else acts
        decoded, skip = sae.decode(acts), skip_of(sae, x)
        x_hat = decoded + skip
        centred = (written - mean).double()
        y = (x_hat - mean).double()
        firings += (acts != 0).sum(dim=0).cpu()
        gain += (acts * ((2 * centred - y).to(decoder) @ decoder.T)).double().sum(dim=0).cpu()
        total += acts.double().sum(dim=0).cpu()
        error += y.sum(dim=0).cpu()
        if isinstance(skip, torch.Tensor):
            by_skip += float((skip.double() * (2 * centred - y)).sum())
            of_skip += skip.double().sum(dim=0).cpu()
        variance += float(centred.pow(2).sum())
        if left > 0:
            unlike += float((acts @ decoder + bias - decoded).double().pow(2).sum())
            size += float(decoded.double().pow(2).sum())
            sample.append(_sparse(acts[:left].cpu()))
            left -= len(sample[-1][0])
    shift = error / n
    # Cov(a, d . (2x - y)): activations are about their mean, so that of 2x - y is -shift.
    mean_gain = (decoder.double().cpu() @ -shift) * total
    explained = (gain - mean_gain) / variance
    offset = -n * float(shift.pow(2).sum()) / variance
    # What a transcoder's skip explains is no latent's, and accounted for in the same way.
    offset += (by_skip + float(shift @ of_skip)) / variance
    if not unlike <= _LINEAR * size:
        explained, offset = torch.full_like(explained, torch.nan), float("nan")
    counts = torch.cat([count for count, _ in sample])
    entries = torch.cat([active for _, active in sample])
    unknown = torch.full((d_sae,), torch.nan)
    return Latents(
        n_tokens=np.array(n),
        firings=firings.numpy(),
        explained=explained.numpy(),
        offset=np.array(offset),
        cos_to_start=(unknown if cosines is None else cosines).double().cpu().numpy(),
        rows=np.concatenate([[0], np.cumsum(counts.numpy())]),
        indices=entries[:, 0].numpy().astype(np.int32),
        values=entries[:, 1].numpy().astype(np.float32),
    )


def decades(rates: np.ndarray) -> np.ndarray:
    """k with 10^k <= rate < 10^(k + 1), -1 for a rate of 1; NaN for one of 0."""
    with np.errstate(divide="ignore"):
        found = np.floor(np.log10(rates) + 1e-12)
    return np.where(rates > 0, np.minimum(found, -1), np.nan)


def _linear_decoder(sae: SAE[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """What decoding adds for each latent, ``[d_sae, d_in]``, and for none, ``[d_in]``.

    Not simply W_dec: some SAEs scale activations by its norms. Where what comes out is scaled
    by each activation's own norm there is no such map; W_dec will be found not to be one.
    """
    d_sae = sae.cfg.d_sae
    if sae.cfg.normalize_activations in PER_TOKEN_NORMS:
        return sae.W_dec, sae.b_dec
    bias = sae.decode(torch.zeros(1, d_sae, device=sae.device, dtype=sae.dtype))[0]
    rows = []
    for first in range(0, d_sae, _ROWS_PER_CHUNK):
        ones = torch.zeros(min(_ROWS_PER_CHUNK, d_sae - first), d_sae).to(bias)
        ones.diagonal(first).fill_(1)
        rows.append(sae.decode(ones) - bias)
    return torch.cat(rows), bias


def _sparse(acts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Active latents per row, and (latent, activation) of each."""
    row, latent = acts.nonzero(as_tuple=True)
    values = acts[row, latent].double()
    return (acts != 0).sum(dim=1), torch.stack([latent.double(), values], dim=1)
