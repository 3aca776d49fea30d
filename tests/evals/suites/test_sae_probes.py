"""sae-probes through SAEBench and the adapter: order, stale files, resume, rows, refusals."""

import dataclasses
import json
import math
import os
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sae_probes import DATASETS

from sae_baselines.evals.measured import HIGHER, NEITHER
from sae_baselines.evals.suite import SuiteCall
from sae_baselines.evals.suites.sae_probes import SaeProbes
from tests.evals.tiny_hub import (
    evaluate_with,
    floors_failing,
    suite_call,
    tiny_sae,
    transcoder_of,
)

# Those with the shortest texts.
ASKED = ["119_us_state_TX", "118_us_state_CA"]
OPTIONS = {"dataset_names": ASKED, "ks": [1, 3, 5]}
SUITE = SaeProbes()


def call_for(folder: Path, sae: Any, name: str, **changes: Any) -> SuiteCall:
    return suite_call(SUITE, folder, OPTIONS, name=name, sae=sae, **changes)


def numbers(payload: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in payload.items()
        if key.startswith("eval_result_") or key == "sae_metrics_by_k"
    }


class Runs(NamedTuple):
    folder: Path
    first: Any
    other: Any
    third: Any
    text: str
    rows: list[Any]
    extras: dict[str, Any]


