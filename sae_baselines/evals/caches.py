"""Folders that outlive a killed process without ever giving a wrong number."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_lens import SAE

from sae_baselines.controls.source import add_weights

_COMPLETE = "complete"


@contextmanager
def all_or_nothing(folder: Path) -> Iterator[Path]:
    """A cache that must be filled in one go, since what is drawn last depends on the rest.

    Whatever is left of an attempt that did not come to its end is thrown away.

    Args:
        folder: The cache; made if need be.
    """
    if not (folder / _COMPLETE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    yield folder
    (folder / _COMPLETE).touch()


def drop_half_written(folder: Path) -> None:
    """Delete the JSON and torch files that a killed process left unfinished.

    SAEBench takes a file that exists for one that is whole.

    Args:
        folder: Searched with all below it.
    """
    for file in folder.rglob("*.json"):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            file.unlink()
    for file in folder.rglob("*.pt"):
        # The table of contents of a torch file comes last.
        if not zipfile.is_zipfile(file):
            file.unlink()


def fingerprint(sae: SAE[Any], *conditions: Any) -> str:
    """Hash of an SAE's config and weights and of the conditions it is scored under.

    Args:
        sae: The SAE.
        conditions: Anything else that changes a score, as plain data.
    """
    described = [sae.cfg.to_dict(), *conditions]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    add_weights(digest, sae)
    return digest.hexdigest()[:16]
