"""Patches of photographs through a vision transformer, kept in the study's folder."""

import json
import logging
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save

from sae_baselines.errors import UserError
from sae_baselines.files import read_json, reading, write_atomically
from sae_baselines.reconstruction import reconstruction
from sae_baselines.study.engine import PassRun, Trained, resolve_device
from sae_baselines.study.folder import MEASURE_AGAIN, STUDY_FILE, StudyFolder
from sae_baselines.study.measure import Cosines, Measurement, cosine_facts
from sae_baselines.study.patches.images import (
    Crop,
    Photographs,
    open_photographs,
    split_photographs,
)
from sae_baselines.study.patches.latents import Firing, firing
from sae_baselines.study.patches.norms import norms_of, warn, within
from sae_baselines.study.patches.patches import PatchModel
from sae_baselines.study.patches.spec import VisionSpec, activations_hash
from sae_baselines.study.patches.store import (
    ActivationFile,
    PatchStream,
    crops_of,
    row_norms,
    write_crops,
)
from sae_baselines.study.spec import spec_from_dict, spec_hash
from sae_baselines.study.stream import StreamTraining, train_on_stream
from sae_baselines.yaml_text import read_yaml

logger = logging.getLogger("sae_baselines")

FIRING_FILE = "firing.safetensors"
IMAGES_FILE = "images.json"


@dataclass(frozen=True)
class Patches:
    """Held-out patches of one part.

    Attributes:
        rows: float32 CPU ``[n, d_in]``.
        crops: The crops they come from.
        crop: int64 ``[n]``, number of the crop.
        place: int64 ``[n]``, number of the patch in it.
        photo: int64 ``[n]``, index of the photograph.
    """

    rows: torch.Tensor
    crops: list[Crop]
    crop: torch.Tensor
    place: torch.Tensor
    photo: torch.Tensor


def spec_of_study(root: str | Path) -> VisionSpec:
    """The spec of a study on disk.

    Raises:
        UserError: No study there, or one of another kind.
    """
    path = Path(root) / STUDY_FILE
    record = read_yaml(path)
    spec = record.get("spec") if isinstance(record, dict) else None
    if not isinstance(spec, dict) or "images" not in spec:
        raise UserError(f"{path}: is not of a vision study; make one with 'vision train'")
    return spec_from_dict(spec, str(path), VisionSpec, stored=True)


class PatchData:
    """Photographs and model of a study, and the activations kept in its folder."""

    def __init__(self, spec: VisionSpec, root: Path) -> None:
        """Open the photographs; the model is loaded when it is needed.

        Raises:
            UserError: The photographs cannot be read, or are others than when the study began.
        """
        self.spec = spec
        self.root = root
        self.photographs: Photographs = open_photographs(spec.images)
        self.split = split_photographs(self.photographs.names, spec.images)
        self.device = resolve_device(spec.device)
        self.facts = images_of(root)
        if self.facts and self.facts["fingerprint"] != self.photographs.fingerprint:
            raise UserError(
                f"images.path: {spec.images.path} has other photographs than when {root} was "
                "begun; put them back, or use another folder for the study"
            )

    @cached_property
    def model(self) -> PatchModel:
        spec = self.spec
        return PatchModel(spec.model, spec.hook_name, self.device, spec.images.size)

    @cached_property
    def grid(self) -> int:
        """Patches per side of a crop."""
        return self.facts["grid"] if self.facts else self.model.grid

    @cached_property
    def size(self) -> int:
        """Side of a crop as the model sees it, pixels."""
        return self.facts["size"] if self.facts else self.model.size

    @cached_property
    def crops(self) -> dict[str, list[Crop]]:
        return crops_of(self.spec, self.split, self.grid**2)

    def file(self, part: str) -> ActivationFile:
        path = self.root / "activations" / f"{part}.npy"
        return ActivationFile(path, activations_hash(self.spec))

    def raw(self, part: str) -> np.ndarray:
        """All activations of a part, memory-mapped."""
        file, crops = self.file(part), self.crops[part]
        if not file.has(len(crops)):
            dtype = self.spec.activation_dtype if part == "train" else "float32"
            file.make(self.model, self.photographs, crops, self.spec.forward_batch, dtype)
        return file.read()

    def patches(self, part: str, norm_limit: float | None) -> Patches:
        """Patches of a held-out part, less those with a norm above the limit."""
        rows, n = self.raw(part), self.grid**2
        crops = self.crops[part]
        keep = torch.from_numpy(within(row_norms(rows), norm_limit))
        crop = keep // n
        photos = torch.tensor([c.photo for c in crops])
        return Patches(
            torch.from_numpy(np.asarray(rows)[keep.numpy()]),
            crops,
            crop,
            keep % n,
            photos[crop],
        )


