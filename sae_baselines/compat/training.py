"""What is private, or patched, of SAELens' trainers and runners.

tests/compat/test_training.py has a contract per name, whose failure says what moved.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sae_lens import MultiSAETrainingRunner
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
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


class OpenRunner(MultiSAETrainingRunner):
    """SAELens' runner, with two places to stand in that SAELens keeps to itself.

    Attributes:
        trainer: Set when training is about to begin.
    """

    trainer: MultiSAETrainer

    def fit(self, trainer: MultiSAETrainer) -> dict[str, TrainingSAE[Any]]:
        """Train; SAELens would answer signals inside a step."""
        return super()._run_with_interruption_handling(trainer)

    def checkpoint_saved(self, folder: Path) -> None:
        """Called when all files of a checkpoint are written."""

    def _run_with_interruption_handling(
        self, trainer: MultiSAETrainer
    ) -> dict[str, TrainingSAE[Any]]:
        self.trainer = trainer
        return self.fit(trainer)

    def _save_runner_checkpoint_files(self, checkpoint_path: Path | None) -> None:
        super()._save_runner_checkpoint_files(checkpoint_path)
        if checkpoint_path is not None:
            self.checkpoint_saved(checkpoint_path)
