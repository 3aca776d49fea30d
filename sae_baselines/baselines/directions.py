"""Random unit directions, a function of a seed and nothing else (paper, Appendix E).

Also the covariance that ``cov`` directions are drawn from, and its files.
"""

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_baselines.files import new_file, unreadable

InitScheme = Literal["iso", "cov"]
INIT_SCHEMES: tuple[str, ...] = get_args(InitScheme)

_ROWS_PER_CHUNK = 8192
# Seeds of encoder directions that are a draw of their own: these, above those of decoders.
_ENCODER_SEEDS = 2**64


def sample_directions(
    d_sae: int,
    d_in: int,
    *,
    seed: int,
    scheme: InitScheme = "iso",
    covariance: Tensor | None = None,
) -> Tensor:
    """Draw ``d_sae`` random unit rows (paper, Section 4.1 and Appendix E).

    ``iso`` is uniform on the unit sphere. ``cov`` is Gaussian with zero mean and the given
    covariance, normalised to unit length. Both use the same underlying normal draws, so
    that one seed names one point set before the covariance is applied.

    The draws come from numpy's Philox counter generator rather than torch's: its stream
    does not depend on torch's global state, on the device or on the CPU's vector width.

    Args:
        d_sae: Number of rows (latents).
        d_in: Dimension of the activations.
        seed: Non-negative seed.
        scheme: ``"iso"`` or ``"cov"``.
        covariance: Shape ``[d_in, d_in]``; needed for ``cov``, refused for ``iso``.

    Returns:
        float32 CPU tensor of shape ``[d_sae, d_in]`` with rows of norm 1.

    Raises:
        ValueError: On an unknown scheme, or a covariance that is missing, unwanted, of the
            wrong shape, not finite, not symmetric or not positive semi-definite.
    """
    if scheme not in INIT_SCHEMES:
        raise ValueError(
            f"init_scheme: {scheme!r} is not a scheme; use one of {', '.join(INIT_SCHEMES)}"
        )
    if scheme == "cov" and covariance is None:
        raise ValueError("init_scheme: 'cov' needs a covariance of shape [d_in, d_in]")
    if scheme == "iso" and covariance is not None:
        raise ValueError("init_scheme: 'iso' takes no covariance; use init_scheme='cov'")
    if seed < 0:
        raise ValueError(f"init_seed: {seed} is negative; use a seed >= 0")

    root = None if covariance is None else _symmetric_root(covariance, d_in).numpy()
    generator = np.random.Generator(np.random.Philox(seed))
    rows = np.empty((d_sae, d_in), dtype=np.float32)
    for start in range(0, d_sae, _ROWS_PER_CHUNK):
        stop = min(start + _ROWS_PER_CHUNK, d_sae)
        draw = generator.standard_normal((stop - start, d_in), dtype=np.float32)
        draw = draw.astype(np.float64)
        if root is not None:
            draw = draw @ root
        norm = np.linalg.norm(draw, axis=1, keepdims=True)
        rows[start:stop] = draw / norm
    return torch.from_numpy(rows)


