"""Absorption through the adapter, on a tiny model whose embedding spells first letters."""

import dataclasses
import importlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import sae_bench
from sae_bench.evals.absorption import main as _main  # noqa: F401  (before the clock runs)
from transformer_lens import HookedTransformer
from transformers import AutoTokenizer

from sae_baselines.compat.saebench import words_in_order
from sae_baselines.errors import UserError
from sae_baselines.evals.measured import LOWER, NEITHER
from sae_baselines.evals.suite import Subject
from sae_baselines.evals.suites.absorption import Absorption
from tests.evals.tiny_hub import MODEL, evaluate_with, suite_call, tiny_sae

OPTIONS: dict[str, Any] = {
    "max_k_value": 2,
    "k_sparse_probe_num_epochs": 5,
    "precalc_k_sparse_probe_sae_acts": True,
}


def run(folder: Path, sae: Any, **options: Any) -> Any:
    # One name and one folder for all: nothing that an SAE leaves may reach the next.
    call = suite_call(Absorption(), folder, {**OPTIONS, **options}, sae=sae)
    call.expected.unlink(missing_ok=True)
    payload, extras, rows = evaluate_with(Absorption(), sae, call)
    floors = Absorption().floors(sae, call) if call.options["floors"] else []
    return payload, {**extras, "floors": floors}, rows


@pytest.fixture(scope="module")
def folder(tiny_hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    del tiny_hub
    return tmp_path_factory.mktemp("absorption")


@pytest.fixture(scope="module")
def results(folder: Path) -> list[Any]:
    """One SAE with cold caches, another, and the first one again."""
    first, second = tiny_sae(0), tiny_sae(1, architecture="topk")
    # Of the last, without floors: they change no score.
    return [run(folder, first), run(folder, second), run(folder, first, floors=False)]


def test_rows_are_saebenchs_numbers(results: list[Any]) -> None:
    payload, _, rows = results[0]
    metrics = payload["eval_result_metrics"]["mean"]
    found = {row.metric: row for row in rows if not row.task}
    assert {name: row.value for name, row in found.items()} == metrics
    assert found["mean_absorption_fraction_score"].direction == LOWER
    assert found["mean_num_split_features"].direction == NEITHER
    details = {detail["first_letter"]: detail for detail in payload["eval_result_details"]}
    assert len(details) >= 20
    letters = [r for r in rows if r.task and r.metric == "mean_absorption_fraction_score"]
    assert {row.task: row.value for row in letters} == {
        letter: detail["mean_absorption_fraction"] for letter, detail in details.items()
    }
    assert {row.task: row.n for row in letters} == {
        letter: detail["num_probe_true_positives"] for letter, detail in details.items()
    }
    mean = sum(row.value for row in letters) / len(letters)
    assert 0 < metrics["mean_absorption_fraction_score"] == pytest.approx(mean)


def test_the_floor_is_of_the_same_letters_and_words(results: list[Any]) -> None:
    _, extras, rows = results[0]
    for metric in ("mean_absorption_fraction_score", "mean_full_absorption_score"):
        known = Absorption().metric(metric)
        assert known is not None
        (name,) = known.floors
        scores = {row.task: row for row in rows if row.metric == metric}
        floors = {row.task: row for row in extras["floors"] if row.metric == name}
        assert floors.keys() == scores.keys()
        assert {t: r.n for t, r in floors.items()} == {t: r.n for t, r in scores.items()}
        # Of 64 random directions in 64 dimensions some have a letter's.
        assert floors[""].value > scores[""].value


def test_score_depends_on_the_sae_alone(results: list[Any]) -> None:
    first, other, again = (rows for _, _, rows in results)
    assert first == again
    assert first != other


def test_prompts_read_to_the_hook_and_once_give_stock_numbers(
    results: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = importlib.import_module(Absorption.__module__)
    monkeypatch.setattr(suite, "absorption_reads", lambda *_: nullcontext())
    _, _, stock = run(tmp_path, tiny_sae(0))
    assert stock == results[0][2]
    assert not list(tmp_path.rglob("words.safetensors"))


def test_the_next_sae_reads_no_prompt(
    results: list[Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model ran")

    monkeypatch.setattr(HookedTransformer, "run_with_cache", fail)
    assert run(folder, tiny_sae(1, architecture="topk"), floors=False)[2] == results[1][2]


@pytest.mark.usefixtures("results")
def test_nothing_is_left_in_the_installed_package() -> None:
    (package,) = sae_bench.__path__
    assert not (Path(package) / "artifacts").exists()


@pytest.mark.usefixtures("results")
def test_too_few_letters_are_an_error(folder: Path) -> None:
    with pytest.raises(UserError, match=r"\d+ of 26 first letters.*F1 above 0\.999"):
        run(folder, tiny_sae(0), max_k_value=1, min_GT_probe_f1=0.999, min_feats_for_eval=26)


@pytest.mark.usefixtures("tiny_hub")
def test_a_position_that_is_not_the_words_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prompt_token_pos: -5 .* use -6"):
        run(tmp_path, tiny_sae(0), prompt_token_pos=-5)


@pytest.mark.usefixtures("tiny_hub")
def test_words_are_in_order_while_it_lasts() -> None:
    tokenizer = AutoTokenizer.from_pretrained(f"EleutherAI/{MODEL}")
    unordered = tokenizer.get_vocab()
    with words_in_order():
        ordered = tokenizer.vocab
    assert list(ordered.values()) == sorted(unordered.values())
    assert ordered == unordered
    # 1600 words in order by chance: never.
    assert list(tokenizer.vocab.values()) != sorted(unordered.values())


SUBJECT = Subject(MODEL, "blocks.3.hook_resid_post", 512, 4096, "cpu", "float32", 32)


def problems(subject: Subject, **options: Any) -> list[str]:
    return list(Absorption().problems(subject, Absorption().complete(options)))


def test_nothing_is_wrong_with_the_defaults() -> None:
    assert problems(SUBJECT) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hook_name": "blocks.3.hook_mlp_out"}, "train on blocks.<layer>.hook_resid_post"),
        ({"d_sae": 8}, "ranks 10"),
    ],
)
def test_what_it_cannot_evaluate(change: dict[str, Any], said: str) -> None:
    (problem,) = problems(dataclasses.replace(SUBJECT, **change))
    assert said in problem


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_k_value": 0}, "not positive"),
        ({"min_feats_for_eval": 1}, "2 or more"),
        ({"prompt_template": "begins with:"}, "{word} once"),
        ({"f1_jump_threshold": "high"}, "high"),
    ],
)
def test_wrong_options(options: dict[str, Any], said: str) -> None:
    (problem,) = problems(SUBJECT, **options)
    assert said in problem
