"""Buffers that keep their precision when a module is cast."""

import torch
from torch import nn


def restore_precision(
    module: nn.Module, name: str, before: torch.Tensor | None, dtype: torch.dtype
) -> None:
    """Undo what ``module.to(bfloat16)`` did to a buffer; call after ``super()._apply``.

    The buffer follows the module's device, but its values are those from before the cast:
    casting back would keep the rounding.

    Args:
        module: Owner of the buffer.
        name: Name of the buffer.
        before: The buffer before ``_apply``; None if there was none.
        dtype: What it must be.
    """
    after = module._buffers.get(name)
    if before is not None and after is not None and after.dtype != dtype:
        source = after if before.is_meta else before
        module._buffers[name] = source.to(after.device, dtype)
