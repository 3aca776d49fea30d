"""Reading and writing the covariance that ``cov`` directions are drawn from."""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sae_baselines.baselines.directions import covariance_of


def save_covariance(covariance: torch.Tensor, path: str | Path) -> Path:
    """Write a ``[d_in, d_in]`` covariance as float64, in full or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensor = covariance.detach().to("cpu", torch.float64).contiguous()
    scratch = path.with_name(f".{path.name}.partial")
    save_file({"covariance": tensor}, scratch)
    scratch.replace(path)
    return path


def load_covariance(
    *, activations_path: str | None = None, covariance_path: str | None = None
) -> torch.Tensor:
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


def read_tensor(path: Path, key: str, field: str) -> torch.Tensor:
    """A tensor from a ``.npy``, or by its name from a ``.safetensors``.

    Args:
        path: The file.
        key: Name of the tensor in a ``.safetensors``.
        field: What the caller's argument is called, for messages.

    Raises:
        ValueError: No such file, not readable, or no such tensor in it.
    """
    if not path.is_file():
        raise ValueError(f"{field}: no such file: {path}")
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        tensors = load_file(path) if path.suffix == ".safetensors" else None
    except (SafetensorError, OSError, EOFError, ValueError, TypeError) as error:
        raise ValueError(f"{field}: cannot read {path}: {error}") from error
    if tensors is not None:
        if key in tensors:
            return tensors[key]
        raise ValueError(
            f"{field}: {path} has no tensor {key!r}; it has {', '.join(sorted(tensors))}"
        )
    raise ValueError(f"{field}: {path.name} is neither .safetensors nor .npy")
