"""Files that are there in full or not at all, what is wrong with one, and links."""

import csv
import errno
import functools
import hashlib
import json
import lzma
import os
import re
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sae_baselines.errors import UserError, one_line

# Where a JSON file keeps the checksum of the rest of it.
SEAL = "checksum"
# What desktops, editors and network disks leave in folders.
_JUNK = re.compile(
    r"\.DS_Store|\.localized|Thumbs\.db|desktop\.ini|\._.*|\.nfs.*|.*~|\.?#.*|\..*\.sw[a-p]"
    r"|__MACOSX|@eaDir|\.Trash.*|\.fuse_hidden.*"
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_OF_DISKS = (errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT)
_OF_DEVICES = re.compile(r"(?i)\bdevice|cuda|pin_memory|\bmps\b|\bhip\b|accelerator|backend")
_OF_MEMORY = re.compile(r"(?i)out of memory|allocate memory|not enough memory")
_CHUNK = 1 << 22
# What libraries raise on files that are cut, of another kind or unreadable.
ODD_FILES = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, ArithmeticError),
    *(RuntimeError, MemoryError, SafetensorError, zipfile.BadZipFile, zlib.error),
    *(lzma.LZMAError, csv.Error),
)


def is_junk(name: str) -> bool:
    """Whether a file of this name is a desktop's or an editor's, and nobody's work."""
    return _JUNK.fullmatch(name) is not None


