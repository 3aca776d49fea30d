"""The runner: order, caches, resume, failures."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE

from sae_baselines import pipeline
from sae_baselines.errors import UserError
from sae_baselines.evals import EvalSpec, collect, evaluate, load_results, write_results
from sae_baselines.evals import registry as suites
from sae_baselines.evals.store import EvalStore
from sae_baselines.work.claims import Share
from tests.evals.fake_suite import FakeSuite, FlooredSuite
from tests.evals.tiny_hub import MODEL, tiny_sae, transcoder_of
from tests.helpers import on_two_ranks

# The preflight asks for the model.
pytestmark = pytest.mark.usefixtures("tiny_hub")

NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suites._suites, "fake", FakeSuite)


def saes(*names: str) -> Mapping[str, SAE[Any]]:
    return {name: tiny_sae(seed=NAMES.index(name)) for name in names}


def scores(out: Path) -> dict[str, float]:
    return {
        r.name: json.loads(EvalStore(out).result_file("fake", r.name).read_text())["score"]
        for r in EvalStore(out).results()
    }


def run(out: Path, *names: str, **options: Any) -> Any:
    return evaluate(saes(*(names or NAMES)), {"fake": options}, out)


def test_a_score_does_not_depend_on_place_or_cache(tmp_path: Path) -> None:
    run(tmp_path / "all", "a", "b", "c")
    run(tmp_path / "turned", "c", "b", "a")
    expected = scores(tmp_path / "all")
    assert scores(tmp_path / "turned") == expected
    for name in NAMES:
        run(tmp_path / name, name)
        assert scores(tmp_path / name) == {name: expected[name]}
    # Warm caches of an earlier call, one SAE more.
    run(tmp_path / "grown", "b")
    run(tmp_path / "grown", "a", "b", "c")
    assert scores(tmp_path / "grown") == expected


def test_the_trap_is_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the warm-up the first SAE gets another score, so the test above can fail."""
    monkeypatch.setattr(FakeSuite, "warm_up", False)
    run(tmp_path / "first", "a", "b")
    run(tmp_path / "second", "b", "a")
    assert scores(tmp_path / "first") != scores(tmp_path / "second")


def test_global_random_state_is_given_back(tmp_path: Path) -> None:
    given = saes("a")
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    evaluate(given, {"fake": {}}, tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_seed_is_that_of_the_spec(tmp_path: Path) -> None:
    run(tmp_path / "one", "a")
    evaluate(saes("a"), EvalSpec(suites={"fake": {}}, seed=1), tmp_path / "two")
    assert scores(tmp_path / "one") != scores(tmp_path / "two")


def test_what_is_finished_is_kept(tmp_path: Path) -> None:
    first = run(tmp_path, "a", "b")
    assert first.done == [("fake", "a"), ("fake", "b")]
    again = run(tmp_path, "a", "b", "c")
    assert again.done == [("fake", "c")]
    assert again.kept == [("fake", "a"), ("fake", "b")]
    (runs,) = tmp_path.glob("evals/.cache/fake/*/runs")
    assert runs.read_text().split() == ["warm-up", "a", "b", "c"]


def floors_of(out: Path) -> dict[tuple[str, str], float]:
    table = collect(out)
    nulls = table[table["metric"] == "score_null_noise"]
    assert set(nulls["direction"]) <= {0}
    cells = zip(nulls["member"], nulls["task"], nulls["value"], strict=True)
    return {(member, task): value for member, task, value in cells}


def test_floors_complete_a_result_that_was_made_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scores, its file and its settings stay; the floors are those of one run for all."""
    monkeypatch.setitem(suites._suites, "floored", FlooredSuite)
    both, later = tmp_path / "both", tmp_path / "later"
    evaluate(saes("a", "b"), {"floored": {}}, both)
    evaluate(saes("a", "b"), {"floored": {"floors": False}}, later)
    assert not floors_of(later)
    store = EvalStore(later)
    before = store.result_file("floored", "a").read_bytes(), collect(later)
    report = evaluate(saes("a", "b"), {"floored": {}}, later)
    assert report.done == []
    assert report.kept == [("floored", "a"), ("floored", "b")]
    assert store.result_file("floored", "a").read_bytes() == before[0]
    assert floors_of(later) == floors_of(both)
    assert set(floors_of(both)) == {(name, task) for name in ("a", "b") for task in ("", "a")}
    after = collect(later)
    scores = after[~after["metric"].str.contains("_null_")].reset_index(drop=True)
    assert scores.equals(before[1])
    record = json.loads(store.record_file("floored", "a").read_text())
    assert record["options"]["floors"] is True
    # Nor does leaving them out again throw anything away.
    evaluate(saes("a", "b"), {"floored": {"floors": False}}, later)
    assert floors_of(later) == floors_of(both)


def test_floors_that_fail_cost_no_score_and_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(suites._suites, "floored", FlooredSuite)
    with monkeypatch.context() as broken:

        def fail(*_: Any) -> Any:
            raise ValueError("no floor")

        broken.setattr(FlooredSuite, "floors", fail)
        report = evaluate(saes("a"), {"floored": {}}, tmp_path)
    assert report.done == [("floored", "a")]
    assert not report.failures
    assert any("floors were not measured: ValueError: no floor" in n for *_, n in report.notes)
    evaluate(saes("a"), {"floored": {}}, tmp_path)
    assert set(floors_of(tmp_path)) == {("a", ""), ("a", "a")}


def test_whether_floors_are_measured_is_true_or_false(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(suites._suites, "floored", FlooredSuite)
    with pytest.raises(UserError, match="floored: floors: 'no' is neither true nor false"):
        evaluate(saes("a"), {"floored": {"floors": "no"}}, tmp_path)
    with pytest.raises(UserError, match="'floors' is not an option"):
        run(tmp_path, "a", floors=True)


def test_nothing_that_somebody_else_cached_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SAEBench unpickles what it cached, so a study from elsewhere would run its own code."""
    scratch = EvalStore(tmp_path).work("fake", "b") / "owner"
    owners = []
    for user in ("somebody else", "me"):
        monkeypatch.setenv("SAE_BASELINES_CACHE", str(tmp_path / user))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, "a", "b", kill_on="b")
        owners.append(scratch.read_text())
    assert owners[0] != owners[1]
    caches = [runs.read_text().split() for runs in tmp_path.glob("evals/.cache/fake/*/runs")]
    assert sorted(caches) == [["warm-up", "a", "b"], ["warm-up", "b"]]
    assert (tmp_path / "me" / "key").stat().st_mode & 0o077 == 0


