"""Recording drift while SAELens trains.

A tracker looks at an SAE after the optimiser's step and all its hooks (a soft-frozen decoder
is projected by then). Nothing that training computes is changed.
"""

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import wandb
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer

from sae_baselines.baselines.cap import share_at_edge
from sae_baselines.baselines.constraint import held_side
from sae_baselines.baselines.directions import start_directions
from sae_baselines.compat.training import TrainingStep, around_each_step
from sae_baselines.drift.cosines import EDGES, Drift
from sae_baselines.drift.record import (
    DRIFT_FILE,
    FRACTIONS,
    HISTOGRAM_FILE,
    DriftLog,
    checked_fractions,
    header_of,
    read_drift,
    step_of,
)
from sae_baselines.drift.start import (
    START_FILE,
    Rows,
    compare,
    equal_bits,
    forget_directions,
    load_rows,
    rows_of,
    save_rows,
    seeded_rows,
    twin_rows,
)
from sae_baselines.errors import UserError
from sae_baselines.reconstruction import d_out_of, explained_variance

logger = logging.getLogger("sae_baselines")

# wandb takes at most 512 bins.
_BINS_PER_WANDB_BIN = 5
_WANDB_SHARES = ("0.8", "0.9", "0.99")


@dataclass
class _Track:
    """What is known of one SAE in one trainer's run."""

    trainer: SAETrainer[Any, Any]
    log: DriftLog
    total_steps: int
    due: list[tuple[int, float]]
    start_is_pending: bool


