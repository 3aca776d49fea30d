"""AutoInterp on latents that detect words, with a judge that goes by words."""

import asyncio
import base64
import gc
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import openai
import pandas as pd
import pytest
import torch
from sae_bench.evals.autointerp import main as saebench
from sae_lens import SAE
from transformer_lens import HookedTransformer

from sae_baselines.errors import UserError
from sae_baselines.evals import collect
from sae_baselines.evals.endpoint import check_endpoint, from_environment
from sae_baselines.evals.measured import HIGHER, NEITHER, Measured
from sae_baselines.evals.store import EvalStore
from sae_baselines.evals.suite import Extras, SuiteCall
from sae_baselines.evals.suites.autointerp import AutoInterp, exchanged
from tests.evals.fake_openai import FakeOpenAI, predict, serving
from tests.evals.tiny_hub import (
    HOOK,
    MODEL,
    copy_of,
    evaluate_with,
    suite_call,
    tiny_sae,
    transcoder_of,
)

SUITE = AutoInterp()
KEY = "sk-test-0123456789-never-to-be-seen"
DATASET = "tiny/short"
N_WORDS = 8
# One more latent never activates.
D_SAE = N_WORDS + 1
OPTIONS = {
    "n_latents": D_SAE,
    "total_tokens": 12_000,
    "llm_context_size": 64,
    "dataset_name": DATASET,
}


@pytest.fixture(scope="module")
def texts(tiny_hub: Path) -> list[str]:
    """The corpus with short words between, as SAEBench wants a token in every 5 characters."""
    table = pd.read_parquet(
        tiny_hub / "Skylion007/openwebtext/data/train-00000-of-00001.parquet"
    )
    found = [str(text).replace(" ", " a ") for text in table.text]
    file = tiny_hub / DATASET / "data/train-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"text": found}).to_parquet(file, index=False)
    return found


@pytest.fixture(scope="module")
def sae(texts: list[str]) -> SAE[Any]:
    """Each latent but the last activates on one word, by linear discriminants."""
    model = HookedTransformer.from_pretrained_no_processing(MODEL, device="cpu")
    acts, ids = [], []
    with torch.no_grad():
        for text in texts[:200]:
            tokens = model.to_tokens(text)[:, :128]
            acts.append(model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK][0])
            ids.append(tokens[0])
    x, token = torch.cat(acts), torch.cat(ids)
    by_count = torch.bincount(token).argsort(descending=True).tolist()
    words = [i for i in by_count if len(str(model.to_single_str_token(i)).strip()) == 5]
    centre = x.mean(0)
    covariance = torch.cov(x.T) + 1e-3 * torch.eye(len(centre))
    made: Any = tiny_sae(d_sae=D_SAE)
    with torch.no_grad():
        made.threshold.fill_(0.6)
        made.threshold[-1] = 1e9
        for latent, word in enumerate(words[:N_WORDS]):
            offset = x[token == word].mean(0) - centre
            direction = torch.linalg.solve(covariance, offset)
            direction /= direction @ offset
            made.W_enc[:, latent] = direction
            made.b_enc[latent] = -(centre @ direction)
    return made


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenAI]:
    with serving() as server:
        point_at(server, monkeypatch)
        yield server


