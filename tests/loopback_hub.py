"""A Hugging Face Hub on loopback, and how to make the real clients use it.

`Handler` serves ``root/<owner>/<name>/...``, models and datasets alike, to the unchanged
huggingface_hub, datasets, transformers and transformer_lens: streaming, parquet, script
datasets, snapshots. `WritableHandler` accepts commits into a `Hub`, and can be told to fail:
small files are git blobs, ``.safetensors`` go through LFS (batch, upload, verify), every commit
is kept, every request is noted; what it refuses, it refuses with the Hub's codes and headers.
`RefusingHandler` refuses everything.
"""

import base64
import hashlib
import json
import re
import socket
import sys
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import datasets.config
import huggingface_hub
import pytest
import transformer_lens  # noqa: F401  (copies the cache folder when imported)
import transformers.utils.hub  # noqa: F401  (copies the endpoint when imported)
import yaml
from huggingface_hub import constants

from tests.loopback import answered_by

_REVISION = "0" * 39 + "1"
_CLIENTS = ("huggingface_hub", "datasets", "transformers", "transformer_lens", "sae_lens")
WRITER, READER = "hf_" + "w" * 34, "hf_" + "r" * 34
OWNER = "alice"
# Of https://huggingface.co/docs/hub/repositories-licenses, what tests use and its neighbours.
_LICENSES = {"mit", "apache-2.0", "bsd-3-clause", "cc-by-4.0", "gpl-3.0", "other"}
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


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


class RefusingHandler(Handler):
    """Refuses every request; the server carries ``status`` and ``code``."""

    def _answer(self, body: bytes) -> None:
        del body
        status, code = (getattr(self.server, name) for name in ("status", "code"))
        self._send(status, b"", {"X-Error-Code": code})


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Commit:
    """One commit.

    Attributes:
        message: Its first line.
        files: All files of the tree after it.
        changed: Paths added or changed.
        deleted: Paths deleted.
    """

    message: str
    files: dict[str, bytes]
    changed: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        parts = [self.message, *sorted(f"{p} {git_sha1(c)}" for p, c in self.files.items())]
        return hashlib.sha1("\n".join(parts).encode()).hexdigest()


@dataclass
class Repo:
    """A repo: branches of commits, and which paths LFS holds."""

    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def head(self, branch: str) -> Commit:
        return self.branches[branch][-1]


