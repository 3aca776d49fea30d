"""Files of an evaluation: SAEBench's JSON byte for byte with a record beside each, caches that
outlive a killed process without ever giving a wrong number, and local datasets under names
without their paths, which SAEBench would publish.
"""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_lens import SAE

from sae_baselines.controls.source import add_weights
from sae_baselines.errors import UserError
from sae_baselines.files import (
    check_shape,
    parse_json,
    read_json,
    reading,
    unreadable,
    write_atomically,
    write_sealed,
)
from sae_baselines.work.claims import require_own

EVALS = "evals"
# The option of suites that measure floors, which changes no score, and where they are recorded.
FLOORS = "floors"
# Of a record: latents that probes were trained on, best first, by task.
CHOSEN = "chosen"
_RESULT = "_custom_sae_eval_results.json"
_RECORD = ".record.json"
_FAILURE = ".failed.json"
_COMPLETE = "complete"
_AGAIN = "delete it and evaluate again"
# What is read of a record, and of what rows are made besides.
_RECORDED = {
    **dict.fromkeys(("suite", "name", "created"), str),
    **{"facts": dict, "versions": {str: str}, "hardware": dict, "notes": [str]},
    **{"options?": dict, "command?": str},
    "choice?": {"created": str, "primary?": [str], "margins?": dict, "correct?": str},
}
_OF_ROWS = {
    **{"settings": str, "weights": str, "extras": dict},
    "facts": {
        **dict.fromkeys(("panel", "member", "constraint", "architecture"), str),
        **{"l0?": int | float, "seed": int},
    },
    "encoded?": {"n": int, "active": int | float},
}
_FAILED = {"reason": str, "facts?": dict}


@dataclass(frozen=True)
class Result:
    """A finished evaluation.

    Attributes:
        suite: Suite.
        name: Name of the SAE in files.
        payload: SAEBench's JSON.
        record: What this package wrote beside it: facts, options, seed, versions, extras,
            notes, wall time.
    """

    suite: str
    name: str
    payload: dict[str, Any]
    record: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """An evaluation that was tried and failed.

    Attributes:
        suite: Suite.
        name: Name of the SAE in files.
        reason: One line.
        facts: Columns of the SAE's rows (`target.Facts`).
    """

    suite: str
    name: str
    reason: str
    facts: dict[str, Any] = field(default_factory=dict)


class EvalStore:
    """Paths and files of one study's evaluations.

    A result counts only with a record whose checksum is that of SAEBench's file; the record is
    written last, so a killed process leaves none.

    Args:
        root: Study folder, or any folder for SAEs that are not of a study.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()
        self.folder = self.root / EVALS

    def result_file(self, suite: str, name: str) -> Path:
        return self.folder / suite / f"{name}{_RESULT}"

    def record_file(self, suite: str, name: str) -> Path:
        return self.folder / suite / f"{name}{_RECORD}"

    def failure_file(self, suite: str, name: str) -> Path:
        return self.folder / suite / f"{name}{_FAILURE}"

    def log_file(self, suite: str, name: str) -> Path:
        return self.folder / "logs" / suite / f"{name}.log"

    def work(self, suite: str, name: str) -> Path:
        return self.folder / ".work" / suite / name

    def cache(self, suite: str, key: str) -> Path:
        return self.folder / ".cache" / suite / key

    def keep(self, suite: str, name: str, produced: Path, record: dict[str, Any]) -> None:
        """Take over SAEBench's file, then write its record.

        Raises:
            TakenOverError: The task is another process's by now.
        """
        require_own()
        target = self.result_file(suite, name)
        self.record_file(suite, name).unlink(missing_ok=True)
        data = produced.read_bytes()
        write_atomically(target, data)
        complete = {**record, "sha256": hashlib.sha256(data).hexdigest()}
        write_sealed(self.record_file(suite, name), complete)
        self.failure_file(suite, name).unlink(missing_ok=True)

    def amend(self, result: Result, **changes: Any) -> None:
        """Change what a record says beside its scores."""
        write_sealed(self.record_file(result.suite, result.name), {**result.record, **changes})

    def fail(self, suite: str, name: str, failure: dict[str, Any]) -> None:
        """Record a failure; a result from before no longer counts."""
        self.record_file(suite, name).unlink(missing_ok=True)
        write_atomically(self.failure_file(suite, name), json.dumps(failure, indent=2))

    def load(self, suite: str, name: str) -> Result | None:
        """A finished result, or None.

        Raises:
            UserError: SAEBench's file is not the one that was recorded, or the record was
                edited.
        """
        path, file = self.record_file(suite, name), self.result_file(suite, name)
        record = _record(path)
        if record is None:
            return None
        check_shape(path, record, _OF_ROWS, _AGAIN)
        remedy = f"delete {path.name} beside it and evaluate again"
        try:
            data = file.read_bytes()
        except FileNotFoundError as error:
            raise UserError(f"{file}: is missing; {remedy}") from error
        except OSError as error:
            raise unreadable(file, error, remedy) from error
        if hashlib.sha256(data).hexdigest() != record.get("sha256"):
            raise UserError(f"{file}: was changed after it was written; {remedy}")
        with reading(file, remedy):
            return Result(suite, name, parse_json(data), record)

    def results(self) -> list[Result]:
        """All finished results, by suite and name."""
        found = []
        for path in sorted(self.folder.glob(f"*/*{_RECORD}")):
            result = self.load(path.parent.name, path.name.removesuffix(_RECORD))
            if result is not None:
                found.append(result)
        return found

    def records(self) -> list[dict[str, Any]]:
        """Records alone, by suite and name; SAEBench's files may be somewhere else."""
        found = (_record(path) for path in sorted(self.folder.glob(f"*/*{_RECORD}")))
        return [record for record in found if record is not None]

    def failures(self) -> list[Failure]:
        """All failures that were not made good."""
        found = []
        for path in sorted(self.folder.glob(f"*/*{_FAILURE}")):
            failed = read_json(path, _AGAIN) or {"reason": "unknown"}
            check_shape(path, failed, _FAILED, _AGAIN)
            name = path.name.removesuffix(_FAILURE)
            found.append(
                Failure(path.parent.name, name, failed["reason"], failed.get("facts") or {})
            )
        return found

    def clean(self) -> None:
        """Remove caches and scratch."""
        for name in (".cache", ".work"):
            shutil.rmtree(self.folder / name, ignore_errors=True)


