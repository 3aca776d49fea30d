"""Drift from the checkpoints that a run left, long after it."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
)
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.activation_scaler import ActivationScaler

from sae_baselines.compat.folder import saved_config
from sae_baselines.drift.record import DriftLog, header_of
from sae_baselines.drift.start import (
    START_FILE,
    Rows,
    compare,
    load_rows,
    saved_sae_rows,
    seeded_rows,
)
from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.reconstruction import explained_variance

# SAELens names a checkpoint by the samples seen, the last one with this in front.
_CHECKPOINT = re.compile(r"(final_)?(\d+)")
# SAELens' synthetic runner has a name of its own for what others call runner_cfg.json.
_RUNNER_FILES = (RUNNER_CFG_FILENAME, "runner_config.json")
_TOTALS = ("training_tokens", "training_samples", "total_training_samples")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of one SAE.

    Attributes:
        folder: With ``cfg.json`` and ``sae_weights.safetensors``.
        run_level: The folder of the whole checkpoint: the same, or its parent where several
            SAEs were trained together.
        samples: Seen until then; None for a folder whose name does not say.
        final: Whether training was over, and norms or whitening folded into the weights.
    """

    folder: Path
    run_level: Path
    samples: int | None
    final: bool


def find_checkpoints(run: str | Path) -> dict[str, list[Checkpoint]]:
    """SAELens checkpoints below a folder, by SAE and in order of training.

    Both of SAELens' layouts: ``<run>/<samples>/`` of a single SAE and
    ``<run>/<samples>/<name>/`` of several, at any depth; and a folder that is one itself.

    Raises:
        UserError: No such folder, or no checkpoint in it.
    """
    run = Path(run)
    if not run.is_dir():
        raise UserError(f"run: {run} is not a folder")
    by_sae: dict[str, list[Checkpoint]] = defaultdict(list)
    for weights in sorted(run.rglob(SAE_WEIGHTS_FILENAME)):
        folder = weights.parent
        level = _run_level(folder)
        match = _CHECKPOINT.fullmatch(level.name)
        if match and (level == run or run in level.parents):
            above = level.parent.relative_to(run) if level != run else Path()
            name = (above / folder.name if level != folder else above).parts
            checkpoint = Checkpoint(folder, level, int(match[2]), bool(match[1]))
            by_sae["/".join(name)].append(checkpoint)
    if not by_sae and (run / SAE_WEIGHTS_FILENAME).is_file():
        by_sae[""] = [Checkpoint(run, run, None, True)]
    if not by_sae:
        raise UserError(
            f"run: no checkpoints in {run}; looked for <samples>/{SAE_WEIGHTS_FILENAME} (one "
            f"SAE) and <samples>/<name>/{SAE_WEIGHTS_FILENAME} (several), which SAELens "
            "writes with n_checkpoints > 0 or save_final_checkpoint"
        )
    return {
        name: sorted(by_sae[name], key=lambda c: (c.samples or 0, c.final))
        for name in sorted(by_sae)
    }


def _run_level(folder: Path) -> Path:
    """The folder named by samples: this one, or its parent if that is the whole checkpoint."""
    if _CHECKPOINT.fullmatch(folder.name) is None:
        return folder.parent
    # An SAE may be called 0, and a run's folder may be a number.
    above = [(folder.parent / name).is_file() for name in _RUNNER_FILES]
    own = [(folder / name).is_file() for name in _RUNNER_FILES]
    return folder.parent if any(above) and not any(own) else folder


def drift_from_checkpoints(
    run: str | Path,
    start: str | Path | None = None,
    *,
    out: str | Path | None = None,
    activations: torch.Tensor | None = None,
) -> dict[str, DriftLog]:
    """Drift at each checkpoint of a run (paper, Appendix D).

    Args:
        run: Folder of SAELens checkpoints.
        start: SAELens folder to measure from: one for every SAE, or with a folder inside for
            each name. None: our twins' own start, drawn again from ``init_seed``; for any
            other SAE its earliest checkpoint, which the records then say.
        out: Write ``drift.json`` and ``drift.npz`` here, in a folder per SAE if there are
            several; None writes nothing.
        activations: ``[n, d_in]`` raw, to measure EV and L0 on; None leaves them out.

    Returns:
        Records per SAE, by place below ``run``; empty name for the only one.

    Raises:
        UserError: No checkpoints, a start that is not one, damaged files, or a start that
            the final weights cannot be compared with (whitening is folded into them; a
            final checkpoint of a bare trainer that is alone does not tell).
    """
    logs = {}
    for name, checkpoints in find_checkpoints(run).items():
        begin = _start(name, checkpoints, None if start is None else Path(start))
        _refuse_whitened(name, checkpoints)
        cfg = saved_config(checkpoints[-1].folder)
        n = None if activations is None else activations.shape[0]
        on = None if n is None else f"{n} given activations"
        header = header_of(name, cfg, begin.source, on, None)
        folder = Path(out if out is not None else run) / name
        log = logs[name] = DriftLog(folder, header)
        for checkpoint in checkpoints:
            _add(log, checkpoint, begin, activations)
        if out is not None:
            log.write()
    return logs


