"""What a result was made with."""

import datetime
import functools
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sae_baselines.version import __version__

# Beside every SAE of a study.
PROVENANCE_FILE = "provenance.json"

_PACKAGES = (
    "sae-lens",
    "transformer-lens",
    "torch",
    "transformers",
    "datasets",
    "numpy",
    "safetensors",
    "sae-bench",
    "sae-probes",
    "beartype",
)


def versions() -> dict[str, str]:
    """Versions of this package and of what its numbers depend on."""
    found = {"sae-baselines": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def samples_seen(facts: Mapping[str, Any]) -> int | None:
    """Activations that an SAE was trained on, as its metadata or provenance say.

    Studies on text made before 0.1.0 call them ``tokens_seen``.
    """
    return facts.get("samples_seen", facts.get("tokens_seen"))


@functools.cache
def git_revision() -> str | None:
    """Commit of the source tree this package runs from, ``-dirty`` if it was edited.

    Asked once: what runs is what was imported, whatever becomes of the files.
    """
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return None
    try:
        run = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


def hardware() -> dict[str, Any]:
    """Processor, cores and GPU."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def environment() -> dict[str, Any]:
    """Versions, revision, hardware and time, for every output."""
    return {
        "versions": versions(),
        "git_revision": git_revision(),
        "hardware": hardware(),
        "created": now(),
    }


def now() -> str:
    """The time, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
