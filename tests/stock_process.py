"""Code in a process that has imported SAELens and not yet this package.

A new interpreter imports torch, transformers and SAELens for seconds before it runs a line. A
worker of pytest-xdist is forked once, right after it imported them and before anything imports
this package; what that fork is asked to run, it runs in a fork of its own. Where there is none
(pytest without workers, or a conftest that imported this package first) an interpreter is
started.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
from huggingface_hub import constants

from tests.forked import be
from tests.loopback_hub import point_clients_at

_asked: socket.socket | None = None


def start() -> None:
    """Fork this process, which has imported nothing of this package, once."""
    global _asked
    if _asked is not None or "sae_baselines" in sys.modules:
        return
    import sae_lens  # noqa: F401, PLC0415

    assert "sae_baselines" not in sys.modules
    ours, its = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        _wait(its)
    its.close()
    _asked = ours


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -c code arguments` in such a process, to its end."""
    if _asked is None:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)
    with tempfile.TemporaryDirectory() as folder:
        request = {
            "code": code,
            "arguments": arguments,
            "folder": folder,
            "cwd": str(Path.cwd()),
            "environment": dict(os.environ),
        }
        _asked.sendall(json.dumps(request).encode() + b"\n")
        returncode = int(_line(_asked))
        stdout, stderr = (Path(folder, name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess([code, *arguments], returncode, stdout, stderr)


def _line(of: socket.socket) -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        part = of.recv(65536)
        if not part:
            return b""
        found += part
    return found


def _wait(asked: socket.socket) -> NoReturn:
    """The fork: runs what it is asked to, until whoever asks is gone."""
    # Nothing of pytest's is held open by it.
    os.closerange(3, asked.fileno())
    os.closerange(asked.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    while line := _line(asked):
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(request)
        _, status = os.waitpid(pid, 0)
        asked.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _run(request: dict[str, Any]) -> NoReturn:
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    flags = os.O_RDWR | os.O_CREAT
    streams = [os.open(f"{request['folder']}/{n}", flags) for n in ("stdout", "stderr")]

    def main() -> None:
        endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT)
        if endpoint != constants.ENDPOINT:  # which its clients read when they were imported
            point_clients_at(endpoint, Path(os.environ["HF_HOME"]), pytest.MonkeyPatch())
        module = ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(request["code"], "<string>", "exec"), vars(module))

    be(main, ["-c", *request["arguments"]], streams)
