"""Patch activations on disk, and the stream that members train on.

A forward pass costs more than a training step, and each patch may be wanted by several
seeds, so activations are computed once. An interrupted computation goes on where it was.
"""

import csv
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sae_baselines.errors import UserError
from sae_baselines.files import own_file, parse_json, size_text, write_atomically
from sae_baselines.progress import progress
from sae_baselines.study.patches.images import Crop, CropLoader, Photographs, Split, plan_crops
from sae_baselines.study.patches.patches import PatchModel
from sae_baselines.study.patches.spec import VisionSpec

logger = logging.getLogger("sae_baselines")

PARTS = ("train", "calibration", "evaluation")
# Progress is written down every so many forward passes.
_PASSES_PER_NOTE = 16
_ROWS_PER_CHUNK = 65_536


def crops_of(spec: VisionSpec, split: Split, n_patches: int) -> dict[str, list[Crop]]:
    """The crops of each part of a study.

    Calibration and evaluation have different crops of the same held-out photographs. From
    calibration a trained SAE has its start of b_dec and one threshold; an untrained control
    has its mean, its scale and its covariance too, which favours the control by what these
    photographs have in common that the training photographs lack.

    Args:
        spec: How many patches.
        split: The photographs.
        n_patches: Patches per crop.
    """
    images, normalised = spec.images, spec.normalize_activations != "none"
    batches = spec.steps
    batches += spec.n_batches_for_norm_estimate if normalised else 0
    if images.crops_per_photo is None:
        n_train = -(-batches * spec.train_batch_size // n_patches)
    else:
        n_train = images.crops_per_photo * len(split.train)
    counts = {
        "train": (split.train, n_train),
        "calibration": (split.held_out, -(-spec.calibration_samples // n_patches)),
        "evaluation": (split.held_out, -(-spec.eval_samples // n_patches)),
    }
    return {
        part: plan_crops(*counts[part], (images.seed, i + 1), images.min_crop)
        for i, part in enumerate(PARTS)
    }


def write_crops(path: Path, crops: dict[str, list[Crop]], names: Sequence[str]) -> None:
    """Record which part of which photograph every crop is."""
    with own_file(path).open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["part", "photograph", "scale", "x", "y"])
        for part, cuts in crops.items():
            for c in cuts:
                rows.writerow([part, names[c.photo], repr(c.scale), repr(c.x), repr(c.y)])


@dataclass(frozen=True)
class ActivationFile:
    """Activations of some crops.

    Attributes:
        path: ``.npy`` file, ``[crops * patches, d_in]``; crop by crop.
        made_for: Hash of what they depend on.
    """

    path: Path
    made_for: str

    @property
    def _note(self) -> Path:
        return self.path.with_suffix(".json")

    def _done(self) -> int:
        try:
            note = parse_json(self._note.read_text(encoding="utf-8"))
            same = note["made_for"] == self.made_for and self.path.exists()
            return int(note["crops"]) if same else 0
        except (OSError, ValueError, LookupError, TypeError):
            return 0  # it is made again

    def has(self, crops: int) -> bool:
        """Whether so many crops are there."""
        return self._done() >= crops

    def read(self) -> np.ndarray:
        """The activations, memory-mapped."""
        return np.load(self.path, mmap_mode="r")

    def make(
        self,
        model: PatchModel,
        photographs: Photographs,
        crops: list[Crop],
        batch: int,
        dtype: str,
    ) -> None:
        """Compute what is missing.

        Args:
            model: Computes them.
            photographs: Where crops are cut from.
            crops: Which.
            batch: Crops per forward pass.
            dtype: ``float32`` or ``float16``.

        Raises:
            UserError: The disk has no room for them, or values beyond float16.
        """
        # Of a link the rest would be written to where it leads.
        done = 0 if self.path.is_symlink() else self._done()
        shape = (len(crops) * model.n_patches, model.d_in)
        if done:
            out = np.load(self.path, mmap_mode="r+")
            logger.info("%s: %d of %d crops are there", self.path.stem, done, len(crops))
        else:
            self.delete()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _check_room(self.path.parent, shape, dtype)
            out = np.lib.format.open_memmap(self.path, mode="w+", dtype=dtype, shape=shape)
        loader = CropLoader(photographs)
        starts = range(done, len(crops), batch)
        described = f"Activations ({self.path.stem})"
        for i, first in enumerate(progress(starts, desc=described, unit="batch")):
            cuts = crops[first : first + batch]
            patches = model.activations([loader.load(c, model.size) for c in cuts])
            rows = patches.flatten(0, 1).numpy().astype(dtype)
            if not np.isfinite(rows).all():
                raise UserError("activation_dtype: float16 overflows here; use float32")
            begin = first * model.n_patches
            out[begin : begin + len(rows)] = rows
            if i % _PASSES_PER_NOTE == _PASSES_PER_NOTE - 1 or first == starts[-1]:
                out.flush()
                self._take_note(first + len(cuts))

    def _take_note(self, crops: int) -> None:
        note = {"made_for": self.made_for, "crops": crops}
        write_atomically(self._note, json.dumps(note))

    def delete(self) -> None:
        """Remove the file and its note."""
        self._note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def _check_room(folder: Path, shape: tuple[int, int], dtype: str) -> None:
    wanted = shape[0] * shape[1] * np.dtype(dtype).itemsize
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise UserError(
            f"training_samples: activations need {size_text(wanted)} in {folder}, which "
            f"has {size_text(free)} free; use activation_dtype=float16, fewer samples, or "
            "another folder"
        )


def row_norms(rows: np.ndarray) -> np.ndarray:
    """L2 norm of each row, float32 ``[n]``."""
    parts = [
        np.linalg.norm(rows[i : i + _ROWS_PER_CHUNK].astype(np.float32), axis=1)
        for i in range(0, len(rows), _ROWS_PER_CHUNK)
    ]
    return np.concatenate(parts)


class PatchStream:
    """Batches by number: pass after pass over all rows, each pass in an order of its own."""

    def __init__(
        self, rows: np.ndarray, keep: np.ndarray, batch_size: int, seed: int, device: str
    ) -> None:
        """Args:
        rows: ``[n, d_in]``.
        keep: Indices of the rows to use.
        batch_size: Rows per batch.
        seed: Decides the orders.
        device: Where batches go.
        """
        self.rows, self.keep = rows, keep
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self._order: tuple[int, np.ndarray] | None = None

    def epochs(self, batches: int) -> float:
        """How often each row is used in so many batches."""
        return batches * self.batch_size / len(self.keep)

    def batch(self, index: int) -> torch.Tensor:
        """float32 ``[batch_size, d_in]``; the same number always gives the same rows."""
        first = index * self.batch_size
        chosen: list[np.ndarray] = []
        missing = self.batch_size
        while missing:
            epoch, start = divmod(first, len(self.keep))
            part = self._order_of(epoch)[start : start + missing]
            chosen.append(part)
            first += len(part)
            missing -= len(part)
        rows = self.rows[np.concatenate(chosen)].astype(np.float32)
        return torch.from_numpy(rows).to(self.device)

    def _order_of(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._order = epoch, self.keep[rng.permutation(len(self.keep))]
        return self._order[1]
