"""L0 of every member at every step of a pass: a verdict needs members trained at one L0."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer

from sae_baselines.baselines.l0_control import mean_l0
from sae_baselines.compat.training import TrainingStep, around_each_step
from sae_baselines.errors import UserError
from sae_baselines.files import failed, remove

# The L0 that a member was trained at in the end is the mean over this share of its steps.
END_SHARE = 0.05
_POINTS = 100
# Values wait on the device this many steps: reading each at once would stall a GPU.
_WAITING = 50


class L0Record:
    """Writes the L0 of each batch, as the training SAE encodes it.

    A file of float32 per member, NaN where nothing is known, beside the pass's checkpoints:
    a run that was killed and resumed has the whole of it.

    Args:
        folder: Where the files go, ``<name>.npy``.
        saes: The SAEs to record by name.
    """

    def __init__(self, folder: Path, saes: Mapping[str, TrainingSAE[Any]]) -> None:
        self.folder = folder
        self._names = {id(sae): name for name, sae in saes.items()}
        self._values: dict[str, Any] = {}
        self._waiting: list[tuple[str, int, torch.Tensor]] = []
        self._patch: AbstractContextManager[None] | None = None

    def __enter__(self) -> "L0Record":
        self._patch = around_each_step(self._step)
        self._patch.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        assert self._patch is not None
        self._patch.__exit__(None, None, None)
        self._write()

    def _step(
        self, original: TrainingStep, trainer: SAETrainer[Any, Any], batch: torch.Tensor
    ) -> Any:
        output = original(trainer, batch)
        name = self._names.get(id(trainer.sae))
        if name is not None:
            size = trainer.cfg.train_batch_size_samples
            if name not in self._values:
                steps = -(-trainer.cfg.total_training_samples // size)
                self._values[name] = _opened(self.folder / f"{name}.npy", steps)
            # By samples: SAELens saves a checkpoint before it counts the step.
            step = -(-trainer.n_training_samples // size) - 1
            self._waiting.append((name, step, mean_l0(output.feature_acts)))
            if len(self._waiting) >= _WAITING * len(self._names):
                self._write()
        return output

    def _write(self) -> None:
        for name, step, l0 in self._waiting:
            self._values[name][step] = float(l0)
        self._waiting.clear()
        for values in self._values.values():
            values.flush()


def recorded_l0(folder: Path, name: str) -> dict[str, Any]:
    """`summary` of what `L0Record` has written of a member."""
    path = folder / f"{name}.npy"
    return summary(np.load(path) if path.exists() else np.empty(0))


def summary(l0: np.ndarray) -> dict[str, Any]:
    """L0 over training and at its end.

    Args:
        l0: ``[steps]`` of each batch; NaN where it is not known.

    Returns:
        ``end``: mean over the last `END_SHARE` of steps; ``steps`` and ``l0``: means over up
        to 100 equal parts of training, and the step that each ends with.
    """
    known = l0[~np.isnan(l0)]
    if not len(known):
        return {"end": None, "steps": [], "l0": []}
    last = max(1, round(END_SHARE * len(l0)))
    edges = np.unique(np.linspace(0, len(l0), min(_POINTS, len(l0)) + 1).round().astype(int))
    parts = [(int(b), l0[a:b][~np.isnan(l0[a:b])]) for a, b in pairwise(edges)]
    parts = [(step, part) for step, part in parts if len(part)]
    return {
        "end": float(known[-last:].mean(dtype=np.float64)),
        "steps": [step for step, _ in parts],
        "l0": [round(float(part.mean(dtype=np.float64)), 3) for _, part in parts],
    }


def _opened(path: Path, steps: int) -> Any:
    """The file of an earlier run of the pass, if it fits; else a new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and not path.is_symlink():
        with suppress(ValueError, EOFError):  # cut short: what was in it is lost
            values = np.lib.format.open_memmap(path, mode="r+")
            if values.shape == (steps,) and values.dtype == np.float32:
                return values
    remove(path)
    try:
        values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(steps,))
    except OSError as error:
        raise UserError(
            f"{path}: the L0 of {steps:,} steps cannot be recorded there ({failed(error)}); "
            "train fewer steps, if as many are not meant"
        ) from error
    values[:] = np.nan
    return values
