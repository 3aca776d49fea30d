"""Signals that ask a command to stop, and what is said then: what is kept and how to go on."""

import os
import shlex
import signal
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

# By command, whose work differs in what a half of it is worth.
_TRAINED = "finished members and the last checkpoint are kept; continue with --resume"
_SAME = "continue with the same command"
_CHECKED = f"what is finished is kept (members, the last checkpoint, scores); {_SAME}"
_KEPT = {
    "train": _TRAINED,
    "toy": _TRAINED,
    "vision train": _TRAINED,
    "vision demo": _TRAINED,
    "check": _CHECKED,
    "demo": _CHECKED,
    "eval": f"finished scores are kept; {_SAME}",
    "publish": f"what was uploaded stays in the repo; {_SAME}",
    "report": "scores are kept, the report may be half an old one; write it again",
    "vision page": "the study is kept, the page may be an old one; write it again",
    "drift": "records are kept, its table and figures may be old ones; write them again",
    "saelens": "what SAELens saved is kept; see its --resume_from_checkpoint",
}
_NOTHING = "nothing was changed; start again"
_AGAIN = (
    "finished scores are kept; the same command makes all of them again, without --force only "
    "those that are missing"
)
# While SAELens runs its own command, it is another.
_set = signal.signal
# Of what was asked for with these, nothing is left.
_LOOKING = {"--dry-run", "--show"}


class Interruptions:
    """Turn signals into `KeyboardInterrupt`, and remember which it was.

    Args:
        arguments: Of the command.

    Attributes:
        number: Of the signal that came; None before.
    """

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self.arguments = arguments
        self.number: int | None = None
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruptions":
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # What is ignored stays so, as under nohup.
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        mine = os.getpid() == self._process
        importing = mine and _imports(frame)
        if mine and self.number is None and not importing:
            self.number = number
            raise KeyboardInterrupt
        # Asked again, or a child that its parent stops: at once.
        if mine:
            # The work may have put its own in place of sys.stderr.
            with suppress(OSError):
                os.write(2, f"\n{what_is_kept(self.arguments, number)}\n".encode())
        if importing:
            os._exit(128 + number)
        _set(number, signal.SIG_DFL)
        signal.raise_signal(number)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported, where an exception is swallowed by some libraries and
    ends others with a segmentation fault. Nothing is half done then that a kill would spoil."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib._bootstrap"):
            return True
        frame = frame.f_back
    return False


def what_is_kept(arguments: Sequence[str], number: int) -> str:
    """What an interrupted command leaves, and the command that goes on from there."""
    words = [argument for argument in arguments if not argument.startswith("-")]
    names = (" ".join(words[:2]), *words[:1])
    kept = next((_KEPT[name] for name in names if name in _KEPT), _NOTHING)
    if words[:1] == ["eval"] and "--force" in arguments:
        kept = _AGAIN
    if _LOOKING & set(arguments):
        kept = _NOTHING
    resume = ["--resume"] if kept is _TRAINED and "--resume" not in arguments else []
    command = shlex.join(["sae-baselines", *arguments, *resume])
    return f"interrupted ({signal.Signals(number).name}): {kept}: {command}"
