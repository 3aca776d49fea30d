"""Rows of tokens as tensors, as SAELens' store asks `datasets` for them."""

from contextlib import suppress
from importlib import import_module

from datasets import Dataset

from sae_baselines.errors import one_line


def why_no_tensors() -> str | None:
    """Why `datasets` cannot give rows as tensors; None where it can.

    Before 4 (SAEBench wants such a one) it asks torchvision, where anybody has imported that,
    for a class that torchvision has given up. transformers imports it where it is installed.
    """
    with suppress(Exception):
        import_module("torchvision")
    try:
        Dataset.from_dict({"tokens": [[0]]}).with_format("torch")[0]
    except ImportError as error:
        return one_line(error)
    return None