def point_at(server: FakeOpenAI, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("OPENAI_API_KEY", KEY)
    patch.setenv("OPENAI_BASE_URL", server.url)
    patch.delenv("OPENAI_MODEL", raising=False)


@dataclass
class Done:
    """A run and what the server saw of it."""

    server: FakeOpenAI
    payload: dict[str, Any]
    extras: dict[str, Any]
    rows: list[Measured]

    @property
    def latents(self) -> dict[str, Any]:
        found = self.payload["eval_result_unstructured"]
        # Logs show SAEBench's random example of a reply, in the order of replies.
        return {
            latent: {k: v for k, v in each.items() if k != "logs"}
            for latent, each in sorted(found.items())
        }

    def value(self, metric: str) -> float:
        (row,) = [row for row in self.rows if row.metric == metric and not row.task]
        return row.value

    def tasks(self, metric: str) -> dict[str, float]:
        return {row.task: row.value for row in self.rows if row.metric == metric and row.task}


def call_for(sae: SAE[Any], folder: Path, **options: Any) -> SuiteCall:
    return suite_call(SUITE, folder, {**OPTIONS, **options}, sae=sae)


def run(sae: SAE[Any], folder: Path, server: FakeOpenAI, **options: Any) -> Done:
    return Done(server, *evaluate_with(SUITE, sae, call_for(sae, folder, **options)))


@pytest.fixture(scope="module")
def done(sae: SAE[Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    """One run for all that only look at it."""
    with serving() as server, pytest.MonkeyPatch.context() as patch:
        point_at(server, patch)
        yield run(sae, tmp_path_factory.mktemp("done"), server)


def test_a_good_judge_scores_high_and_near_the_floor_with_shuffled_descriptions(done: Done):
    assert done.value("autointerp_score") > 0.9
    # 10 of 14 examples are random: rejecting all would score 0.71.
    assert 0.6 < done.value("null_floor") < 0.8
    directions = {(row.metric, row.direction) for row in done.rows if row.direction != NEITHER}
    assert directions == {("autointerp_score", HIGHER)}


def test_aggregates_are_means_over_the_latents(done: Done):
    scores, null = done.tasks("autointerp_score"), done.tasks("null_score")
    assert done.value("autointerp_score") == pytest.approx(mean(scores.values()), abs=1e-12)
    assert done.value("null_floor") == pytest.approx(mean(null.values()), abs=1e-12)
    assert scores.keys() == null.keys()
    (aggregate,) = [r for r in done.rows if r.metric == "autointerp_score" and not r.task]
    assert aggregate.n == len(scores) == done.value("n_scored")
    # SAEBench's own mean, in float32.
    reported = done.payload["eval_result_metrics"]["autointerp"]["autointerp_score"]
    assert reported == pytest.approx(aggregate.value, abs=1e-6)


def test_the_null_judges_the_same_examples_by_the_description_of_another_latent(done: Done):
    n = int(done.value("n_scored"))
    true, null = done.server.scorings[:n], done.server.scorings[n:]
    described = {tuple(examples): description for description, examples in true}
    assert len({description for description, _ in true}) == len(described) == n
    assert {tuple(examples) for _, examples in null} == described.keys()
    assert {description for description, _ in null} == set(described.values())
    assert all(described[tuple(examples)] != description for description, examples in null)


def test_a_transcoder_is_judged_by_its_encoder_alone(
    done: Done, sae: SAE[Any], tmp_path: Path, fake: FakeOpenAI
):
    again = run(transcoder_of(sae), tmp_path, fake)
    assert again.latents == done.latents


def test_descriptions_go_to_latents_that_fire_about_as_often(done: Done):
    floor = done.value("autointerp_score_null_exchanged")
    assert floor == done.value("null_floor")
    known = SUITE.metric("autointerp_score")
    assert known is not None
    assert known.floors == ("autointerp_score_null_exchanged",)
    others = done.extras["null_exchanged"]
    assert sorted(map(str, others.values())) == sorted(others)
    # Of a record of before, descriptions went to any latent: it has no such row.
    old = {name: value for name, value in done.extras.items() if name != "null_exchanged"}
    rows = SUITE.rows(done.payload, old)
    assert {r.metric for r in done.rows} - {r.metric for r in rows} == set(known.floors)


def test_the_number_of_requests_is_known_beforehand(done: Done):
    needed = SUITE.requests(SUITE.complete(OPTIONS))
    assert needed == 3 * D_SAE
    assert len(done.server.requests) == 3 * done.value("n_scored") < needed


def test_a_result_that_contradicts_its_latents_is_no_result(done: Done):
    metrics = {"autointerp_score": 0.5, "autointerp_std_dev": 0.1}
    changed = {**done.payload, "eval_result_metrics": {"autointerp": metrics}}
    with pytest.raises(ValueError, match=r"autointerp_score is 0\.5"):
        SUITE.rows(changed, done.extras)


def test_drop_outs_are_counted_and_named(
    sae: SAE[Any], tmp_path: Path, fake: FakeOpenAI
) -> None:
    refused: set[str] = set()

    def sometimes(description: str, examples: list[str]) -> str:
        if len(refused) < 2:
            refused.add(description)
        return "Perhaps 3" if description in refused else predict(description, examples)

    fake.predict = sometimes
    call = call_for(sae, tmp_path, null_floor=False)
    extras: Extras = SUITE.run(copy_of(sae), call)
    described = len(fake.requests) - len(fake.scorings)
    assert described < D_SAE  # the last latent is dead
    counts = {k: v for k, v in extras.values.items() if k.startswith("n_")}
    assert counts == {
        "n_requested": D_SAE,
        "n_dead": D_SAE - described,
        "n_unparseable": 2,
        "n_scored": described - 2,
        "n_dropped": D_SAE - described + 2,
    }
    assert extras.notes == [
        f"autointerp: {counts['n_dropped']} of {D_SAE} latents dropped out "
        f"({counts['n_dead']} dead, 2 unparseable)"
    ]


def test_no_latent_scored_is_not_a_number(sae: SAE[Any], tmp_path: Path, fake: FakeOpenAI):
    fake.predict = lambda *_: "I cannot tell"
    done = run(sae, tmp_path, fake)
    assert done.value("n_scored") == 0
    assert done.value("autointerp_score") != done.value("autointerp_score")
    assert done.value("null_floor") != done.value("null_floor")


def test_stock_saebench_scores_the_same(
    done: Done, sae: SAE[Any], tmp_path: Path, fake: FakeOpenAI
):
    call = call_for(sae, tmp_path)
    fields = {k: v for k, v in done.payload["eval_config"].items() if k != "scoring"}
    with torch.no_grad():
        results = saebench.run_eval(
            saebench.AutoInterpEvalConfig(**fields),
            [("stock", copy_of(sae))],
            "cpu",
            from_environment().key,
            str(call.output),
            artifacts_path=str(tmp_path),
        )
    latents = results["stock_custom_sae"]["eval_result_unstructured"]
    stock = {str(i): each["score"] for i, each in latents.items()}
    assert stock == {latent: each["score"] for latent, each in done.latents.items()}
    # What the adapter asked of SAEBench's judge is what stock SAEBench asks.
    assert fake.models == done.server.models == {"gpt-4o-mini"}


def test_a_cold_cache_scores_as_a_warm_one(
    done: Done, sae: SAE[Any], tmp_path: Path, fake: FakeOpenAI
):
    cold = run(sae, tmp_path, fake, null_floor=False)
    (tokens,) = (tmp_path / "cache").rglob("*.pt")
    written = tokens.stat().st_mtime_ns
    again = suite_call(SUITE, tmp_path, {**OPTIONS, "null_floor": False}, "warm", sae=sae)
    payload, extras, rows = evaluate_with(SUITE, sae, again)
    warm = Done(fake, payload, extras, rows)
    assert tokens.stat().st_mtime_ns == written
    assert cold.latents == warm.latents == done.latents
    assert cold.rows == warm.rows
    assert not SUITE.warm_up


def test_an_interrupted_run_leaves_no_half_written_cache(
    sae: SAE[Any], tmp_path: Path, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
):
    def half(_: Any, file: str) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(KeyboardInterrupt):
            run(sae, tmp_path, fake)
    assert not list((tmp_path / "cache").rglob("*.pt"))
    assert run(sae, tmp_path, fake, null_floor=False).value("autointerp_score") > 0.9


def test_another_model_is_asked_and_nothing_else_changes(
    done: Done, sae: SAE[Any], tmp_path: Path, fake: FakeOpenAI
):
    other = run(sae, tmp_path, fake, model="my-judge")
    assert fake.models == {"my-judge"}
    assert other.extras["model"] == "my-judge"
    assert other.latents == done.latents
    assert other.extras["null_scores"] == done.extras["null_scores"]
    ours, theirs = ({frozenset(r) for r in each.requests} for each in (fake, done.server))
    assert ours == theirs
    assert saebench.OpenAI is openai.OpenAI


@pytest.mark.parametrize("options", [{}, {"model": "my-judge"}])
def test_one_client_asks_for_everything(
    options: dict[str, Any],
    sae: SAE[Any],
    tmp_path: Path,
    fake: FakeOpenAI,
    monkeypatch: pytest.MonkeyPatch,
):
    made = []

    def client(**given: Any) -> Any:
        made.append(given)
        return openai.OpenAI(**given)

    monkeypatch.setattr(saebench, "OpenAI", client)
    run(sae, tmp_path, fake, **options)
    assert len(made) == 1
    assert len(fake.requests) > 2


def test_the_model_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_MODEL", "qwen")
    assert SUITE.defaults()["model"] == "qwen"
    monkeypatch.delenv("OPENAI_MODEL")
    assert SUITE.defaults()["model"] == "gpt-4o-mini"


@pytest.mark.parametrize("name", ["OpenAI", "AutoInterp"])
def test_a_moved_name_is_refused(
    name: str,
    sae: SAE[Any],
    tmp_path: Path,
    fake: FakeOpenAI,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delattr(saebench, name)
    with pytest.raises(UserError, match=rf"main\.{name}.*sae-bench==0\.6\.0"):
        run(sae, tmp_path, fake, model="my-judge")


def test_a_model_that_is_never_reached_gives_no_result(
    sae: SAE[Any], tmp_path: Path, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
):
    def answer(_: Any, messages: list[dict[str, str]], *__: Any) -> tuple[list[str], str]:
        return [fake.reply(messages[-1]["content"]) or ""], ""

    monkeypatch.setattr(saebench.AutoInterp, "get_api_response", answer)
    with pytest.raises(RuntimeError, match="no request reached model 'my-judge'"):
        run(sae, tmp_path, fake, model="my-judge")
    assert not list(tmp_path.rglob("*_eval_results.json"))


@pytest.fixture
def shown(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[[], str]:
    """All that was printed, written or logged (everything is logged) so far."""
    for name in ("", "openai", "httpx", "httpx2", "httpcore.http11", "openai._base_client"):
        caplog.set_level(logging.DEBUG, name)

    def collect() -> str:
        gc.collect()  # asyncio speaks of forgotten errors at this time
        formatter = logging.Formatter()
        texts = [formatter.format(record) for record in caplog.records]
        files = [file for file in tmp_path.rglob("*") if file.suffix in (".json", ".txt")]
        return "\n".join([*texts, *capfd.readouterr(), *(file.read_text() for file in files)])

    return collect


PASSWORD = "pa55word!"
SECRETS = [KEY, PASSWORD, "pa55word%21", base64.b64encode(f"ann:{PASSWORD}".encode()).decode()]


def test_a_run_shows_no_secret(
    sae: SAE[Any],
    tmp_path: Path,
    fake: FakeOpenAI,
    monkeypatch: pytest.MonkeyPatch,
    shown: Callable[[], str],
):
    monkeypatch.setenv("OPENAI_BASE_URL", fake.url.replace("//", "//ann:pa55word%21@"))
    done = run(sae, tmp_path, fake)
    assert done.value("autointerp_score") > 0.9
    assert done.extras["endpoint"] == "127.0.0.1"
    assert {request["authorization"] for request in fake.requests} == {f"Basic {SECRETS[-1]}"}
    text = f"{shown()} {done.extras} {done.rows} {from_environment()!r}"
    assert "Loaded tokenized dataset" in text
    assert not [secret for secret in SECRETS if secret in text]


# The server's errors echo what it was sent: the first request fails, or one in the middle.
@pytest.mark.parametrize("works_for", [0, 12])
@pytest.mark.parametrize("user", ["", "ann:pa55word%21@"])
def test_a_failure_shows_no_secret(
    works_for: int,
    user: str,
    sae: SAE[Any],
    tmp_path: Path,
    fake: FakeOpenAI,
    monkeypatch: pytest.MonkeyPatch,
    shown: Callable[[], str],
):
    fake.works_for = works_for
    monkeypatch.setenv("OPENAI_BASE_URL", fake.url.replace("//", f"//{user}"))
    with pytest.raises(RuntimeError, match=r"refused B\w+ \*\*\*") as caught:
        run(sae, tmp_path, fake)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None  # whose frames hold the key
    fake.works_for = 0
    text = f"{shown()} {caught.value} {check_endpoint(timeout=5)}"
    assert not [secret for secret in SECRETS if secret in text]
    assert not list(tmp_path.rglob("*_eval_results.json"))


def test_a_result_that_holds_the_key_is_deleted(
    sae: SAE[Any], tmp_path: Path, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(saebench.AutoInterp, "parse_explanation", lambda *_: f"'{KEY}'")
    with pytest.raises(RuntimeError, match="contained the API key"):
        run(sae, tmp_path, fake)
    assert not list(tmp_path.rglob("*_eval_results.json"))


def test_failed_null_requests_cost_the_floor_and_not_the_result(
    done: Done, sae: SAE[Any], tmp_path: Path, fake: FakeOpenAI
):
    n = int(done.value("n_scored"))
    fake.works_for = 2 * n + 2
    call = call_for(sae, tmp_path)
    extras = SUITE.run(copy_of(sae), call)
    assert extras.values["n_scored"] == n
    assert extras.values["n_null_scored"] == 2
    assert extras.values["n_null_failed"] == n - 2
    assert f"; {n - 2} failed)" in extras.notes[1]


def test_failed_requests_are_sent_again_as_often_as_asked(
    done: Done, sae: SAE[Any], tmp_path: Path, fake: FakeOpenAI
):
    fake.busy_for = 3
    with pytest.raises(RuntimeError, match="busy"):
        run(sae, tmp_path / "none", fake, retries=0)
    fake.requests.clear()
    again = run(sae, tmp_path / "some", fake, retries=3, null_floor=False)
    assert again.latents == done.latents
    assert len(fake.requests) == 2 * done.value("n_scored") + 3
    assert fake.models == {"gpt-4o-mini"}


def test_a_judge_that_hangs_is_not_waited_for_for_ever(
    done: Done, sae: SAE[Any], tmp_path: Path, fake: FakeOpenAI
):
    fake.slow_for = 10_000
    named = "'gpt-4o-mini' did not reply within 0.3 seconds, .* raise timeout"
    with pytest.raises(RuntimeError, match=named):
        run(sae, tmp_path / "none", fake, retries=0, timeout=0.3)
    fake.requests.clear()
    fake.slow_for = 1
    again = run(sae, tmp_path / "some", fake, retries=1, timeout=0.5, null_floor=False)
    assert again.latents == done.latents


def test_patience_decides_no_score() -> None:
    options = SUITE.defaults()
    assert SUITE.deciding({**options, "timeout": 5}) == SUITE.deciding(options)


def test_a_reply_without_text_is_explained(sae: SAE[Any], tmp_path: Path, fake: FakeOpenAI):
    fake.predict = lambda *_: None
    with pytest.raises(RuntimeError, match="replied without text"):
        run(sae, tmp_path, fake)


def test_too_little_text_is_explained(sae: SAE[Any], tmp_path: Path, fake: FakeOpenAI):
    # Six characters a token.
    with pytest.raises(RuntimeError, match="choose another dataset_name"):
        run(sae, tmp_path, fake, dataset_name="Skylion007/openwebtext")


def test_it_runs_where_an_event_loop_runs(
    done: Done, sae: SAE[Any], tmp_path: Path, fake: FakeOpenAI
):
    async def notebook() -> Done:
        return run(sae, tmp_path, fake, null_floor=False)

    assert asyncio.run(notebook()).latents == done.latents
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("n", range(8))
@pytest.mark.parametrize("seed", [0, 1])
def test_no_latent_keeps_its_description(n: int, seed: int):
    latents = list(range(10, 10 + n))
    got = exchanged(latents, seed)
    assert sorted(got.values()) == sorted(got) == (latents if n > 1 else [])
    assert not [latent for latent, other in got.items() if latent == other]
    assert got == exchanged(latents[::-1], seed)
    rates = {latent: (7 * latent % 11) / 11 for latent in latents}
    near = exchanged(latents, seed, rates)
    assert sorted(near.values()) == sorted(near) == (latents if n > 1 else [])
    assert not [latent for latent, other in near.items() if latent == other]
    ranks = {latent: i for i, latent in enumerate(sorted(latents, key=lambda x: rates[x]))}
    assert all(abs(ranks[a] - ranks[b]) <= 2 for a, b in near.items())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"n_latents": 0}, "n_latents: 0 is not positive"),
        ({"override_latents": [1]}, "override_latents with n_latents: null"),
        ({"override_latents": [1, 99], "n_latents": None}, "99 is not among the 64 latents"),
        ({"llm_context_size": 20}, "give more than 20"),
        ({"total_tokens": "many"}, "total_tokens"),
        ({"retries": -1}, "retries"),
        ({"timeout": 0}, "timeout: 0 is not a number of seconds above 0"),
        ({"null_floor": "no"}, "null_floor: 'no' is neither true nor false"),
        ({"model": ""}, "model"),
    ],
)
@pytest.mark.usefixtures("fake")
def test_bad_options_are_named_before_any_work(options: Any, named: str, tmp_path: Path):
    call = suite_call(SUITE, tmp_path, options)
    (problem,) = SUITE.problems(call.subject, call.options)
    assert named in problem


@pytest.mark.usefixtures("fake")
def test_nothing_is_wrong_with_the_defaults(tmp_path: Path):
    call = suite_call(SUITE, tmp_path)
    assert not list(SUITE.problems(call.subject, call.options))
    assert "api_key" not in call.options


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("OPENAI_API_KEY", None, "OPENAI_API_KEY is not set"),
        ("OPENAI_API_KEY", " ", "OPENAI_API_KEY is not set"),
        ("OPENAI_BASE_URL", "hidden:8000/v1", "not an http(s) address"),
        ("OPENAI_BASE_URL", "http://[hidden/v1", "not an http(s) address"),
        ("OPENAI_BASE_URL", "", "not an http(s) address"),
        ("OPENAI_BASE_URL", "http://host/v1?token=hidden", "has a query"),
    ],
)
@pytest.mark.usefixtures("fake")
def test_an_endpoint_that_cannot_work_is_named_without_its_value(
    variable: str,
    value: str | None,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    call = suite_call(SUITE, tmp_path)
    (problem,) = SUITE.problems(call.subject, call.options)
    assert named in problem
    assert "hidden" not in problem
    assert check_endpoint() == problem


def test_the_endpoint_is_tried_as_saebench_will(fake: FakeOpenAI):
    assert check_endpoint("my-judge", timeout=5) is None
    (request,) = fake.requests
    assert request["model"] == "my-judge"
    assert request["max_tokens"] == 30
    assert request["authorization"] == f"Bearer {KEY}"


@pytest.mark.usefixtures("fake")
def test_an_endpoint_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FakeOpenAI, "reply", lambda *_: None)
    assert "does not think" in str(check_endpoint(timeout=5))
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert "does not answer" in str(check_endpoint(timeout=5))


