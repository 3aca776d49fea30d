"""What others must not read in texts: local paths and tokens."""

import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import get_token

from sae_baselines.errors import UserError

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
HIDDEN = "<hidden>"
_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:hf|api_org)_[A-Za-z0-9]{16,}|(?:ghp|gho|ghs)_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|sk-[\w-]{20,}|AKIA[A-Z0-9]{16}"
    # A JSON web token, as the Hub's storage hands out.
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}")
# Addresses of uploads are signed: who has the query may write.
_QUERY = re.compile(r"((?:https?://|/)[^\s?'\"<>]+)\?[^\s'\"<>)]+")


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


def redacted(text: str) -> str:
    """The text with tokens, and queries of addresses, hidden."""
    for own in _own_tokens():
        text = text.replace(own, HIDDEN)
    text = _TOKENS.sub(HIDDEN, text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    return _QUERY.sub(rf"\1?{HIDDEN}", text)


def _own_tokens() -> list[str]:
    token = get_token()
    # A short one would hide parts of words.
    return [token] if token and len(token) >= 8 else []


@contextmanager
def redacted_logs() -> Iterator[None]:
    """Hide tokens in whatever any library logs in the block, to whatever handler."""
    make = logging.getLogRecordFactory()

    def careful(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        record.msg, record.args = redacted(_message(record)), ()
        if isinstance(record.exc_info, tuple) and record.exc_info[0] is not None:
            found = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            record.exc_text, record.exc_info = redacted(found), None
        return record

    logging.setLogRecordFactory(careful)
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)


def _message(record: logging.LogRecord) -> str:
    """What it says; a record with too few arguments must not end an upload."""
    try:
        return record.getMessage()
    except Exception:
        return f"{_shown(record.msg)} {_shown(record.args)}"


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:
        return type(value).__name__


def refuse_secrets(where: str, content: bytes, study: Path) -> None:
    """Raise if a file that will be published holds a token or says where the study is.

    Args:
        where: Its path in the repo, for the message.
        content: Its bytes; of a safetensors file its header.
        study: The study folder; its place and the home folder are not told.

    Raises:
        UserError: Naming file and line, never the token.
    """
    own = _own_tokens()
    places = _places(study)
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        if _TOKENS.search(line) or any(token in line for token in own):
            raise UserError(
                f"{where}, line {number}: holds what looks like an access token; take it out, "
                "and revoke it if it is one"
            )
        if places and places.search(line):
            raise UserError(
                f"{where}, line {number}: says where the study lies on this machine; write it "
                "again (results: sae-baselines eval, report: sae-baselines report)"
            )


def _places(study: Path) -> re.Pattern[str] | None:
    """The home folder and the study's own place, as they stand in texts."""
    known = {str(Path.home()), str(study.resolve())}
    # A container's home may be "/", which says nothing.
    named = [re.escape(place) for place in known if len(Path(place).parts) > 1]
    return re.compile(rf"(?<![\w.])(?:{'|'.join(named)})(?![\w.-])") if named else None
