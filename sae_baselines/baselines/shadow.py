"""Showing a module other tensors in place of its parameters, for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def shadow(module: nn.Module, **tensors: torch.Tensor) -> Iterator[None]:
    """Make ``module.name`` answer with another tensor inside the block.

    Lets SAELens' own code run unchanged on, say, a detached W_dec. Parameters and buffers
    live in tables of their own that attribute look-up consults last, so an entry in the
    instance dictionary hides them without touching them.

    Args:
        module: Owner of the parameters.
        tensors: What each name answers with.
    """
    attributes = vars(module)
    attributes.update(tensors)
    try:
        yield
    finally:
        for name in tensors:
            del attributes[name]
