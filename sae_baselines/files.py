"""Files that are there in full or not at all."""

import json
import uuid
from pathlib import Path
from typing import Any

from sae_baselines.errors import UserError


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


def read_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file of this package holds; None if there is none.

    Raises:
        UserError: It cannot be read.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged; delete it and run again") from error
