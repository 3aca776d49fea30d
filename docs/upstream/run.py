"""Run each script of this folder on the installed package, and on a copy with its patch.

    python docs/upstream/run.py [NAME ...]

Nothing that is installed is changed. Exits with 1 where a script does not find its flaw as
installed, or finds it with its patch.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree, ignore_patterns
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
PACKAGES = {"saebench": "sae_bench", "saelens": "sae_lens"}


def names() -> list[str]:
    """Of the patches, without the suffix."""
    return sorted(patch.stem for patch in HERE.glob("*.patch"))


def copied(name: str, folder: Path) -> Path:
    """A copy, in a folder, of the installed package that a patch is for."""
    package = PACKAGES[name.partition("_")[0]]
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    without = ignore_patterns("__pycache__")
    return copytree(Path(spec.origin).parent, folder / package, ignore=without)


def patched(name: str, folder: Path) -> None:
    """Apply a patch to a copy, exactly where it says.

    Raises:
        subprocess.CalledProcessError: It does not apply; what was said is in ``stderr``.
    """
    patch = str(HERE / f"{name}.patch")
    # Outside any repository, whatever folder is above.
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    subprocess.run(
        ["git", "apply", patch], cwd=folder, env=env, check=True, capture_output=True, text=True
    )


def outcome(name: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What a script says, with a folder of packages before those that are installed."""
    before = [str(path)] if path else []
    given = [*before, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / f"{name}.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(given)},
        capture_output=True,
        text=True,
        check=False,
    )


def main(chosen: list[str]) -> bool:
    """Whether each fails as installed and passes with its patch."""
    right = True
    for name in chosen or names():
        with TemporaryDirectory() as folder:
            copied(name, Path(folder))
            patched(name, Path(folder))
            for title, result, wanted in (
                ("as installed", outcome(name), 1),
                ("with the patch", outcome(name, Path(folder)), 0),
            ):
                print(f"{name}, {title}: exit code {result.returncode}")
                said = result.stdout + (result.stderr if result.returncode else "")
                print("".join(f"    {line}\n" for line in said.splitlines()))
                right &= result.returncode == wanted and "Traceback" not in result.stderr
    return right


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1:]) else 1)