def sync(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Not every system lets a folder be synced.
        with suppress(*[OSError] if path.is_dir() else []):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A scratch path that becomes ``path`` when the block succeeds, and is on the disk then.

    A link at ``path`` is replaced, never written through. The folder is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")  # keeps the suffix
    try:
        yield scratch
        sync(scratch)
        scratch.replace(path)
        sync(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either there in full or not at all.

    Args:
        path: Its folder is made if it is not there.
        content: Bytes, or text to be written as UTF-8.
    """
    with new_file(path) as scratch:
        scratch.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """The same for a folder: what was there is replaced when the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"
    scratch.mkdir()
    try:
        yield scratch
        for file in scratch.rglob("*"):
            sync(file)
        sync(scratch)
        remove(target)
        scratch.replace(target)
        sync(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def own_file(path: Path) -> Path:
    """A path to open for writing or appending: its folder is made, a link there taken away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        path.unlink()
    return path


def remove(path: Path) -> None:
    """Delete a file or folder; of a link, the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def keep_links_inside(root: Path, allowed: Collection[str] = ("checkpoints",)) -> None:
    """Refuse a folder with a linked folder that leads out of it.

    What is written or deleted through such a link is somebody else's. The folder may itself
    be a link. Linked files are safe: they are replaced, not written through. Folders whose
    names begin with a dot are searched one level deep: evaluations link their data sets there.

    Args:
        root: The folder.
        allowed: Names directly in it that may lead anywhere: checkpoints may need another disk,
            and are claimed before they are written or deleted.

    Raises:
        UserError: The first link that leads out.
    """
    real = root.resolve()
    for folder, names, _ in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink() or path.resolve().is_relative_to(real):
                continue
            if Path(folder) == root and name in allowed:
                continue
            raise UserError(
                f"{path}: is a link out of {root}, to {path.resolve()}; nothing is written or "
                "deleted there, so put a folder in its place"
            )
        if Path(folder) != root and Path(folder).name.startswith("."):
            names.clear()


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, changed: int) -> str:
    del size, changed
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read once as long as it does not change."""
    state = path.stat()
    return _sha256(path.resolve(), state.st_size, state.st_mtime_ns)


def size_text(n: float, base: int = 1024) -> str:
    """Bytes for people, to three digits: ``3.81 GiB``.

    Args:
        n: Bytes.
        base: 1024, as memory and disks are counted; or 1000, as the Hub shows files (``kB``).
    """
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    if base == 1000:
        units = ["B", "kB", "MB", "GB", "TB", "PB"]
    while n >= base and len(units) > 1:
        n /= base
        units.pop(0)
    digits = 0 if units[0] == "B" or n >= 100 else 1 if n >= 10 else 2
    return f"{n:,.{digits}f} {units[0]}"


def parse_json(text: str | bytes) -> Any:
    """What JSON says.

    Raises:
        ValueError: It is no JSON, or has a key twice, of which nobody knows which counts.
    """
    return json.loads(text, object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name[:80]!r} is there twice; keep one")
        found[name] = value
    return found


def flaw_of(path: Path, ours: bool = True) -> str | None:
    """What is wrong with a JSON or safetensors file, at the price of its header; else None.

    Args:
        path: The file.
        ours: It has to be a mapping with each key once, as this package and SAELens write it;
            other libraries' files may be anything that they read.

    Raises:
        OSError: It cannot be read, which says nothing of what is in it.
    """
    size, length = path.stat().st_size, 0
    with path.open("rb") as file:
        if path.suffix != ".safetensors":
            text = file.read() if path.suffix == ".json" else b"{}"
        elif size < 8:
            return f"cut short at {size} bytes"
        else:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                return f"cut short at {size:,} bytes"
            text = file.read(length)
    try:
        told = parse_json(text) if ours else json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {one_line(error)}" if size else "empty"
    if not isinstance(told, dict) and (ours or path.suffix != ".json"):
        return "no mapping"
    if path.suffix != ".safetensors":
        return None
    try:
        ends = [entry["data_offsets"][1] for name, entry in told.items() if name[:2] != "__"]
        whole = 8 + length + max(ends, default=0)
    except (KeyError, TypeError, IndexError):
        return "no table of tensors"
    return None if size == whole else f"{size:,} bytes long and not {whole:,}"


def write_sealed(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON with its own checksum in it, which `read_json` holds it against.

    It tells an edit, not a forgery: whoever edits can compute it again.
    """
    # As it will be read back: text for keys, lists for tuples.
    body = json.loads(json.dumps({name: data[name] for name in data if name != SEAL}))
    write_atomically(path, json.dumps({**body, SEAL: checksum_of(body)}, indent=2))


def checksum_of(body: Any) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def is_sealed(path: Path) -> bool:
    """Whether a JSON file holds its own checksum; those of older versions do not."""
    return SEAL in parse_json(path.read_text(encoding="utf-8"))


def read_json(path: Path, remedy: str = "delete it and run again") -> dict[str, Any] | None:
    """What a JSON file of this package holds, without its checksum; None if there is none.

    Raises:
        UserError: It cannot be read, holds no mapping or was edited after it was written;
            ``remedy`` says what to do then.
    """
    try:
        data: Any = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise TypeError("no mapping")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise unreadable(path, error, remedy) from error
    if (seal := data.pop(SEAL, None)) is not None and seal != checksum_of(data):
        raise UserError(
            f"{path}: was changed after it was written (its checksum is another); {remedy}"
        )
    return data


def check_shape(path: Path, data: Any, shape: Any, remedy: str) -> None:
    """Refuse a file whose data are of another shape than what reads them takes.

    Args:
        path: The file.
        data: What it holds.
        shape: A type, or a union of some; ``[shape]`` for a list; ``{name: shape}`` for a
            mapping with at least these, where ``name?`` may be missing or null;
            ``{str: shape}`` for one of any names.
        remedy: What to do then.

    Raises:
        UserError: Names the first field.
    """
    if (flaw := _misfit(data, shape, "")) is not None:
        raise UserError(f"{path}: {flaw}; {remedy}")


def _misfit(value: Any, shape: Any, where: str) -> str | None:
    kind: Any = type(shape) if isinstance(shape, list | dict) else shape
    of: Any = type(value)
    if not isinstance(value, kind) or (of is bool and kind is not bool):
        kind = {dict: "mapping", str: "text"}.get(kind, getattr(kind, "__name__", kind))
        return f"{where or 'it'}: {value!r:.80} is no {kind}"
    shapes: dict[Any, Any] = {}
    if isinstance(shape, list):
        value = dict(enumerate(value))
        shapes = dict.fromkeys(value, shape[0])
    elif isinstance(shape, dict):
        shapes = dict.fromkeys(value, shape[str]) if str in shape else shape
    for name, inner in shapes.items():
        if str(name).endswith("?") and name not in value:
            name = name[:-1]
            if value.get(name) is None:
                continue
        inside = f"{where}.{name}" if where else str(name)
        if name not in value:
            return f"has no {inside}"
        if (flaw := _misfit(value[name], inner, inside)) is not None:
            return flaw
    return None


def unreadable(
    path: Path, error: BaseException, remedy: str = "delete it and run again"
) -> UserError:
    """Why a file, or a folder of files, could not be read, in one line.

    Only what is in the files can be mended by replacing them. A device that is not there, a
    missing permission, a failing disk or a lack of memory says nothing of them, and whoever
    deleted them then would lose good data.

    Args:
        path: What was read.
        error: What came of it, from any library.
        remedy: What to do if it is damaged.
    """
    failure = error if isinstance(error, OSError) and error.errno is not None else None
    flaw, where = None, path
    # Libraries report an unreadable file in many ways; the file itself is asked.
    for file in [] if failure else sorted(path.rglob("*")) if path.is_dir() else [path]:
        try:
            if file.is_file() and not is_junk(file.name):
                flaw = flaw_of(file)
                with file.open("rb") as stream:
                    while stream.read(_CHUNK):
                        pass
        except OSError as found:
            failure, where = found, file
            break
        if flaw is not None:
            where = file
            break
    said = one_line(error, 200) or type(error).__name__
    if isinstance(error, KeyError):
        said = f"it has no {said}"
    if isinstance(error, FileNotFoundError) and path.is_dir():
        failure, flaw = None, f"a file is missing: {said}"
    if failure is not None:
        where = Path(failure.filename) if isinstance(failure.filename, str) else where
        return UserError(f"{where}: cannot be read: {failed(failure)}")
    if isinstance(error, MemoryError) or _OF_MEMORY.search(said):
        return UserError(f"{where}: does not fit into memory ({said}); the file is whole")
    if flaw is None and isinstance(error, OSError):
        return UserError(f"{where}: cannot be read: {said}")
    by_torch = isinstance(error, RuntimeError | AssertionError) or (
        type(error).__name__ == "SafetensorError"
    )
    if flaw is None and by_torch and _OF_DEVICES.search(said):
        return UserError(f"device: {where} cannot be loaded there ({said}); the file is whole")
    return UserError(f"{where}: is damaged ({flaw or said}); {remedy}")


@contextmanager
def reading(path: Path, remedy: str = "delete it and run again") -> Iterator[None]:
    """Say what is wrong with a file where the block cannot read it; see `unreadable`.

    Args:
        path: What is read.
        remedy: What to do if it is damaged.

    Raises:
        UserError: It could not be read.
    """
    try:
        yield
    except UserError:
        raise
    except ODD_FILES as error:
        raise unreadable(path, error, remedy) from error


@contextmanager
def writing(folder: Path | None) -> Iterator[None]:
    """Say that a disk takes no more where a library that writes in the block hides it.

    torch and safetensors raise errors of their own then, with no word of the disk.

    Args:
        folder: Where the block writes; None if it does not.

    Raises:
        OSError: What the disk answers to a little more, in place of their errors.
    """
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if folder is not None and folder.is_dir():
            more = folder / f".{uuid.uuid4().hex[:8]}"
            try:
                more.write_bytes(bytes(_CHUNK))
                sync(more)
            except OSError as refused:
                raise OSError(refused.errno, refused.strerror, str(folder)) from error
            finally:
                more.unlink(missing_ok=True)
        raise


def failed(error: OSError) -> str:
    """What the system refused, and what helps."""
    what = error.strerror or one_line(error, 200)
    if error.errno in _NOT_ALLOWED:
        return f"{what}; give yourself permission (chmod), or run as its owner"
    if error.errno in _NO_ROOM:
        return f"{what}; free some and run the same command again, what is finished is kept"
    if error.errno == errno.ENOENT:
        return f"{what}; put it back, or name the right place"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{what}; close some, or raise the limit (ulimit -n)"
    if error.errno == errno.ENOMEM:
        return f"{what}; nothing is wrong with it, close other programs"
    if error.errno in _OF_DISKS:
        return f"{what}; the disk or its mount failed, try again before anything is deleted"
    return what
