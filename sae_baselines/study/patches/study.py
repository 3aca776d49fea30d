"""Training a vision study: every panel's members on one stream of patches, then measuring."""

import gc
import json
import logging
import shutil
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.saes.sae import TrainingSAEConfig
from safetensors.torch import load_file, save_file

from sae_baselines.errors import UserError
from sae_baselines.files import write_atomically
from sae_baselines.reconstruction import explained_variance
from sae_baselines.study.build import EncoderStart, member_config, prepare_start
from sae_baselines.study.folder import (
    MEASUREMENT_FILE,
    STUDY_FILE,
    StudyFolder,
)
from sae_baselines.study.measure import Measurement, cosines_to_start, progress
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
from sae_baselines.study.plan import (
    MemberKey,
    PanelKey,
    Pass,
    members_of,
    panels_of,
    passes_of,
    trained_of,
)
from sae_baselines.study.spec import (
    MemberSpec,
    read_yaml,
    spec_from_dict,
    spec_hash,
)
from sae_baselines.study.stream import train_on_stream
from sae_baselines.study.stream_members import build_members, export_member, tracking
from sae_baselines.study.train import resolve_device
from sae_baselines.study.untrained import make_controls

logger = logging.getLogger("sae_baselines")

FIRING_FILE = "firing.safetensors"
IMAGES_FILE = "images.json"

# For EV and L0 of the records of drift.
_DRIFT_PATCHES = 2048
_COSINES = ("cos_to_start_mean", "cos_to_start_min", "encoder_cos_to_start_mean")
_NOT_OF_A_LANGUAGE_MODEL: dict[str, None] = dict.fromkeys(
    ("ce_loss_clean", "ce_loss_with_sae", "ce_loss_zero", "ce_recovered")
)


@dataclass(frozen=True)
class VisionResult:
    """What `train_vision` leaves behind.

    Attributes:
        folder: The study folder.
        measurements: Per member, what `measurement.json` says.
    """

    folder: Path
    measurements: dict[MemberKey, dict[str, Any]]


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


def all_members(spec: VisionSpec) -> dict[MemberKey, MemberSpec]:
    """Every member of every panel."""
    return {k: m for panel in panels_of(spec) for k, m in members_of(spec, panel).items()}


def train_vision(spec: VisionSpec, out: str | Path, *, resume: bool = False) -> VisionResult:
    """Train, calibrate, export and measure every member of every panel.

    A study that is finished is recognised and not repeated.

    Args:
        spec: What to train.
        out: Study folder.
        resume: Continue unfinished work in ``out``.

    Raises:
        UserError: Bad input, in one line; nothing finished is lost.
        InterruptedTrainingError: SIGINT or SIGTERM; a checkpoint was saved.
    """
    folder = StudyFolder(out)
    keys = list(all_members(spec))
    with folder.locked():
        finished = folder.study_file.exists() and all(map(folder.measurement, keys))
        folder.open(spec, resume=resume or finished)
        if finished:
            logger.info("%s is finished; nothing to do", folder.root)
        else:
            _Study(spec, folder).run()
        found = measurements_of(folder, keys)
    return VisionResult(folder.root, found)


def measurements_of(
    folder: StudyFolder, keys: list[MemberKey]
) -> dict[MemberKey, dict[str, Any]]:
    """Measurements of the members that have one."""
    found = {key: folder.measurement(key) for key in keys}
    return {key: m for key, m in found.items() if m}


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
    return spec_from_dict(spec, str(path), VisionSpec)


def firing_of(folder: Path) -> Firing:
    """The firing of a measured member."""
    stored = load_file(folder / FIRING_FILE)
    return Firing(
        stored["count"],
        stored["photographs"],
        int(stored["n_patches"]),
        int(stored["n_photographs"]),
    )


class Source:
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
    path = root / IMAGES_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _check_width(spec: VisionSpec, d_in: int) -> None:
    if spec.d_in is not None and spec.d_in != d_in:
        raise UserError(f"d_in: {spec.d_in} does not match {spec.hook_name}, which has {d_in}")
    width = spec.width(d_in)
    for l0 in spec.l0s:
        if l0 >= width:
            raise UserError(f"l0: {l0:g} is not below d_sae={width}; use a smaller target")


