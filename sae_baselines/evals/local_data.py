"""Local datasets under names without their paths, which SAEBench would publish."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


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
    found = dict(options)
    for name in names:
        path = local_path(options.get(name))
        if path is None:
            continue
        folder = work / f"data_{path.stem}"
        folder.mkdir(exist_ok=True)
        for each in path.iterdir() if path.is_dir() else [path]:
            link = folder / each.name
            link.unlink(missing_ok=True)
            link.symlink_to(each)
        found[name] = folder.name
    return found


def fingerprints(options: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Hash of each local dataset's names and contents; SAEs scored on others do not compare."""
    found = {}
    for name in names:
        path = local_path(options.get(name))
        if path is not None:
            found[name] = hash_of_files(path)
    return found


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
