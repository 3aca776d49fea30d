"""Which weights an SAE has, and whether its cap held any of them: what no score shows."""

import hashlib
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_WEIGHTS_FILENAME
from safetensors import safe_open

from sae_baselines.baselines.cap import AT_EDGE, share_at_edge
from sae_baselines.baselines.constraint import held_side
from sae_baselines.compat.folder import ODD_CONTENTS, saved_config
from sae_baselines.controls.source import add_tensors
from sae_baselines.drift.start import saved_sae_rows, seeded_rows
from sae_baselines.files import read_json
from sae_baselines.provenance import PROVENANCE_FILE

COVARIANCE_FILE = "init_covariance.safetensors"
# Fields of a measurement.
WEIGHTS, CAP_SHARE = "weights_sha256", "cap_bound_share"
# Metrics of suite "panel" that are facts of training.
FACTOR, L0_IN_TRAINING, DEAD_SHARE = "threshold_factor", "l0_in_training", "dead_share"
L0_AS_TRAINED = "l0_as_trained"
# 1 where members are transcoders that contain an affine map.
SKIP = "skip"
# Beyond these another SAE was trained than the one that is measured (what is lost by how far:
# benchmarks/recipes). L0 depends on the text, so that held-out text may have another than
# training had: more is allowed there.
ALLOWED = {FACTOR: (0.9, 1.1), L0_IN_TRAINING: (0.9, 1.1), L0_AS_TRAINED: (0.8, 1.25)}
# What a number of each is.
OFF_TARGET = {
    FACTOR: "its thresholds were multiplied by",
    L0_IN_TRAINING: "L0 over the target in the last training batches was",
    L0_AS_TRAINED: "L0 over the target on held-out text, before anything was moved, was",
}
# Firings per latent on average, below which one that never fired may be a rare one.
_FIRINGS = 100


def identity_of(folder: Path, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Hash of the tensors, and the share of decoder rows at the edge of their cap.

    Args:
        folder: Of the exported SAE.
        measured: Its measurement, whose own fields count; older ones lack them.

    Returns:
        `WEIGHTS` and `CAP_SHARE`; None where it is not known, the latter also without a cap.
    """
    weights, share = measured.get(WEIGHTS), measured.get(CAP_SHARE)
    # Who needs damaged weights and configs says so; here they are not known.
    if weights is None:
        with suppress(*ODD_CONTENTS):
            weights = _hash_of_tensors(folder / SAE_WEIGHTS_FILENAME)
    if share is None:
        with suppress(*ODD_CONTENTS):
            share = _cap_share(folder, measured.get("cos_to_start_min"))
    return {WEIGHTS: weights, CAP_SHARE: share}


def training_of(folder: Path, measured: Mapping[str, Any]) -> dict[str, float]:
    """How well a member's training went, where its export and measurement say so.

    Args:
        folder: Of the exported SAE.
        measured: Its measurement.

    Returns:
        `FACTOR`, what its thresholds were multiplied by at the end, where they were;
        `L0_IN_TRAINING`, the L0 of its last training batches over the target; `L0_AS_TRAINED`,
        that of held-out text before thresholds or biases were moved; `DEAD_SHARE`, the share of
        latents that no held-out sample activates, where these are enough to tell.
    """
    found: dict[str, float] = {}
    d_sae, n = measured.get("d_sae"), measured.get("n_tokens", measured.get("n_samples"))
    alive = measured.get("alive", d_sae and d_sae - measured.get("dead", math.nan))
    if d_sae and n and alive is not None and n * measured["l0"] >= _FIRINGS * d_sae:
        found[DEAD_SHARE] = 1 - alive / d_sae
    with suppress(*ODD_CONTENTS):
        facts = read_json(folder / PROVENANCE_FILE) or {}
        if "calibration" not in facts:
            metadata = saved_config(folder).get("metadata") or {}
            facts = dict(metadata.get("sae_baselines") or {})
        found |= trained_at(facts)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def trained_at(facts: Mapping[str, Any]) -> dict[str, float]:
    """`FACTOR`, `L0_IN_TRAINING` and `L0_AS_TRAINED` by a member's provenance, as known."""
    found: dict[str, float] = {}
    calibration, ended = facts.get("calibration") or {}, facts.get("l0_in_training")
    if calibration.get("method") == "threshold_factor":
        found[FACTOR] = float(calibration["after"])
    for name, l0 in ((L0_IN_TRAINING, ended), (L0_AS_TRAINED, calibration.get("l0_before"))):
        if l0 is not None:
            found[name] = float(l0) / float(facts["l0_target"])
    return found


def off_target(metric: str, ratio: float) -> bool:
    """Whether it is too far from 1 for another SAE not to have been trained."""
    least, most = ALLOWED[metric]
    return not least <= ratio <= most


def _hash_of_tensors(path: Path) -> str:
    """Of names, types, shapes and bytes: equal for equal tensors, whatever else a file says."""
    digest = hashlib.sha256()
    with safe_open(path, framework="pt") as file:
        add_tensors(digest, ((name, file.get_tensor(name)) for name in sorted(file.keys())))
    return digest.hexdigest()


def above(folder: Path, name: str) -> Path | None:
    """A file of the study around a member: in one of the folders around the member's."""
    files = (parent / name for parent in folder.resolve().parents[:4])
    return next((file for file in files if file.is_file()), None)


def _cap_share(folder: Path, least: float | None) -> float | None:
    cfg = saved_config(folder)
    details = dict((cfg.get("metadata") or {}).get("training_architecture_details") or {})
    tau = details.get("tau")
    if tau is None:
        return None
    side = held_side(details.get("constraint"))
    if side == "decoder" and least is not None and least > tau + AT_EDGE:
        return 0.0
    covariance = above(folder, COVARIANCE_FILE)
    files = {"init_activations_path": None, "init_covariance_path": covariance}
    start = seeded_rows({**cfg, **details, **files})
    if start is None:
        return None
    now = saved_sae_rows(folder, "")
    return share_at_edge(getattr(now, side), getattr(start, side), tau)
