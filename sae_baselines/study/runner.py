"""SAELens' multi-SAE runner with what a long panel needs around it."""

import json
import logging
import signal
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.multi_sae_trainer import MultiSAETrainer

from sae_baselines.compat.training import OpenRunner, progress_each_step, side_by_side
from sae_baselines.errors import StoppedError, UserError
from sae_baselines.files import is_junk, read_json, remove, write_atomically, writing
from sae_baselines.study.activation_cache import ActivationCache
from sae_baselines.study.held_out import checked_activations
from sae_baselines.work.claims import BEAT, require_own

logger = logging.getLogger("sae_baselines")

# Written last, so that a checkpoint without it was cut short and is not used.
COMPLETE = "complete.json"
# Says of a folder of checkpoints whose it is: several studies may link to one disk.
OWNER = "study.json"


class InterruptedTrainingError(StoppedError):
    """Training was asked to stop; a checkpoint of the last whole step is on disk."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)


class PanelRunner(OpenRunner):
    """Trains all members of a pass.

    Beyond SAELens': signals are answered between steps, never inside one, so that members
    stay in lockstep; NaN or infinite activations stop the run; old checkpoints are deleted
    once a newer one is complete.
    """

    keep_checkpoints: int = 1
    spec_hash: str = ""

    def prepare(
        self,
        keep_checkpoints: int,
        spec_hash: str,
        hook_name_out: str | None = None,
        cache: ActivationCache | None = None,
    ) -> None:
        """Call once between construction and `run`; with a hook where transcoders write, and
        with what is read in place of the language model."""
        self.keep_checkpoints = keep_checkpoints
        self.spec_hash = spec_hash
        store = self.activations_store
        if hook_name_out is not None:
            (hook_name,) = set(self.cfg.hook_names_per_sae.values())
            side_by_side(store, hook_name, hook_name_out)
        dtype = next(iter(self.saes.values())).dtype
        read = store.get_multi_hook_activations
        if cache is not None:
            read = cache.in_front_of(read)
        read = checked_activations(read, dtype)
        store.get_multi_hook_activations = read  # type: ignore[method-assign]

    def fit(self, trainer: MultiSAETrainer) -> dict[str, TrainingSAE[Any]]:
        # SAELens starts the list anew on resume, and would save once for each past entry.
        done = trainer.n_training_samples
        trainer.checkpoint_thresholds = [t for t in trainer.checkpoint_thresholds if t > done]
        disk = None if self.cfg.checkpoint_path is None else Path(self.cfg.checkpoint_path)
        with writing(disk), SignalsBetweenSteps() as signals, progress_each_step():
            trainer.data_provider = signals.guard(trainer.data_provider)
            try:
                return trainer.fit()
            except InterruptedTrainingError:
                if self.cfg.checkpoint_path is not None and trainer.n_training_samples > done:
                    trainer.save_checkpoint(str(trainer.n_training_samples))
                raise

    def checkpoint_saved(self, folder: Path) -> None:
        samples = self.trainer.n_training_samples
        complete_checkpoint(folder, self.saes, samples, self.spec_hash, self.keep_checkpoints)


def complete_checkpoint(
    folder: Path, saes: dict[str, TrainingSAE[Any]], samples: int, spec_hash: str, keep: int
) -> None:
    """Mark a checkpoint as whole, and delete all but the newest ``keep``.

    Raises:
        UserError: A weight is NaN or infinite; the checkpoint is not marked.
    """
    for name, sae in saes.items():
        assert_finite(name, sae)
    record = {"n_training_samples": samples, "spec_hash": spec_hash}
    write_atomically(folder / COMPLETE, json.dumps(record))
    for older in complete_checkpoints(folder.parent)[:-keep]:
        remove(older)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints of a pass, oldest first; cut-short ones are not among them.

    Raises:
        UserError: One cannot be read, whatever is in it: it must not be taken for cut short.
    """
    found = []
    for marker in folder.glob(f"*/{COMPLETE}"):
        try:
            samples = int((read_json(marker) or {})["n_training_samples"])
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error.__cause__, OSError):
                raise
            continue
        if (marker.parent / RUNNER_CFG_FILENAME).exists():
            found.append((samples, marker.parent))
    return [path for _, path in sorted(found)]


def drift_of(checkpoints: Path) -> Path:
    """Where the drift of a pass is recorded until its members have folders."""
    return checkpoints.with_name(f"drift_{checkpoints.name}")