class _Study:
    """One call of `train_vision`."""

    def __init__(self, spec: VisionSpec, folder: StudyFolder) -> None:
        self.spec = spec
        self.folder = folder
        self.source = source = Source(spec, folder.root)
        self.device, self.d_in = source.device, source.model.d_in
        _check_width(spec, self.d_in)
        write_crops(folder.root / "crops.csv", source.crops, source.photographs.names)
        self.rows = source.raw("train")
        train_norms = row_norms(self.rows)
        ratio = spec.max_norm_ratio
        self.limit = None if ratio is None else ratio * float(np.median(train_norms))
        self.keep = within(train_norms, self.limit)
        self.calibration = source.patches("calibration", self.limit)
        self.evaluation = source.patches("evaluation", self.limit)
        self._describe_images()
        self.start = prepare_start(spec, self.calibration.rows, folder.root)

    def _describe_images(self) -> None:
        source = self.source
        held_out = source.raw("evaluation")
        dropped = 1 - len(self.evaluation.rows) / len(held_out)
        norms = norms_of(held_out, source.model.grid, dropped)
        warn(norms, self.spec.max_norm_ratio)
        names = source.photographs.names
        facts = {
            "fingerprint": source.photographs.fingerprint,
            "train": [names[i] for i in source.split.train],
            "held_out": [names[i] for i in source.split.held_out],
            "size": source.model.size,
            "grid": source.model.grid,
            "tokens_dropped_per_crop": source.model.n_special,
            "norm_limit": self.limit,
            "norms": asdict(norms),
            "train_patches": len(self.keep),
            "train_patches_dropped": len(self.rows) - len(self.keep),
        }
        write_atomically(self.folder.root / IMAGES_FILE, json.dumps(facts, indent=2))

    def run(self) -> None:
        for this_pass in passes_of(self.spec):
            keys = [k for p in this_pass.panels for k in trained_of(self.spec, p)]
            if not all(map(self.folder.is_trained, keys)):
                self._train(this_pass)
                gc.collect()
            shutil.rmtree(self.folder.checkpoints / this_pass.name, ignore_errors=True)
        make_controls(self.spec, self.folder, self.calibration.rows, self._where_from)
        self._measure_all()
        shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
        for part in ("train", "calibration"):
            self.source.file(part).delete()

    def _train(self, this_pass: Pass) -> None:
        spec, began = self.spec, time.monotonic()
        members = {k: m for p in this_pass.panels for k, m in trained_of(spec, p).items()}
        saes = build_members(self._configs(members), self.start, self.device)
        training = spec.training(self.device)
        stream = PatchStream(
            self.rows, self.keep, spec.train_batch_size, this_pass.data_seed, self.device
        )
        normalised = spec.normalize_activations != "none"
        batches = training.steps + normalised * training.n_batches_for_norm_estimate
        epochs = stream.epochs(batches)
        if epochs > 1.01:
            logger.warning("each patch is used %.1f times; use more crops_per_photo", epochs)
        logger.info("training %d SAEs on %d patches", len(saes), len(self.keep))
        drift = self.folder.checkpoints / f"drift_{this_pass.name}"
        with tracking(drift, saes, spec.drift, self.calibration.rows[:_DRIFT_PATCHES]):
            trainer = train_on_stream(
                saes,
                stream,
                training,
                checkpoints=self.folder.checkpoints / this_pass.name,
                run_hash=spec_hash(spec),
            )
        seconds = time.monotonic() - began
        facts = {
            "data_seed": this_pass.data_seed,
            "data_order": spec.data_order,
            "spec_hash": spec_hash(spec),
            **self._where_from,
        }
        for key in members:
            one = trainer.trainers[key.name]
            metadata = one.sae.cfg.metadata
            metadata.model_name = spec.model.recorded_name
            metadata.hook_name = spec.hook_name
            export_member(
                self.folder,
                key,
                one,
                self.calibration.rows,
                facts,
                drift if spec.drift else None,
                epochs=epochs,
                pass_seconds=round(seconds, 1),
            )

    @property
    def _where_from(self) -> dict[str, Any]:
        return {"held_out_photographs": len(self.source.split.held_out)}

    def _configs(
        self, members: dict[MemberKey, MemberSpec]
    ) -> dict[MemberKey, TrainingSAEConfig]:
        starts: dict[tuple[float, int, str], EncoderStart] = {}
        return {
            key: member_config(
                self.spec, key, member, self.start, self.d_in, self.device, starts
            )
            for key, member in members.items()
        }

    def _measure_all(self) -> None:
        missing = [
            (key, member)
            for key, member in all_members(self.spec).items()
            if self.folder.measurement(key) is None
        ]
        for key, member in progress(missing, "Measuring"):
            folder = self.folder.member(key)
            sae = SAE.load_from_disk(folder, device=self.device)
            fired = firing(sae, self.evaluation.rows, self.evaluation.photo)
            save_file(
                {
                    "count": fired.count,
                    "photographs": fired.photographs,
                    "n_patches": torch.tensor(fired.n_patches),
                    "n_photographs": torch.tensor(fired.n_photographs),
                },
                folder / FIRING_FILE,
            )
            record = {**self._measure(sae, key.panel, member).to_dict(), **fired.summary()}
            write_atomically(folder / MEASUREMENT_FILE, json.dumps(record, indent=2))

    def _measure(self, sae: SAE[Any], panel: PanelKey, member: MemberSpec) -> Measurement:
        ev, l0, alive = explained_variance(sae, self.evaluation.rows)
        cosines: dict[str, float | None] = dict.fromkeys(_COSINES)
        if not member.is_control:
            decoder, encoder = cosines_to_start(
                sae, panel.seed, member.init_scheme, self.start.covariance_path
            )
            values = (decoder.mean(), decoder.min(), encoder.mean())
            cosines = dict(zip(_COSINES, map(float, values), strict=True))
        return Measurement(
            explained_variance=ev,
            l0=l0,
            l0_target=panel.l0,
            alive=alive,
            d_sae=sae.cfg.d_sae,
            n_tokens=len(self.evaluation.rows),
            **cosines,
            **_NOT_OF_A_LANGUAGE_MODEL,
        )
