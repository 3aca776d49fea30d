"""Committed studies: what is kept of one, and one out of its archive."""

import gzip
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# `sae-baselines report` makes the report again from these.
KEPT = (
    "study.yaml",
    "results.csv",
    "results.csv.sha256",
    "stability.json",
    "panels/*/*/measurement.json",
    "panels/*/*/provenance.json",
    "evals/*/*.record.json",
)


def pack(study: Path, out: Path) -> None:
    """Write the archive. Equal studies give equal bytes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        out.open("wb") as file,
        gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for path in (p for pattern in KEPT for p in sorted(study.glob(pattern))):
            entry = tarfile.TarInfo(path.relative_to(study).as_posix())
            entry.size = path.stat().st_size
            with path.open("rb") as content:
                archive.addfile(entry, content)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A study's folder, also of a packed one."""
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch, tarfile.open(path) as archive:
        archive.extractall(scratch, filter="data")
        yield Path(scratch)
