"""The trained SAE with a foreign decoder, its latents unchanged to the bit."""

from typing import Any

import numpy as np
import torch
from sae_lens import SAE

from sae_baselines.controls.kinds import ControlKind, generator_of, register_control
from sae_baselines.controls.latents import firing_rates, flat_copy
from sae_baselines.controls.source import rebuilt
from sae_baselines.errors import UserError

_ROWS_PER_CHUNK = 8192
_NUDGES = 1000
_PROBES = 64


@torch.no_grad()
def permuted_decoder(sae: SAE[Any], seed: int) -> SAE[Any]:
    """Permute the coordinates of all decoder rows alike, and flip their signs alike.

    One orthogonal map for all rows keeps every norm and every angle between rows, so that
    what is lost is the dictionary's place in the model's space and nothing else. No coordinate
    stays where it was (an outlier dimension would keep its directions); the signs are there
    because every permutation keeps the mean over coordinates.

    Args:
        sae: Stock inference SAE on the CPU.
        seed: Seed (>= 0).

    Raises:
        UserError: One coordinate only.
    """
    d_in = sae.W_dec.shape[1]
    if d_in < 2:
        raise UserError(f"source: d_in={d_in}; one coordinate cannot be permuted")
    generator = generator_of("permuted_decoder", seed)
    order = torch.from_numpy(_cycle(d_in, generator))
    signs = torch.from_numpy(generator.choice((-1.0, 1.0), d_in)).to(sae.W_dec.dtype)
    return _with_decoder(sae, sae.W_dec.data[:, order] * signs)


@torch.no_grad()
def permuted_pairing(
    sae: SAE[Any], seed: int, activations: torch.Tensor | None
) -> tuple[SAE[Any], int]:
    """Give each live latent another live latent's direction, at its own decoder norm.

    Dead latents swap among themselves: their directions were hardly trained, and would make
    the null weaker than its name. Without activations all latents with a direction count as
    live.

    Args:
        sae: Stock inference SAE on the CPU.
        seed: Seed (>= 0).
        activations: ``[n, d_in]``; latents that fire on none are dead.

    Returns:
        The control, and how many latents counted as live.

    Raises:
        UserError: Fewer than two live latents.
    """
    rows = sae.W_dec.data
    has_direction = rows.double().norm(dim=-1) > 0
    live = has_direction
    if activations is not None:
        live = live & (firing_rates(sae, activations) > 0)
    n_live = int(live.sum())
    if n_live < 2:
        raise UserError(
            f"source: {n_live} of {len(rows)} latents live; a pairing needs at least two to "
            "exchange directions"
        )
    generator = generator_of("permuted_pairing", seed)
    origin = torch.arange(len(rows))
    for group in (live, has_direction & ~live):
        members = group.nonzero().squeeze(1)
        if len(members) > 1:
            origin[members] = members[torch.from_numpy(_cycle(len(members), generator))]
    return _with_decoder(sae, rows[origin]), n_live


def _cycle(n: int, generator: np.random.Generator) -> np.ndarray:
    """A permutation without a fixed point: one cycle through a random order."""
    order = generator.permutation(n)
    moved = np.empty(n, dtype=np.int64)
    moved[order] = np.roll(order, 1)
    return moved


def _with_decoder(sae: SAE[Any], rows: torch.Tensor) -> SAE[Any]:
    weights = {k: v.detach().clone() for k, v in sae.state_dict().items()}
    weights["W_dec"] = _at_norms(rows, sae.W_dec.data.norm(dim=-1))
    new = rebuilt(sae, weights)
    if not _same_latents(sae, new):
        raise UserError(
            f"source: latents of a {sae.cfg.architecture()!r} SAE depend on the directions of "
            "its decoder, so they cannot be kept; use kind 'random'"
        )
    return new


def _at_norms(rows: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """Rows scaled until torch computes exactly these norms.

    A sum of squares in another order rounds otherwise, and TopK selects by the decoder's norm
    (``rescale_acts_by_decoder_norm``, or when norms are folded): the last bit would move
    latents. Rows are nudged by about a rounding until it agrees.
    """
    out = rows.clone(memory_format=torch.contiguous_format)
    eps = torch.finfo(rows.dtype).eps
    dither = np.random.Generator(np.random.Philox(0))
    for first in range(0, len(rows), _ROWS_PER_CHUNK):
        part = slice(first, first + _ROWS_PER_CHUNK)
        wide, wanted = rows[part].double(), norms[part].double()
        factor = torch.ones_like(wanted)
        for nudge in range(_NUDGES):
            now = out[part].norm(dim=-1)
            off = (now != norms[part]).nonzero().squeeze(1)
            if not len(off):
                break
            # All of the way at first, then part of it: whole steps can jump over the value.
            part_way = torch.from_numpy(dither.uniform(0, 1, len(off))) if nudge else 1.0
            factor[off] *= 1 + (wanted[off] / now[off].double() - 1) * part_way
            scale = factor[off, None]
            if nudge > 1:
                # Each coordinate by itself, as no common scale may give the norm: about a
                # rounding, more where one large coordinate drowns what the others do.
                most = eps * (1 + nudge / 16)
                noise = dither.uniform(-most, most, (len(off), rows.shape[1]))
                scale = scale + torch.from_numpy(noise)
            out[first + off] = (wide[off] * scale).to(rows.dtype)
    return out


def _same_latents(sae: SAE[Any], other: SAE[Any]) -> bool:
    """Whether both encode the same inputs alike, to the bit."""
    a, b = flat_copy(sae), flat_copy(other)
    noise = np.random.Generator(np.random.Philox(0)).standard_normal((_PROBES, sae.cfg.d_in))
    scale = 1 + sae.b_dec.data.float().abs().mean()
    x = torch.from_numpy(noise).float() * scale + sae.b_dec.data.float()
    return torch.equal(a.encode(x), b.encode(x))


def _decoder(
    sae: SAE[Any], seed: int, scheme: str, activations: torch.Tensor | None, l0: float | None
) -> tuple[SAE[Any], dict[str, Any]]:
    del scheme, activations, l0
    return permuted_decoder(sae, seed), {}


def _pairing(
    sae: SAE[Any], seed: int, scheme: str, activations: torch.Tensor | None, l0: float | None
) -> tuple[SAE[Any], dict[str, Any]]:
    del scheme, l0
    made, live = permuted_pairing(sae, seed, activations)
    return made, {"live_latents": live, "live_known": activations is not None}


register_control(
    ControlKind(
        "permuted_decoder",
        what="the source with the coordinates of all decoder rows permuted (and their "
        "signs flipped) alike, which keeps every norm and every angle between rows",
        null_for="writing in the model's own space: reconstruction and editing by "
        "directions that belong to the model, beyond the latents and the dictionary's "
        "inner geometry",
        build=_decoder,
        compared_on=("reconstruction", "edits"),
        unchanged=("latents",),
    )
)
register_control(
    ControlKind(
        "permuted_pairing",
        what="the source with its decoder directions dealt anew among its latents, none to "
        "its own, each latent keeping its decoder norm",
        null_for="the pairing: that a latent writes the direction that belongs to what it "
        "reads, beyond the latents and the set of directions",
        build=_pairing,
        compared_on=("reconstruction", "edits"),
        unchanged=("latents",),
    )
)
