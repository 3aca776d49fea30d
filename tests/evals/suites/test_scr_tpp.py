"""SAEBench's SCR and TPP through the adapters: order, caches, rows, refusals."""

import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sae_baselines.evals.measured import HIGHER, LOWER, not_finite
from sae_baselines.evals.metrics import Metric
from sae_baselines.evals.suite import Suite
from sae_baselines.evals.suites.scr_tpp import Scr, Tpp
from tests.evals.tiny_hub import evaluate_with, suite_call, tiny_sae

BIOS = "LabHC/bias_in_bios_class_set1"
AMAZON = "canrager/amazon_reviews_mcauley_1and5"
SMALL = {
    "train_set_size": 80,
    "test_set_size": 42,
    "context_length": 32,
    "probe_epochs": 4,
    "n_values": [2, 20],
}
_WORDS = {
    "shuffled_attributes": "latents of the other attribute",
    "shuffled_classes": "latents of other classes",
    "random_latents": "as many latents at random",
}
PAIRS = [["professor", "nurse"], ["surgeon", "psychologist"]]
OPTIONS: dict[str, dict[str, Any]] = {
    "scr": {**SMALL, "dataset_names": [BIOS], "column1_vals_lookup": {BIOS: PAIRS}},
    "tpp": {**SMALL, "dataset_names": [BIOS, AMAZON]},
}


