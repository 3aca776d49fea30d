"""What is private, or patched, of SAELens' trainers and runners.

tests/compat/test_training.py has a contract per name, whose failure says what moved.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sae_lens.training.sae_trainer import SAETrainer

TrainingStep = Callable[[SAETrainer[Any, Any], torch.Tensor], Any]


@contextmanager
def around_each_step(
    around: Callable[[TrainingStep, SAETrainer[Any, Any], torch.Tensor], Any],
) -> Iterator[None]:
    """Stand in front of `SAETrainer.step`, which every stock runner goes through.

    Args:
        around: Called with the step, the trainer and its batch; returns what the step does.
    """
    original = SAETrainer.step

    @functools.wraps(original)
    def step(trainer: SAETrainer[Any, Any], batch: torch.Tensor) -> Any:
        return around(original, trainer, batch)

    SAETrainer.step = step  # type: ignore[method-assign]
    try:
        yield
    finally:
        SAETrainer.step = original
