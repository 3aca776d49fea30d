"""What this package keeps of its user, outside of any study."""

import os
import secrets
from functools import cache
from pathlib import Path

from sae_baselines.files import write_atomically


def cache_dir() -> Path:
    """Where the demo keeps its model and text.

    Returns:
        ``$SAE_BASELINES_CACHE``, else ``$XDG_CACHE_HOME/sae_baselines``, else
        ``~/.cache/sae_baselines``; absolute, not necessarily there yet.
    """
    if own := os.environ.get("SAE_BASELINES_CACHE"):
        return Path(own).expanduser().absolute()
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser().absolute() / "sae_baselines"


def own_key() -> str:
    """A word that only this user knows: what is filed under it in a study is of their making.

    SAEBench keeps pickles, which run code when they are read: a study that came from elsewhere
    must not bring its own. Where the word cannot be kept, it is another one in every process.
    """
    return _key_in(cache_dir())


@cache
def _key_in(folder: Path) -> str:
    file = folder / "key"
    fresh = secrets.token_hex(16)
    try:
        if not file.exists():
            write_atomically(file, fresh)
            file.chmod(0o600)
        return file.read_text(encoding="utf-8") or fresh
    except OSError:
        return fresh
