"""Progress that moves at least every two seconds, at a terminal and in a file."""

import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
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
    While a `Whole` is open, its line is the only one.
    """
    if _wholes:
        return _Part(*args, **{**options, "whole": _wholes[-1]})
    bar = _kind(options.get("file"))(*args, **options)
    if not bar.disable:
        _tick(bar)
    return bar


def aside() -> AbstractContextManager[Any]:
    """While something else is written to the terminal, bars make way."""
    at_terminal = bool(getattr(sys.stderr, "isatty", bool)())
    return std.tqdm.external_write_mode(file=sys.stdout) if at_terminal else nullcontext()


def _kind(file: Any = None) -> Any:
    at_terminal = bool(getattr(file or sys.stderr, "isatty", bool)())
    return _Bar if at_terminal or best is not tqdm_asyncio else _Lines


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


class _Part(_Lines):
    """Counts for a `Whole`, which writes."""

    def __init__(self, *args: Any, whole: "Whole", **options: Any) -> None:
        self._whole = whole
        self.opened = self.counted = time.monotonic()
        super().__init__(*args, **options)
        whole.began(self)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Nothing."""
        del msg, pos

    def update(self, n: float | None = 1) -> bool | None:
        """Count, and when."""
        self.counted = time.monotonic()
        return super().update(n)

    def close(self) -> None:
        """Nothing more is counted."""
        open_until_now = not self.disable
        super().close()
        if open_until_now:
            self._whole.ended(self)

    @property
    def name(self) -> str:
        """As it was described."""
        return self.desc.removesuffix(": ")

    @property
    def done(self) -> float:
        """Share of all that was done since it was opened."""
        return (self.n - self.initial) / self.total if self.total else 0.0

    @property
    def to_do(self) -> float:
        """Share of all that is left."""
        return 1 - self.n / self.total if self.total else 1.0


@dataclass(frozen=True)
class Stage:
    """A part of a long command.

    Attributes:
        bar: How the `progress` that counts it describes itself.
        seconds: What it is expected to take, with what comes before its bar. Only how it
            compares with the others matters once some of them are over.
        title: What it is called.
        unit: What it counts.
    """

    bar: str
    seconds: float
    title: str
    unit: str = ""


# Share of a stage after which its own rate is all that is asked; its first steps may be slow.
_SURE = 0.2
# Share of all stages for which the expected pace counts as if it had been seen.
_BELIEVED = 0.05


class Whole:
    """One line for all the bars of a command, with time left for the stage and for the whole.

    Args:
        title: Of the command.
        stages: In the order in which they come. One that is left out, since it was done before,
            is taken for over once a later one begins; a bar that is no stage is part of the
            next one.
        file: Instead of standard error.
    """

    def __init__(self, title: str, stages: Sequence[Stage], file: Any = None) -> None:
        self._names = [stage.bar for stage in stages]
        self._stages = list(stages)
        self._part: _Part | None = None
        self._at = -1  # of the stage that is going on, or was last
        self._going_on = False
        self._began = self._since = time.monotonic()
        self._expected = self._took = 0.0  # seconds of what is over
        kind = _kind(file)
        bar = " |{bar}|" if kind is _Bar else ""
        self._bar = kind(total=1, desc=title, file=file or sys.stderr, dynamic_ncols=True)
        self._bar.bar_format = f"{{desc}}: {{percentage:.0f}} %{bar}{{postfix}}"

    def __enter__(self) -> "Whole":
        _wholes.append(self)
        _tick(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _wholes.remove(self)
        self._bar.n, self._bar.leave = 1, kind is None
        gone = self._clock(time.monotonic() - self._began)
        self._bar.set_postfix_str(f"{gone} gone", refresh=False)
        self._bar.close()

    @property
    def disable(self) -> bool:
        """Whether it is over."""
        return self not in _wholes

    def refresh(self) -> None:
        """Write where it is."""
        gone, left = time.monotonic() - self._began, self._left()
        self._bar.n = gone / (gone + left) if gone + left > 0 else 0
        says = f"{self._says()}; the whole about {self._clock(left)} left"
        self._bar.set_postfix_str(says, refresh=False)
        self._bar.refresh()

    def began(self, part: _Part) -> None:
        """A bar was opened."""
        # What comes again after later stages, such as reading, is part of what it is done for.
        if part.name in self._names[max(self._at, 0) :]:
            self._part, self._at, self._going_on = part, self._names.index(part.name), True
        elif not self._going_on:
            self._part = part

    def ended(self, part: _Part) -> None:
        """A bar was closed."""
        if part is self._part:
            self._part = None
            if self._going_on:
                self._end(part.done)

    def _end(self, done: float) -> None:
        now = time.monotonic()
        self._expected += self._stages[self._at].seconds * done
        self._took += now - self._since
        self._since, self._going_on = now, False

    def _clock(self, seconds: float) -> str:
        return self._bar.format_interval(seconds)

    def _says(self) -> str:
        part = self._part
        if part is None:
            following = self._names[self._at + 1 : self._at + 2]
            return f"next: {self._title(following[0])}" if following else "ends"
        unit = self._stages[self._at].unit if self._going_on else part.unit
        of = f" of {part.total:,}" if part.total else ""
        counted = f"{self._title(part.name)}: {part.n:,}{of} {unit}".rstrip()
        left = self._left_of_part(part)
        return counted if left is None else f"{counted}, {self._clock(left)} left"

    def _title(self, name: str) -> str:
        known = {stage.bar: stage.title for stage in self._stages}
        return known.get(name, name)

    @property
    def _pace(self) -> float:
        """How long things take here, as a multiple of what was expected."""
        believed = _BELIEVED * sum(stage.seconds for stage in self._stages)
        expected, took = believed + self._expected, believed + self._took
        part = self._part
        if self._going_on and part is not None and part.done > _SURE:
            expected += self._stages[self._at].seconds * part.done
            took += time.monotonic() - self._since
        return took / expected if expected > 0 else 1.0

    def _left(self) -> float:
        coming = self._pace * sum(stage.seconds for stage in self._stages[self._at + 1 :])
        if self._going_on and self._part is not None:
            return coming + (self._left_of_part(self._part) or 0.0)
        # What goes before a stage's bar is part of it.
        return max(coming - (time.monotonic() - self._since), 0.0)

    def _left_of_part(self, part: _Part) -> float | None:
        now, own, trust = time.monotonic(), 0.0, 0.0
        if part.done > 0:
            each = (part.counted - part.opened) / part.done
            own = max(each * part.to_do - (now - part.counted), 0.0)
            trust = min(part.done / _SURE, 1.0) if self._going_on else 1.0
        elif not self._going_on:
            return None
        if trust == 1:
            return own
        whole = self._pace * self._stages[self._at].seconds
        expected = max(whole * part.to_do - (now - part.counted), 0.0)
        return trust * own + (1 - trust) * expected


# Those that are open, the innermost last.
_wholes: list[Whole] = []
