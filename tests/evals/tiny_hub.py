"""What SAEBench asks of the Hub, in miniature: a trained GPT-NeoX and the datasets' schemas.

The model answers to the names of two Pythias, since transformer_lens and SAEBench know models
by name only. It has learnt its texts: the next word, words' first letters, RAVEL's facts.
"""

import json
import os
import random
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from sae_bench.sae_bench_utils.dataset_info import amazon_category_dict, profession_dict
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from sae_baselines.evals.measured import Measured
from sae_baselines.evals.suite import Subject, Suite, SuiteCall

MODEL = "pythia-70m-deduped"
# The only small model that RAVEL knows.
RAVEL_MODEL = "pythia-160m-deduped"
_THRESHOLD = 0.5
HOOK = "blocks.0.hook_resid_post"
D_MODEL = 64
CONTEXT = 128

# A section 'evals' that takes seconds.
QUICK_EVALS: dict[str, Any] = {
    "suites": {
        "core": {
            "n_eval_reconstruction_batches": 1,
            "n_eval_sparsity_variance_batches": 1,
            "context_size": 64,
        }
    },
    "llm_batch_size": 8,
}

_FILLERS = "the a of and to in that with for on was is by as it from who has first letter"
_CITIES = {
    "Paris": ("France", "Europe", "French"),
    "Lyon": ("France", "Europe", "French"),
    "Berlin": ("Germany", "Europe", "German"),
    "Munich": ("Germany", "Europe", "German"),
    "Tokyo": ("Japan", "Asia", "Japanese"),
    "Osaka": ("Japan", "Asia", "Japanese"),
    "Cairo": ("Egypt", "Africa", "Arabic"),
    "Luxor": ("Egypt", "Africa", "Arabic"),
}
_CITY_TEMPLATES = {
    "Country": ("City: %s. Country:", "The country of %s is"),
    "Continent": ("City: %s. Continent:", "The continent of %s is"),
    "Language": ("City: %s. Language:", "The language of %s is"),
}
_WINNERS = {
    "Marie Curie": ("Poland", "Physics", "Female"),
    "Albert Einstein": ("Germany", "Physics", "Male"),
    "Pablo Neruda": ("Chile", "Literature", "Male"),
    "Toni Morrison": ("America", "Literature", "Female"),
    "Linus Pauling": ("America", "Chemistry", "Male"),
    "Ada Yonath": ("Israel", "Chemistry", "Female"),
}
_WINNER_TEMPLATES = {
    "Country of Birth": ("Name: %s. Birthplace:", "The birthplace of %s is"),
    "Field": ("Name: %s. Field:", "The field of %s is"),
    "Gender": ("Name: %s. Gender:", "The gender of %s is"),
}
_RAVEL = {
    "city": (_CITIES, _CITY_TEMPLATES),
    "nobel_prize_winner": (_WINNERS, _WINNER_TEMPLATES),
}
_LANGUAGES = {
    "en": "the and of house water people",
    "fr": "le et de maison eau gens",
    "de": "der und von haus wasser leute",
    "es": "el y casa agua gente pero",
    "nl": "het en van huis water mensen",
    "it": "il e di casa acqua persone",
    "pt": "o e de casa agua povo",
}
_CODE = {
    "C": "int void struct printf malloc",
    "Python": "def self import return lambda",
    "HTML": "<div> <span> href class body",
    "Java": "public static class extends throws",
    "PHP": "<?php echo $this function array",
}
_NEWS = (
    "war minister election",
    "team match coach",
    "market shares profit",
    "software chip web",
)
# The real dataset is a script as well, which is asked for languages.
_CODE_SCRIPT = """
import json
import datasets


class Config(datasets.BuilderConfig):
    def __init__(self, languages=("all",), **others):
        super().__init__(name="+".join(languages), version=datasets.Version("1.0.0"), **others)
        self.languages = languages


class GithubCode(datasets.GeneratorBasedBuilder):
    BUILDER_CONFIG_CLASS = Config
    BUILDER_CONFIGS = [Config(languages=["all"])]

    def _info(self):
        text = datasets.Value("string")
        return datasets.DatasetInfo(
            features=datasets.Features({"code": text, "language": text})
        )

    def _split_generators(self, manager):
        rows = manager.download("rows.jsonl")
        return [datasets.SplitGenerator("train", gen_kwargs={"path": rows})]

    def _generate_examples(self, path):
        for i, line in enumerate(open(path)):
            row = json.loads(line)
            if "all" in self.config.languages or row["language"] in self.config.languages:
                yield i, row
"""


