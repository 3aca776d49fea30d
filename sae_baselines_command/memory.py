"""Where the commands are remembered, and whether they are still the same."""

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import runpy
import sys
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any


def recall() -> dict[str, Any] | None:
    """The remembered commands; None if there are none, or anything changed since."""
    try:
        remembered = json.loads(_file().read_text(encoding="utf-8"))
        return remembered["commands"] if remembered["of"] == fingerprint() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(commands: dict[str, Any]) -> None:
    """Remember them; a folder that cannot be written costs time at the next call only."""
    path = _file()
    scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    text = json.dumps({"of": fingerprint(), "commands": commands})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink()


def fingerprint() -> str:
    """Changes with any file of this package, and with versions of what commands depend on."""
    digest = hashlib.sha256(platform.python_version().encode())
    for package in ("typer", "sae-lens"):
        digest.update(metadata.version(package).encode())
    # A wheel's files may all be of one time.
    digest.update((_package() / "version.py").read_bytes())
    for root in (_package(), Path(__file__).parent):
        for folder, folders, files in os.walk(root):
            folders.sort()
            for name in sorted(files):
                if name.endswith(".py"):
                    found = Path(folder, name).stat()
                    digest.update(f"{name} {found.st_size} {found.st_mtime_ns}".encode())
    return digest.hexdigest()


def version() -> str:
    """The version of `sae_baselines`, without importing it."""
    return runpy.run_path(str(_package() / "version.py"))["__version__"]


def _package() -> Path:
    # Found, not imported.
    spec = importlib.util.find_spec("sae_baselines")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _file() -> Path:
    """One for each installation, in the folder that the demo's downloads go to as well."""
    cache = os.environ.get("SAE_BASELINES_CACHE")
    if not cache:
        root = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        cache = Path(root) / "sae_baselines"
    here = hashlib.sha256(f"{sys.prefix} {_package()}".encode()).hexdigest()[:16]
    return Path(cache) / "commands" / f"{here}.json"
