"""Progress that moves at least every two seconds, at a terminal and in a file."""

import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

from tqdm import std
from tqdm.asyncio import tqdm_asyncio
from tqdm.auto import tqdm as best

# Seconds between two signs of life, however long a step takes.
_EVERY = 1.5
_LINE = (
    "{desc}: {n_fmt} of {total_fmt} {unit}, {rate_fmt}, {elapsed} gone, {remaining} left"
    "{postfix}"
)


class _Counting(std.tqdm):
    """Counts each item as it is done.

    tqdm's own loop counts several at once, and none before a tenth of a second is over: what
    is drawn while a slow item follows quick ones would be too few.
    """

    def __iter__(self) -> Iterator[Any]:
        try:
            for item in self.iterable:
                yield item
                self.update()
        finally:
            self.close()


class _Bar(_Counting, best):
    """A bar, or in a notebook a widget."""


class _Lines(_Counting):
    """A line at intervals instead of a bar that is drawn over itself."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # The ticker writes; what is over sooner than it ticks is one line.
        given = {**options, "delay": float("inf")}
        super().__init__(*args, **{**given, "bar_format": _LINE, "ncols": None})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write one line."""
        del pos
        self.fp.write(f"{str(self) if msg is None else msg}\n")
        self.fp.flush()

    def clear(self, nolock: bool = False) -> None:
        """A line that is written stays."""

    def close(self) -> None:
        """Write the last line."""
        last = self.leave and not self.disable
        super().close()
        if last:
            self.display()


def progress(*args: Any, **options: Any) -> Any:
    """`tqdm` of the same arguments, which moves also while a step takes long.

    Where output goes to a file, it is a line every second or two, without carriage returns.
    """
    out = options.get("file") or sys.stderr
    at_terminal = bool(getattr(out, "isatty", bool)())
    kind: Any = _Bar if at_terminal or best is not tqdm_asyncio else _Lines
    bar = kind(*args, **options)
    if not bar.disable:
        _tick(bar)
    return bar


def _tick(bar: Any) -> None:
    """Redraw a bar now and then until it is closed or forgotten."""
    known = weakref.ref(bar)

    def tick() -> None:
        while True:
            time.sleep(_EVERY)
            live = known()
            if live is None or live.disable:
                return
            live.refresh()
            del live

    threading.Thread(target=tick, daemon=True, name="progress").start()