def _start(name: str, checkpoints: list[Checkpoint], start: Path | None) -> Rows:
    if start is not None:
        return _given_start(name, start)
    for checkpoint in checkpoints:
        seeded = seeded_rows(saved_config(checkpoint.folder))
        if seeded is not None:
            return seeded
    first = checkpoints[0]
    if len(checkpoints) == 1:
        raise UserError(
            f"start: {first.folder} is the only checkpoint and does not say where it started "
            "(no init_seed); give --start, e.g. a checkpoint of the first step"
        )
    return saved_sae_rows(
        first.folder, f"earliest checkpoint ({first.samples:,} samples), not the true start"
    )


def _given_start(name: str, start: Path) -> Rows:
    last = Path(name).name
    for folder in ([start / name, start / last] if name else []) + [start]:
        if (folder / START_FILE).is_file():
            return load_rows(folder)
        if (folder / SAE_WEIGHTS_FILENAME).is_file():
            return saved_sae_rows(folder, f"given: {start.name}")
    inside = sorted(p.parent.name for p in start.glob(f"*/{SAE_WEIGHTS_FILENAME}"))
    hint = did_you_mean(last, inside) if inside and last else "give a SAELens folder"
    raise UserError(f"start: {start} has no {SAE_WEIGHTS_FILENAME} for {last or 'it'}; {hint}")


def _refuse_whitened(name: str, checkpoints: list[Checkpoint]) -> None:
    """Folding forgets that activations were whitened; what was saved before it has not."""
    final = [c for c in checkpoints if c.final]
    if not final:
        return
    runner = _runner_config(final[-1].run_level)
    of_sae = runner.get("sae"), (runner.get("saes") or {}).get(Path(name).name)
    configs = [runner, *of_sae, *(saved_config(c.folder) for c in checkpoints)]
    if any((c or {}).get("normalize_activations") == "covariance_whitening" for c in configs):
        raise UserError(
            f"run: {final[-1].folder} was trained on whitened activations and is folded back, "
            "which turns its directions; use DriftTracker during training"
        )


def _add(
    log: DriftLog, checkpoint: Checkpoint, start: Rows, activations: torch.Tensor | None
) -> None:
    runner, samples = _runner_config(checkpoint.run_level), checkpoint.samples
    total = next((int(runner[field]) for field in _TOTALS if runner.get(field)), None)
    fraction = None
    if samples is not None and total is not None:
        fraction = min(1.0, samples / total)
    ev, l0 = _reconstruction(checkpoint, activations)
    log.add(
        compare(saved_sae_rows(checkpoint.folder, ""), start),
        fraction=fraction,
        step=None,
        total_steps=None,
        samples=samples,
        explained_variance=ev,
        l0=l0,
        checkpoint=checkpoint.run_level.name,
    )


def _runner_config(folder: Path) -> dict[str, Any]:
    return next((cfg for name in _RUNNER_FILES if (cfg := saved_config(folder, name))), {})


def _reconstruction(
    checkpoint: Checkpoint, activations: torch.Tensor | None
) -> tuple[float | None, float | None]:
    if activations is None:
        return None, None
    cfg = saved_config(checkpoint.folder)
    try:
        sae_class, _ = get_sae_training_class(cfg["architecture"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{checkpoint.folder}: architecture is unknown: {error}") from error
    sae: TrainingSAE[Any] = sae_class.load_from_disk(checkpoint.folder)
    x = activations
    scaler_file = checkpoint.folder / ACTIVATION_SCALER_CFG_FILENAME
    if scaler_file.is_file() and not checkpoint.final:
        scaler = ActivationScaler()
        scaler.load(scaler_file)
        x = scaler(x)
    ev, l0, _ = explained_variance(sae, x.to(sae.dtype))
    return ev, l0
