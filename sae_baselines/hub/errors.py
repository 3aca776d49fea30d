"""What goes wrong between here and the Hub, each in one line."""

import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sae_baselines.errors import UserError, one_line
from sae_baselines.reach import say_if_silent
from sae_baselines.redact import redacted

logger = logging.getLogger("sae_baselines")

TOKENS = "https://huggingface.co/settings/tokens"
AGAIN = "nothing here was changed; the same command goes on where it stopped"
_QUOTA = ("quota", "storage limit", "storage is full", "exceed", "out of storage", "billing")
# requests with huggingface_hub 0.x, httpx with 1.x.
_TRANSPORT = ("requests", "urllib3", "httpx", "httpcore")
# hf_xet moves large files; most of its failures are bare RuntimeErrors, or ConnectionErrors
# for a refusal too.
_XET = re.compile(
    r"\bCAS\b|\b[Xx]et\b|xethub|[Dd]ata processing error|^Network error: Request error"
    r"|HTTP status (?:client|server) error"
)
_STATUS = re.compile(r"\b([45]\d\d) [A-Z]")


@contextmanager
def hub_errors(repo: str, revision: str = "main") -> Iterator[None]:
    """Turn whatever is raised in the block into a `UserError` of one line without secrets.

    The traceback, which may hold signed addresses, is logged at debug level, without them.

    Args:
        repo: The repo, for messages.
        revision: The branch, for messages.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    # A panic in Rust, which hf_xet is written in, is no Exception.
    except BaseException as error:
        logger.debug("%s", redacted("".join(traceback.format_exception(error))))
        message = explained(error, repo, revision) or (
            f"{repo}: an unexpected error ({_named(error)}); {AGAIN}; sae-baselines --verbose "
            "publish shows where it arose"
        )
        # Without what was chained: it could hold addresses and headers.
        raise UserError(redacted(message)) from None


@contextmanager
def reading_errors(repo: str, near: str) -> Iterator[None]:
    """Turn what the Hub's client raises where something is read into a `UserError` of one line.

    Args:
        repo: The repo, for messages.
        near: What else may have been meant; "" for nothing.
    """
    say_if_silent([repo])
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _unread(error, near)
        if reason is None:
            raise
        raise UserError(f"{repo}: {reason}") from error


def _unread(error: Exception, near: str) -> str | None:
    """What to say of an error of the Hub's client; None for any other."""
    if isinstance(error, GatedRepoError):
        return "is gated; accept its terms on its page and log in with hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        remedy = near or "a private one needs hf auth login"
        return (
            f"is neither a folder here nor a repository of the Hub that you may see; {remedy}"
        )
    if isinstance(error, HFValidationError):
        return "is neither a folder here nor a name of the Hub"
    if isinstance(error, OfflineModeIsEnabled):
        remedy = near or "unset it, or name a local folder"
        return f"is not a folder here, and HF_HUB_OFFLINE keeps it from the Hub; {remedy}"
    if isinstance(error, LocalEntryNotFoundError):
        # Of an address that did not answer too, although its class is that of an answer.
        remedy = near or "check the network, or name a local folder"
        return f"is neither here nor cached, and {constants.ENDPOINT} does not answer; {remedy}"
    if isinstance(error, HfHubHTTPError):
        return f"the Hub answers {one_line(error, 200)}"
    # huggingface_hub changed from requests to httpx; both name their errors alike.
    kinds = {cls.__name__ for cls in type(error).__mro__}
    if kinds & {"ConnectionError", "TransportError", "Timeout", "RequestException"}:
        remedy = near or "check the network, or name a local folder"
        kind = type(error).__name__
        return f"is not a folder here, and the Hub cannot be reached ({kind}); {remedy}"
    return None


