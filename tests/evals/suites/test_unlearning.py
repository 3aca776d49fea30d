"""Unlearning: what can be tested without the gated model and corpus."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig
from sae_bench.evals.unlearning.eval_output import (
    UnlearningEvalOutput,
    UnlearningMetricCategories,
    UnlearningMetrics,
)

from sae_baselines.evals.measured import HIGHER, NEITHER, Measured
from sae_baselines.evals.suite import Subject
from sae_baselines.evals.suites.unlearning import Unlearning

SUBJECT = Subject("gemma-2-2b-it", "blocks.5.hook_resid_post", 2304, 16384, "cpu", "float32", 4)


def problems(subject: Subject, **options: Any) -> list[str]:
    return list(Unlearning().problems(subject, Unlearning().complete(options)))


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    file = tmp_path / "corpus.jsonl"
    file.write_text(json.dumps({"text": "cells"}) + "\n")
    return str(file)


@pytest.mark.parametrize("name", ["gemma-2-2b-it", "google/gemma-2-9b-it"])
def test_runs_with_the_model_and_the_corpus(corpus: str, name: str) -> None:
    subject = dataclasses.replace(SUBJECT, model_name=name)
    assert problems(subject, forget_corpus=corpus) == []


@pytest.mark.parametrize("name", ["gemma-2-2b", "pythia-70m-deduped"])
def test_other_models_are_refused(corpus: str, name: str) -> None:
    (problem,) = problems(dataclasses.replace(SUBJECT, model_name=name), forget_corpus=corpus)
    assert name in problem
    assert "gemma-2-2b-it and gemma-2-9b-it" in problem


def test_a_missing_corpus_is_said_with_where_to_get_it() -> None:
    (problem,) = problems(SUBJECT, forget_corpus="nowhere.jsonl")
    assert "nowhere.jsonl is not a file" in problem
    assert "wmdp-corpora" in problem


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset_names": ["wmdp-bio"]}, "and another, to be kept"),
        ({"dataset_names": ["human_aging", "high_school_geography"]}, "to be forgotten"),
        ({"retain_thresholds": [1e-5]}, "use 0.0001 or more"),
        ({"multipliers": []}, "is empty"),
        ({"intervention_method": "scale_feature_activation"}, "clamp_feature_activation alone"),
        ({"seq_len": 0}, "not positive"),
    ],
)
def test_wrong_options(corpus: str, options: dict[str, Any], said: str) -> None:
    (problem,) = problems(SUBJECT, forget_corpus=corpus, **options)
    assert said in problem


def test_the_corpus_is_found_from_any_folder(
    tmp_path: Path, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = Unlearning()
    assert suite.resolve(suite.complete({"forget_corpus": "corpus.jsonl"})) == suite.complete(
        {"forget_corpus": corpus}
    )


def test_rows_of_saebenchs_own_output() -> None:
    output = UnlearningEvalOutput(
        eval_config=UnlearningEvalConfig(
            model_name="gemma-2-2b-it", llm_dtype="float32", llm_batch_size=4
        ),
        eval_id="0",
        datetime_epoch_millis=0,
        eval_result_metrics=UnlearningMetricCategories(
            unlearning=UnlearningMetrics(unlearning_score=0.25)
        ),
        eval_result_details=[],
        sae_bench_commit_hash="",
        sae_lens_id="custom_sae",
        sae_lens_release_id="tiny",
        sae_lens_version="",
        sae_cfg_dict={},
    )
    point = {
        "wmdp-bio": 0.75,
        "layer": 5,
        "retain_thres": 0.01,
        "n_features": 10,
        "multiplier": 25,
        "all_side_effects_mcq": 0.995,
    }
    task = "multiplier25_n_features10_retain_thres0.01"
    assert Unlearning().rows(json.loads(output.to_json()), {"sweep": [point]}) == [
        Measured("unlearning_score", 0.25, HIGHER),
        Measured("wmdp-bio", 0.75, NEITHER, task),
        Measured("all_side_effects_mcq", 0.995, NEITHER, task),
    ]
