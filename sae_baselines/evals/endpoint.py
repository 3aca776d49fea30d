"""The OpenAI-compatible endpoint of AutoInterp's judge, and keeping its secrets."""

import gc
import logging
import os
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from sae_baselines.compat.saebench import SAEBENCH_MODEL
from sae_baselines.errors import UserError, one_line

T = TypeVar("T")

_KEY = "OPENAI_API_KEY"
_URL = "OPENAI_BASE_URL"
_MODEL = "OPENAI_MODEL"
# Local servers take any key; "EMPTY" or "ollama" is no secret and would garble messages.
_SHORTEST_SECRET = 8
# The clients log whole URLs, with user and password if there are any; asyncio logs the errors
# of requests that nobody waits for any more.
_CHATTY = ("openai", "httpx", "httpx2", "httpcore", "httpcore2", "asyncio")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoint:
    """Where the judge answers. Its ``repr`` shows no secret.

    Attributes:
        key: From ``OPENAI_API_KEY``.
        base_url: From ``OPENAI_BASE_URL``; None for OpenAI itself.
    """

    key: str = field(repr=False)
    base_url: str | None = field(repr=False)

    @property
    def host(self) -> str:
        """Host name alone: what may be published of the address."""
        return (_split(self.base_url).hostname or "") if self.base_url else "api.openai.com"

    def scrub(self, text: str) -> str:
        """The text without the key, and without user and password of the address.

        A key of fewer than 8 characters is a placeholder for servers that ask for none, and
        stays.
        """
        for secret in sorted(self._secrets(), key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def key_in(self, text: str) -> bool:
        """Whether the text holds the key (placeholders aside)."""
        return len(self.key) >= _SHORTEST_SECRET and self.key in text

    def _secrets(self) -> set[str]:
        found = {self.key} if len(self.key) >= _SHORTEST_SECRET else set()
        if not self.base_url:
            return found
        user, _, password = _split(self.base_url).netloc.rpartition("@")[0].partition(":")
        if user:
            plain = f"{unquote(user)}:{unquote(password)}"
            # As in the address, and as in the header that is made of it.
            found |= {f"{user}:{password}@", b64encode(plain.encode()).decode()}
        return found | {text for text in (password, unquote(password)) if text}


def default_model() -> str:
    """The judge that is asked where none is named: ``OPENAI_MODEL``, else SAEBench's own."""
    return os.environ.get(_MODEL) or SAEBENCH_MODEL


def from_environment() -> Endpoint:
    """The endpoint that the environment names.

    Raises:
        UserError: It names none, or one that cannot work.
    """
    for problem in endpoint_problems():
        raise UserError(problem)
    return Endpoint(os.environ[_KEY].strip(), os.environ.get(_URL) or None)


def endpoint_problems() -> Iterator[str]:
    """Why there is no endpoint; nothing is sent, and no value is shown."""
    if find_spec("openai") is None:
        yield "openai is not installed; pip install 'sae-baselines[bench]'"
    if not os.environ.get(_KEY, "").strip():
        yield (
            f"{_KEY} is not set; export a key (any text for a server that asks for none, "
            f"such as vLLM or Ollama, with its address in {_URL})"
        )
    address = os.environ.get(_URL)
    if address is None:
        return
    parts = _split(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        yield f"{_URL} is not an http(s) address; unset it or export one like http://host:8000/v1"
    elif parts.query or parts.fragment:
        # The client appends paths to the address, so that a query breaks every request.
        yield f"{_URL} has a query, which cannot work; put the credential into {_KEY}"


def check_endpoint(model: str = SAEBENCH_MODEL, timeout: float = 20.0) -> str | None:
    """Send one tiny request as SAEBench would.

    Args:
        model: Judge.
        timeout: Seconds.

    Returns:
        Why AutoInterp would fail, in a sentence without secrets; None if it answers.
    """
    from openai import OpenAI  # noqa: PLC0415

    try:
        endpoint = from_environment()
    except UserError as error:
        return str(error)
    request = "Reply with the numbers 1, 2 and nothing else."
    try:
        with quiet_clients():
            answer: Any = OpenAI(
                api_key=endpoint.key, timeout=timeout, max_retries=0
            ).chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": request}],
                n=1,
                max_tokens=30,  # as few as SAEBench grants
                stream=False,
            )
            text = answer.choices[0].message.content
    except Exception as error:  # whatever a third party's server may cause
        reason = endpoint.scrub(one_line(error))[:300]
        return f"{endpoint.host}: model {model!r} does not answer: {reason}"
    if not (text or "").strip():
        return (
            f"{endpoint.host}: model {model!r} gave no text within 30 tokens; "
            "choose one that does not think before it answers"
        )
    return None


@contextmanager
def quiet_clients() -> Iterator[None]:
    """While open, clients log no address, and asyncio no error of a request."""
    found = [logging.getLogger(name) for name in _CHATTY]
    # Children too: with a level of their own they would not ask their parents.
    found += [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and "." in name and name.split(".")[0] in _CHATTY
    ]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(found, levels, strict=True):
            logger.setLevel(level)


def without_secrets(endpoint: Endpoint, work: Callable[[], T]) -> T:
    """Do some work; errors that leave it give no secret away.

    Args:
        endpoint: Whose secrets.
        work: What may raise them.

    Raises:
        UserError: As raised by the work.
        RuntimeError: In place of every other error; its traceback is logged, without secrets.
    """
    try:
        with quiet_clients():
            return work()
    except UserError:
        raise
    except Exception as error:
        log.debug(endpoint.scrub("".join(traceback.format_exception(error))))
        kind = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
        failure = endpoint.scrub(f"{kind}{one_line(error)}")[:600]
    with quiet_clients():
        # Other requests failed as well, which asyncio reports when their tasks are collected.
        gc.collect()
    # Raised here, so that the first error is not its context: its frames hold the key.
    raise RuntimeError(failure)


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address.strip())
    except ValueError:  # an unclosed bracket, say
        return urlsplit("")
