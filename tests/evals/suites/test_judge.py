"""Judges on latents whose answer is known: a good one passes, the others are refused."""

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from sae_baselines.errors import UserError
from sae_baselines.evals.concepts import CONCEPTS
from sae_baselines.evals.endpoint import from_environment
from sae_baselines.evals.examine import ASKED, FILLERS, N_RANDOM, SENTENCES, examine_judge
from sae_baselines.evals.judge import AUTOINTERP, JudgeTest, identity, last_test, same_judge
from sae_baselines.evals.suites.autointerp import AutoInterp
from sae_baselines.evals.suites.interp_detection import NAME, InterpDetection
from sae_baselines.files import sha256_of
from sae_baselines_cli import app
from tests.evals.fake_openai import FakeOpenAI, serving
from tests.evals.tiny_hub import suite_call


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeOpenAI]:
    monkeypatch.setenv("SAE_BASELINES_CACHE", str(tmp_path / "cache"))
    with serving(predict=by_concept) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_MODEL", "tiny")
        yield server


def by_concept(description: str, examples: list[str]) -> str:
    """A judge that knows the concept of the word that it was described by."""
    word = description.split("'")[1]
    known = [c for c in CONCEPTS if c.fires_on(word)]
    found = [
        str(i)
        for i, example in enumerate(examples, 1)
        if any(c.fires_on(w) for c in known for w in example.split())
    ]
    return ", ".join(found) or "None"


def test_no_text_has_a_word_of_a_concept_but_where_one_is_put() -> None:
    words = [*FILLERS, *(word for sentence in SENTENCES for word in sentence.split())]
    assert not [(w, c.name) for w in words for c in CONCEPTS if c.fires_on(w)]
    every = [word for concept in CONCEPTS for word in concept.words]
    assert len(set(every)) == len(every)
    assert all(sentence.count("{}") == 1 for sentence in SENTENCES)


def test_a_judge_that_knows_concepts_passes_and_is_remembered(fake: FakeOpenAI) -> None:
    done = examine_judge()
    assert done.accuracy == 1
    assert set(done.scores) == {concept.name for concept in CONCEPTS}
    # By another concept's description none is found: 10 of 14 are right.
    assert done.floor == pytest.approx(10 / 14)
    assert done.interval == pytest.approx((4 / 14, 4 / 14))
    assert done.flaw is None
    # Nobody can describe words at random.
    assert len(done.random) == N_RANDOM
    assert max(done.random.values()) < 0.95
    assert len(fake.requests) == 1 + 3 * len(CONCEPTS) + 2 * N_RANDOM
    assert fake.models == {"tiny"}
    assert last_test("127.0.0.1", "tiny") == done
    assert last_test("127.0.0.1", "other") is None


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("None", "not above its floor on latents whose answer is known: 0.714 and 0.714"),
        ("Perhaps the third", "only 0 of 12 replies on latents whose answer is known"),
    ],
)
def test_a_judge_at_its_floor_and_one_of_nonsense_are_refused(
    reply: str, said: str, fake: FakeOpenAI, tmp_path: Path
) -> None:
    suite = AutoInterp()
    call = suite_call(suite, tmp_path, {"n_latents": 5})
    before = list(suite.problems(call.subject, call.options))
    fake.predict = lambda *_: reply
    result = CliRunner().invoke(app, ["judge", "test"])
    assert result.exit_code == 1
    assert said in " ".join(result.output.split())
    (problem,) = set(suite.problems(call.subject, call.options)) - set(before)
    assert problem.startswith("model: 'tiny' is no judge")
    assert said in problem
    # Another judge is another matter.
    other = {**call.options, "model": "other"}
    assert list(suite.problems(call.subject, other)) == before
    # The same under its name is judged by its own test.
    fake.predict = by_concept
    assert CliRunner().invoke(app, ["judge", "test"]).exit_code == 0
    assert list(suite.problems(call.subject, call.options)) == before


