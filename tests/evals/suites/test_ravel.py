"""RAVEL through the adapter, on a tiny model that knows the facts."""

import dataclasses
import math
from contextlib import nullcontext
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest
from sae_bench.evals.ravel import main as _main  # noqa: F401  (imported before the clock runs)
from sae_bench.sae_bench_utils import activation_collection

from sae_baselines.compat.saebench_ravel import any_model
from sae_baselines.errors import UserError
from sae_baselines.evals.measured import HIGHER
from sae_baselines.evals.suite import Subject
from sae_baselines.evals.suites.ravel import Ravel
from tests.evals.tiny_hub import RAVEL_MODEL, evaluate_with, suite_call, tiny_sae

OPTIONS: dict[str, Any] = {
    "entity_attribute_selection": {
        "city": ["Country", "Language"],
        "nobel_prize_winner": ["Field", "Gender"],
    },
    "num_pairs_per_attribute": 12,
    "n_generated_tokens": 2,
    "learning_rate": 0.5,
    "num_epochs": 1,
}


def sae_of(seed: int, architecture: str = "jumprelu") -> Any:
    return tiny_sae(seed, architecture=architecture, model_name=RAVEL_MODEL)


def run(folder: Path, sae: Any, floors: bool = True) -> Any:
    # One name and one folder for all: nothing that an SAE leaves may reach the next.
    options = {**OPTIONS, "floors": floors}
    call = suite_call(Ravel(), folder, options, sae=sae, batch=4)
    call.expected.unlink(missing_ok=True)
    payload, extras, rows = evaluate_with(Ravel(), sae, call)
    return payload, {**extras, "floors": Ravel().floors(sae, call) if floors else []}, rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ravel")


@pytest.fixture(scope="module")
def results(tiny_hub: Path, folder: Path) -> list[Any]:
    """One SAE with cold caches, another, and the first one again, without floors."""
    del tiny_hub
    first = sae_of(0)
    return [run(folder, first), run(folder, sae_of(1, "topk")), run(folder, first, False)]


def test_rows_are_saebenchs_numbers(results: list[Any]) -> None:
    payload, _, rows = results[0]
    metrics = payload["eval_result_metrics"]["ravel"]
    found = {(row.metric, row.task): row for row in rows}
    for name in ("disentanglement_score", "cause_score", "isolation_score"):
        assert found[name, ""].value == metrics[name]
        assert found[name, ""].direction == HIGHER
    assert {row.task for row in rows} == {
        "",
        "city_Country",
        "city_Language",
        "nobel_prize_winner_Field",
        "nobel_prize_winner_Gender",
    }
    country = payload["eval_result_unstructured"]["city_results"]["city_Country"]
    assert found["cause_score", "city_Country"].value == country["cause_score"]
    assert country["isolation_score"] > 0
    tasks = [row.value for row in rows if row.task and row.metric == "disentanglement_score"]
    assert sum(tasks) / 4 == pytest.approx(metrics["disentanglement_score"])
    assert payload["eval_config"]["random_seed"] == 0
    assert payload["eval_config"]["artifact_dir"] == "artifacts"


def test_floors_stand_beside_each_attribute(results: list[Any]) -> None:
    _, extras, rows = results[0]
    other = results[1][1]
    tasks = {row.task for row in rows}
    known = Ravel().metric("disentanglement_score")
    assert known is not None
    found = {(row.metric, row.task): row.value for row in extras["floors"]}
    assert {metric for metric, _ in found} >= set(known.floors)
    for metric in known.floors:
        of = {task: value for (name, task), value in found.items() if name == metric}
        assert of.keys() == tasks
        assert of.pop("") == pytest.approx(sum(of.values()) / 4)
    alone = "disentanglement_score_null_identity"
    # The tiny model knows its facts; left alone it says the same whatever the SAE.
    assert 0.4 < found[alone, ""] <= 0.5
    assert {(row.metric, row.task): row.value for row in other["floors"]}[alone, ""] == found[
        alone, ""
    ]


def test_score_depends_on_the_sae_alone(results: list[Any]) -> None:
    first, other, again = (rows for _, _, rows in results)
    assert first == again
    assert first != other


