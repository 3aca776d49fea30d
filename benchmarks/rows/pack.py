"""Keeps of a finished study what is small: all but weights and SAEBench's JSON files.

    python benchmarks/rows/pack.py <study> benchmarks/rows/<name>/study.tar.gz

`sae-baselines report` makes the report again from what is kept: ``study.yaml``, ``results.csv``
with its checksum, each member's measurement and provenance, and the record of each evaluation.
Equal studies give equal bytes.
"""

import argparse
import gzip
import tarfile
from collections.abc import Sequence
from pathlib import Path

KEPT = (
    "study.yaml",
    "results.csv",
    "results.csv.sha256",
    "panels/*/*/measurement.json",
    "panels/*/*/provenance.json",
    "evals/*/*.record.json",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Pack one study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    if not (args.study / "results.csv").is_file():
        parser.error(f"{args.study} has no results.csv; run sae-baselines eval first")
    pack(args.study, args.out)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


def pack(study: Path, out: Path) -> None:
    """Write the archive."""
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


if __name__ == "__main__":
    main()
