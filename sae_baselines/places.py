"""Local places in texts that others will read: their last part alone."""

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

# An absolute path, one in a home folder, one that climbs out of where it is read from, or
# one on another machine (\\server\share).
_START = (
    r"(?:file://)?(?:~[\w.-]*[/\\]|/(?!/)|[A-Za-z]:[\\/](?!/)|(?:\.\.[/\\])+"
    r"|\\{2,}(?=[\w.$-]+\\))"
)
_WHOLE = re.compile(rf"{_START}[^\n]*")
_QUOTED = re.compile(rf"(['\"])({_START}[^'\"\n]*)\1")
# Two parts at least: '/s' is a unit. After a colon it may be a path (release:/a/b); that of
# an address is followed by two slashes.
_BARE = re.compile(
    rf"(?<![\w./~\\<-]){_START}[^\s'\"`,;()\[\]{{}}<>|/\\]+[/\\][^\s'\"`,;()<>|]*"
)


def last_part(path: str) -> str:
    """``a.txt`` of ``/home/someone/a.txt``, of ``~/a.txt`` and of ``C:\\a.txt``."""
    kind = PureWindowsPath if "\\" in path or re.match(r"[A-Za-z]:", path) else PurePosixPath
    name = kind(path.rstrip("/\\")).name
    return name if name not in ("", "..") else "."


def without_places(text: str) -> str:
    """A text with every local path in it as its last part.

    What is a path is decided by its looks, so that the answer is the same on every machine;
    relative paths stay, they tell nothing of where they were read.
    """
    if _WHOLE.fullmatch(text) and not re.search(r"\s[-/~]", text):
        return last_part(text)
    text = _QUOTED.sub(lambda m: f"{m[1]}{last_part(m[2])}{m[1]}", text)
    return _BARE.sub(_short, text)


def _short(found: re.Match[str]) -> str:
    # A sentence's full stop or colon is not of the path.
    path = found[0].rstrip(".:")
    return last_part(path) + found[0][len(path) :]


def data_without_places(data: Any) -> Any:
    """The same for every text in plain data, as YAML or JSON hold it."""
    if isinstance(data, str):
        return without_places(data)
    if isinstance(data, dict):
        return {key: data_without_places(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [data_without_places(value) for value in data]
    return data
