"""Keeps of a finished study what is small: all but weights and SAEBench's JSON files.

    python benchmarks/rows/pack.py <study> benchmarks/rows/<name>/study.tar.gz

`sae-baselines report` makes the report again from what is kept: ``study.yaml``, ``results.csv``
with its checksum, each member's measurement and provenance, and the record of each evaluation.
Equal studies give equal bytes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from archives import pack


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


if __name__ == "__main__":
    main()
