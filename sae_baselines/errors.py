"""Errors meant for the person at the command line."""

import difflib
import signal


class UserError(ValueError):
    """A mistake in the input, in one line: the field, the value, the remedy."""


class StoppedError(Exception):
    """Work was asked to stop, and what there is of it is kept.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def one_line(error: BaseException, limit: int | None = None) -> str:
    """Another package's message on one line, at most ``limit`` characters of it."""
    return " ".join(str(error).split())[:limit]


def did_you_mean(value: str, known: list[str]) -> str:
    """``did you mean a or b?``, or the list of what is known."""
    near = difflib.get_close_matches(str(value), known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(sorted(known))}"


def nearest(value: str, known: list[str]) -> str:
    """`did_you_mean` that does not print hundreds of names."""
    close = difflib.get_close_matches(value, known, n=3, cutoff=0.4)
    if close or len(known) <= 8:
        return did_you_mean(value, close or known)
    return f"{len(known)} others are"
