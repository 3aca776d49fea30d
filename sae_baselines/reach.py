"""Whether the Hub gives a sign of life, said before its clients try again for minutes."""

import logging
import threading
from collections.abc import Callable, Iterable
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from huggingface_hub import constants

from sae_baselines.errors import one_line

logger = logging.getLogger("sae_baselines")

# Seconds to wait for a sign of life.
TIMEOUT = 1.5
_WITHOUT = (
    "To go without: HF_HUB_OFFLINE=1 takes what is cached, or says at once that it is not; a "
    "local folder or file needs no Hub"
)
# Addresses of the Hub that were asked already: once is enough for a process.
_asked: set[str] = set()
# Those of them that the user knows to be silent.
_said: set[str] = set()


def say_if_silent(names: Iterable[str]) -> None:
    """Say at once that the Hub, which these are asked of, gives no sign of life.

    Its clients try again for minutes, without a word, before they give up.

    Args:
        names: Of models and datasets; those that are here are not asked for.
    """
    wanted = [name for name in dict.fromkeys(names) if not Path(name).exists()]
    if not wanted or constants.HF_HUB_OFFLINE or constants.ENDPOINT in _asked:
        return
    _asked.add(constants.ENDPOINT)
    reason = silence(constants.ENDPOINT, TIMEOUT)
    if reason is not None:
        _say(
            "%s does not answer (%s) and is asked for %s, again and again for minutes",
            constants.ENDPOINT,
            reason,
            " and ".join(wanted),
        )


def say_if_retried(logged: str) -> None:
    """Say that a client of the Hub tries again, unless its silence is known.

    What gives a sign of life may still fail at whatever is asked of it.

    Args:
        logged: What a client logs; only of the first that it tries again is anything said,
            and not what it asked for, since such addresses may hold signatures.
    """
    if "retrying in" in logged.lower() and constants.ENDPOINT not in _said:
        _say("%s fails and is asked again, for minutes if need be", constants.ENDPOINT)


def _say(what: str, *args: str) -> None:
    _said.add(constants.ENDPOINT)
    logger.warning(f"{what}. {_WITHOUT}", *args)


def silence(url: str, timeout: float) -> str | None:
    """Why an address gives no sign of life; None if it does. Any HTTP answer is one.

    Args:
        url: Address; only its host is asked, since the rest may hold a password.
        timeout: Seconds for all of it, name resolution included.
    """
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    root = f"{parts.scheme}://{host}/"
    return _within(timeout, lambda: _head(root, timeout), "no answer in time")


def _head(url: str, timeout: float) -> str | None:
    try:
        with urlopen(Request(url, method="HEAD"), timeout=timeout):
            return None
    except HTTPError:
        return None
    except URLError as error:
        # Certificates are the clients' own business, and they bring their own.
        reason = one_line(error.reason if isinstance(error.reason, Exception) else error, 80)
        return None if "CERTIFICATE" in reason.upper() else reason
    except (OSError, ValueError, HTTPException) as error:
        return type(error).__name__


def _within(timeout: float, work: Callable[[], str | None], late: str) -> str | None:
    """The result of some work, or ``late``: a name server can keep one waiting for long."""
    result: list[str | None] = [late]

    def run() -> None:
        result[0] = work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout)
    return result[0]