@pytest.fixture(scope="module")
def runs(tiny_hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One member with a cold cache, another, and the first one again."""
    del tiny_hub
    folder = tmp_path_factory.mktemp("sae_probes")
    member = tiny_sae(seed=1)
    call = call_for(folder, member, "first")
    first, extras, rows = evaluate_with(SUITE, member, call)
    second = tiny_sae(seed=2)
    other, _, _ = evaluate_with(SUITE, second, call_for(folder, second, "other"))
    with floors_failing(SUITE):
        third, _, _ = evaluate_with(SUITE, member, call_for(folder, member, "third"))
    return Runs(folder, first, other, third, call.expected.read_text(), rows, extras)


def files_of(call: SuiteCall) -> dict[str, tuple[int, bytes]]:
    """The files of single datasets, when and as they were written."""
    found = call.work.glob("probes/*/*_custom_sae/sae_probes_*/normal_setting/*.json")
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in found}


def test_floors_are_of_the_same_sae_and_tasks_and_whoever_measures_them_the_same(
    runs: Runs,
) -> None:
    member = tiny_sae(seed=1)
    call = call_for(runs.folder, member, "first")
    before = Path.cwd()
    os.chdir(call.work)
    try:
        floors = SUITE.floors(member, call)
        # As for a result that was made without: from the cache of activations alone.
        (measured,) = call.work.glob(f"probes/*/floors/{ASKED[0]}.json")
        kept = measured.read_bytes()
        measured.unlink()
        assert SUITE.floors(member, call) == floors
        assert measured.read_bytes() == kept
    finally:
        os.chdir(before)
    scores = {r.metric: r for r in runs.rows if not r.task}
    for name in (f"sae_top_{k}_test_{m}" for k in (1, 3, 5) for m in ("accuracy", "auc", "f1")):
        known = SUITE.metric(name)
        assert known is not None
        assert known.direction == scores[name].direction == HIGHER
        for floor in known.floors:
            of = {r.task: r for r in floors if r.metric == floor}
            assert set(of) == {"", *ASKED}
            assert of[""].value == statistics.mean(of[task].value for task in ASKED)
            assert {(of[t].n, of[t].direction) for t in ASKED} == {(99, NEITHER)}
            assert SUITE.metric(floor).title.startswith(known.title)  # pyright: ignore
    permuted = [
        r.value for r in floors if r.metric == "sae_top_1_test_auc_null_permuted_labels"
    ]
    assert all(abs(value - 0.5) < 0.25 for value in permuted)
    # What no SAE changes is measured once for all.
    second = tiny_sae(seed=2)
    call = call_for(runs.folder, second, "other")
    os.chdir(call.work)
    try:
        others = {(r.metric, r.task): r.value for r in SUITE.floors(second, call)}
    finally:
        os.chdir(before)
    for name in (f"sae_top_{k}_test_auc" for k in (1, 3, 5)):
        known = SUITE.metric(name)
        assert known is not None
        (dense,) = known.beside
        assert dense not in known.ceilings
        of = {r.task: r for r in floors if r.metric == dense}
        assert set(of) == {"", *ASKED}
        assert {others[dense, task] for task in of} == {row.value for row in of.values()}
        assert {row.direction for row in of.values()} == {NEITHER}
    assert any(others[r.metric, r.task] != r.value for r in floors if "_null_" in r.metric)
    assert len(list(call.cache.glob("pca_seed_0/*.json"))) == len(ASKED)


def test_a_floor_that_fails_in_the_run_costs_no_score_and_is_measured_later(
    runs: Runs,
) -> None:
    assert numbers(runs.third) == numbers(runs.first)
    member = tiny_sae(seed=1)
    floors = [
        SUITE.floors(member, call_for(runs.folder, member, n)) for n in ("first", "third")
    ]
    assert floors[0] == floors[1]


def test_a_transcoder_is_read_by_its_encoder_alone(runs: Runs) -> None:
    twin = transcoder_of(tiny_sae(seed=1))
    call = call_for(runs.folder, twin, "transcoder")
    assert not list(SUITE.transcoder_problems(call.subject))
    payload, _, _ = evaluate_with(SUITE, twin, call)
    assert numbers(payload) == numbers(runs.first)


def test_the_latents_that_a_probe_chose_are_kept_in_their_order(runs: Runs) -> None:
    call = call_for(runs.folder, tiny_sae(seed=1), "first")
    chosen = runs.extras["chosen"]
    assert set(chosen) == set(ASKED)
    for file, (_, text) in files_of(call).items():
        (dataset,) = (name for name in ASKED if file.startswith(name))
        for entry in json.loads(text):
            assert chosen[dataset][: entry["k"]] == entry["indices"]
        assert len(chosen[dataset]) == max(OPTIONS["ks"])


def test_no_warm_up_is_needed(runs: Runs) -> None:
    assert not SUITE.warm_up
    assert numbers(runs.third) == numbers(runs.first)
    assert numbers(runs.other) != numbers(runs.first)


def test_the_language_models_part_is_shared(runs: Runs) -> None:
    cache = runs.folder / "cache"
    assert len(list(cache.rglob("activations/**/*.pt"))) == len(ASKED)
    assert len(list(cache.rglob("probes_seed_0/**/*.json"))) == len(ASKED)
    assert not list(cache.rglob("sae_probes_*"))


def test_result_names_no_folder_of_this_machine(runs: Runs) -> None:
    assert str(runs.folder) not in runs.text
    assert str(Path.home()) not in runs.text


def test_rows_add_up_to_saebenchs_aggregates(runs: Runs) -> None:
    metrics = runs.first["eval_result_metrics"]
    for key in ("sae_top_1_test_accuracy", "sae_top_5_test_auc", "llm_test_accuracy"):
        (total,) = [r for r in runs.rows if r.metric == key and not r.task]
        tasks = {r.task: r for r in runs.rows if r.metric == key and r.task}
        assert total.value == metrics[key.split("_")[0]][key]
        assert total.direction == (HIGHER if key.startswith("sae") else NEITHER)
        assert set(tasks) == set(ASKED)
        assert math.isclose(total.value, statistics.mean(r.value for r in tasks.values()))
        assert {r.n for r in tasks.values()} == {99}
    # SAEBench's fields have no place for k = 3.
    assert len([r for r in runs.rows if r.metric == "sae_top_3_test_f1"]) == 1 + len(ASKED)


def test_another_sae_under_the_same_name_does_not_read_old_files(runs: Runs) -> None:
    other = tiny_sae(seed=2)
    call = call_for(runs.folder, other, "third")
    assert files_of(call)
    payload, _, _ = evaluate_with(SUITE, other, call)
    assert numbers(payload) == numbers(runs.other)


def test_an_interrupted_run_goes_on_where_it_was(runs: Runs) -> None:
    member = tiny_sae(seed=1)
    call = call_for(runs.folder, member, "first")
    before = files_of(call)
    kept, half = sorted(before)
    (broken,) = call.work.rglob(half)
    broken.write_text(broken.read_text()[:-20])
    (activations,) = call.cache.rglob(f"{ASKED[0]}*.pt")
    activations.write_bytes(activations.read_bytes()[:-20])
    call.expected.unlink()
    payload, _, _ = evaluate_with(SUITE, member, call)
    after = files_of(call)
    assert after[kept] == before[kept]
    assert after[half][0] != before[half][0]
    assert after[half][1] == before[half][1]
    assert numbers(payload) == numbers(runs.first)


@pytest.mark.parametrize("where", ["probes/*/*_custom_sae/sae_probes_*", "cache"])
def test_datasets_that_were_not_asked_for_do_not_enter_the_mean(
    runs: Runs, where: str, request: pytest.FixtureRequest
) -> None:
    member = tiny_sae(seed=1)
    call = call_for(runs.folder, member, "first")
    if where == "cache":
        (good,) = call.cache.rglob(f"probes_seed_0/**/{ASKED[0]}*.json")
    else:
        (good,) = call.work.glob(f"{where}/normal_setting/{ASKED[0]}*.json")
    foreign = good.with_name(good.name.replace("119_us_state_TX", "117_us_state_FL"))
    entries = json.loads(good.read_text())
    foreign.write_text(json.dumps([{**entry, "test_acc": 0.0} for entry in entries]))
    request.addfinalizer(foreign.unlink)
    with pytest.raises(RuntimeError, match=r"117_us_state_FL|not the mean of its datasets"):
        evaluate_with(SUITE, member, call)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset_names": ["119_us_state_TXX"]}, "did you mean 119_us_state_TX"),
        ({"dataset_names": [ASKED[0], ASKED[0]]}, "given twice"),
        ({"ks": [1, 65]}, "65 is not between 1 and the 64 latents"),
        ({"binarize": True}, "SAEBench does not find the results"),
        ({"setting": "scarcity"}, "choose from normal"),
        ({"reg_type": "l3"}, "choose from l1, l2"),
        ({"baseline_method": "svm"}, "choose from logreg"),
        ({"ks": "1"}, "valid list"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    call = suite_call(SUITE, tmp_path, options)
    (problem,) = SUITE.problems(call.subject, call.options)
    assert said in problem


def test_defaults_are_all_datasets_and_hooks_outside_blocks_are_refused(tmp_path: Path) -> None:
    call = suite_call(SUITE, tmp_path)
    assert not list(SUITE.problems(call.subject, call.options))
    assert call.options["dataset_names"] == DATASETS
    assert len(DATASETS) == 113
    subject = dataclasses.replace(call.subject, hook_name="hook_embed")
    (problem,) = SUITE.problems(subject, call.options)
    assert "outside the blocks" in problem
