"""Files that are there in full or not at all, and that say whether they were edited."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_baselines.errors import UserError

# Where a JSON file keeps the checksum of the rest of it.
SEAL = "checksum"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either there in full or not at all.

    Args:
        path: Its folder is made if it is not there.
        content: Bytes, or text to be written as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        scratch.write_bytes(data)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_sealed(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON with its own checksum in it, which `read_json` holds it against.

    It tells an edit, not a forgery: whoever edits can compute it again.
    """
    # As it will be read back: text for keys, lists for tuples.
    body = json.loads(json.dumps({name: data[name] for name in data if name != SEAL}))
    write_atomically(path, json.dumps({**body, SEAL: _seal(body)}, indent=2))


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def is_sealed(path: Path) -> bool:
    """Whether a JSON file holds its own checksum; those of older versions do not."""
    return SEAL in json.loads(path.read_text(encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file of this package holds, without its checksum; None if there is none.

    Raises:
        UserError: It cannot be read, or was edited after it was written.
    """
    if not path.exists():
        return None
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged; delete it and run again") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: is damaged; delete it and run again")
    if (seal := data.pop(SEAL, None)) is not None and seal != _seal(data):
        raise UserError(
            f"{path}: was changed after it was written (its checksum is another); delete it "
            "and run again"
        )
    return data