def claim_checkpoints(folder: Path, spec_hash: str) -> list[Path]:
    """Make the folder of a pass's checkpoints, or take it over from a run before.

    Returns:
        Checkpoints in it, whole or not.

    Raises:
        UserError: It is a link, is of another study, or holds what is not a checkpoint; so
            that nothing is written or deleted that is not of this study.
    """
    disk, drift = folder.parent, drift_of(folder)
    if disk.is_symlink() and not disk.exists():
        raise UserError(
            f"out: {disk} is a link to {disk.readlink()}, which is not there; make that "
            "folder, or delete the link"
        )
    for path in (folder, *folder.glob("*"), drift, *drift.rglob("*")):
        if path.is_symlink():
            raise UserError(
                f"out: {path} is a link to {path.resolve()}; nothing is written or deleted "
                f"there. {folder.parent} as a whole may be a link"
            )
    folder.mkdir(parents=True, exist_ok=True)
    inside = [p for p in folder.iterdir() if not is_junk(p.name) and p.name[0] != "."]
    owner = (read_json(folder / OWNER, "delete it") or {}).get("spec_hash")
    if owner not in (None, spec_hash):
        raise UserError(
            f"out: checkpoint folder {folder} belongs to another spec; use another folder"
        )
    checkpoints = [p for p in inside if p.is_dir() and p.name.isdigit()]
    strangers = [p.name for p in inside if p not in checkpoints and p.name != OWNER]
    if strangers:
        raise UserError(
            f"out: {folder / sorted(strangers)[0]} is not a checkpoint; move it elsewhere, "
            "checkpoints are deleted when they are no longer needed"
        )
    if owner is None:
        write_atomically(folder / OWNER, json.dumps({"spec_hash": spec_hash}))
    return checkpoints


def clear_checkpoints(folder: Path, spec_hash: str) -> None:
    """Delete a pass's checkpoints, their folder and its drift, which members have by now.

    Raises:
        UserError: As `claim_checkpoints`.
    """
    if folder.exists() or folder.is_symlink():
        for checkpoint in claim_checkpoints(folder, spec_hash):
            remove(checkpoint)
        remove_empty(folder, OWNER)
    remove(drift_of(folder))


def remove_empty(folder: Path, *own: str) -> None:
    """Delete a folder that holds only junk and files of these names; not what it links to."""
    if folder.is_symlink() or not folder.is_dir():
        return
    files = list(folder.iterdir())
    if all(p.is_file() and (is_junk(p.name) or p.name in own) for p in files):
        remove(folder)


def checkpoint_to_resume(
    checkpoints: Path, spec_hash: str, members: Collection[str] = ()
) -> Path | None:
    """The newest whole checkpoint, or None; others are deleted.

    Args:
        checkpoints: Folder of a pass's checkpoints; made if it is not there.
        spec_hash: Of the study.
        members: Names of who is trained. One that lacks any of them is of no use.

    Raises:
        UserError: It belongs to another spec, or as `claim_checkpoints`.
    """
    there = claim_checkpoints(checkpoints, spec_hash)
    complete = [
        path
        for path in complete_checkpoints(checkpoints)
        if all((path / name).is_dir() for name in members)
    ]
    for stale in there:
        if stale not in complete:
            remove(stale)
    if not complete:
        return None
    marker = read_json(complete[-1] / COMPLETE) or {}
    if marker.get("spec_hash") != spec_hash:
        raise UserError(
            f"out: checkpoint {complete[-1]} belongs to another spec; use another folder"
        )
    logger.info("resuming from %s", complete[-1])
    return complete[-1]


def assert_finite(name: str, sae: TrainingSAE[Any]) -> None:
    """Stop before broken weights are saved.

    Raises:
        UserError: A weight is NaN or infinite.
    """
    for key, value in sae.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(
                f"lr: {name} diverged ({key} has NaN or infinity); lower lr, or raise "
                "lr_warm_up_steps"
            )


_OTHERS = ("SIGHUP", "SIGUSR1", "SIGUSR2")


def _signal(name: str) -> int | None:
    return getattr(signal, name, None)  # not every system has them


class SignalsBetweenSteps:
    """SIGINT, SIGTERM and SIGHUP set a flag that is read when the next batch is asked for.

    So do the signals by which schedulers tell a job that its time is over.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "SignalsBetweenSteps":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, *map(_signal, _OTHERS)):
                # What is ignored stays so: a run under nohup outlives its terminal; and so does
                # what is answered outside of Python.
                if number and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        # In or after the last step no batch is asked for: whoever called us is told now.
        if self.asked is not None and kind is None:
            signal.raise_signal(self.asked)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked = number
            return
        # Asked twice: now, as it would be answered without us.
        previous = self._previous[number]
        if callable(previous):
            previous(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def guard(self, provider: Iterator[Any]) -> Iterator[Any]:
        looked = time.monotonic()
        for batch in provider:
            if self.asked is not None:
                raise InterruptedTrainingError(self.asked)
            # Before anything is saved where another process may save by now.
            if time.monotonic() - looked > BEAT:
                require_own()
                looked = time.monotonic()
            yield batch