def test_a_judge_may_fail_at_lists_and_tell_one_text_at_a_time(
    fake: FakeOpenAI, tmp_path: Path
) -> None:
    fake.predict = lambda *_: "None"
    fake.detect = lambda described, text: {"1": "Yes"}.get(by_concept(described, [text]), "No")
    assert examine_judge().flaw is not None
    fake.requests.clear()
    done = examine_judge(suite=NAME)
    assert done.flaw is None
    assert done.accuracy == 1
    assert done.floor == 0.5  # no text fits another concept's description
    assert done.suite == NAME
    asked = 2 * ASKED * (2 * len(CONCEPTS) + N_RANDOM)
    assert len(fake.requests) == 1 + len(CONCEPTS) + N_RANDOM + asked
    # Each suite asks for its own.
    assert last_test("127.0.0.1", "tiny", NAME) == done
    told = {}
    for suite in (AutoInterp(), InterpDetection()):
        call = suite_call(suite, tmp_path, {"n_latents": 5})
        problems = " ".join(suite.problems(call.subject, call.options))
        told[suite.name] = "is no judge" in problems
    assert told == {"autointerp": True, NAME: False}
    fake.detect = lambda *_: "Perhaps"
    result = CliRunner().invoke(app, ["judge", "test", "--suite", NAME])
    assert result.exit_code == 1
    assert "only 0 of 12 replies" in " ".join(result.output.split())
    with pytest.raises(UserError, match="suite: 'core' asks no judge; use autointerp or"):
        examine_judge(suite="core")


def test_one_that_does_not_answer_is_named(fake: FakeOpenAI) -> None:
    fake.works_for = 0
    with pytest.raises(UserError, match=r"judge: 127\.0\.0\.1: model 'tiny' does not answer"):
        examine_judge()
    fake.works_for = len(fake.requests) + 5
    with pytest.raises(UserError, match=r"judge: 127\.0\.0\.1: 'tiny' failed: .*refused"):
        examine_judge()
    assert last_test("127.0.0.1", "tiny") is None


def test_a_judge_is_known_by_the_file_that_a_server_here_names(
    fake: FakeOpenAI, tmp_path: Path
) -> None:
    suite, file = AutoInterp(), tmp_path / "model.gguf"
    options = suite.complete({})
    plain = suite.conditions(options)
    assert plain == {"judge_host": "127.0.0.1"}
    file.write_bytes(b"weights")
    fake.served = [str(file)]
    one = identity(from_environment(), "tiny")
    assert one["file"] == "model.gguf"
    assert one["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert suite.conditions(options) == {**plain, "judge_file": one["sha256"]}
    file.write_bytes(b"other weights")
    other = identity(from_environment(), "tiny")
    assert same_judge(one, {**one, "file": "moved.gguf"})
    assert not same_judge(one, other)
    fake.served = ["an alias"]
    assert "sha256" not in identity(from_environment(), "tiny")


def test_the_interval_is_students() -> None:
    gaps = np.random.default_rng(0).normal(0.1, 0.05, 12)
    scores = {str(i): 0.6 + float(gap) for i, gap in enumerate(gaps)}
    test = JudgeTest({}, 0, scores, dict.fromkeys(scores, 0.6), {}, {}, 12, {})
    expected = stats.ttest_1samp(gaps, 0).confidence_interval(0.9)
    assert test.interval == pytest.approx((expected.low, expected.high))
    assert test.flaw is None
    worse = replace(test, scores={name: score - 0.09 for name, score in scores.items()})
    assert worse.flaw is not None


_MODEL, _PYTHON = "SAE_BASELINES_TEST_JUDGE", "SAE_BASELINES_TEST_JUDGE_PYTHON"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(_MODEL not in os.environ, reason=f"{_MODEL} names no GGUF file")
def test_a_real_server_of_llama_cpp_is_a_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a model that passes (Qwen2.5-Coder-1.5B-Instruct); a quarter of an hour on a CPU."""
    model, python = Path(os.environ[_MODEL]), os.environ.get(_PYTHON, sys.executable)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "llama_cpp.server", "--model", str(model), "--n_ctx", "2048"]
    command += ["--logits_all", "true", "--port", str(port)]
    monkeypatch.setenv("SAE_BASELINES_CACHE", str(tmp_path))
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("OPENAI_MODEL", "judge")
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while "file" not in (known := identity(from_environment(), "judge")):
            assert server.poll() is None, (tmp_path / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(1)
        assert (known["file"], known["sha256"]) == (model.name, sha256_of(model))
        done = examine_judge(suite=NAME)
        assert done.flaw is None
        assert done.accuracy > done.floor
        assert done.judge == known
        # By SAEBench's own prompts: enough of its replies can be read to judge it.
        counted = examine_judge(suite=AUTOINTERP)
        assert counted.judge == known
        assert 0 < counted.floor < 1
        assert counted.flaw is None or "it is not above its floor" in counted.flaw
    finally:
        server.kill()
        server.wait()
