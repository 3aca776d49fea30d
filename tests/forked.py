"""Scripts and commands in a process of their own that has its imports done already.

A new interpreter imports torch, transformers and SAELens for five seconds before it does
anything. A fork of this process has them: what it runs gets its own arguments, streams, signals
and exit code, and whatever it patches ends with it. Tests of what importing does, or of what
an interpreter prints by itself, start a real one.
"""

import contextlib
import logging
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class Forked:
    """A running fork, as much like a `subprocess.Popen` as tests need."""

    def __init__(self, main: Callable[[], object], arguments: list[str]) -> None:
        # Files, not pipes: nobody has to read them for it to go on.
        self._streams = (tempfile.TemporaryFile(), tempfile.TemporaryFile())  # noqa: SIM115
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            be(main, arguments, [stream.fileno() for stream in self._streams])

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for its end: what it printed, and what it said on stderr."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"no end after {timeout} s: {self._said()[1]}")
            time.sleep(0.01)
        return self._said()

    def _said(self) -> tuple[str, str]:
        said = []
        for stream in self._streams:
            stream.seek(0)
            said.append(stream.read().decode())
        return said[0], said[1]


def start_command(*arguments: str | Path) -> Forked:
    """`python -m sae_baselines_cli` with these arguments."""
    from sae_baselines_cli import main  # noqa: PLC0415  (not before a test wants it)

    return Forked(main, ["sae-baselines", *map(str, arguments)])


def run_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The same, to its end."""
    return _to_its_end(start_command(*arguments), arguments)


def run_script(script: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`python script` with these arguments, to its end."""

    def main() -> None:
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")

    return _to_its_end(Forked(main, [str(script), *map(str, arguments)]), arguments)


def _to_its_end(
    process: Forked, arguments: tuple[str | Path, ...]
) -> subprocess.CompletedProcess[str]:
    stdout, stderr = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess(list(arguments), process.returncode, stdout, stderr)


def be(main: Callable[[], object], arguments: list[str], streams: list[int]) -> NoReturn:
    """Be the child of a fork: nothing of pytest's is left, and nothing returns to pytest."""
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        for fd, target in ((nothing, 0), (streams[0], 1), (streams[1], 2)):
            os.dup2(fd, target)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(0),
            os.fdopen(1, "w"),
            os.fdopen(2, "w", 1),
        )
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
        sys.argv = arguments
        logging.root.handlers.clear()
        logging.root.setLevel(logging.WARNING)
        warnings.resetwarnings()
        for ignored in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
            warnings.simplefilter("ignore", ignored)
        for number in (signal.SIGINT, signal.SIGTERM):
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
        code = _exit_code(main)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def _exit_code(main: Callable[[], object]) -> int:
    """As the interpreter ends for what `main` raised."""
    try:
        main()
    except SystemExit as ended:
        if isinstance(ended.code, int) or ended.code is None:
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    return 0
