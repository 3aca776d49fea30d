"""A judge that is asked about one context at a time: does it fit this description?

"Detection" of Paulo et al. (arXiv 2410.13928), with examples of how to answer. Small models
that cannot number the fitting ones of a list (SAEBench's way) can do this.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sae_baselines.evals.endpoint import Endpoint
from sae_baselines.evals.latent_contexts import auc

_DESCRIBE = (
    "A feature of a language model responds to the words between << and >>. Say in a few words "
    "what these words have in common. The words around them are there to help."
)
# Texts, and what their marked words have in common.
_DESCRIBED = (
    (
        ("He saw a tall <<horse>> near", "The <<cow>> was asleep", "feeding <<sheep>> at noon"),
        "words for animals",
    ),
    (
        ("Both sides <<of>> his coin", "a bottle <<of>> oil", "none <<of>> them came"),
        "the word 'of'",
    ),
    (
        ("it was <<raining>> again", "some <<snow>> fell", "after the <<storm>> had passed"),
        "weather",
    ),
)
_DECIDE = (
    "You decide whether a text contains something that fits a description. Answer with Yes or "
    "No."
)
# Description, text, answer. No word of a concept that judges are tested on.
_SHOTS = (
    ("words for animals", "He saw a tall horse near that gate", "Yes"),
    ("words for animals", "They opened a window because it was warm", "No"),
    ("the word 'of'", "Both sides of his coin were worn", "Yes"),
    ("vehicles", "We could read bread on a sign near that bridge", "No"),
    ("vehicles", "She underlined truck in her notebook", "Yes"),
    ("weather, such as rain and snow", "It was kitchen that everybody remembered", "No"),
)
_MARKED = re.compile(r"<<(.+?)>>")
# Tokens of a description, and the likeliest ones of an answer that are looked at.
_WORDS, _TOP = 40, 10
PROMPTS = {
    kind: hashlib.sha256(text.encode()).hexdigest()
    for kind, text in (
        ("description", f"{_DESCRIBE}{_DESCRIBED}"),
        ("decision", f"{_DECIDE}{_SHOTS}"),
    )
}


# Of a latent's texts on either side, those of which it must be said whether they fit.
_LEAST_ANSWERS = 0.5


@dataclass(frozen=True)
class Told:
    """How well texts that fit a description were told from others.

    Attributes:
        auc: By log odds; NaN of too few answers.
        accuracy: Mean of the shares that were right on either side; the same.
        unreadable: Answers that were neither Yes nor No.
    """

    auc: float
    accuracy: float
    unreadable: int


@dataclass
class Detector:
    """Asks a judge by OpenAI's protocol.

    Attributes:
        endpoint: Where it answers.
        model: Its name there.
        retries: How often a failed request is sent again.
        timeout: Seconds that it has for a reply.
        parallel: Requests at a time.
        without_probabilities: Whether it was seen to say no probabilities of its words, so that
            its answers are all that there is.
    """

    endpoint: Endpoint
    model: str
    retries: int
    timeout: float
    parallel: int
    without_probabilities: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        from openai import OpenAI  # noqa: PLC0415

        self._client = OpenAI(
            api_key=self.endpoint.key, timeout=self.timeout, max_retries=self.retries
        )

    def describe(self, marked: Sequence[str]) -> str:
        """What marked parts of these texts have in common, in its words."""
        asked = [_said("system", _DESCRIBE)]
        for texts, answer in _DESCRIBED:
            asked += [_said("user", _listed(texts)), _said("assistant", answer)]
        asked.append(_said("user", _listed(marked)))
        reply = self._ask(asked, max_tokens=_WORDS)
        text = " ".join((reply.message.content or "").split())
        if not text:
            raise RuntimeError(
                f"model {self.model!r} described a latent without text (it refused, or was "
                f"still thinking after {_WORDS} tokens)"
            )
        return text

    def decide(self, description: str, texts: Sequence[str]) -> list[float]:
        """How much rather Yes than No each text fits, log odds; NaN where it said neither."""
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(lambda text: self._decide(description, text), texts))

    def tell(self, description: str, on: Sequence[str], off: Sequence[str], asked: int) -> Told:
        """Whether texts on which a latent is on fit its description better than others.

        Args:
            description: Of the latent.
            on: Texts in which it fires.
            off: Texts in which it does not.
            asked: How many there are meant to be on either side.
        """
        odds = np.array(self.decide(description, [*on, *off]))
        fit, other = (part[~np.isnan(part)] for part in (odds[: len(on)], odds[len(on) :]))
        unreadable = int(np.isnan(odds).sum())
        if min(len(fit), len(other)) < _LEAST_ANSWERS * asked:
            return Told(math.nan, math.nan, unreadable)
        right = (float((fit > 0).mean()) + float((other < 0).mean())) / 2
        return Told(auc(fit, other), right, unreadable)

    def _decide(self, description: str, text: str) -> float:
        asked = [_said("system", _DECIDE)]
        for shown, example, answer in _SHOTS:
            asked += [_said("user", _question(shown, example)), _said("assistant", answer)]
        asked.append(_said("user", _question(description, text)))
        more = {} if self.without_probabilities else {"logprobs": True, "top_logprobs": _TOP}
        reply = self._ask(asked, max_tokens=1, **more)
        words = getattr(reply, "logprobs", None)
        first = (getattr(words, "content", None) or [None])[0]
        if first is None:
            self.without_probabilities = True
            return _odds({(reply.message.content or ""): 0.0})
        top = {one.token: one.logprob for one in first.top_logprobs or [first]}
        return _odds(top)

    def _ask(self, messages: Any, **more: Any) -> Any:
        answer: Any = self._client.chat.completions.create(
            model=self.model, messages=messages, n=1, temperature=0, stream=False, **more
        )
        return answer.choices[0]


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _listed(marked: Sequence[str]) -> str:
    """The marked words, then the texts that they stand in."""
    words = ", ".join(word.strip() for text in marked for word in _MARKED.findall(text))
    texts = "\n".join(f"{i}. {text}" for i, text in enumerate(marked, 1))
    return f"Words: {words}\n{texts}"


def _question(description: str, text: str) -> str:
    return f"Description: {description}\nText: {text}"


def _odds(words: Mapping[str, float]) -> float:
    """Log odds of Yes over No from the likeliest words of an answer.

    Where one of the two is not among them it is no likelier than the least likely that is.
    """
    found: dict[str, float] = {}
    for word, log_p in words.items():
        said = word.strip(" .\n\"'").lower()
        if said in ("yes", "no"):
            found[said] = max(found.get(said, -math.inf), log_p)
    if not found:
        return math.nan
    least = min(words.values()) if len(words) > 1 else -1.0
    return found.get("yes", least) - found.get("no", least)