def test_sources_read_to_the_block_and_once_give_stock_numbers(
    results: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = import_module(Ravel.__module__)
    monkeypatch.setattr(suite, "sources_read_once", lambda *_: nullcontext())
    stock, _, rows = run(tmp_path, sae_of(0), floors=False)
    assert rows == results[2][2]
    for part in ("eval_result_metrics", "eval_result_unstructured"):
        assert stock[part] == results[2][0][part]
    assert not list(tmp_path.rglob("sources.safetensors"))


def test_the_next_sae_reads_one_source(
    results: list[Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, ran = activation_collection.get_layer_activations, []

    def counted(*args: Any) -> Any:
        ran.append(args)
        return stock(*args)

    monkeypatch.setattr(activation_collection, "get_layer_activations", counted)
    assert run(folder, sae_of(1, "topk"))[2] == results[1][2]
    assert len(ran) == 1


def test_the_shim_changes_no_number(results: list[Any], tiny_hub: Path, tmp_path: Path) -> None:
    stock, _, rows = results[2]
    with any_model(RAVEL_MODEL, tiny_hub / "EleutherAI" / RAVEL_MODEL):
        payload, _, shimmed = run(tmp_path, sae_of(0), floors=False)
    assert shimmed == rows
    for part in ("eval_result_metrics", "eval_result_unstructured", "eval_config"):
        assert payload[part] == stock[part]


@pytest.mark.usefixtures("tiny_hub")
def test_too_few_pairs_are_an_error_not_a_nan(tmp_path: Path) -> None:
    # Known facts make 12 pairs of prizes, not the 100 asked for: no full batch to test on.
    options = {
        **OPTIONS,
        "entity_attribute_selection": {"nobel_prize_winner": ["Field", "Gender"]},
        "num_pairs_per_attribute": 100,
    }
    call = suite_call(Ravel(), tmp_path, options, sae=sae_of(0), batch=16)
    assert not problems(call.subject, **call.options)
    with pytest.raises(UserError, match=r"nobel_prize_winner_Gender.*lower llm_batch_size: 16"):
        evaluate_with(Ravel(), sae_of(0), call)


def problems(subject: Subject, **options: Any) -> list[str]:
    return list(Ravel().problems(subject, Ravel().complete(options)))


SUBJECT = Subject(RAVEL_MODEL, "blocks.4.hook_resid_post", 768, 4096, "cpu", "float32", 32)


@pytest.mark.parametrize(
    "name", ["gemma-2-2b", "google/gemma-2-2b", "EleutherAI/pythia-160m-deduped"]
)
def test_models_go_by_either_name(name: str) -> None:
    assert problems(dataclasses.replace(SUBJECT, model_name=name)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_name": "gpt2"}, "gemma-2-2b and pythia-160m-deduped"),
        ({"local_model": Path("folder")}, "from the Hub"),
        ({"hook_name": "blocks.4.hook_mlp_out"}, "train on blocks.<layer>.hook_resid_post"),
        ({"llm_batch_size": 4096}, "3000 to test; lower it"),
    ],
)
def test_what_it_cannot_evaluate(change: dict[str, Any], said: str) -> None:
    (problem,) = problems(dataclasses.replace(SUBJECT, **change))
    assert said in problem


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"full_dataset_downsample": 100}, "lower top_n_entities"),
        ({"train_test_split": 1.0}, "not between 0 and 1"),
        ({"num_epochs": 0}, "not positive"),
        ({"entity_attribute_selection": {"city": ["Country"]}}, "at least two attributes"),
        ({"top_n_entities": "many"}, "many"),
    ],
)
def test_wrong_options(options: dict[str, Any], said: str) -> None:
    (problem,) = problems(SUBJECT, **options)
    assert said in problem


def test_transformers_5_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "5.1.0" if name == "transformers" else installed(name)
    )
    (problem,) = problems(SUBJECT)
    assert "transformers 5.1.0" in problem
    assert "pip install 'transformers<5'" in problem


def test_scores_that_are_missing_are_no_rows_of_zero() -> None:
    payload = {
        "eval_result_metrics": {"ravel": {"cause_score": float("nan")}},
        "eval_result_unstructured": {},
    }
    (row,) = Ravel().rows(payload, {})
    assert math.isnan(row.value)