@pytest.mark.parametrize(
    ("scored", "asked", "has_score"),
    [
        (3, 6, False),  # half of them
        (1, 1, False),
        (4, 4, False),  # fewer than five are no mean
        (5, 6, True),
        (149, 200, False),
        (150, 200, True),
    ],
)
def test_a_mean_needs_enough_latents_and_enough_of_those_asked_for(
    scored: int, asked: int, has_score: bool
):
    payload = {
        "eval_result_metrics": {
            "autointerp": {"autointerp_score": 0.9, "autointerp_std_dev": 0.0}
        },
        "eval_result_unstructured": {str(i): {"score": 0.9} for i in range(scored)},
        "eval_config": {
            "n_top_ex_for_scoring": 2,
            "n_random_ex_for_scoring": 10,
            "n_iw_sampled_ex_for_scoring": 2,
        },
    }
    extras = {"n_requested": asked, "null_floor": 0.7, "n_null_scored": scored}
    rows = {row.metric: row for row in AutoInterp().rows(payload, extras) if not row.task}
    for metric in ("autointerp_score", "null_floor"):
        assert math.isfinite(rows[metric].value) == has_score, metric
    missing = rows["autointerp_score"].missing
    assert bool(missing) != has_score
    assert has_score or f"{scored} of {asked}" in missing


