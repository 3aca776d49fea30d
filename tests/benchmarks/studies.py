"""Committed studies, out of their archives."""

import tarfile
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def unpack_study(name: str, into: Path) -> Path:
    """The study folder in ``benchmarks/<name>/study.tar.gz``."""
    with tarfile.open(BENCHMARKS / name / "study.tar.gz") as archive:
        archive.extractall(into, filter="data")
    return into