@dataclass
class Hub:
    """What the server knows.

    Attributes:
        repos: By name.
        large: LFS objects by SHA-256.
        requests: (method, path) of every request.
        failures: (method, pattern of the path) to what is done instead of answering: a
            (status, words) answer, or "drop" to cut the connection within the body.
        after: How many matching requests pass before the failure.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    failures: dict[tuple[str, str], Any] = field(default_factory=dict)
    after: int = 0
    tokens: dict[str, str] = field(default_factory=lambda: {WRITER: "write", READER: "read"})
    lock: Any = field(default_factory=threading.Lock)

    def make(
        self, name: str, files: dict[str, bytes] | None = None, private: bool = False
    ) -> Repo:
        """A new repo, as the Hub makes them: with a .gitattributes."""
        first = {".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})}
        commit = Commit("initial commit", first, list(first))
        self.repos[name] = Repo(private, {"main": [commit]})
        return self.repos[name]

    def writes(self) -> list[tuple[str, str]]:
        """Requests that could change something; those that only ask are not among them."""
        asks = ("/paths-info/", "/validate-yaml")
        return [
            (m, p)
            for m, p in self.requests
            if m not in ("GET", "HEAD") and not any(a in p for a in asks)
        ]

    def messages(self, name: str, branch: str = "main") -> list[str]:
        return [commit.message for commit in self.repos[name].branches[branch]]


class WritableHandler(Handler):
    """Reading from commits instead of from a folder, and writing."""

    def do_PUT(self) -> None:
        # The body is read where the answer is made: it may be cut short.
        self._answer(b"")

    @property
    def _hub(self) -> Hub:
        return self.server.hub  # pyright: ignore[reportAttributeAccessIssue]

    def _answer(self, body: bytes) -> None:
        url = urllib.parse.urlparse(self.path)
        path = urllib.parse.unquote(url.path)
        with self._hub.lock:
            self._hub.requests.append((self.command, path))
            failure = self._failure(path)
        if self.command == "PUT":
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length // 2 if failure == "drop" else length)
        if failure == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if failure is not None:
            self._refuse(*failure)
            return
        with self._hub.lock:
            self._route(path, urllib.parse.parse_qs(url.query), body)

    def _failure(self, path: str) -> Any:
        for (method, pattern), what in self._hub.failures.items():
            if self.command == method and re.search(pattern, path):
                if self._hub.after > 0:
                    self._hub.after -= 1
                    return None
                return what
        return None

    def _role(self) -> str | None:
        """Of the token sent: write, read, bad; None without one."""
        sent = self.headers.get("authorization", "").removeprefix("Bearer ")
        return self._hub.tokens.get(sent, "bad") if sent else None

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        if self._role() == "bad":
            self._refuse(401, "Invalid credentials in Authorization header")
        elif path == "/api/whoami-v2":
            self._whoami()
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body))
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/lfs/(\w+)(/verify)?", path):
            self._object(match[1], bool(match[2]), body)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            if self._may_write(match[1]):
                self._batch(json.loads(body))
        elif match := re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path
        ):
            if self._may_write(match[1]):
                getattr(self, f"_{match[2]}")(match[1], match[3], body)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(.*))?", path):
            if self._may_read(match[1]):
                self._describe(match[1], match[2] or "", query, body)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if self._may_read(match[1]):
                self._content(match[1], match[2], match[3])
        else:
            self._missing("EntryNotFound")

    # Who may.

    def _whoami(self) -> None:
        if self._role() is None:
            return self._refuse(401, "Invalid username or password.")
        token = {"displayName": "t", "role": self._role()}
        return self._json({"name": OWNER, "type": "user", "auth": {"accessToken": token}})

    def _may_read(self, name: str) -> bool:
        repo = self._hub.repos.get(name)
        if repo is None or (repo.private and self._role() is None):
            self._missing("RepoNotFound")
            return False
        return True

    def _may_write(self, name: str) -> bool:
        if not self._may_read(name):
            return False
        if self._role() != "write" or name.split("/")[0] != OWNER:
            self._refuse(403, "You don't have the rights to push to this repo.")
            return False
        return True

    # Making.

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        if name in self._hub.repos:
            return self._refuse(409, "You already created this model repo")
        if self._role() != "write" or not name.startswith(f"{OWNER}/"):
            said = f"You don't have the rights to create a model under {name.split('/')[0]}"
            return self._refuse(403, said)
        self._hub.make(name, private=bool(asked.get("private")))
        return self._json({"url": f"{self._base}/{name}", "name": name})

    def _branch(self, name: str, branch: str, body: bytes) -> None:
        del body
        branches = self._hub.repos[name].branches
        if branch in branches:
            return self._refuse(409, "Reference already exists")
        branches[branch] = list(branches["main"])
        return self._json({})

    def _preupload(self, name: str, branch: str, body: bytes) -> None:
        tree = self._tree(name, branch)
        if tree is None:
            return
        answers = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": self._name(each["path"], tree[each["path"]])
                if each["path"] in tree
                else None,
            }
            for each in json.loads(body)["files"]
        ]
        self._json({"files": answers})

    @staticmethod
    def _name(path: str, content: bytes) -> str:
        if path.endswith(".safetensors"):
            return hashlib.sha256(content).hexdigest()
        return git_sha1(content)

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for each in asked["objects"]:
            answer = dict(each)
            if each["oid"] not in self._hub.large:
                place = f"{self._base}/lfs/{each['oid']}"
                answer["actions"] = {
                    "upload": {"href": f"{place}?X-Amz-Signature=s3cr3t"},
                    "verify": {"href": f"{place}/verify"},
                }
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def _object(self, oid: str, verify: bool, body: bytes) -> None:
        if verify:
            size = json.loads(body)["size"]
            if len(self._hub.large.get(oid, b"")) != size:
                return self._refuse(400, "the object was not uploaded in full")
            return self._json({})
        if hashlib.sha256(body).hexdigest() != oid:
            return self._refuse(400, "the content is not what its name says")
        self._hub.large[oid] = body
        return self._send(200, b"", {})

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        tree = self._tree(name, branch)
        if tree is None:
            return None
        files, changed, deleted = dict(tree), [], []
        message = ""
        for line in body.splitlines():
            step = json.loads(line)
            kind, value = step["key"], step["value"]
            if kind == "header":
                message = value["summary"]
            elif kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                changed.append(value["path"])
            elif kind == "lfsFile":
                if value["oid"] not in self._hub.large:
                    return self._refuse(400, f"LFS object of {value['path']} is not there")
                files[value["path"]] = self._hub.large[value["oid"]]
                changed.append(value["path"])
            elif kind == "deletedFile":
                if value["path"] not in files:
                    return self._missing("EntryNotFound")
                del files[value["path"]]
                deleted.append(value["path"])
            else:
                return self._refuse(400, f"unknown step {kind}")
        commit = Commit(message, files, changed, deleted)
        self._hub.repos[name].branches[branch].append(commit)
        url = f"{self._base}/{name}/commit/{commit.sha}"
        return self._json({"success": True, "commitUrl": url, "commitOid": commit.sha})

    def _validate(self, asked: dict[str, Any]) -> None:
        """Front matter by the rules of the Hub."""
        found = re.match(r"---\n(.*?)\n---\n", asked["content"], re.DOTALL)
        data = yaml.safe_load(found[1]) if found else None
        if not isinstance(data, dict):
            warning = {"message": "empty or missing yaml metadata in repo card"}
            return self._json({"errors": [], "warnings": [warning]})
        errors = []
        if data.get("license") not in _LICENSES:
            errors.append('"license" must be one of [apache-2.0, mit, ...]')
        if data.get("license") == "other" and not data.get("license_name"):
            errors.append('"license_name" is required')
        for key in ("base_model", "datasets"):
            value = data.get(key, [])
            for each in [value] if isinstance(value, str) else value:
                if not _ID.fullmatch(each):
                    errors.append(f'"{key}" with value "{each}" is not valid')
        tags = data.get("tags", [])
        if not all(isinstance(tag, str) for tag in tags) or len(Counter(tags)) != len(tags):
            errors.append('"tags" must be distinct strings')
        answer = {"errors": [{"message": e} for e in errors], "warnings": []}
        body = json.dumps(answer).encode()
        headers = {"Content-Type": "application/json"}
        return self._send(400 if errors else 200, body, headers)

    # Reading.

    def _tree(self, name: str, branch: str) -> dict[str, bytes] | None:
        commits = self._hub.repos[name].branches
        for of_branch, history in commits.items():
            if branch in (of_branch, *(c.sha for c in history)):
                return next((c.files for c in history if c.sha == branch), history[-1].files)
        self._missing("RevisionNotFound")
        return None

    def _describe(self, repo: str, what: str, query: dict[str, list[str]], body: bytes) -> None:
        del query, body
        kind, _, revision = what.partition("/")
        tree = self._tree(repo, revision or "main")
        if tree is None:
            return
        if kind == "tree":
            self._json([self._listed(path, content) for path, content in tree.items()])
            return
        here = self._hub.repos[repo]
        branch = revision if revision in here.branches else "main"
        time = "2024-01-01T00:00:00.000Z"
        self._json(
            {
                "_id": "0",
                "id": repo,
                "modelId": repo,
                "sha": here.head(branch).sha,
                "private": here.private,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "lastModified": time,
                "createdAt": time,
                "siblings": [{"rfilename": path} for path in tree],
            }
        )

    def _listed(self, path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
        if not path.endswith(".safetensors"):
            return {**entry, "oid": git_sha1(content)}
        oid = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\n".encode()
        lfs = {"oid": oid, "size": len(content), "pointerSize": len(pointer)}
        return {**entry, "oid": git_sha1(pointer), "lfs": lfs}

    def _content(self, name: str, revision: str, path: str) -> None:
        tree = self._tree(name, revision)
        if tree is None:
            return
        if path not in tree:
            self._missing("EntryNotFound")
            return
        content = tree[path]
        branches = self._hub.repos[name].branches
        sha = self._hub.repos[name].head(revision).sha if revision in branches else revision
        headers = {"ETag": f'"{self._name(path, content)}"', "X-Repo-Commit": sha}
        self._send(200, content, headers)

    @property
    def _base(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"  # pyright: ignore[reportAttributeAccessIssue]

    def _refuse(self, status: int, words: str) -> None:
        body = json.dumps({"error": words}).encode()
        headers = {"Content-Type": "application/json", "X-Error-Message": words}
        self._send(status, body, headers)


@contextmanager
def serving(root: Path, handler: type[Handler] = Handler, **known: Any) -> Iterator[str]:
    """Serve ``root`` from a thread; yields the endpoint's address.

    Args:
        root: Folder to serve.
        handler: What answers.
        known: Further attributes of the server, for the handler.
    """
    with answered_by(handler, root=root, **known) as address:
        yield address


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