def test_a_part_is_judged_again_with_other_examples(
    done: Done, sae: SAE[Any], tmp_path: Path, fake: FakeOpenAI
) -> None:
    again = run(sae, tmp_path, fake, rejudged=4)
    # Nothing of the scores is another, and they need not be made again for it.
    assert again.latents == done.latents
    assert SUITE.deciding({"rejudged": 4}) == SUITE.deciding({"rejudged": 0})
    assert {r for r in again.rows if not r.metric.startswith("rejudged")} == set(done.rows)
    n = int(done.value("n_scored"))
    assert len(fake.requests) == 3 * n + 2 * 4
    assert SUITE.requests(SUITE.complete({**OPTIONS, "rejudged": 4})) == 3 * D_SAE + 2 * 4
    second = again.extras["rejudged"]
    first = {i: each["score"] for i, each in again.latents.items() if i in second}
    assert len(first) == 4
    shown = {tuple(examples) for _, examples in fake.scorings}
    assert len(shown) == n + 4
    sd = math.sqrt(mean((second[i] - first[i]) ** 2 for i in first) / 2)
    assert again.value("rejudged_sd") == pytest.approx(sd)
    assert again.value("rejudged_se") == pytest.approx(sd / math.sqrt(n))
    known = SUITE.metric("autointerp_score")
    assert known is not None
    assert known.alongside == ("judge_score", "judge_floor", "rejudged_se")