def start_directions(
    d_sae: int,
    d_in: int,
    d_out: int | None = None,
    *,
    seed: int,
    scheme: InitScheme = "iso",
    covariance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Where decoder rows and encoder columns start, both as unit rows.

    In an SAE they are the same directions. A transcoder reads in one space and writes in
    another, where a direction has no transpose: its encoder is a second, independent draw.

    Args:
        d_sae: Number of latents.
        d_in: Width of what is read.
        d_out: Width of what is written; None for an SAE.
        seed: Of both.
        scheme: Of both.
        covariance: For ``cov``: ``[d_in, d_in]``; of a transcoder ``[d_in + d_out, d_in +
            d_out]``, of input and output side by side.

    Returns:
        float32 CPU tensors ``[d_sae, d_out or d_in]`` and ``[d_sae, d_in]``.

    Raises:
        ValueError: As `sample_directions`.
    """
    if d_out is None:
        rows = sample_directions(d_sae, d_in, seed=seed, scheme=scheme, covariance=covariance)
        return rows, rows
    width = d_in + d_out
    if covariance is not None and covariance.shape != (width, width):
        raise ValueError(
            f"covariance: shape {tuple(covariance.shape)} does not match d_in + d_out = "
            f"{width}; give that of input and output side by side"
        )
    of_input = None if covariance is None else covariance[:d_in, :d_in]
    of_output = None if covariance is None else covariance[d_in:, d_in:]
    decoder = sample_directions(d_sae, d_out, seed=seed, scheme=scheme, covariance=of_output)
    seed += _ENCODER_SEEDS
    return decoder, sample_directions(
        d_sae, d_in, seed=seed, scheme=scheme, covariance=of_input
    )


def covariance_of(activations: Tensor) -> Tensor:
    """Centred covariance, float64 ``[d_in, d_in]`` on the CPU, of activations ``[n, d_in]``.

    Raises:
        ValueError: If the shape is wrong (n < 2 too) or a value is not finite.
    """
    if activations.ndim != 2 or activations.shape[0] < 2:
        raise ValueError(
            f"activations: shape {tuple(activations.shape)}; expected [n, d_in] with n >= 2"
        )
    if not torch.isfinite(activations).all():
        raise ValueError("activations: contain NaN or infinity; check the model and hook")
    return torch.cov(activations.to("cpu", torch.float64).T)


def _symmetric_root(covariance: Tensor, d_in: int) -> Tensor:
    cov = covariance.detach().to("cpu", torch.float64)
    if cov.shape != (d_in, d_in):
        raise ValueError(
            f"covariance: shape {tuple(cov.shape)} does not match d_in={d_in}; "
            f"expected ({d_in}, {d_in})"
        )
    if not torch.isfinite(cov).all():
        raise ValueError("covariance: contains NaN or infinity")
    if not torch.allclose(cov, cov.T, rtol=1e-4, atol=1e-6 * float(cov.abs().max())):
        raise ValueError("covariance: not symmetric; was it computed from activations?")
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    largest = float(values[-1])
    if largest <= 0:
        raise ValueError("covariance: is zero; the activations do not vary")
    if float(values[0]) < -1e-4 * largest:
        raise ValueError("covariance: not positive semi-definite")
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def save_covariance(covariance: Tensor, path: str | Path) -> Path:
    """Write a ``[d_in, d_in]`` covariance as float64, in full or not at all."""
    path = Path(path)
    tensor = covariance.detach().to("cpu", torch.float64).contiguous()
    with new_file(path) as scratch:
        save_file({"covariance": tensor}, scratch)
    return path


def load_covariance(
    *, activations_path: str | None = None, covariance_path: str | None = None
) -> Tensor:
    """Covariance from a file of activations or from a file that holds it.

    Args:
        activations_path: ``.safetensors`` with a tensor ``activations`` of shape
            ``[n, d_in]``, or a ``.npy`` of that shape.
        covariance_path: ``.safetensors`` with a tensor ``covariance`` of shape
            ``[d_in, d_in]``, or a ``.npy`` of that shape.

    Returns:
        float64 tensor of shape ``[d_in, d_in]``.

    Raises:
        ValueError: Not exactly one path, an unreadable file, or no such tensor in it.
    """
    if (activations_path is None) == (covariance_path is None):
        raise ValueError("give exactly one of init_activations_path, init_covariance_path")
    if activations_path is not None:
        array = read_tensor(Path(activations_path), "activations", "init_activations_path")
        try:
            return covariance_of(array)
        except ValueError as error:
            raise ValueError(f"init_activations_path: {error}") from error
    assert covariance_path is not None
    array = read_tensor(Path(covariance_path), "covariance", "init_covariance_path")
    return array.to(torch.float64)


def read_tensor(path: Path, key: str, field: str) -> Tensor:
    """A tensor from a ``.npy``, or by the name ``key`` from a ``.safetensors``.

    Raises:
        ValueError: No such file, not readable, or no such tensor in it; names ``field``.
    """
    if not path.is_file():
        raise ValueError(f"{field}: no such file: {path}")
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        tensors = load_file(path) if path.suffix == ".safetensors" else None
    except (SafetensorError, OSError, EOFError, ValueError, TypeError) as error:
        why = unreadable(path, error, "make it again")
        raise ValueError(f"{field}: cannot read {why}") from error
    if tensors is not None:
        if key in tensors:
            return tensors[key]
        raise ValueError(
            f"{field}: {path} has no tensor {key!r}; it has {', '.join(sorted(tensors))}"
        )
    raise ValueError(f"{field}: {path.name} is neither .safetensors nor .npy")
