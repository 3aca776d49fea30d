"""The study folder: what is in it, who may write, and what is finished."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from sae_baselines.errors import UserError
from sae_baselines.files import read_json, write_atomically
from sae_baselines.provenance import environment
from sae_baselines.study.plan import MemberKey
from sae_baselines.study.spec import (
    PanelSpec,
    spec_difference,
    spec_from_dict,
    spec_hash,
    spec_to_dict,
)

STUDY_FILE = "study.yaml"
PROVENANCE_FILE = "provenance.json"
MEASUREMENT_FILE = "measurement.json"
_REQUIRED = ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors", PROVENANCE_FILE)


class StudyFolder:
    """Paths of a study (DESIGN: files on disk are the interface between stages)."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def study_file(self) -> Path:
        return self.root / STUDY_FILE

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def published(self) -> Path:
        """The published SAE that the panels are built around, if they are."""
        return self.root / "published"

    def member(self, key: MemberKey) -> Path:
        return self.root / "panels" / key.panel.name / key.member

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out. The system frees the lock when a process dies.

        Raises:
            UserError: Another process holds it, or the folder cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{uuid.uuid4().hex[:8]}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"out: {self.root} cannot be written: {error.strerror}") from error
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"out: another process is working in {self.root}; wait for it, or use another "
                "folder"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def open(self, spec: Any, resume: bool) -> None:
        """Claim the folder for a spec; the first time, write study.yaml.

        Raises:
            UserError: The folder belongs to another spec, holds unfinished work and
                ``resume`` is False, or has other files in it.
        """
        if self.study_file.exists():
            self._check_same(spec)
            if not resume and self._has_work():
                raise UserError(
                    f"out: {self.root} holds an unfinished run; continue it with --resume, or "
                    "use another folder"
                )
            return
        strangers = [p.name for p in self.root.iterdir() if not p.name.startswith(".")]
        if strangers:
            raise UserError(
                f"out: {self.root} is not empty and has no {STUDY_FILE} (it has "
                f"{', '.join(sorted(strangers)[:3])}); use another folder"
            )
        record = {"spec": spec_to_dict(spec), "spec_hash": spec_hash(spec), **environment()}
        write_atomically(self.study_file, yaml.safe_dump(record, sort_keys=False))

    def _check_same(self, spec: Any) -> None:
        try:
            stored = yaml.safe_load(self.study_file.read_text(encoding="utf-8"))
            stored_spec, stored_hash = stored["spec"], stored["spec_hash"]
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            raise UserError(
                f"out: {self.study_file} cannot be read; use another folder"
            ) from error
        if stored_hash != spec_hash(spec):
            fields = ", ".join(spec_difference(stored_spec, spec_to_dict(spec)))
            raise UserError(
                f"out: {self.root} holds a study with another spec (differs in: {fields}); use "
                "another folder, or the spec in its study.yaml"
            )

    def _has_work(self) -> bool:
        return self.checkpoints.exists() or (self.root / "panels").exists()

    def is_trained(self, key: MemberKey) -> bool:
        """Whether the member's export is complete."""
        return all((self.member(key) / name).exists() for name in _REQUIRED)

    def measurement(self, key: MemberKey) -> dict[str, Any] | None:
        """The member's measurement, if it was made."""
        return read_measurement(self.member(key))

    def new_member(self, key: MemberKey) -> AbstractContextManager[Path]:
        """A scratch folder that becomes the member's folder when the block succeeds."""
        return _new_folder(self.member(key))

    def new_published(self) -> AbstractContextManager[Path]:
        """The same for the published SAE."""
        return _new_folder(self.published)


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"
    scratch.mkdir()
    try:
        yield scratch
        if target.exists():
            shutil.rmtree(target)
        scratch.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def read_measurement(folder: Path) -> dict[str, Any] | None:
    """The measurement of the SAE in a folder, if it was made.

    Raises:
        UserError: The file is damaged.
    """
    return read_json(folder / MEASUREMENT_FILE)


def load_study(study: str | Path) -> tuple[PanelSpec, dict[str, Any]]:
    """Spec and provenance of a study folder.

    Raises:
        UserError: No study there, or not readable.
    """
    path = Path(study) / STUDY_FILE
    if not path.exists():
        raise UserError(
            f"study: {study} has no {STUDY_FILE}; train one with sae-baselines train"
        )
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
        spec = record.pop("spec")
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"study: {path} cannot be read: {error}") from error
    return spec_from_dict(spec, where=str(path), stored=True), record
