"""Members that `train_on_stream` trains: building them alike, and exporting them."""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import SPARSITY_FILENAME
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import save_file

from sae_baselines.drift import DriftTracker
from sae_baselines.drift.record import DRIFT_FILE, HISTOGRAM_FILE
from sae_baselines.provenance import environment
from sae_baselines.study.build import Start, set_b_dec
from sae_baselines.study.calibrate import calibrate
from sae_baselines.study.folder import PROVENANCE_FILE, StudyFolder
from sae_baselines.study.plan import MemberKey
from sae_baselines.study.runner import assert_finite


def build_members(
    configs: Mapping[MemberKey, TrainingSAEConfig], start: Start, device: str
) -> dict[str, TrainingSAE[Any]]:
    """SAEs by the members' names, with the common b_dec."""
    saes: dict[str, TrainingSAE[Any]] = {}
    for key, config in configs.items():
        sae_class, _ = get_sae_training_class(config.architecture())
        saes[key.name] = sae_class(config).to(device)
    set_b_dec(saes, start)
    return saes


def tracking(
    folder: Path,
    saes: dict[str, TrainingSAE[Any]],
    fractions: Sequence[float],
    held_out: torch.Tensor,
) -> AbstractContextManager[Any]:
    """Record drift of these SAEs while they train; nothing where no fraction is asked for."""
    if not fractions:
        return nullcontext()
    return DriftTracker(folder, saes, fractions=fractions, held_out=held_out)


def export_member(
    folder: StudyFolder,
    key: MemberKey,
    trainer: SAETrainer[Any, Any],
    calibration: torch.Tensor,
    facts: Mapping[str, Any],
    drift: Path | None = None,
    **more: Any,
) -> None:
    """Bring a trained member to its L0 and write its folder.

    Args:
        folder: The study.
        key: Which member.
        trainer: SAELens' trainer, finished.
        calibration: ``[n, d_in]`` held-out activations for thresholds.
        facts: For metadata and provenance, besides what is known here.
        drift: Folder of `tracking`, whose records of this member are kept with it.
        more: For provenance alone.

    Raises:
        UserError: The SAE diverged.
    """
    sae: TrainingSAE[Any] = trainer.sae
    assert_finite(key.name, sae)
    done = calibrate(sae, calibration, key.panel.l0)
    known = {
        "panel": key.panel.name,
        "member": key.member,
        "architecture": sae.cfg.architecture(),
        "base_architecture": key.panel.architecture,
        "l0_target": key.panel.l0,
        "init_seed": key.panel.seed,
        **facts,
        "samples_seen": trainer.n_training_samples,
        "training_steps": trainer.n_training_steps,
        "calibration": asdict(done),
    }
    sae.cfg.metadata.sae_baselines = known
    with folder.new_member(key) as scratch:
        sae.save_inference_model(scratch)
        sparsity = trainer.log_feature_sparsity.contiguous()
        save_file({"sparsity": sparsity}, scratch / SPARSITY_FILENAME)
        provenance = {**known, **more, **environment()}
        (scratch / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2))
        for name in (DRIFT_FILE, HISTOGRAM_FILE):
            if drift is not None:
                shutil.copy(drift / key.name / name, scratch / name)
