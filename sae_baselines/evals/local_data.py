"""Local datasets under names without their paths, which SAEBench would publish."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def local_folder(value: Any) -> Path | None:
    """The folder of a dataset option that names a local folder or file, else None."""
    path = Path(str(value))
    if not path.exists():
        return None
    return (path if path.is_dir() else path.parent).resolve()


def linked(options: Mapping[str, Any], names: Iterable[str], work: Path) -> dict[str, Any]:
    """Options whose local datasets are links in the working directory of a run.

    Args:
        options: A suite's options, paths relative to the present working directory.
        names: Options that may name a local dataset.
        work: Working directory of the run.
    """
    found = dict(options)
    for name in names:
        folder = local_folder(options.get(name))
        if folder is None:
            continue
        link = work / folder.name
        link.unlink(missing_ok=True)
        link.symlink_to(folder, target_is_directory=True)
        found[name] = folder.name
    return found


def described(options: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
    """Paths, sizes and times of local datasets, for the key of what is cached of them."""
    found: list[Any] = []
    for name in names:
        folder = local_folder(options.get(name))
        if folder is not None:
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
            found.append([name, stats])
    return found