class DriftTracker:
    """Records drift, EV and L0 at fractions of training (paper, Appendix D).

    ``with DriftTracker("drift"): runner.run()`` works inside SAELens' runners and around a
    bare `SAETrainer`. After each record ``drift.json`` and ``drift.npz`` are written. A run
    that resumes from a checkpoint keeps the records up to there; one that starts anew
    replaces them. The start of our twins is drawn again from ``init_seed``; any other is
    kept in ``drift_start.safetensors`` beside the records.

    Cosines are those after the step's update. EV is the paper's, L0 the mean number of
    active latents; both with the weights after the update, in the space the SAE trains in
    (whitened, under covariance whitening), and as the training SAE encodes: a BatchTopK has
    the L0 it was told.

    Args:
        folder: Where the files go; with ``saes``, a folder inside for each name.
        saes: The SAEs to track by name, e.g. ``runner.saes`` of a multi-SAE runner; others
            are left alone. None: the one SAE that is trained inside the block.
        fractions: Of the run's steps, in (0, 1]. A fraction means the first step that
            completes it; the records say which step that was.
        held_out: ``[n, d_in]`` raw activations to measure EV and L0 on; None: the training
            batch of the step.

    Attributes:
        logs: The records of the block, by name; the name is empty without ``saes``.

    Raises:
        UserError: Bad fractions or activations; a second SAE without ``saes``; a resumed run
            whose start is not known.
    """

    def __init__(
        self,
        folder: str | Path,
        saes: Mapping[str, TrainingSAE[Any]] | None = None,
        *,
        fractions: Sequence[float] = FRACTIONS,
        held_out: torch.Tensor | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.fractions = checked_fractions(fractions)
        if held_out is not None and (held_out.ndim != 2 or held_out.shape[0] < 2):
            raise UserError(
                f"held_out: shape {list(held_out.shape)}; use activations [n, d_in] with n >= 2"
            )
        self._held_out = held_out
        self._saes = saes
        self._tracks: dict[str, _Track] = {}
        self.logs: dict[str, DriftLog] = {}
        self._patch: contextlib.AbstractContextManager[None] | None = None

    def __enter__(self) -> "DriftTracker":
        if self._patch is not None:
            raise RuntimeError("this tracker is active already; make another")
        self._patch = around_each_step(self._step)
        self._patch.__enter__()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        assert self._patch is not None
        self._patch.__exit__(None, None, None)
        self._patch = None
        # Trainers hold optimisers, which should not outlive the block.
        self._tracks.clear()
        forget_directions()
        if kind is None and not self.logs:
            logger.warning("drift: no SAE was trained, so there is nothing in %s", self.folder)

    def _step(
        self, original: TrainingStep, trainer: SAETrainer[Any, Any], batch: torch.Tensor
    ) -> Any:
        name = self._name_of(trainer.sae)
        if name is None:
            return original(trainer, batch)
        track = self._tracks.get(name)
        if track is None or track.trainer is not trainer:
            track = self._tracks[name] = self._begin(name, trainer)
        pending = getattr(trainer.sae, "_pending", None)
        if track.start_is_pending and pending is None:  # weights were loaded into it
            track.log.header["start"] = _keep_start(trainer.sae, track.log.folder)
            track.start_is_pending = False
        output = original(trainer, batch)
        if track.start_is_pending and not trainer.sae.start_is_pending:
            _keep_settled_start(track, pending)
        step = _steps_done(trainer)
        now = [fraction for due, fraction in track.due if due <= step]
        if now:
            track.due = track.due[len(now) :]
            self._record(name, track, step, now, batch)
        return output

    def _name_of(self, sae: TrainingSAE[Any]) -> str | None:
        if self._saes is not None:
            return next((name for name, s in self._saes.items() if s is sae), None)
        if any(track.trainer.sae is not sae for track in self._tracks.values()):
            raise UserError(
                "saes: several SAEs are trained here, and each needs a name; use "
                "DriftTracker(folder, saes=runner.saes)"
            )
        return ""

    def _begin(self, name: str, trainer: SAETrainer[Any, Any]) -> _Track:
        """Called before the first step of a run, after checkpoints have been read."""
        sae, cfg, done = trainer.sae, trainer.cfg, _steps_done(trainer)
        total = math.ceil(cfg.total_training_samples / cfg.train_batch_size_samples)
        folder = self.folder / name
        held_out = self._held_out
        width = sae.cfg.d_in + (d_out_of(sae.cfg) or 0)
        if held_out is not None and held_out.shape[1] != width:
            raise UserError(
                f"held_out: width {held_out.shape[1]} is not the SAE's d_in, {width}"
            )
        pending = getattr(sae, "start_is_pending", False)
        source = "the first activations of the run"
        log = self.logs[name] = DriftLog(folder)
        if done == 0:
            for file in (DRIFT_FILE, HISTOGRAM_FILE, START_FILE):
                (folder / file).unlink(missing_ok=True)
            if not pending:
                source = _keep_start(sae, folder)
        else:
            if (folder / DRIFT_FILE).exists():
                log = self.logs[name] = read_drift(folder)
                log.keep_until(done)
            if not pending:
                source = _start(sae, folder).source
        n = None if held_out is None else held_out.shape[0]
        on = "training batch of the step" if n is None else f"{n} held-out activations"
        described = {"architecture": sae.cfg.architecture(), **vars(sae.cfg)}
        log.header = header_of(name, described, source, on, cfg.train_batch_size_samples)
        due = [(step_of(fraction, total), fraction) for fraction in self.fractions]
        due = [(step, fraction) for step, fraction in due if step > done]
        return _Track(trainer, log, total, due, pending)

    @torch.no_grad()
    def _record(
        self, name: str, track: _Track, step: int, fractions: list[float], batch: torch.Tensor
    ) -> None:
        trainer, log = track.trainer, track.log
        sae = trainer.sae
        sides: dict[str, Drift] = {}
        ev = l0 = bound = None
        if not track.start_is_pending:
            now, start = rows_of(sae), _start(sae, log.folder)
            sides = compare(now, start)
            if (tau := getattr(sae.cfg, "tau", None)) is not None:
                side = held_side(getattr(sae, "baseline_constraint", None))
                bound = share_at_edge(getattr(now, side), getattr(start, side), tau)
            x = (batch if self._held_out is None else self._held_out).to(sae.device)
            ev, l0, _ = explained_variance(sae, trainer.activation_scaler(x).to(sae.dtype))
        for fraction in fractions:
            log.add(
                sides,
                fraction=fraction,
                step=step,
                total_steps=track.total_steps,
                samples=trainer.n_training_samples,
                explained_variance=ev,
                l0=l0,
                cap_bound_share=bound,
            )
        log.write()
        if trainer.cfg.logger.log_to_wandb and wandb.run is not None:
            prefix = f"{name}/drift" if name else "drift"
            # SAELens logs this very step next, so the order of steps is kept.
            wandb.log(_for_wandb(prefix, log.records[-1], sides), step=trainer.n_training_steps)


def _steps_done(trainer: SAETrainer[Any, Any]) -> int:
    """By samples: SAELens saves checkpoints before it counts the step, so that its own count
    stays one short in a resumed run."""
    return math.ceil(trainer.n_training_samples / trainer.cfg.train_batch_size_samples)


def _start(sae: TrainingSAE[Any], folder: Path) -> Rows:
    if (folder / START_FILE).exists():
        return load_rows(folder)
    seeded = seeded_rows(vars(sae.cfg))
    if seeded is None:
        raise UserError(
            f"drift: the run goes on from a checkpoint, but {folder} has no {START_FILE} of "
            "its beginning; track from the first step, or use drift_from_checkpoints"
        )
    return seeded


def _keep_start(sae: TrainingSAE[Any], folder: Path) -> str:
    """Make sure that `_start` will find what the weights are now; where that is from."""
    now, seeded = rows_of(sae, "weights before the first step"), seeded_rows(vars(sae.cfg))
    if seeded is not None and equal_bits(now.decoder, seeded.decoder):
        a, b = now.encoder, seeded.encoder
        if a is None or b is None or equal_bits(a, b):
            return seeded.source
    save_rows(now, folder)
    return now.source


def _keep_settled_start(track: _Track, pending: Any) -> None:
    """The start that a ``cov`` twin drew in the step that is just over."""
    cfg = track.trainer.sae.cfg
    directions = start_directions(
        cfg.d_sae,
        cfg.d_in,
        d_out_of(cfg),
        seed=cfg.init_seed,
        scheme="cov",
        covariance=pending.covariance(),
    )
    source = f"init_seed {cfg.init_seed}, cov of {track.log.header['start']}"
    dtype = track.trainer.sae.W_dec.dtype
    start = twin_rows(directions, dtype, getattr(cfg, "encoder_init_scale", 1.0), source)
    if rows_of(track.trainer.sae).encoder is None:
        start = replace(start, encoder=None)
    save_rows(start, track.log.folder)
    track.log.header["start"] = source
    track.start_is_pending = False


def _for_wandb(
    prefix: str, record: Mapping[str, Any], sides: Mapping[str, Drift]
) -> dict[str, Any]:
    out = {f"{prefix}/{metric}": record[metric] for metric in ("explained_variance", "l0")}
    for side, drift in sides.items():
        if drift.facts["n"]:
            name = f"{prefix}/{side}"
            out[f"{name}_cosine_mean"] = drift.facts["mean"]
            shares = drift.facts["share_at_least"]
            out |= {f"{name}_share_at_least_{t}": shares[t] for t in _WANDB_SHARES}
            bins = drift.counts.reshape(-1, _BINS_PER_WANDB_BIN).sum(axis=1)
            edges = np.ascontiguousarray(EDGES[::_BINS_PER_WANDB_BIN])
            out[f"{name}_cosine"] = wandb.Histogram(np_histogram=(bins, edges))
    return {key: value for key, value in out.items() if value is not None}