def build_once(root: Path) -> Path:
    """The Hub's folder, built by whichever worker comes first; deterministic."""
    with FileLock(f"{root}.lock"):
        if not (root / "complete").exists():
            with torch.random.fork_rng(devices=[]):
                _build(root)
            (root / "complete").touch()
    return root


def tiny_sae(
    seed: int = 0,
    d_sae: int = 64,
    architecture: str = "jumprelu",
    model_name: str = MODEL,
    hook_name: str = HOOK,
) -> SAE[Any]:
    """An untrained SAE on the tiny model: unit decoder rows, tied encoder, some ten latents on.

    Args:
        seed: Of its directions.
        d_sae: Latents.
        architecture: "jumprelu", "topk" or "standard".
        model_name: `MODEL` or `RAVEL_MODEL`.
        hook_name: Where it reads.
    """
    directions = torch.randn(d_sae, D_MODEL, generator=torch.Generator().manual_seed(seed))
    directions /= directions.norm(dim=-1, keepdim=True)
    options: dict[str, Any] = {"k": 10} if architecture == "topk" else {}
    config = {
        "architecture": architecture,
        "d_in": D_MODEL,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "metadata": SAEMetadata(
            model_name=model_name,
            hook_name=hook_name,
            context_size=CONTEXT,
            prepend_bos=True,
            dataset_path="Skylion007/openwebtext",
        ).to_dict(),
    }
    sae = SAE.from_dict({**config, **options})
    with torch.no_grad():
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
        if architecture == "jumprelu":
            sae.threshold.fill_(_THRESHOLD)  # pyright: ignore[reportCallIssue]
        if architecture == "standard":
            sae.b_enc.fill_(-_THRESHOLD)  # pyright: ignore[reportCallIssue]
    return sae


