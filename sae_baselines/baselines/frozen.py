"""Freezing a weight matrix so that nothing downstream can thaw it by accident."""

import torch
from torch import nn


def freeze_(module: nn.Module, name: str) -> None:
    """Turn a parameter into a buffer: saved and moved with the module, invisible to optimisers.

    A buffer is not in ``module.parameters()``, so no gradient is computed for it, no
    optimiser keeps state for it, weight decay and gradient clipping do not see it, and
    ``module.requires_grad_(True)`` does not reach it. Its place in the state dict stays.

    Args:
        module: Owner of the parameter.
        name: Name of a parameter of ``module``.

    Raises:
        ValueError: If ``module`` has no parameter of that name.
    """
    parameter = module._parameters.get(name)
    if parameter is None:
        raise ValueError(
            f"{type(module).__name__} has no parameter {name!r} to freeze; it has "
            f"{', '.join(dict(module.named_parameters(recurse=False)))}"
        )
    del module._parameters[name]
    module.register_buffer(name, parameter.detach())


def assert_frozen(module: nn.Module, name: str) -> None:
    """Stop if somebody asked for gradients of a frozen tensor directly.

    Raises:
        RuntimeError: If the tensor requires a gradient.
    """
    tensor: torch.Tensor = getattr(module, name)
    if tensor.requires_grad:
        raise RuntimeError(
            f"{name} of {type(module).__name__} is frozen, but requires_grad was set on it. "
            f"Call .requires_grad_(False) on it, or train another architecture"
        )
