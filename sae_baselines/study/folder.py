"""The study folder: what is in it, who may write, and what is finished."""

import json
import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME

from sae_baselines.errors import UserError, one_line
from sae_baselines.files import (
    check_shape,
    checksum_of,
    failed,
    flaw_of,
    is_junk,
    is_sealed,
    keep_links_inside,
    new_folder,
    read_json,
    reading,
    sha256_of,
    unreadable,
    write_atomically,
    write_sealed,
)
from sae_baselines.provenance import PROVENANCE_FILE, environment
from sae_baselines.study.identity import WEIGHTS
from sae_baselines.study.plan import MemberKey
from sae_baselines.study.spec import (
    PUBLISHED,
    PanelSpec,
    spec_difference,
    spec_from_dict,
    spec_hash,
    spec_to_dict,
)
from sae_baselines.study.values import is_number, shown
from sae_baselines.work.claims import Share, require_own
from sae_baselines.yaml_text import parse_yaml

logger = logging.getLogger("sae_baselines")

STUDY_FILE = "study.yaml"
MEASUREMENT_FILE = "measurement.json"
CHECKPOINTS = "checkpoints"
ACTIVATIONS = "cached_activations"
# Written last, of a cache of activations.
CACHE_RECORD = "activations.json"
# Field of provenance.json: name to SHA-256 of the files that verdicts rest on.
CHECKSUMS = "sha256"
_WEIGHTS = (SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME)
# Fields that studies of other kinds have, what makes those, and what shows their latents.
OTHER_KINDS = {
    "images": ("vision train", "sae-baselines vision page shows its latents"),
    "settings": ("toy", "its features are numbers, and there is no text to show"),
}
# What is read of study.yaml.
_STUDY = {"spec": dict, "spec_hash?": str, "versions?": {str: str}, "hardware?": dict}


def _code_of(stored: Mapping[str, Any]) -> str:
    """The package that a study was begun with, as its study.yaml names it."""
    version = (stored.get("versions") or {}).get("sae-baselines", "of an unknown version")
    revision = stored.get("git_revision")
    return f"sae_baselines {version}" + (f", revision {str(revision)[:7]}" if revision else "")