def test_other_weights_or_settings_are_evaluated_again(tmp_path: Path) -> None:
    run(tmp_path, "a")
    other = evaluate({"a": tiny_sae(seed=9)}, {"fake": {}}, tmp_path)
    assert other.done == [("fake", "a")]
    changed = evaluate({"a": tiny_sae(seed=9)}, {"fake": {"fail_on": "z"}}, tmp_path)
    assert changed.done == [("fake", "a")]


def test_force_evaluates_again(tmp_path: Path) -> None:
    run(tmp_path, "a")
    again = evaluate(saes("a"), {"fake": {}}, tmp_path, force=True)
    assert again.done == [("fake", "a")]


def test_another_local_model_is_another_setting(tmp_path: Path, tiny_hub: Path) -> None:
    """Same name, other weights: the scores must not be taken for comparable."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        shutil.copytree(tiny_hub / "EleutherAI" / MODEL, folder)
    evaluate(saes("a"), {"fake": {}}, tmp_path / "out", model=first)
    moved = evaluate(saes("a"), {"fake": {}}, tmp_path / "out", model=second)
    assert moved.kept == [("fake", "a")]  # the same model in another place
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps({**config, "changed": True}))
    changed = evaluate(saes("a"), {"fake": {}}, tmp_path / "out", model=second)
    assert changed.done == [("fake", "a")]


def test_one_failure_does_not_stop_the_others(tmp_path: Path) -> None:
    report = run(tmp_path, fail_on="b")
    assert report.done == [("fake", "a"), ("fake", "c")]
    (failure,) = report.failures
    assert (failure.suite, failure.name) == ("fake", "b")
    assert failure.reason == "ValueError: it broke badly"
    assert EvalStore(tmp_path).failures() == [failure]
    assert "it broke" in EvalStore(tmp_path).log_file("fake", "b").read_text()
    assert set(collect(tmp_path)["member"]) == {"a", "c"}


def test_a_failure_is_made_good(tmp_path: Path) -> None:
    run(tmp_path, "a", fail_on="a")
    run(tmp_path, "a")
    assert EvalStore(tmp_path).failures() == []
    assert set(scores(tmp_path)) == {"a"}


def test_a_failure_takes_the_place_of_an_older_result(tmp_path: Path) -> None:
    run(tmp_path, "a")
    run(tmp_path, "a", fail_on="a")
    assert scores(tmp_path) == {}


@pytest.mark.parametrize(
    ("option", "reason"), [("silent_on", "wrote no result"), ("nan_on", "not a number: score")]
)
def test_no_result_and_no_number_are_failures(tmp_path: Path, option: str, reason: str) -> None:
    report = run(tmp_path, "a", "b", **{option: "a"})
    (failure,) = report.failures
    assert reason in failure.reason
    assert set(scores(tmp_path)) == {"b"}


class Forked:
    """Two workers."""

    def run(self, work: Callable[[], object], root: Path) -> None:
        del root
        on_two_ranks(_called, work)


def _called(_: int, work: Callable[[], object]) -> None:
    work()


@pytest.mark.parametrize("warm_up", [True, False])
def test_workers_share_evaluations_and_their_cache(
    warm_up: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeSuite, "warm_up", warm_up)
    config = tmp_path / "evals.yaml"
    config.write_text("evals:\n  suites:\n    fake: {fail_on: b}\n")
    for name, sae in saes(*NAMES).items():
        sae.save_model(tmp_path / name)
    sources = [tmp_path / name for name in NAMES]
    whole = pipeline.evaluate(sources, out=tmp_path / "whole", config=config)
    shared = pipeline.evaluate(sources, out=tmp_path / "shared", config=config, on=Forked())
    for done in (whole, shared):
        assert sorted(done.done) == [("fake", "a"), ("fake", "c")]
        assert [(f.name, f.reason) for f in done.failures] == [
            ("b", "ValueError: it broke badly")
        ]
    assert scores(tmp_path / "shared") == scores(tmp_path / "whole")
    (runs,) = (tmp_path / "shared").rglob("runs")
    lines = runs.read_text().split()
    assert sorted(lines) == (["a", "b", "c", "warm-up"] if warm_up else ["a", "b", "c"])
    # What fills the cache is alone.
    assert lines[0] == ("warm-up" if warm_up else "a")
    # Who finds it done says nothing of having done it.
    tried = {name: Share(tmp_path / "shared").attempts(f"eval:fake:{name}") for name in "ac"}
    assert {name: len(attempts) for name, attempts in tried.items()} == {"a": 1, "c": 1}
    again = pipeline.evaluate(sources, out=tmp_path / "shared", config=config, on=Forked())
    assert (again.done, [f.name for f in again.failures]) == ([], ["b"])
    assert runs.read_text().split() == lines
    pipeline.evaluate(
        sources, out=tmp_path / "shared", config=config, on=Forked(), retry_failed=True
    )
    assert runs.read_text().split() == [*lines, "b"]
    with pytest.raises(UserError, match="force: makes all anew in one process"):
        pipeline.evaluate(sources, out=tmp_path / "shared", on=Forked(), force=True)


def test_a_warm_up_that_fails_fails_all(tmp_path: Path) -> None:
    report = run(tmp_path, "a", "b", fail_on="warm-up")
    assert [f.name for f in report.failures] == ["a", "b"]


def test_interrupted_work_continues_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "a", "b", kill_on="b")
    assert set(scores(tmp_path)) == {"a"}
    store = EvalStore(tmp_path)
    # As after kill -9, the scratch of the same SAE and settings is still there ...
    settings = (store.work("fake", "b") / "owner").read_text()
    run(tmp_path, "a", "b")
    # ... but these are other settings, so nothing of it may be used.
    assert store.load("fake", "b").record["extras"]["resumed"] is False  # type: ignore[union-attr]
    assert settings.endswith(store.load("fake", "b").record["weights"])  # type: ignore[union-attr]


def test_same_settings_resume_in_the_same_scratch(tmp_path: Path) -> None:
    store = EvalStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "b", kill_on="b")
    owner = (store.work("fake", "b") / "owner").read_text()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "b", kill_on="b")
    assert (store.work("fake", "b") / "partial").exists()
    assert (store.work("fake", "b") / "owner").read_text() == owner


def test_a_result_without_its_record_does_not_count(tmp_path: Path) -> None:
    run(tmp_path, "a")
    store = EvalStore(tmp_path)
    store.record_file("fake", "a").unlink()
    assert store.results() == []
    assert run(tmp_path, "a").done == [("fake", "a")]


def test_a_changed_result_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "a")
    EvalStore(tmp_path).result_file("fake", "a").write_text('{"score": 99}')
    with pytest.raises(UserError, match="was changed"):
        collect(tmp_path)


def test_saebenchs_file_is_kept_byte_for_byte(tmp_path: Path) -> None:
    run(tmp_path, "a")
    text = EvalStore(tmp_path).result_file("fake", "a").read_text()
    assert text == json.dumps(json.loads(text))  # as the suite wrote it, unindented


def test_results_under_different_settings_do_not_mix(tmp_path: Path) -> None:
    run(tmp_path, "a")
    evaluate(saes("b"), EvalSpec(suites={"fake": {}}, seed=7), tmp_path)
    with pytest.raises(UserError, match="different settings"):
        collect(tmp_path)


def test_problems_stop_everything_before_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fake: fail_on: 'early' is refused"):
        run(tmp_path, "a", fail_on="early")
    assert not (tmp_path / "evals").exists()


def test_chatter_goes_to_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "a")
    assert "chatter" not in capsys.readouterr().out
    assert "chatter" in EvalStore(tmp_path).log_file("fake", "a").read_text()


def test_record_says_how(tmp_path: Path) -> None:
    report = run(tmp_path, "a")
    (result,) = EvalStore(tmp_path).results()
    record = result.record
    assert record["seed"] == 42
    assert record["options"]["fail_on"] == ""
    assert record["versions"]["sae-lens"]
    assert record["warm_up"] is True
    assert record["facts"]["member"] == "a"
    assert report.notes == [("fake", "a", "a note")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "saes: none given"),
        ({"a/b": tiny_sae(), "a?b": tiny_sae()}, "names must differ"),
        ({"a": tiny_sae(), "b": tiny_sae(model_name="other")}, "not of one model"),
        ({"a": "nowhere"}, "neither a folder, nor a release"),
        (
            {"a": transcoder_of(tiny_sae()), "b": tiny_sae()},
            r"not of one model.*resid_post to blocks.0.mlp.hook_post, d_in 64; .*resid_post, d",
        ),
        (
            {"a": transcoder_of(tiny_sae()), "b": transcoder_of(tiny_sae(), out="blocks.0.o")},
            "not of one model and hook .*to blocks.0.mlp.hook_post,.* to blocks.0.o,",
        ),
    ],
)
def test_bad_saes(tmp_path: Path, given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(given, {"fake": {}}, tmp_path)


def test_what_needs_reconstructions_is_refused_for_transcoders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"core: hook_name_out: these are transcoders.*Leave"):
        evaluate({"a": transcoder_of(tiny_sae())}, ["core", "meta_structure"], tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["cores"], "did you mean core"),
        ({"fake": {"fail_onn": 1}}, "did you mean fail_on"),
        ("core", "give a list"),
        ({}, "suites: none given"),
    ],
)
def test_bad_suites(tmp_path: Path, given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(saes("a"), given, tmp_path)


def test_without_saebench_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.startswith("sae_bench")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sae_bench", None)
    with pytest.raises(UserError, match=r"pip install 'sae-baselines\[bench\]'"):
        evaluate(saes("a"), ["sparse_probing_sae_probes"], tmp_path)


def test_an_sae_without_model_name_is_refused(tmp_path: Path) -> None:
    sae = tiny_sae()
    sae.cfg.metadata.model_name = None
    with pytest.raises(UserError, match="a: its metadata lacks model_name"):
        evaluate({"a": sae}, {"fake": {}}, tmp_path)


def test_an_sae_on_disk_is_the_sae_in_memory(tmp_path: Path) -> None:
    tiny_sae(seed=1).save_model(tmp_path / "saved")
    evaluate({"b": str(tmp_path / "saved")}, {"fake": {}}, tmp_path / "disk")
    run(tmp_path / "memory", "b")
    assert scores(tmp_path / "disk") == scores(tmp_path / "memory")


def test_results_round_trip(tmp_path: Path) -> None:
    run(tmp_path)
    written = write_results(tmp_path)
    read = load_results(tmp_path)
    assert read.equals(written)
    first = (tmp_path / "results.csv").read_bytes()
    write_results(tmp_path)
    assert (tmp_path / "results.csv").read_bytes() == first
    tasks = read[(read["member"] == "b") & (read["metric"] == "score")]
    assert set(tasks["task"]) == {"", "a", "b"}
    whole = scores(tmp_path)["b"]
    assert tasks.loc[tasks["task"] == "", "value"].item() == whole
    assert tasks.loc[tasks["task"] == "a", "value"].item() == whole - 1
    assert "sae-lens=" in read["versions"].iloc[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="task"), "columns are"),
        (lambda t: t.assign(direction=2), "direction 2"),
        (lambda t: t.assign(task=""), "there twice"),
        (lambda t: t.assign(member=""), "empty member"),
    ],
)
def test_a_table_without_the_schema_is_refused(
    tmp_path: Path, change: Any, message: str
) -> None:
    run(tmp_path, "a")
    change(write_results(tmp_path)).to_csv(tmp_path / "results.csv", index=False)
    with pytest.raises(UserError, match=message):
        load_results(tmp_path)


def test_what_a_suite_encodes_is_counted_and_its_scores_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0))
    run(tmp_path / "silent", "a", "b")
    assert "l0" not in set(collect(tmp_path / "silent")["metric"])
    stock = FakeSuite.run

    def encoding(self: FakeSuite, sae: SAE[Any], call: Any) -> Any:
        sae.encode(tokens[..., : sae.cfg.d_in])
        return stock(self, sae, call)

    monkeypatch.setattr(FakeSuite, "run", encoding)
    run(tmp_path / "counted", "a", "b")
    assert scores(tmp_path / "counted") == scores(tmp_path / "silent")
    rows = collect(tmp_path / "counted").query("suite == 'fake' and metric == 'l0'")
    by_name = rows.set_index("member")
    for name, sae in saes("a", "b").items():
        row: Any = by_name.loc[name]
        active = (sae.encode(tokens[..., : sae.cfg.d_in]) != 0).sum().item()
        assert row["value"] == active / 14
        assert (row["n"], row["n_of"], row["direction"], row["task"]) == (14, "tokens", 0, "")


def test_what_an_interrupted_run_encoded_is_counted_once_with_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randn(6, 7, 64, generator=torch.Generator().manual_seed(0))
    stock, killed = FakeSuite.run, []

    def encoding(self: FakeSuite, sae: SAE[Any], call: Any) -> Any:
        if call.name == "a":
            file = call.work / "parts"  # finished ones, as sae-probes keeps its datasets
            for part in range(int(file.read_text()) if file.exists() else 0, 3):
                sae.encode(tokens[2 * part])
                sae.encode(tokens[2 * part])  # twice is what the suite does
                if killed == [part]:
                    killed.append("stop")
                    raise KeyboardInterrupt
                sae.encode(tokens[2 * part + 1])
                file.write_text(str(part + 1))
        return stock(self, sae, call)

    monkeypatch.setattr(FakeSuite, "run", encoding)
    run(tmp_path / "whole", "a")
    killed.append(1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "resumed", "a")
    run(tmp_path / "resumed", "a")
    assert killed == [1, "stop"]
    counts = [EvalStore(tmp_path / f).records()[0]["encoded"] for f in ("whole", "resumed")]
    assert counts[0] == counts[1]
    assert counts[0]["n"] == 9 * 7


@pytest.mark.parametrize("weight", [1e25, 3e38])
def test_latents_that_are_not_numbers_are_a_failure(
    tmp_path: Path, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are finite may overflow: SAEBench's SCR gave such an SAE a good score."""
    stock = FakeSuite.run

    def encoding(self: FakeSuite, sae: SAE[Any], call: Any) -> Any:
        sae.encode(torch.full((3, sae.cfg.d_in), 4.0))
        return stock(self, sae, call)

    monkeypatch.setattr(FakeSuite, "run", encoding)
    given = dict(saes("a", "b"))
    with torch.no_grad():
        given["b"].W_enc.fill_(weight)
    report = evaluate(given, {"fake": {}}, tmp_path)
    (failure,) = report.failures
    assert (failure.name, "are not finite" in failure.reason) == ("b", True)
    assert set(scores(tmp_path)) == {"a"}


def test_no_file_is_written_through_a_link(tmp_path: Path) -> None:
    (mine := tmp_path / "mine").write_text("mine")
    store = EvalStore(tmp_path / "out")
    for file in (
        store.log_file("fake", "a"),
        store.log_file("fake", "b"),
        store.result_file("fake", "a"),
        store.failure_file("fake", "b"),
        store.result_file("fake", "a").with_name(f".{store.result_file('fake', 'a').name}.new"),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(mine)
    run(tmp_path / "out", "a", "b", fail_on="b")
    assert mine.read_text() == "mine"
    assert "it broke" in store.log_file("fake", "b").read_text()
    (tmp_path / "out" / "evals" / ".work" / "other").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link out of"):
        run(tmp_path / "out", "a")
