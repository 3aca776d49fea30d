"""SAEBench's sparse probing through the adapter: order, caches, rows, refusals."""

import dataclasses
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from sae_baselines.evals import collect, evaluate
from sae_baselines.evals.measured import HIGHER, NEITHER
from sae_baselines.evals.suites.sparse_probing import SparseProbing
from tests.evals.tiny_hub import (
    evaluate_with,
    floors_failing,
    suite_call,
    tiny_sae,
    transcoder_of,
)

BIOS = "LabHC/bias_in_bios_class_set1"
NEWS = "fancyzhx/ag_news"
OPTIONS = {
    "dataset_names": [BIOS, NEWS],
    "probe_train_set_size": 80,
    "probe_test_set_size": 42,
    "context_length": 32,
}
SUITE = SparseProbing()


def run(folder: Path, name: str, sae: Any, **changes: Any) -> Any:
    call = suite_call(SUITE, folder, OPTIONS, name=name, sae=sae, **changes)
    return evaluate_with(SUITE, sae, call)


def numbers(payload: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in payload.items() if key.startswith("eval_result_")}


def about_the_sae(payload: dict[str, Any]) -> dict[str, float]:
    rows = SUITE.rows(payload, {})
    return {f"{r.metric} {r.task}": r.value for r in rows if "sae_" in r.metric}


class Runs(NamedTuple):
    alone: Any
    third: Any
    cold: Any
    after_itself: Any
    rows: list[Any]
    folder: Path
    cold_folder: Path


