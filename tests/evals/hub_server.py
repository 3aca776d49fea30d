"""A read-only Hugging Face Hub on loopback, and how to make the real clients use it.

Serves ``root/<owner>/<name>/...``, models and datasets alike, to the unchanged huggingface_hub,
datasets, transformers and transformer_lens: streaming, parquet, script datasets, snapshots.
"""

import hashlib
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets.config
import huggingface_hub
import pytest
import transformer_lens  # noqa: F401  (copies the cache folder when imported)
import transformers.utils.hub  # noqa: F401  (copies the endpoint when imported)
from huggingface_hub import constants

_REVISION = "0" * 39 + "1"
_CLIENTS = ("huggingface_hub", "datasets", "transformers", "transformer_lens", "sae_lens")


@lru_cache
def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of the Hub that reading needs; the server carries ``root``."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _answer(self, body: bytes) -> None:
        url = urllib.parse.urlparse(self.path)
        path, query = urllib.parse.unquote(url.path), urllib.parse.parse_qs(url.query)
        if match := re.match(r"^/api/(?:models|datasets)/([^/]+/[^/]+)(?:/(.*))?$", path):
            self._describe(match[1], match[2] or "", query, body)
        elif match := re.match(r"^(?:/datasets)?/([^/]+/[^/]+)/resolve/[^/]+/(.+)$", path):
            self._file(match[1], match[2])
        else:
            self._missing("EntryNotFound")

    def _describe(self, repo: str, what: str, query: dict[str, list[str]], body: bytes) -> None:
        folder = self._root / repo
        if not folder.is_dir():
            return self._missing("RepoNotFound")
        if not what or what.startswith("revision/"):
            return self._json(self._summary(repo))
        if what.startswith("tree/"):
            inside = folder / "/".join(what.split("/")[2:])
            if not inside.is_dir():
                return self._missing("EntryNotFound")
            recursive = query.get("recursive", [""])[0].lower() == "true"
            found = sorted(inside.rglob("*") if recursive else inside.iterdir())
            return self._json([self._entry(folder, each) for each in found])
        if what.startswith("paths-info/"):
            if "json" in self.headers.get("Content-Type", ""):
                asked = json.loads(body).get("paths", [])
            else:
                asked = urllib.parse.parse_qs(body.decode()).get("paths", [])
            asked = [asked] if isinstance(asked, str) else asked
            found = [folder / each for each in asked if (folder / each).exists()]
            return self._json([self._entry(folder, each) for each in found])
        if what.startswith("refs"):
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": _REVISION}
            return self._json({"branches": [branch], "converts": [], "tags": []})
        return self._missing("EntryNotFound")

    def _summary(self, repo: str) -> dict[str, Any]:
        folder = self._root / repo
        files = [each for each in sorted(folder.rglob("*")) if each.is_file()]
        time = "2024-01-01T00:00:00.000Z"
        return {
            "_id": "0",
            "id": repo,
            "modelId": repo,
            "sha": _REVISION,
            "private": False,
            "disabled": False,
            "gated": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "lastModified": time,
            "createdAt": time,
            "cardData": {},
            "siblings": [{"rfilename": str(each.relative_to(folder))} for each in files],
        }

    @staticmethod
    def _entry(folder: Path, path: Path) -> dict[str, Any]:
        entry = {"path": str(path.relative_to(folder)), "size": 0, "oid": _REVISION}
        if path.is_dir():
            return {**entry, "type": "directory"}
        return {**entry, "type": "file", "size": path.stat().st_size, "oid": _digest(path)}

    def _file(self, repo: str, path: str) -> None:
        file = self._root / repo / path
        if not (self._root / repo).is_dir():
            return self._missing("RepoNotFound")
        if not file.is_file():
            return self._missing("EntryNotFound")
        body = file.read_bytes()
        headers = {"ETag": f'"{_digest(file)}"', "X-Repo-Commit": _REVISION}
        headers["Accept-Ranges"] = "bytes"
        part = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part and self.command == "GET":
            first = int(part[1])
            last = min(int(part[2] or len(body)), len(body) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            return self._send(206, body[first : last + 1], headers)
        return self._send(200, body, headers)

    @property
    def _root(self) -> Path:
        return self.server.root  # pyright: ignore[reportAttributeAccessIssue]

    def _missing(self, code: str) -> None:
        self._send(404, b'{"error": "not found"}', {"X-Error-Code": code})

    def _json(self, answer: Any) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving(root: Path, handler: type[Handler] = Handler, **known: Any) -> Iterator[str]:
    """Serve ``root`` from a thread; yields the endpoint's address.

    Args:
        root: Folder to serve.
        handler: What answers.
        known: Further attributes of the server, for the handler.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    for name, value in {"root": root, **known}.items():
        setattr(server, name, value)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_clients_at(endpoint: str, home: Path, patch: pytest.MonkeyPatch) -> None:
    """Make every Hub client of this process and of its children read from ``endpoint``.

    The clients read HF_ENDPOINT and HF_HOME once, when imported, into constants that other
    modules copy. Under pytest they are long imported, so besides the environment (for
    subprocesses and for modules still to come) every copy in a loaded module is replaced.

    Args:
        endpoint: Address of the Hub.
        home: Folder for every cache, instead of the user's.
        patch: Puts everything back.
    """
    environment = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    for name, value in environment.items():
        patch.setenv(name, value)
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_HUB_OFFLINE"):
        patch.delenv(name, raising=False)
    moved = {constants.ENDPOINT: endpoint, constants.HF_HOME: str(home)}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] not in _CLIENTS or module is None:
            continue
        for attribute, value in list(vars(module).items()):
            if attribute in ("HF_HUB_OFFLINE", "_is_offline_mode") and value is True:
                patch.setattr(module, attribute, False)
            if not isinstance(value, str | Path):
                continue
            for old, new in moved.items():
                if str(value).startswith(old):
                    patch.setattr(module, attribute, type(value)(new + str(value)[len(old) :]))
    # Asks another host to count the download, which stalls without a network.
    patch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False, raising=False)
    # Made at import time, with the address of then.
    patch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
    huggingface_hub.HfFileSystem.clear_instance_cache()