def transcoder_of(
    sae: SAE[Any], d_out: int = 48, out: str = "blocks.0.mlp.hook_post"
) -> SAE[Any]:
    """A transcoder with the encoder of a `tiny_sae` (jumprelu), which writes elsewhere."""
    config = sae.cfg.to_dict()
    metadata = {**config["metadata"], "hook_name_out": out}
    options = {"architecture": "jumprelu_transcoder", "d_out": d_out, "metadata": metadata}
    twin: Any = SAE.from_dict({**config, **options, "apply_b_dec_to_input": False})
    state: Any = sae.state_dict()
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "threshold"):
            getattr(twin, name).copy_(state[name])
        twin.W_dec.copy_(
            torch.eye(d_out).repeat(1 + len(twin.W_dec) // d_out, 1)[: len(twin.W_dec)]
        )
    return twin


def suite_call(
    suite: Suite,
    folder: Path,
    options: Mapping[str, Any] | None = None,
    name: str = "tiny",
    seed: int = 0,
    sae: SAE[Any] | None = None,
    cache: Path | None = None,
    batch: int = 32,
) -> SuiteCall:
    """A call of ``suite`` on CPU with folders of its own below ``folder``.

    Args:
        suite: The adapter, which completes ``options``.
        folder: A temporary folder.
        options: The user's changes.
        name: Unique name of the SAE.
        seed: SAEBench's seed.
        sae: Whose model and hook; `tiny_sae`'s by default.
        cache: Shared cache; ``folder/cache`` by default.
        batch: Prompts in one forward pass.
    """
    sae = tiny_sae() if sae is None else sae
    metadata = sae.cfg.metadata
    call = SuiteCall(
        subject=Subject(
            model_name=str(metadata.model_name),
            hook_name=str(metadata.hook_name),
            hook_name_out=metadata.hook_name_out,
            d_in=sae.cfg.d_in,
            d_sae=sae.cfg.d_sae,
            device="cpu",
            llm_dtype="float32",
            llm_batch_size=batch,
        ),
        options=suite.resolve(suite.complete(options or {})),
        seed=seed,
        name=name,
        output=folder.absolute() / "output" / suite.name / name,
        cache=(cache or folder / "cache").absolute(),
        work=folder.absolute() / "work" / suite.name / name,
    )
    for each in (call.output, call.cache, call.work):
        each.mkdir(parents=True, exist_ok=True)
    return call


def evaluate_with(
    suite: Suite, sae: SAE[Any], call: SuiteCall
) -> tuple[dict[str, Any], dict[str, Any], list[Measured]]:
    """Run the adapter as its caller must: seeded, inside ``call.work``, on a copy.

    Returns:
        SAEBench's JSON, the extras and the rows.
    """
    random.seed(call.seed)
    np.random.seed(call.seed)
    torch.manual_seed(call.seed)
    before = Path.cwd()
    os.chdir(call.work)
    try:
        extras = suite.run(copy_of(sae), call)
    finally:
        os.chdir(before)
    payload = json.loads(call.expected.read_text())
    return payload, extras.values, suite.rows(payload, extras.values)


@contextmanager
def floors_failing(suite: Suite) -> Iterator[None]:
    """What orders latents for floors breaks."""

    def fail(*_: Any) -> Any:
        raise RuntimeError("no order")

    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(f"{type(suite).__module__}.firing_first", fail)
        yield


def copy_of(sae: SAE[Any]) -> SAE[Any]:
    """An equal SAE that shares nothing."""
    twin = SAE.from_dict(sae.cfg.to_dict())
    twin.load_state_dict(sae.state_dict())
    return twin


def _build(root: Path) -> None:
    writer = _Writer(random.Random(0))
    texts = [writer.prose(170) for _ in range(1000)]
    train = {"bios": writer.bios(80), "amazon": writer.amazon(80)}
    test = {"bios": writer.bios(50), "amazon": writer.amazon(50)}
    for split, tables in (("train", train), ("test", test)):
        _parquet(root, "LabHC/bias_in_bios", split, tables["bios"])
        _parquet(root, "canrager/amazon_reviews_mcauley_1and5", split, tables["amazon"])
        _parquet(root, "fancyzhx/ag_news", split, writer.news(120))
    for corpus in (
        "Skylion007/openwebtext",
        "monology/pile-uncopyrighted",
        "HuggingFaceFW/fineweb",
    ):
        _parquet(root, corpus, "train", pd.DataFrame({"text": texts}))
    _write_europarl(root / "Helsinki-NLP/europarl", writer)
    _write_code(root / "codeparrot/github-code", writer)
    facts = _write_ravel(root / "adamkarvonen/ravel_prompts")
    letters = writer.first_letters(600)
    corpus = texts + letters + [str(each) for each in train["bios"].hard_text[:300]]
    corpus += [str(each) for each in train["amazon"].text[:300]]
    tokenizer = _tokenizer(corpus + facts * 20)
    model = _train(tokenizer, corpus, facts)
    for name in (MODEL, RAVEL_MODEL):
        model.save_pretrained(root / "EleutherAI" / name)
        tokenizer.save_pretrained(root / "EleutherAI" / name)


class _Writer:
    """Texts of invented words in which every word has a usual successor: something to learn."""

    def __init__(self, source: random.Random) -> None:
        self.random = source
        self.words = [
            letter + "".join(source.choice("aeiou") + source.choice("bdklmnrst") for _ in "12")
            for letter in string.ascii_lowercase
            for _ in range(16)
        ]
        self.usual = dict(
            zip(self.words, source.sample(self.words, len(self.words)), strict=True)
        )

    def prose(self, length: int, topic: Sequence[str] = ()) -> str:
        """``length`` words, a third of them about the topic (a random one if empty)."""
        topic = topic or self.random.sample(self.words, 8)
        text = [self.random.choice(self.words)]
        while len(text) < length:
            chance = self.random.random()
            if chance < 0.55 and text[-1] in self.usual:
                text.append(self.usual[text[-1]])
            else:
                text.append(self.random.choice(topic if chance < 0.8 else _FILLERS.split()))
        return " ".join(text)

    def bios(self, each: int) -> pd.DataFrame:
        """``each`` rows for every profession and gender."""
        pronouns = (["he", "his", "him", "mr"], ["she", "her", "hers", "ms"])
        rows = [
            {
                "hard_text": self.prose(40, [profession.replace("_", " ")] * 4 + pronouns[who]),
                "profession": number,
                "gender": who,
            }
            for profession, number in profession_dict.items()
            for who in (0, 1)
            for _ in range(each)
        ]
        return self._shuffled(rows)

    def amazon(self, each: int) -> pd.DataFrame:
        """``each`` rows for every category and rating."""
        moods = {1.0: "terrible broke refund bad", 5.0: "great love perfect excellent"}
        rows = [
            {
                "text": self.prose(40, [name.replace("_", " ").lower()] * 4 + mood.split()),
                "category": number,
                "rating": rating,
            }
            for name, number in amazon_category_dict.items()
            for rating, mood in moods.items()
            for _ in range(each)
        ]
        return self._shuffled(rows)

    def news(self, each: int) -> pd.DataFrame:
        """``each`` rows for every section."""
        return self._shuffled(
            [
                {"text": self.prose(40, topic.split()), "label": label}
                for label, topic in enumerate(_NEWS)
                for _ in range(each)
            ]
        )

    def first_letters(self, count: int) -> list[str]:
        """Examples of the absorption evaluation's prompts."""
        lines = []
        for _ in range(count):
            chosen = self.random.choices(self.words, k=10)
            lines.append(
                "".join(f"\n {word} has the first letter: {word[0].upper()}" for word in chosen)
            )
        return lines

    def _shuffled(self, rows: list[dict[str, Any]]) -> pd.DataFrame:
        self.random.shuffle(rows)
        return pd.DataFrame(rows)


def _parquet(root: Path, repo: str, split: str, table: pd.DataFrame) -> None:
    file = root / repo / "data" / f"{split}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(file, index=False)


def _write_europarl(folder: Path, writer: _Writer) -> None:
    configs = ["---", "configs:"]
    for pair in ("en-fr", "fr-it", "de-en", "es-fr", "nl-pt"):
        rows = [
            {
                language: " ".join(writer.random.choices(_LANGUAGES[language].split(), k=30))
                for language in pair.split("-")
            }
            for _ in range(300)
        ]
        file = folder / pair / "train-00000-of-00001.parquet"
        file.parent.mkdir(parents=True)
        pd.DataFrame({"translation": rows}).to_parquet(file, index=False)
        configs += [f"- config_name: {pair}", "  data_files:", "  - split: train"]
        configs += [f"    path: {pair}/train-*"]
    (folder / "README.md").write_text("\n".join([*configs, "---", ""]))


def _write_code(folder: Path, writer: _Writer) -> None:
    folder.mkdir(parents=True)
    rows = [
        {"code": writer.prose(150, words.split()), "language": language}
        for language, words in _CODE.items()
        for _ in range(250)
    ]
    writer.random.shuffle(rows)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "github-code.py").write_text(_CODE_SCRIPT)