def images_of(root: Path) -> dict[str, Any]:
    """What a study has written down about its photographs; empty before it has."""
    return read_json(root / IMAGES_FILE) or {}


class PatchSource:
    """Patches of photographs; see `engine.Source`."""

    scratch = ("activations/train.*", "activations/calibration.*")

    def __init__(self, spec: VisionSpec, folder: StudyFolder, name: str = "") -> None:
        """Compute activations, or go on where that was interrupted.

        Raises:
            UserError: Photographs or model cannot be read, or do not fit the spec.
        """
        del name
        self.spec = spec
        self.data = data = PatchData(spec, folder.root)
        self.device = data.device
        self.start_folder = folder.root
        spec.check_hook(data.model.d_in)
        write_crops(folder.root / "crops.csv", data.crops, data.photographs.names)
        self.rows = data.raw("train")
        train_norms = row_norms(self.rows)
        ratio = spec.max_norm_ratio
        self.limit = None if ratio is None else ratio * float(np.median(train_norms))
        self.keep = within(train_norms, self.limit)
        self.calibration = data.patches("calibration", self.limit).rows
        self.held_out = self.calibration
        self.patches = data.patches("evaluation", self.limit)
        self.evaluation = self.patches.rows
        self.facts = {"held_out_photographs": len(data.split.held_out)}
        self._describe_images(folder.root / IMAGES_FILE)

    def _describe_images(self, path: Path) -> None:
        data = self.data
        held_out = data.raw("evaluation")
        dropped = 1 - len(self.patches.rows) / len(held_out)
        norms = norms_of(held_out, data.model.grid, dropped)
        warn(norms, self.spec.max_norm_ratio)
        names = data.photographs.names
        facts = {
            "fingerprint": data.photographs.fingerprint,
            "train": [names[i] for i in data.split.train],
            "held_out": [names[i] for i in data.split.held_out],
            "size": data.model.size,
            "grid": data.model.grid,
            "tokens_dropped_per_crop": data.model.n_special,
            "norm_limit": self.limit,
            "norms": asdict(norms),
            "train_patches": len(self.keep),
            "train_patches_dropped": len(self.rows) - len(self.keep),
        }
        write_atomically(path, json.dumps(facts, indent=2))

    def train(self, run: PassRun) -> Trained:
        spec = self.spec
        saes = run.build(self.device)
        training = StreamTraining.of(spec, self.device)
        stream = PatchStream(
            self.rows, self.keep, spec.train_batch_size, run.this_pass.data_seed, self.device
        )
        normalised = spec.normalize_activations != "none"
        epochs = stream.epochs(
            training.steps + normalised * training.n_batches_for_norm_estimate
        )
        if epochs > 1.01:
            logger.warning("each patch is used %.1f times; use more crops_per_photo", epochs)
        logger.info("training %d SAEs on %d patches", len(saes), len(self.keep))
        with run.tracking(saes):
            trainer = train_on_stream(
                saes, stream, training, checkpoints=run.checkpoints, run_hash=spec_hash(spec)
            )
        for one in trainer.trainers.values():
            one.sae.cfg.metadata.model_name = spec.model.recorded_name
            one.sae.cfg.metadata.hook_name = spec.hook_name
        return Trained(trainer.trainers, {"data_order": spec.data_order}, {"epochs": epochs})

    def measure(
        self, sae: SAE[Any], folder: Path, l0_target: float, cosines: Cosines | None
    ) -> dict[str, Any]:
        rows = self.evaluation
        fired = firing(sae, rows, self.patches.photo)
        stored = {
            "count": fired.count,
            "photographs": fired.photographs,
            "n_patches": torch.tensor(fired.n_patches),
            "n_photographs": torch.tensor(fired.n_photographs),
        }
        write_atomically(folder / FIRING_FILE, save(stored))
        measured = Measurement(
            **asdict(reconstruction(sae, rows)),
            l0_target=l0_target,
            d_sae=sae.cfg.d_sae,
            n_tokens=len(rows),
            **cosine_facts(cosines),
        )
        return {**measured.to_dict(), **fired.summary()}


def firing_of(folder: Path) -> Firing:
    """The firing of a measured member."""
    with reading(folder / FIRING_FILE, MEASURE_AGAIN):
        stored = load_file(folder / FIRING_FILE)
        return Firing(
            stored["count"],
            stored["photographs"],
            int(stored["n_patches"]),
            int(stored["n_photographs"]),
        )
