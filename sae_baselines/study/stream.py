"""Training members on activations that are not a language model's.

SAELens' `MultiSAETrainer` trains; its batches come from a function of the batch's number, so
that members trained in one call or in several see the same batches, and a resumed run goes
on with the next one.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from sae_lens import LoggingConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.multi_sae_trainer import MultiSAETrainer

from sae_baselines.compat.training import load_checkpoint, progress_each_step
from sae_baselines.controls.source import FOLDED_LATER
from sae_baselines.errors import UserError
from sae_baselines.files import writing
from sae_baselines.study.runner import (
    InterruptedTrainingError,
    SignalsBetweenSteps,
    checkpoint_to_resume,
    complete_checkpoint,
)

_HOOK = "activations"

Watch = Callable[[int, dict[str, TrainingSAE[Any]]], None]


class BatchStream(Protocol):
    """Activations by number: the same number always gives the same batch."""

    def batch(self, index: int) -> torch.Tensor:
        """``[batch_size, d_in]``."""
        ...


@dataclass(frozen=True, kw_only=True)
class StreamTraining:
    """How long and how fast; fields have SAELens' names and meaning.

    Attributes:
        training_samples: Activations each member is trained on.
        n_checkpoints: Checkpoints during training; a killed run resumes from the last.
        keep_checkpoints: How many to keep on disk.
    """

    training_samples: int
    train_batch_size: int
    lr: float
    lr_scheduler_name: Literal["constant", "cosineannealing", "cosineannealingwarmrestarts"] = (
        "constant"
    )
    lr_end: float | None = None
    lr_warm_up_steps: int = 0
    lr_decay_steps: int = 0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    dead_feature_window: int = 1000
    feature_sampling_window: int = 2000
    n_batches_for_norm_estimate: int = 100
    device: str = "cpu"
    autocast: bool = False
    n_checkpoints: int = 10
    keep_checkpoints: int = 1

    @classmethod
    def of(cls, spec: Any, device: str, **more: Any) -> "StreamTraining":
        """Of a spec whose fields have the same names; ``more`` where they have not."""
        same = {f.name: getattr(spec, f.name) for f in fields(cls) if hasattr(spec, f.name)}
        return cls(**{**same, "device": device, **more})

    @property
    def steps(self) -> int:
        """Optimiser steps: SAELens trains until at least ``training_samples`` are seen."""
        return -(-self.training_samples // self.train_batch_size)

    def trainer_config(self, checkpoints: Path | None) -> SAETrainerConfig:
        """SAELens' config of the same training."""
        return SAETrainerConfig(
            n_checkpoints=self.n_checkpoints if checkpoints else 0,
            checkpoint_path=str(checkpoints) if checkpoints else None,
            save_final_checkpoint=False,
            total_training_samples=self.training_samples,
            device=self.device,
            autocast=self.autocast,
            lr=self.lr,
            lr_end=self.lr / 10 if self.lr_end is None else self.lr_end,
            lr_scheduler_name=self.lr_scheduler_name,
            lr_warm_up_steps=self.lr_warm_up_steps,
            adam_beta1=self.adam_beta1,
            adam_beta2=self.adam_beta2,
            lr_decay_steps=self.lr_decay_steps,
            n_restart_cycles=1,
            train_batch_size_samples=self.train_batch_size,
            dead_feature_window=self.dead_feature_window,
            feature_sampling_window=self.feature_sampling_window,
            logger=LoggingConfig(log_to_wandb=False),
            n_batches_for_norm_estimate=self.n_batches_for_norm_estimate,
        )


def train_on_stream(
    saes: dict[str, TrainingSAE[Any]],
    stream: BatchStream,
    training: StreamTraining,
    *,
    checkpoints: Path | None = None,
    run_hash: str = "",
    watch: Watch | None = None,
) -> MultiSAETrainer:
    """Train SAEs in lockstep on one stream.

    Activation normalisation is folded into the SAEs at the end, as SAELens does.

    Args:
        saes: SAEs by name; names are folders inside checkpoints.
        stream: The batches. The first ``n_batches_for_norm_estimate`` of them are only used
            to estimate norms if a member normalises activations.
        training: Hyperparameters.
        checkpoints: Where to save and look for checkpoints; None trains without.
        run_hash: Of everything the result depends on; a checkpoint of another is refused.
        watch: Called between steps, and at both ends, with the number of steps done and the
            SAEs. It must leave them and the global RNG as they are.

    Returns:
        The trainer, finished; ``.saes`` are trained, ``.trainers`` hold SAELens' statistics.

    Raises:
        UserError: Activations that are not finite, or diverged weights.
        InterruptedTrainingError: SIGINT or SIGTERM; a checkpoint was saved.
    """

    def finish(checkpoint_path: Path | None) -> None:
        if checkpoint_path is None:
            return
        settings = json.dumps(asdict(training), indent=2)
        (checkpoint_path / RUNNER_CFG_FILENAME).write_text(settings)
        complete_checkpoint(
            checkpoint_path,
            saes,
            trainer.n_training_samples,
            run_hash,
            training.keep_checkpoints,
        )

    trainer = MultiSAETrainer(
        cfg=training.trainer_config(checkpoints),
        saes=saes,
        hook_names=dict.fromkeys(saes, _HOOK),
        data_provider=iter(()),
        save_checkpoint_fn=finish,
    )
    found = checkpoint_to_resume(checkpoints, run_hash, saes) if checkpoints else None
    if found is not None:
        load_checkpoint(trainer, found)
        _count_steps(trainer, training)
    done = trainer.n_training_samples
    trainer.checkpoint_thresholds = [t for t in trainer.checkpoint_thresholds if t > done]
    with writing(checkpoints), SignalsBetweenSteps() as signals, progress_each_step():
        batches = _Batches(stream, trainer, training, watch)
        trainer.data_provider = signals.guard(batches)
        try:
            trainer.fit()
        except InterruptedTrainingError:
            if checkpoints is not None and trainer.n_training_samples > done:
                trainer.save_checkpoint(str(trainer.n_training_samples))
            raise
    if watch is not None:
        watch(trainer.n_training_steps, trainer.saes)
    return trainer


def _count_steps(trainer: MultiSAETrainer, training: StreamTraining) -> None:
    """Set steps from samples: SAELens saves a checkpoint before it counts the step it ends."""
    steps = -(-trainer.n_training_samples // training.train_batch_size)
    trainer.n_training_steps = steps
    for one in trainer.trainers.values():
        one.n_training_steps = steps


class _Batches(Iterator[dict[str, torch.Tensor]]):
    """The stream as SAELens asks for it: norm estimates first, then one batch a step."""

    def __init__(
        self,
        stream: BatchStream,
        trainer: MultiSAETrainer,
        training: StreamTraining,
        watch: Watch | None,
    ) -> None:
        self.stream = stream
        self.trainer = trainer
        self.watch = watch
        normalised = any(
            sae.cfg.normalize_activations in FOLDED_LATER for sae in trainer.saes.values()
        )
        self.first = training.n_batches_for_norm_estimate if normalised else 0
        self.for_norms = 0 if trainer.n_training_steps else self.first
        self.given = 0

    def __next__(self) -> dict[str, torch.Tensor]:
        if self.given < self.for_norms:
            index = self.given
        else:
            index = self.first + self.trainer.n_training_steps
            if self.watch is not None:
                self.watch(self.trainer.n_training_steps, self.trainer.saes)
        self.given += 1
        batch = self.stream.batch(index)
        if not torch.isfinite(batch).all():
            raise UserError(f"activations: batch {index} contains NaN or infinity")
        return {_HOOK: batch}