def _record(path: Path) -> dict[str, Any] | None:
    """What is recorded of a result, with everything that is read of it later."""
    record = read_json(path, _AGAIN)
    if record is not None:
        check_shape(path, record, _RECORDED, _AGAIN)
        named = path.parent.name, path.name.removesuffix(_RECORD)
        if (record["suite"], record["name"]) != named:
            raise UserError(
                f"{path}: is the record of {record['suite']} of {record['name']}; {_AGAIN}"
            )
    return record


@contextmanager
def all_or_nothing(folder: Path) -> Iterator[Path]:
    """A cache that must be filled in one go, since what is drawn last depends on the rest.

    Whatever is left of an attempt that did not come to its end is thrown away.

    Args:
        folder: The cache; made if need be.
    """
    if not (folder / _COMPLETE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    yield folder
    (folder / _COMPLETE).touch()


def drop_half_written(folder: Path) -> None:
    """Delete the JSON and torch files that a killed process left unfinished.

    SAEBench takes a file that exists for one that is whole.

    Args:
        folder: Searched with all below it.
    """
    for file in folder.rglob("*.json"):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            file.unlink()
    for file in folder.rglob("*.pt"):
        # The table of contents of a torch file comes last.
        if not zipfile.is_zipfile(file):
            file.unlink()


def fingerprint(sae: SAE[Any], *conditions: Any) -> str:
    """Hash of an SAE's config and weights and of the conditions it is scored under.

    Args:
        sae: The SAE.
        conditions: Anything else that changes a score, as plain data.
    """
    described = [sae.cfg.to_dict(), *conditions]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    add_weights(digest, sae)
    return digest.hexdigest()[:16]


def local_path(value: Any) -> Path | None:
    """The local folder or file that a dataset option names, else None."""
    if not isinstance(value, str) or not value:
        return None
    path = Path(value)
    return path.resolve() if path.exists() else None


def linked(options: Mapping[str, Any], names: Iterable[str], work: Path) -> dict[str, Any]:
    """Options whose local datasets are folders in the working directory of a run.

    Each is a folder of links to the dataset's files: of a file, to that file alone.

    Args:
        options: A suite's options, paths relative to the present working directory.
        names: Options that may name a local dataset.
        work: Working directory of the run.
    """
    links = dict(options)
    for name in names:
        path = local_path(options.get(name))
        if path is None:
            continue
        folder = work / f"data_{path.stem}"
        folder.mkdir(exist_ok=True)
        for file in path.iterdir() if path.is_dir() else [path]:
            link = folder / file.name
            link.unlink(missing_ok=True)
            link.symlink_to(file)
        links[name] = folder.name
    return links


def fingerprints(options: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Hash of each local dataset's names and contents; SAEs scored on others do not compare."""
    paths = {name: local_path(options.get(name)) for name in names}
    return {name: hash_of_files(path) for name, path in paths.items() if path is not None}


def hash_of_files(path: Path) -> str:
    """SHA-256 of a file, or of the files of a folder by name."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            while chunk := stream.read(2**22):
                digest.update(chunk)
    return digest.hexdigest()