class StudyFolder:
    """Paths of a study (DESIGN: files on disk are the interface between stages)."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def study_file(self) -> Path:
        return self.root / STUDY_FILE

    @property
    def checkpoints(self) -> Path:
        return self.root / CHECKPOINTS

    @property
    def caches(self) -> Path:
        """Activations that several passes read."""
        return self.root / ACTIVATIONS

    def cache(self, source: str) -> Path:
        """Of one source."""
        return self.caches / (source or "model")

    def has_cache(self, source: str) -> bool:
        """Whether that was written to its end."""
        return (self.cache(source) / CACHE_RECORD).exists()

    @property
    def published(self) -> Path:
        """The published SAE that the panels are built around, if they are."""
        return self.root / "published"

    def member(self, key: MemberKey) -> Path:
        if key.member == PUBLISHED:
            return self.published
        return self.root / "panels" / key.panel.name / key.member

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out. The system frees the lock when a process dies.

        Raises:
            UserError: Another process holds it, or the folder cannot be written.
        """
        with self._lock(0):
            if others := Share(self.root).others():
                raise UserError(
                    f"out: another process is working in {self.root} ({others[0].by}); wait "
                    "for it (sae-baselines status), or use another folder"
                )
            yield

    @contextmanager
    def joined(self, share: Share, spec: Any = None, resume: bool = True) -> Iterator[None]:
        """Work beside others that share its tasks, and keep out those that do not.

        Args:
            share: Who they are.
            spec: The folder is claimed for it first; see `open`.
            resume: As of `open`.

        Raises:
            UserError: As `locked` and `open`.
        """
        with ExitStack() as work:
            # Others begin too: they have it for moments. Some disks of clusters have no locks.
            with self._lock(30, needed=False):
                if spec is not None:
                    self.open(spec, resume)
                work.enter_context(share.registered())
            yield

    @contextmanager
    def _lock(self, timeout: float, needed: bool = True) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{uuid.uuid4().hex[:8]}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"out: {self.root} cannot be written: {failed(error)}") from error
        keep_links_inside(self.root)
        if (path := self.root / ".lock").is_symlink():
            path.unlink()  # older versions of filelock empty what it leads to
        lock = FileLock(path)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            raise UserError(
                f"out: another process is working in {self.root}; wait for it, or use another "
                "folder"
            ) from None
        except (OSError, NotImplementedError) as error:
            if not needed:
                yield
                return
            raise UserError(
                f"out: {lock.lock_file} cannot be locked ({one_line(error, 200)}), so that two "
                "processes could spoil each other's work; use a folder on a local disk"
            ) from error
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
        strangers = [
            p.name
            for p in self.root.iterdir()
            if not p.name.startswith(".")
            and not is_junk(p.name)
            and not (p == self.checkpoints and p.is_symlink())  # to a bigger disk
        ]
        if strangers and not self._is_of(spec):
            raise UserError(
                f"out: {self.root} is not empty and has no {STUDY_FILE} (it has "
                f"{', '.join(sorted(strangers)[:3])}); use another folder"
            )
        if strangers and not resume:
            raise UserError(
                f"out: {self.root} has lost its {STUDY_FILE}; its members are of this spec: "
                "keep them with --resume, or use another folder"
            )
        self._write_study_file(spec)

    def _write_study_file(self, spec: Any) -> None:
        record = {"spec": spec_to_dict(spec), "spec_hash": spec_hash(spec), **environment()}
        write_atomically(self.study_file, yaml.safe_dump(record, sort_keys=False))

    def _is_of(self, spec: Any) -> bool:
        """Whether all members that are there say that they are of this spec."""
        hashes = set()
        for path in self.root.glob(f"panels/*/[!.]*/{PROVENANCE_FILE}"):
            try:
                hashes.add((read_json(path) or {}).get("spec_hash"))
            except UserError:
                continue  # it will be made again
        return hashes == {spec_hash(spec)}

    def _check_same(self, spec: Any) -> None:
        try:
            stored = parse_yaml(self.study_file.read_bytes())
            check_shape(self.study_file, stored, _STUDY, "")
            stored_spec, stored_hash = stored["spec"], stored["spec_hash"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            damage = unreadable(
                self.study_file,
                error,
                "run with the panel file that the study was begun with, which writes it again",
            )
            if isinstance(error, OSError) or not self._is_of(spec):
                raise damage from error
            logger.warning("%s was damaged and is written again", self.study_file)
            self._write_study_file(spec)
            return
        if stored_hash != spec_hash(spec):
            fields = ", ".join(spec_difference(stored_spec, spec_to_dict(spec)))
            if not fields:  # what a field that is not set stands for has changed
                raise UserError(
                    f"out: {self.root} holds a study that was begun with other code "
                    f"({_code_of(stored)}), under which this spec trains other members; use "
                    "another folder, or that code"
                )
            raise UserError(
                f"out: {self.root} holds a study with another spec (differs in: {fields}); use "
                "another folder, or the spec in its study.yaml"
            )

    def stored_spec(self) -> dict[str, Any]:
        """What study.yaml says.

        Raises:
            UserError: It is not there, or damaged.
        """
        with reading(self.study_file, "run with the number that max_panels_per_pass had"):
            stored = parse_yaml(self.study_file.read_bytes())
            check_shape(self.study_file, stored, _STUDY, "")
            return stored["spec"]

    def _has_work(self) -> bool:
        return self.checkpoints.exists() or (self.root / "panels").exists()

    def is_trained(self, key: MemberKey) -> bool:
        """Whether the member's export is whole.

        Raises:
            UserError: A file is there and cannot be read, which is no reason to train again.
        """
        return flaw_of_export(self.member(key)) is None

    def flaw(self, key: MemberKey) -> str | None:
        """Why a member does not count as finished; None if it does."""
        folder = self.member(key)
        return flaw_of_export(folder) or flaw_of_measurement(folder)

    def has_published(self) -> bool:
        """Whether the copy of the published SAE, of which no sparsity is known, is whole."""
        return flaw_of_export(self.published, (SAE_WEIGHTS_FILENAME,)) is None

    def flaw_of_published(self) -> str | None:
        """Why the published SAE does not count as finished; None if it does."""
        flaw = flaw_of_export(self.published, (SAE_WEIGHTS_FILENAME,))
        return flaw or flaw_of_measurement(self.published)

    def measurement(self, key: MemberKey) -> dict[str, Any] | None:
        """The member's measurement, if it was made."""
        return read_measurement(self.member(key))

    @contextmanager
    def new_member(self, key: MemberKey) -> Iterator[Path]:
        """A scratch folder that becomes the member's folder when the block succeeds.

        Raises:
            TakenOverError: The task is another process's by now.
        """
        with new_folder(self.member(key)) as scratch:
            yield scratch
            require_own()

    def new_published(self) -> AbstractContextManager[Path]:
        """The same for the published SAE."""
        return new_folder(self.published)


def flaw_of_export(folder: Path, weights: tuple[str, ...] = _WEIGHTS) -> str | None:
    """Why the export in a folder does not count; None if it is whole.

    Files must be there, have the size that their header says, and be those of the checksums,
    where the version that made them wrote any.

    Raises:
        UserError: One cannot be read, whatever is in it.
    """
    for name in (SAE_CFG_FILENAME, *weights, PROVENANCE_FILE):
        path = folder / name
        try:
            flaw = flaw_of(path)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            raise unreadable(path, error) from error
        if flaw is not None:
            return f"{name} is damaged ({flaw})"
    try:
        provenance = read_json(folder / PROVENANCE_FILE) or {}
        shape = {f"{CHECKSUMS}?": {str: str}, "versions?": {str: str}}
        check_shape(folder / PROVENANCE_FILE, provenance, shape, _AGAIN)
        recorded = provenance.get(CHECKSUMS) or {}
        now = _checksums(folder, weights)
        changed = [name for name in now if recorded.get(name, now[name]) != now[name]]
    except OSError as error:
        raise unreadable(folder, error) from error
    except UserError as error:
        return str(error)
    return f"{changed[0]} was changed after it was written" if changed else None


def _checksums(folder: Path, weights: Iterable[str]) -> dict[str, str]:
    sums = {name: sha256_of(folder / name) for name in weights}
    # Its metadata are notes, which change nothing that the SAE does.
    cfg = read_json(folder / SAE_CFG_FILENAME) or {}
    return {**sums, SAE_CFG_FILENAME: checksum_of({**cfg, "metadata": None})}


def write_provenance(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the record of an export, with checksums of what makes the SAE."""
    sums = _checksums(folder, [name for name in _WEIGHTS if (folder / name).exists()])
    write_sealed(folder / PROVENANCE_FILE, {**facts, CHECKSUMS: sums})


_AGAIN = "run sae-baselines train --resume, which makes it again"
# Of a file that is written with the measurement.
MEASURE_AGAIN = (
    f"delete {MEASUREMENT_FILE} beside it and run with --resume, which measures again"
)
# Numbers of every measurement, and of its kind, which the first of them tells: of synthetic
# features, of photographs, of text.
_MEASURED = ("l0", "l0_target", "d_sae")
_KINDS = (
    ("ev", "n_samples", "n_features", "true_l0", "dead"),
    ("n_patches", "n_photographs", "explained_variance", "dead", "rare"),
    ("explained_variance", "n_tokens"),
)
# null where nobody knows, or where there is none.
_NULL = {
    "n_patches": ("rare_patches", "rare_photographs", "rare_on_one_photograph"),
    "explained_variance": ("alive", "cos_to_start_mean", "cos_to_start_min", "ce_recovered"),
}


def write_measurement(folder: Path, result: Mapping[str, Any]) -> None:
    """Write the measurement, and the held-out L0 where SAELens users look for it."""
    cfg = read_json(folder / SAE_CFG_FILENAME, _AGAIN)
    provenance = read_json(folder / PROVENANCE_FILE, _AGAIN)
    assert cfg is not None
    assert provenance is not None
    # SAELens puts the L0 of the last training batches here, before calibration.
    cfg["metadata"]["l0"] = result["l0"]
    if isinstance(ours := cfg["metadata"].get("sae_baselines"), dict):
        ours["l0_held_out"] = result["l0"]
    provenance["l0_held_out"] = result["l0"]
    write_atomically(folder / SAE_CFG_FILENAME, json.dumps(cfg))
    write_sealed(folder / PROVENANCE_FILE, provenance)
    write_sealed(folder / MEASUREMENT_FILE, result)


def read_measurement(folder: Path) -> dict[str, Any] | None:
    """The measurement of the SAE in a folder, if it was made.

    Raises:
        UserError: The file is damaged, or is not what was measured.
    """
    path = folder / MEASUREMENT_FILE
    measured = read_json(path, _AGAIN)
    # What has its checksum is as it was measured; older files have none.
    if measured is not None and not is_sealed(path) and (flaw := _flaw_of(measured)):
        raise UserError(f"{path}: {flaw}; {_AGAIN}")
    return measured


def _flaw_of(measured: Mapping[str, Any]) -> str | None:
    kind = next((names for names in _KINDS if names[0] in measured), _KINDS[-1])
    needed, null = (*_MEASURED, *kind), _NULL.get(kind[0], ())
    for name in ("l0_matches", *needed, *null):
        if name not in measured:
            return f"has no {name}"
    for name, value in measured.items():
        if name == "l0_matches":
            fits, what = isinstance(value, bool), "neither true nor false"
        elif name == WEIGHTS:
            fits, what = isinstance(value, str | None), "no hash"
        else:
            none = value is None and name not in needed
            curve = isinstance(value, list) and name not in (*needed, *null)
            fits, what = none or curve or is_number(value), "no number"
        if not fits:
            return f"{name}: {shown(value)} is {what}"
    return None


def flaw_of_measurement(folder: Path) -> str | None:
    """Why the measurement in a folder does not count; None if it does.

    Raises:
        UserError: It cannot be read, whatever is in it.
    """
    try:
        return None if read_measurement(folder) is not None else "it is not measured"
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return str(error)


def load_study(study: str | Path) -> tuple[PanelSpec, dict[str, Any]]:
    """Spec and provenance of a study folder.

    Raises:
        UserError: No study there, or not readable.
    """
    path = Path(study) / STUDY_FILE
    again = (
        f"run sae-baselines train PANEL.yaml --out {study} --resume with the panel file that "
        "it was begun with, which writes it again and keeps its members"
    )
    if not path.exists():
        if any(Path(study).glob("panels/*/*")):
            raise UserError(f"study: {study} has lost its {STUDY_FILE}; {again}")
        raise UserError(
            f"study: {study} has no {STUDY_FILE}; train one with sae-baselines train"
        )
    with reading(path, again):
        record = parse_yaml(path.read_bytes())
        check_shape(path, record, _STUDY, again)
        spec = record.pop("spec")
    for field, (command, note) in OTHER_KINDS.items():
        if field in spec:
            raise UserError(
                f"study: {study} was made by sae-baselines {command}, not from a language "
                f"model's activations; {note}"
            )
    return spec_from_dict(spec, where=str(path), stored=True), record