@pytest.fixture(scope="module")
def runs(tiny_hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One member, alone and third in a list, and without a warm-up."""
    del tiny_hub
    member = tiny_sae(seed=1)
    one, many, cold = (tmp_path_factory.mktemp(name) for name in ("one", "many", "cold"))
    for folder in (one, many):
        run(folder, "warm-up", tiny_sae(seed=9, architecture="standard"))
    alone, _, rows = run(one, "member", member)
    for seed, d_sae in ((2, 64), (3, 32)):
        run(many, f"other_{seed}", tiny_sae(seed=seed, d_sae=d_sae))
    third, _, _ = run(many, "member", member)
    first, _, _ = run(cold, "member", member)
    with floors_failing(SUITE):
        again, _, _ = run(cold, "again", member)
    return Runs(alone, third, first, again, rows, one, cold)


def test_floors_measured_in_the_run_are_those_measured_after_it(runs: Runs) -> None:
    member = tiny_sae(seed=1)
    call = suite_call(SUITE, runs.folder, OPTIONS, name="member", sae=member)
    floors = SUITE.floors(member, call)
    (call.work / "floors.json").unlink()
    assert SUITE.floors(member, call) == floors
    names = {r.metric for r in floors}
    for k in (1, 2, 5):
        known = SUITE.metric(f"sae_top_{k}_test_accuracy")
        assert known is not None
        assert known.ceilings == ("llm_test_accuracy",)
        assert known.beside == (f"pca_top_{k}_test_accuracy",)
        assert {*known.floors, *known.beside} < names
    scores = {r.task: r.value for r in runs.rows if r.metric == "sae_top_5_test_accuracy"}
    for kind in ("random_latents", "permuted_labels"):
        of = {r.task: r for r in floors if r.metric == f"sae_top_5_test_accuracy_null_{kind}"}
        assert set(of) == {"", BIOS, NEWS}
        assert of[""].value < scores[""]
        assert (of[BIOS].n, of[NEWS].n) == (40, 42)


def test_a_floor_that_fails_in_the_run_costs_no_score_and_is_measured_later(
    runs: Runs,
) -> None:
    assert about_the_sae(runs.after_itself) == about_the_sae(runs.alone)
    member = tiny_sae(seed=1)
    call = suite_call(SUITE, runs.cold_folder, OPTIONS, name="again", sae=member)
    assert not (call.work / "floors.json").exists()
    assert SUITE.floors(member, call)


def test_a_members_numbers_do_not_depend_on_its_place(runs: Runs) -> None:
    assert numbers(runs.third) == numbers(runs.alone)


def test_whoever_filled_the_cache_the_sae_scores_the_same(runs: Runs) -> None:
    assert about_the_sae(runs.after_itself) == about_the_sae(runs.alone)


def test_a_transcoder_is_read_by_its_encoder_alone(runs: Runs) -> None:
    twin = transcoder_of(tiny_sae(seed=1))
    call = suite_call(SUITE, runs.folder, OPTIONS, name="transcoder", sae=twin)
    assert not list(SUITE.transcoder_problems(call.subject))
    payload, _, _ = evaluate_with(SUITE, twin, call)
    assert about_the_sae(payload) == about_the_sae(runs.alone)


def test_a_cold_cache_changes_scores_so_that_a_warm_up_is_needed(runs: Runs) -> None:
    assert SUITE.warm_up
    assert about_the_sae(runs.cold) != about_the_sae(runs.alone)


def test_rows_add_up_to_saebenchs_aggregates(runs: Runs) -> None:
    metrics = runs.alone["eval_result_metrics"]
    for key in ("sae_top_1_test_accuracy", "sae_test_accuracy", "llm_top_5_test_accuracy"):
        (total,) = [r for r in runs.rows if r.metric == key and not r.task]
        tasks = {r.task: r for r in runs.rows if r.metric == key and r.task}
        assert total.value == metrics[key.split("_")[0]][key]
        assert total.direction == (HIGHER if key.startswith("sae") else NEITHER)
        assert set(tasks) == {BIOS, NEWS}
        assert math.isclose(total.value, statistics.mean(r.value for r in tasks.values()))
        # A quarter for each of two genders and of class and rest; a half of class and rest.
        assert (tasks[BIOS].n, tasks[NEWS].n) == (40, 42)
        classes = [r for r in runs.rows if r.metric == f"class_{key}"]
        assert len(classes) == 5 + 4
        of_news = [r.value for r in classes if r.task.startswith(f"{NEWS}/")]
        assert math.isclose(tasks[NEWS].value, statistics.mean(of_news))


def test_numbers_that_were_not_computed_are_no_rows(runs: Runs) -> None:
    config = {**runs.alone["eval_config"], "lower_vram_usage": True}
    rows = SUITE.rows({**runs.alone, "eval_config": config}, {})
    assert not [r for r in rows if "sae_test_accuracy" in r.metric]
    assert [r for r in rows if r.metric == "sae_top_5_test_accuracy"]


@pytest.mark.usefixtures("tiny_hub")
def test_an_unfinished_cache_is_thrown_away_and_seeds_have_their_own(
    tmp_path: Path, runs: Runs
) -> None:
    member = tiny_sae(seed=1)
    call = suite_call(SUITE, tmp_path, OPTIONS, name="member", sae=member)
    half = call.cache / "seed_0/sparse_probing" / call.subject.model_name
    half = half / call.subject.hook_name / "fancyzhx_ag_news_activations.pt"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"killed while writing")
    with torch.no_grad():
        payload, _, _ = evaluate_with(SUITE, member, call)
        assert not torch.is_grad_enabled()
    assert numbers(payload) == numbers(runs.cold)
    other, _, _ = run(tmp_path, "other", member, seed=1)
    assert about_the_sae(other) != about_the_sae(payload)
    assert sorted(p.name for p in call.cache.iterdir()) == ["seed_0", "seed_1"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset_names": ["fancyzhx/agnews"]}, "did you mean fancyzhx/ag_news"),
        ({"dataset_names": [NEWS, NEWS]}, "given twice"),
        ({"dataset_names": []}, "is empty"),
        ({"dataset_names": "fancyzhx/ag_news"}, "valid list"),
        ({"k_values": [1, 100]}, "100 is not between 1 and the 64 latents"),
        ({"k_values": [1, 3]}, "3 has no place in SAEBench's results"),
        ({"probe_test_set_size": 0}, "probe_test_set_size: 0 is not positive"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    call = suite_call(SUITE, tmp_path, options)
    (problem,) = SUITE.problems(call.subject, call.options)
    assert said in problem


def test_defaults_are_accepted_and_hooks_outside_blocks_are_not(tmp_path: Path) -> None:
    call = suite_call(SUITE, tmp_path)
    assert not list(SUITE.problems(call.subject, call.options))
    assert len(call.options["dataset_names"]) == 8
    assert call.options["k_values"] == [1, 2, 5]
    subject = dataclasses.replace(call.subject, hook_name="ln_final.hook_normalized")
    (problem,) = SUITE.problems(subject, call.options)
    assert "outside the blocks" in problem


@pytest.mark.usefixtures("tiny_hub")
def test_the_language_models_own_probes_depend_on_no_sae(tmp_path: Path) -> None:
    """They are trained after the warm-up's, by random numbers of which it takes its share."""

    def llm_scores(d_sae: int) -> dict[str, float]:
        options = {**OPTIONS, "k_values": [1], "probe_train_set_size": 40}
        out = tmp_path / str(d_sae)
        evaluate({"a": tiny_sae(d_sae=d_sae)}, {SUITE.name: options}, out)
        rows = collect(out)
        rows = rows[rows["metric"].str.contains("llm_")]
        return dict(zip(rows["metric"] + rows["task"], rows["value"], strict=True))

    narrow, wide = llm_scores(16), llm_scores(128)
    assert narrow == wide
    assert len(narrow) > 10