class Runs(NamedTuple):
    suite: Suite
    alone: Any
    third: Any
    cold: Any
    after_itself: Any
    rows: list[Any]
    files: list[str]
    floors: list[Any]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(Scr(), id="scr", marks=pytest.mark.thorough),
        pytest.param(Tpp(), id="tpp"),
    ],
)
def runs(
    tiny_hub: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Runs:
    """One member, alone and third in a list, and without a warm-up."""
    del tiny_hub
    suite: Suite = request.param
    member = tiny_sae(seed=1)
    one, many, cold = (tmp_path_factory.mktemp(name) for name in ("one", "many", "cold"))

    def run(folder: Path, name: str, sae: Any, floors: bool = False) -> Any:
        options = {**OPTIONS[suite.name], "floors": floors}
        call = suite_call(suite, folder, options, name=name, sae=sae)
        payload, _, rows = evaluate_with(suite, sae, call)
        return (
            payload,
            rows,
            sorted(str(p.relative_to(call.output)) for p in call.output.rglob("*")),
        )

    run(one, "warm-up", tiny_sae(seed=9, architecture="standard"))
    run(many, "warm-up", tiny_sae(seed=8, d_sae=32))
    # Of the others without floors: they change no score.
    alone, rows, files = run(one, "member", member, floors=True)
    call = suite_call(suite, one, OPTIONS[suite.name], name="member", sae=member)
    floors = suite.floors(member, call)
    for seed in (2, 3):
        run(many, f"other_{seed}", tiny_sae(seed=seed))
    third = run(many, "member", member)[0]
    first = run(cold, "member", member)[0]
    again = run(cold, "again", member)[0]
    return Runs(suite, alone, third, first, again, rows, files, floors)


def numbers(payload: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in payload.items() if key.startswith("eval_result_")}


def test_a_members_numbers_depend_neither_on_its_place_nor_on_the_warm_up(runs: Runs) -> None:
    assert numbers(runs.third) == numbers(runs.alone)
    assert numbers(runs.after_itself) == numbers(runs.alone)


def test_a_cold_cache_draws_other_examples_for_tpp(runs: Runs) -> None:
    assert runs.suite.warm_up
    # SCR tests its probes on all examples, in whatever order.
    assert (numbers(runs.cold) == numbers(runs.alone)) == (runs.suite.name == "scr")


def test_the_output_is_saebenchs_file_and_nothing_else(runs: Runs) -> None:
    assert runs.files == ["member_custom_sae_eval_results.json"]
    assert runs.alone["eval_type_id"] == runs.suite.name


def test_rows_add_up_to_saebenchs_aggregates(runs: Runs) -> None:
    (metrics,) = runs.alone["eval_result_metrics"].values()
    (primary,) = runs.suite.primary
    (total,) = [r for r in runs.rows if r.metric == primary and not r.task]
    tasks = {r.task: r for r in runs.rows if r.metric == primary and r.task}
    assert total.value == metrics[primary]
    assert total.direction == HIGHER
    names = {
        "scr": {f"{BIOS}/professor_nurse", f"{BIOS}/surgeon_psychologist"},
        "tpp": {BIOS, AMAZON},
    }
    assert set(tasks) == names[runs.suite.name]
    assert math.isclose(total.value, statistics.mean(r.value for r in tasks.values()))
    assert {r.n for r in tasks.values()} == {40}
    classes = [r for r in runs.rows if r.metric == f"class_{primary}"]
    assert len(classes) == (10 if runs.suite.name == "tpp" else 0)
    if classes:
        of_bios = [r.value for r in classes if r.task.startswith(f"{BIOS}/")]
        assert math.isclose(tasks[BIOS].value, statistics.mean(of_bios))
        unintended = [r for r in runs.rows if r.metric.endswith("_unintended_diff_only")]
        assert {r.direction for r in unintended} == {LOWER}


def test_floors_are_of_the_same_tasks(runs: Runs) -> None:
    (primary,) = runs.suite.primary
    known = runs.suite.metric(primary)
    assert known is not None
    assert len(known.floors) == 2
    scores = {r.task: r.n for r in runs.rows if r.metric == primary}
    for name in known.floors:
        found = {r.task: r for r in runs.floors if r.metric == name}
        assert {task: row.n for task, row in found.items()} == scores
        assert runs.suite.metric(name) == Metric(
            name,
            title=f"{primary}, null: {_WORDS[name.split('_null_')[1]]}",
            unit="fraction",
            depends="edits",
        )
        tasks = [row.value for task, row in found.items() if task]
        assert math.isclose(found[""].value, statistics.mean(tasks), abs_tol=1e-12)
    if runs.suite.name == "tpp":
        # Each class's latents are another's in turn: the score itself says what that gives.
        exchanged = {r.task: r.value for r in runs.floors if r.metric == known.floors[0]}
        for row in runs.rows:
            if row.metric == primary and row.task:
                assert math.isclose(exchanged[row.task], -row.value / 4, abs_tol=1e-6)


def test_scr_without_any_score_is_a_failure_not_a_missing_row() -> None:
    key = "scr_metric_threshold_20"
    detail = {"dataset_name": f"{BIOS}_scr_professor_nurse_results", key: None}
    payload = {
        "eval_config": {"n_values": [20], "test_set_size": 40},
        "eval_result_metrics": {"scr_metrics": {key: None, "scr_dir1_threshold_20": 0.5}},
        "eval_result_details": [detail],
    }
    assert not_finite(Scr().rows(payload, {})) == [key]
    (note,) = Scr().notes(payload)
    assert "1 of 1 pairs have no score" in note
    assert f"{BIOS}/professor_nurse" in note


@pytest.mark.parametrize(
    ("suite", "options", "said"),
    [
        (Tpp(), {"n_values": [2, 500]}, "500 is not between 1 and the 64 latents"),
        (Tpp(), {"n_values": [7]}, "7 has no place in SAEBench's results"),
        (Tpp(), {"dataset_names": ["LabHC/bias_in_bios"]}, f"did you mean {BIOS}"),
        (
            Scr(),
            {"column1_vals_lookup": {BIOS: [["nurse", "profesor"]]}},
            "did you mean professor",
        ),
        (Scr(), {"column1_vals_lookup": {AMAZON: PAIRS}}, f"has no pairs for {BIOS}"),
        (Scr(), {"probe_epochs": 0}, "probe_epochs: 0 is not positive"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    tmp_path: Path, suite: Suite, options: dict[str, Any], said: str
) -> None:
    usable = {"n_values": [2, 20], "dataset_names": [BIOS]}
    call = suite_call(suite, tmp_path, {**usable, **options})
    (problem,) = suite.problems(call.subject, call.options)
    assert said in problem


@pytest.mark.parametrize("suite", [Scr(), Tpp()], ids=["scr", "tpp"])
def test_defaults_are_accepted_for_saes_of_usual_width(tmp_path: Path, suite: Suite) -> None:
    call = suite_call(suite, tmp_path, sae=tiny_sae(d_sae=512))
    assert not list(suite.problems(call.subject, call.options))
    assert ("column1_vals_lookup" in call.options) == (suite.name == "scr")