def _write_ravel(folder: Path) -> list[str]:
    """RAVEL's four files for each kind of entity; returns every fact as a sentence."""
    folder.mkdir(parents=True)
    facts = []
    for kind, (entities, templates) in _RAVEL.items():
        every = [template for group in templates.values() for template in group]
        files = {
            "attribute_to_prompts": templates,
            "prompt_to_split": {t: ("train", "val")[i % 2] for i, t in enumerate(every)},
            "entity_attributes": {
                e: dict(zip(templates, v, strict=True)) for e, v in entities.items()
            },
            "entity_to_split": {e: ("train", "val")[i % 2] for i, e in enumerate(entities)},
        }
        for name, content in files.items():
            (folder / f"ravel_{kind}_{name}.json").write_text(json.dumps(content))
        for entity, values in entities.items():
            for group, value in zip(templates.values(), values, strict=True):
                facts += [f"{template % entity} {value}." for template in group]
    return facts


def _tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1600,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|padding|>",
        model_max_length=512,
    )


def _train(
    tokenizer: PreTrainedTokenizerFast, corpus: list[str], facts: list[str], steps: int = 400
) -> GPTNeoXForCausalLM:
    """Two layers, trained on the corpus and, in the same steps, on the facts."""
    torch.manual_seed(0)
    model: Any = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(tokenizer),
            hidden_size=D_MODEL,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=4 * D_MODEL,
            max_position_embeddings=512,
            rotary_pct=0.25,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=False,
        )
    )
    _plant_first_letters(model, tokenizer)
    stream = tokenizer.encode("<|endoftext|>".join(corpus))
    tokens = torch.tensor(stream[: len(stream) // 64 * 64]).reshape(-1, 64)
    padded: Any = tokenizer(facts, return_tensors="pt", padding=True, padding_side="left")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 4e-3 * min(1, (step + 1) / 30) * (1 - step / steps)
    )
    for _ in range(steps):
        text = tokens[torch.randint(len(tokens), (12,))]
        chosen = torch.randint(len(facts), (16,))
        ids, mask = padded["input_ids"][chosen], padded["attention_mask"][chosen]
        about = model(
            input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)
        )
        loss = model(input_ids=text, labels=text).loss + about.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def _plant_first_letters(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Give the first letter a direction in the embedding, for absorption to look for."""
    embedding = model.gpt_neox.embed_in.weight
    for token, number in tokenizer.get_vocab().items():
        text = tokenizer.convert_tokens_to_string([token]).strip()
        if text.isalpha() and text.isascii():
            embedding[number, string.ascii_lowercase.index(text[0].lower())] += 0.5