def test_who_judged_and_what_they_were_told_is_recorded(done: Done) -> None:
    judge = done.extras["judge"]
    assert (judge["host"], judge["model"]) == ("127.0.0.1", "gpt-4o-mini")
    assert set(judge["prompts"]) == {"description", "prediction"}
    assert all(len(sha) == 64 for sha in judge["prompts"].values())
    assert "test" not in judge


@pytest.mark.parametrize("given", [-1, 1, 2.5, True])
def test_a_number_to_judge_again_that_is_none_is_refused(given: Any, tmp_path: Path) -> None:
    call = call_for(tiny_sae(d_sae=D_SAE), tmp_path, rejudged=given)
    (problem,) = SUITE.problems_of_file(call.subject, call.options)
    assert problem.startswith(f"rejudged: {given!r} is not a number of latents")


def test_results_of_two_judges_are_not_put_together(tmp_path: Path) -> None:
    store = EvalStore(tmp_path)
    for name, sha in (("a", "1"), ("b", "2")):
        (tmp_path / name).write_text("{}")
        facts = dict.fromkeys(("panel", "constraint", "architecture"), "x")
        record = {
            **dict.fromkeys(("settings", "weights", "created"), "x"),
            **{"suite": "autointerp", "name": name, "versions": {}, "hardware": {}},
            **{"facts": {**facts, "member": name, "seed": 0}, "notes": []},
            "extras": {"judge": {"host": "here", "model": "m", "sha256": sha, "file": name}},
        }
        store.keep("autointerp", name, tmp_path / name, record)
    with pytest.raises(UserError, match=r"two judges, m at here \(b\) and m at here \(a\)"):
        collect(tmp_path)
