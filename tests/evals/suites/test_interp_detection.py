"""Contexts told by a judge, one at a time: what it can tell is told, other latents are not."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_baselines.errors import UserError
from sae_baselines.evals import evaluate, write_results
from sae_baselines.evals.endpoint import from_environment
from sae_baselines.evals.judge import JudgeTest, identity
from sae_baselines.evals.latent_contexts import Firings, Text, examples_of
from sae_baselines.evals.suites.interp_detection import InterpDetection, detector_of, judged
from tests.evals.fake_openai import FakeOpenAI, serving
from tests.evals.tiny_hub import evaluate_with, suite_call, tiny_sae
from tests.evals.word_text import held_out_text, word_tokenizer

SUITE = InterpDetection()
_WORDS, _WIDTH, _CONTEXTS, _LATENTS = 40, 32, 150, 6
QUICK = {
    "n_tokens": 4096,
    "context_size": 64,
    "n_latents": 8,
    "n_top": 5,
    "n_held_out": 8,
    "n_asked": 4,
}


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeOpenAI]:
    monkeypatch.setenv("SAE_BASELINES_CACHE", str(tmp_path / "cache"))
    with serving() as server:
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_MODEL", "tiny")
        yield server


def _on_words() -> tuple[dict[int, list[Firings]], Text]:
    """Half of the latents fire on a word each, the others as often anywhere."""
    draw = np.random.default_rng(0)
    sizes = [(_CONTEXTS, _WIDTH)] * 2
    halves = held_out_text(torch.from_numpy(draw.integers(_WORDS, size=size)) for size in sizes)
    found: dict[int, list[Firings]] = {i: [] for i in range(2 * _LATENTS)}
    for half in halves:
        flat = half.contexts.reshape(-1).numpy()
        for i in range(_LATENTS):
            on = np.flatnonzero(flat == i + 1)
            anywhere = np.sort(draw.choice(len(flat), len(on), replace=False))
            found[i].append(Firings(on, draw.random(len(on)) + 0.1))
            found[i + _LATENTS].append(Firings(anywhere, draw.random(len(on)) + 0.1))
    return found, Text(word_tokenizer(_WORDS), halves)


def _judged() -> tuple[dict[int, dict[str, float]], dict[int, str], int]:
    found, text = _on_words()
    options = {**SUITE.defaults(), "n_top": 5, "n_held_out": 8, "n_asked": 6}
    draw = np.random.default_rng(0)
    drawn = {i: examples_of(of[0], of[1], text, options, draw) for i, of in found.items()}
    examples = {i: one for i, one in drawn.items() if one is not None}
    rates = {i: float(len(found[i][0].places)) for i in examples}
    return judged(detector_of(from_environment(), options), examples, rates, text, options, 0)


@pytest.mark.parametrize("probabilities", [True, False])
def test_a_judge_that_knows_a_word_tells_its_contexts(
    probabilities: bool, fake: FakeOpenAI
) -> None:
    fake.probabilities = probabilities
    scores, said, unread = _judged()
    assert sorted(scores) == list(range(2 * _LATENTS))
    assert unread == 0
    for i in range(_LATENTS):
        assert f"w{i + 1}'" in said[i]
        assert scores[i]["detection_auc"] == scores[i]["detection_accuracy"] == 1

    def mean(name: str, latents: range) -> float:
        return float(np.mean([scores[i][name] for i in latents]))

    others = range(_LATENTS, 2 * _LATENTS)
    assert abs(mean("detection_auc", others) - 0.5) < 0.2
    for name in ("detection_auc", "detection_accuracy"):
        assert abs(mean(f"{name}_null_exchanged", range(12)) - 0.5) < 0.2
    shown = [one["messages"][-1]["content"] for one in fake.requests]
    marked = [text for text in shown if "<<" in text]
    assert len(marked) == 2 * _LATENTS
    # Nothing is marked where it is to be told.
    assert len(shown) == len(marked) * (1 + 2 * 2 * 6)
    # Asked once more for what it does not say, it is asked no more.
    asked = sum("logprobs" in one for one in fake.requests)
    assert asked == len(shown) - len(marked) if probabilities else asked < 10


def test_replies_that_say_neither_are_counted_and_cost_the_latent(fake: FakeOpenAI) -> None:
    fake.detect = lambda *_: "Perhaps"
    scores, said, unread = _judged()
    assert scores == {}
    assert len(said) == 2 * _LATENTS
    assert unread == 2 * _LATENTS * 2 * 2 * 6


@pytest.mark.usefixtures("tiny_hub")
def test_a_study_has_scores_floors_and_its_judge(tmp_path: Path, fake: FakeOpenAI) -> None:
    sae = tiny_sae(d_sae=32)
    call = suite_call(SUITE, tmp_path, QUICK, sae=sae)
    payload, extras, rows = evaluate_with(SUITE, sae, call)
    found = {row.metric: row for row in rows if not row.task}
    each = payload["eval_result_unstructured"]
    assert extras["n_scored"] == found["detection_auc"].n == len(each) >= 5
    for name in ("detection_auc", "detection_auc_null_exchanged", "detection_accuracy"):
        assert 0 <= found[name].value <= 1
    tasks = [row for row in rows if row.metric == "detection_auc" and row.task]
    assert {row.task for row in tasks} == {f"latent_{i}" for i in each}
    assert all(one["explanation"] for one in each.values())
    assert extras["judge"]["model"] == "tiny"
    assert set(extras["judge"]["prompts"]) == {"description", "decision"}
    assert {one["temperature"] for one in fake.requests} == {0}
    assert 0 < len(fake.requests) <= SUITE.requests(call.options)
    # The same again bit for bit, on another's cache.
    other = suite_call(SUITE, tmp_path / "b", QUICK, "b", sae=sae, cache=tmp_path / "cache")
    assert evaluate_with(SUITE, sae, other)[0] == payload


@pytest.mark.usefixtures("tiny_hub")
def test_a_part_is_judged_again_on_other_contexts(tmp_path: Path, fake: FakeOpenAI) -> None:
    sae = tiny_sae(d_sae=32)
    done = []
    for n in (0, 4):
        call = suite_call(SUITE, tmp_path / str(n), {**QUICK, "rejudged": n}, sae=sae)
        before = len(fake.requests)
        done.append(evaluate_with(SUITE, sae, call))
        assert len(fake.requests) - before <= SUITE.requests(call.options)
    (payload, _, rows), (same, extras, more) = done
    # It changes no score, and decides none.
    assert same["eval_result_metrics"] == payload["eval_result_metrics"]
    assert set(rows) == {row for row in more if not row.metric.startswith("rejudged")}
    assert SUITE.deciding({"rejudged": 4}) == SUITE.deciding({"rejudged": 0})
    again, each = extras["rejudged"], same["eval_result_unstructured"]
    assert len(again) == 4
    moved = np.array([again[i] - each[i]["detection_auc"] for i in again])
    found = {row.metric: row.value for row in more if not row.task}
    sd = math.sqrt((moved**2).mean() / 2)
    assert found["rejudged_sd"] == pytest.approx(sd)
    assert found["rejudged_se"] == pytest.approx(sd / math.sqrt(len(each)))


@pytest.mark.usefixtures("tiny_hub")
def test_a_judge_that_fails_on_the_way_fails_that_sae_alone(
    tmp_path: Path, fake: FakeOpenAI
) -> None:
    fake.works_for = 3
    spec = {"interp_detection": {**QUICK, "retries": 0}}
    done = evaluate({"one": tiny_sae(d_sae=32)}, spec, tmp_path)
    (failure,) = done.failures
    assert "refused" in failure.reason
    fake.works_for = math.inf
    assert evaluate({"one": tiny_sae(d_sae=32)}, spec, tmp_path).failures == []

    def of_the_judge() -> dict[str, float]:
        table = write_results(tmp_path)
        rows = zip(table["metric"], table["value"], strict=True)
        return {metric: value for metric, value in rows if metric.startswith("judge_")}

    # It was never tested, of which verdicts are made.
    assert of_the_judge() == {}
    scores = {str(i): 0.8 + 0.01 * i for i in range(12)}
    known = JudgeTest(
        identity(from_environment(), "tiny"),
        0,
        scores,
        dict.fromkeys(scores, 0.5),
        {},
        {},
        12,
        {},
        suite="interp_detection",
    )
    known.save()
    asked = len(fake.requests)
    assert evaluate({"one": tiny_sae(d_sae=32)}, spec, tmp_path).failures == []
    assert len(fake.requests) == asked
    assert of_the_judge() == {
        "judge_score": pytest.approx(known.accuracy),
        "judge_floor": pytest.approx(0.5),
        "judge_above_floor": pytest.approx(known.interval[0]),
    }


def test_how_the_judge_is_asked_decides_no_score_and_which_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = SUITE.defaults()
    how: dict[str, Any] = {"retries": 7, "timeout": 5, "parallel": 1}
    assert SUITE.deciding({**options, **how}) == SUITE.deciding(options)
    assert SUITE.deciding({**options, "model": "b"}) != SUITE.deciding(options)
    here = SUITE.conditions(options)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere:1/v1")
    assert SUITE.conditions(options) != here


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_asked": 0}, "n_asked: 0 is not a positive whole number"),
        ({"rejudged": 1}, "rejudged: 1 is not a number of latents, 0 or 2 or more"),
        ({"parallel": 1.5}, "parallel: 1.5 is not a positive whole number"),
        ({"n_latents": 3}, "n_latents: 3 is fewer than the 5"),
        ({"model": ""}, "model: '' is not the name of a model"),
        ({"timeout": True}, "timeout: True is not a number of seconds"),
        ({"retries": -1}, "retries: -1 is not a number of retries"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    call = suite_call(SUITE, tmp_path, options)
    assert any(said in problem for problem in SUITE.problems(call.subject, call.options))


def test_without_an_endpoint_nothing_is_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    call = suite_call(SUITE, tmp_path)
    assert any("OPENAI_API_KEY" in p for p in SUITE.problems(call.subject, call.options))
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        evaluate({"one": tiny_sae(d_sae=32)}, {"interp_detection": QUICK}, tmp_path)