def explained(error: BaseException, repo: str, revision: str) -> str | None:
    """The line to print; None for an error that is not of the Hub's client."""
    chain = _chain(error)
    for each in chain:
        if isinstance(each, OfflineModeIsEnabled):
            return f"{repo}: HF_HUB_OFFLINE is set; unset it to publish"
        if isinstance(each, LocalTokenNotFoundError):
            return no_token()
        if isinstance(each, HFValidationError):
            return f"repo: {_short(str(each))}"
        status = _status(each)
        if status is not None:
            said = next((words for words in map(_words, chain) if words), "")
            return _refused(each, status, said, repo, revision)
    for each in chain:
        if _of_xet(each):
            return _xet(each, repo)
    for each in chain:
        if isinstance(each, ConnectionError | TimeoutError) or _of_transport(each):
            return (
                f"{repo}: the connection to {constants.ENDPOINT} failed "
                f"({_kind(each)}); {AGAIN}"
            )
    words = _short(str(error), 400)
    if "Invalid metadata in README.md" in words:
        return f"{repo}: the Hub does not take the card: {words}"
    if "LFS batch API returned errors" in words:
        return _full(words, repo) if _is_quota(words) else f"{repo}: {words}; {AGAIN}"
    return None


def no_token() -> str:
    """What to do without a token."""
    return (
        "token: there is none; run 'hf auth login', or set HF_TOKEN, with a token that may "
        f"write ({TOKENS})"
    )


def _refused(error: BaseException, status: int, words: str, repo: str, revision: str) -> str:
    said = f" ({words})" if words else ""
    if status in (402, 413, 507) or (status in (400, 403, 422) and _is_quota(words)):
        return _full(words, repo)
    if isinstance(error, RevisionNotFoundError):
        return f"revision: {repo} has no {revision!r}; leave --revision away, or name a branch"
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo}: is not there, or the token may not see it{said}"
    if status == 401:
        return (
            f"token: the Hub refuses it{said}; make a new one that may write ({TOKENS}) and "
            "run 'hf auth login', or set HF_TOKEN"
        )
    if status == 403:
        return (
            f"{repo}: the token may not write there{said}; use one with write access to "
            f"{repo.split('/')[0]} ({TOKENS}), or another repo"
        )
    if status in (409, 412):
        return f"{repo}: was changed by somebody else meanwhile{said}; run the command again"
    if status == 429:
        return f"{repo}: too many requests for now{said}; wait, then run the command again"
    if status >= 500:
        return f"{repo}: the Hub fails with {status}{said}; {AGAIN}"
    return f"{repo}: the Hub refuses with {status}{said}; {AGAIN}"


def _xet(error: BaseException, repo: str) -> str:
    words = str(error)
    found = _STATUS.search(words)
    status = int(found[1]) if found else 0
    if status in (402, 413, 507) or (status in (400, 403, 422) and _is_quota(words)):
        return _full(_short(words), repo)
    return (
        f"{repo}: the upload to the Hub's storage of large files (Xet) failed "
        f"({_named(error)}); {AGAIN}; HF_HUB_DISABLE_XET=1 uploads without Xet"
    )


def _full(words: str, repo: str) -> str:
    return (
        f"{repo}: no room left on the Hub for {repo.split('/')[0]} ({words or 'quota'}); free "
        "some or choose another owner, then run the command again"
    )


def _is_quota(words: str) -> bool:
    return any(part in words.lower() for part in _QUOTA)


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what caused it: uploads in threads wrap the cause."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def _status(error: BaseException) -> int | None:
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _words(error: BaseException) -> str:
    """What the Hub said, without the client's advice."""
    return _short(getattr(error, "server_message", None) or "")


def _short(text: str, limit: int = 300) -> str:
    """One line; half a token would not be known as one, so it is cut last."""
    return redacted(one_line(ValueError(text)))[:limit]


def _named(error: BaseException) -> str:
    words = _short(str(error))
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _of_xet(error: BaseException) -> bool:
    # By name: huggingface_hub and hf_xet each have classes of their own, others in 1.x.
    kind = type(error)
    if kind.__name__.startswith("Xet") or kind.__module__.split(".")[0] == "hf_xet":
        return True
    # Said by any other library, the words could stand in a path.
    plain = kind.__module__ in ("builtins", "pyo3_runtime")
    return plain and not _has_file(error) and bool(_XET.search(str(error)))


def _has_file(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.filename is not None


def _of_transport(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in _TRANSPORT


def _kind(error: BaseException) -> str:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
    return words.removesuffix(" error").removesuffix("error") or "no answer"
