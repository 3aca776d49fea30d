"""Whether the wheel and the sdist in a folder hold what they should, and nothing else.

The wheel has every file of the packages that git knows; the sdist has these and a few beside
them, and is what a wheel can be made from.
"""

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

PACKAGES = ("sae_baselines", "sae_baselines_cli")
BESIDE = {
    *("CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "pyproject.toml"),
    *("PKG-INFO", ".gitignore"),  # hatchling's
}


def tracked(root: Path) -> set[str]:
    """Files of the packages that git knows."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *PACKAGES],
        cwd=root,
        capture_output=True,
        check=True,
        text=True,
    )
    return {name for name in listed.stdout.split("\0") if name}


def flaws(what: str, held: Iterable[str], wanted: set[str]) -> list[str]:
    """A line for each file that is missing or should not be there."""
    held = set(held)
    missing = [f"{what}: lacks {name}" for name in sorted(wanted - held)]
    return missing + [f"{what}: should not hold {name}" for name in sorted(held - wanted)]


def flaws_of(dist: Path, code: set[str]) -> list[str]:
    """What is wrong with the files in ``dist``; empty if nothing is.

    Args:
        dist: Folder with one wheel and one sdist.
        code: Files of the packages.
    """
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if ".dist-info/" not in n]
    with tarfile.open(sdist) as archive:
        inside = [m.name.partition("/")[2] for m in archive if m.isfile()]
    return flaws(wheel.name, names, code) + flaws(sdist.name, inside, code | BESIDE)


if __name__ == "__main__":
    found = flaws_of(Path(sys.argv[1]), tracked(Path(__file__).parents[1]))
    sys.exit("\n".join(found) or None)
