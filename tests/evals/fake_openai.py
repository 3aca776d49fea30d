"""A language model's API on loopback, with a judge that goes by one word."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.loopback import answered_by

_MARKED = re.compile(r"<<(.+?)>>")
_DESCRIBED = re.compile(r"this neuron fires on (.*?)\.\n\nHere are the examples:\n\n(.*)", re.S)


def describe(prompt: str) -> str:
    """A description naming the text that is marked most often; first come, first served."""
    marked = [text.strip() for text in _MARKED.findall(prompt)]
    return f"This neuron activates on the text {max(marked, key=marked.count)!r}"


def predict(description: str, examples: list[str]) -> str:
    """Numbers of the examples with the text that the description names."""
    text = description.split("'")[1]
    found = [str(i) for i, example in enumerate(examples, 1) if text in example.split()]
    return ", ".join(found) or "None"


def scoring_parts(prompt: str) -> tuple[str, list[str]] | None:
    """Description and examples of a scoring prompt; None for a request to describe."""
    match = _DESCRIBED.search(prompt)
    if match is None:
        return None
    lines = match.group(2).split("\n")
    return match.group(1), [line.split(". ", 1)[1] for line in lines]


def detection_parts(prompt: str) -> tuple[str, str] | None:
    """Description and text of a question about one text; None for another request."""
    match = re.fullmatch(r"Description: (.*)\nText: (.*)", prompt, re.S)
    return None if match is None else (match.group(1), match.group(2))


def detect(description: str, text: str) -> str:
    """Whether the text has what the description names."""
    named = re.search(r"'(.*)'", description)
    return "Yes" if named is not None and named.group(1) in text.split() else "No"


@dataclass
class FakeOpenAI:
    """What the server was asked, and how it answers.

    Attributes:
        url: For ``OPENAI_BASE_URL``.
        predict: Reply to a scoring prompt, from description and examples.
        detect: Reply to a question about one text, from description and text.
        probabilities: Whether it says how likely its words are, where it is asked to.
        works_for: Number of requests that are answered; later ones get status 400 and an error
            that echoes the Authorization header, as careless servers do.
        busy_for: Number of requests, from the first, that get status 503: to be sent again.
        slow_for: Number of requests, from the first, that wait for `wait` seconds.
        wait: See `slow_for`.
        served: Models that it lists; None for a server that lists none.
        requests: Bodies, with the header under "authorization".
    """

    url: str = ""
    predict: Callable[[str, list[str]], str | None] = predict
    detect: Callable[[str, str], str] = detect
    probabilities: bool = True
    works_for: float = float("inf")
    busy_for: int = 0
    slow_for: int = 0
    wait: float = 1.0
    served: list[str] | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)

    @property
    def models(self) -> set[str]:
        """Models that were asked for."""
        return {request["model"] for request in self.requests}

    @property
    def scorings(self) -> list[tuple[str, list[str]]]:
        """Description and examples of every scoring request."""
        parts = (scoring_parts(request["messages"][-1]["content"]) for request in self.requests)
        return [part for part in parts if part is not None]

    def reply(self, prompt: str) -> str | None:
        """The text of the answer."""
        if (one := detection_parts(prompt)) is not None:
            return self.detect(*one)
        parts = scoring_parts(prompt)
        if parts is not None:
            return self.predict(*parts)
        return describe(prompt) if "<<" in prompt else "1, 2"


@contextmanager
def serving(**options: Any) -> Iterator[FakeOpenAI]:
    """A server on a free port of the loopback interface.

    Args:
        options: Of `FakeOpenAI`.
    """
    fake = FakeOpenAI(**options)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            authorization = self.headers.get("Authorization", "")
            fake.requests.append({**body, "authorization": authorization, "path": self.path})
            if len(fake.requests) <= fake.slow_for:
                time.sleep(fake.wait)
            if len(fake.requests) <= fake.busy_for:
                return self._send({"error": {"message": "busy"}}, 503)
            if len(fake.requests) > fake.works_for:
                message = f"refused {authorization} at {self.path}"
                return self._send({"error": {"message": message, "code": "no"}}, 400)
            text = fake.reply(body["messages"][-1]["content"])
            choice: dict[str, Any] = {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text},
            }
            if body.get("logprobs") and fake.probabilities and text is not None:
                other = {"Yes": "No", "No": "Yes"}.get(text, "maybe")
                likely = ((text, -0.1), (other, -3.0))
                top = [{"token": word, "logprob": p, "bytes": None} for word, p in likely]
                choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
            return self._send(
                {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 0,
                    "model": body["model"],
                    "choices": [choice],
                }
            )

        def do_GET(self) -> None:
            if fake.served is None:
                return self._send({"error": {"message": "no such page"}}, 404)
            models = [{"id": one, "object": "model"} for one in fake.served]
            return self._send({"object": "list", "data": models})

        def _send(self, content: dict[str, Any], status: int = 200) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("retry-after-ms", "1")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Silence."""

    with answered_by(Handler) as address:
        fake.url = f"{address}/v1"
        yield fake
