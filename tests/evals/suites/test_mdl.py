"""SAEBench's MDL suite: what is broken in it, and that the shim changes no number."""

import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_baselines.compat.saebench import mdl_defects
from sae_baselines.evals.measured import LOWER, Measured
from sae_baselines.evals.suite import SuiteCall
from sae_baselines.evals.suites.mdl import Mdl
from tests.evals.tiny_hub import evaluate_with, suite_call, tiny_sae

SUITE = Mdl()
SMALL = {"num_bins_values": [8], "sae_batch_size": 2}


def entropy(probabilities: np.ndarray) -> float:
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log2(positive)).sum())


def description_length(ranges: list[np.ndarray], acts: np.ndarray, bins: int) -> float:
    """As published: for each latent, is it on, and if so, in which bin; SAEBench's ranges."""
    top = np.maximum(100.0, np.max([part.max(0) for part in ranges], 0))
    total = 0.0
    for latent in range(acts.shape[1]):
        on = (acts[:, latent] > 0).mean()
        counts, _ = np.histogram(acts[:, latent], bins, (0.0, top[latent]))
        total += entropy(np.array([on, 1 - on])) + on * entropy(counts / counts.sum())
    return total


def rows_of(call: SuiteCall) -> list[Measured]:
    return SUITE.rows(json.loads(call.expected.read_text()), {})


@pytest.mark.usefixtures("tiny_hub")
def test_the_shimmed_suite_computes_the_description_length(tmp_path: Path):
    sae: Any = tiny_sae()
    with torch.no_grad():
        # Large enough for several of the bins, which span at least 100.
        sae.W_enc *= 60
        sae.threshold *= 60
    seen: list[np.ndarray] = []
    encode = sae.encode

    def recording(x: torch.Tensor) -> torch.Tensor:
        acts = encode(x)
        seen.append(acts.flatten(0, -2).double().numpy())
        return acts

    sae.encode = recording
    call = suite_call(SUITE, tmp_path, SMALL, sae=sae)
    SUITE.run(sae, call)
    # Ten passes for the ranges, one for the error, one for the description.
    assert len(seen) == 12
    expected = description_length(seen[:10], seen[-1], bins=8)
    on_only = description_length(seen[:10], seen[-1], bins=1)
    assert expected > on_only + 1  # bins matter here
    (value,) = {
        row.value for row in rows_of(call) if row.metric == "description_length" and row.task
    }
    assert value == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("tiny_hub")
def test_runs_repeat_and_the_shim_leaves_nothing_behind(tmp_path: Path):
    cuda = torch.Tensor.cuda
    sae = tiny_sae()
    results = [
        evaluate_with(SUITE, sae, suite_call(SUITE, tmp_path / name, SMALL, sae=sae))[2]
        for name in ("first", "second")
    ]
    assert results[0] == results[1]
    main: Any = sys.modules["sae_bench.evals.mdl.main"]
    assert not hasattr(main, "config")
    assert torch.Tensor.cuda is cuda
    assert "cuda" not in vars(torch.Tensor)
    assert torch.is_grad_enabled()
    assert getattr(sys.modules.get("loguru"), "__file__", None) == getattr(
        find_spec("loguru"), "origin", None
    )


@pytest.mark.usefixtures("tiny_hub")
def test_without_the_shim_each_defect_is_named_and_the_run_fails(tmp_path: Path):
    sae = tiny_sae()
    call = suite_call(SUITE, tmp_path, {**SMALL, "shim": False}, sae=sae)
    problems = list(SUITE.problems(call.subject, call.options))
    assert ("loguru" in problems[0]) == (find_spec("loguru") is None)
    assert [p for p in problems if "global `config`" in p and "shim: true" in p]
    assert [p for p in problems if ".cuda()" in p and "shim: true" in p]
    with pytest.raises((ImportError, NameError)):
        SUITE.run(sae, call)


def test_defects_are_detected_and_not_assumed():
    assert not [p for p in mdl_defects("cuda:0") if ".cuda()" in p]
    assert mdl_defects("cpu", "sae_bench.evals.meta_structure.main") == []
    (problem,) = mdl_defects("cpu", "sae_bench.evals.mdl.absent")
    assert "not installed" in problem


def result(bins: int, k: int | None, length: float, viable: bool) -> dict[str, Any]:
    return {
        "num_bins": bins,
        "bins": [],
        "k": k,
        "description_length": length,
        "within_threshold": viable,
        "mse_loss": 0.1,
    }


def test_the_aggregate_is_the_shortest_description_that_is_accurate_enough():
    results = [result(4, None, 5.0, False), result(8, 16, 7.0, True), result(8, 32, 9.0, True)]
    rows = SUITE.rows({"eval_results": results}, {})
    lengths = {row.task: row.value for row in rows if row.metric == "description_length"}
    assert lengths == {"": 7.0, "bins_4": 5.0, "bins_8_k_16": 7.0, "bins_8_k_32": 9.0}
    assert rows[0].direction == LOWER
    # None where none is accurate enough, which an SAE that reconstructs nothing would win.
    rows = SUITE.rows({"eval_results": [result(4, None, 5.0, False)]}, {})
    assert [(row.metric, row.value) for row in rows[1:] if not row.task] == [
        ("mse_loss", 0.1),
        ("within_threshold", 0.0),
    ]
    assert math.isnan(rows[0].value)
    assert "mse_epsilon_threshold" in rows[0].missing
    rows = SUITE.rows({"eval_results": [result(4, None, 0.0, True)]}, {})
    assert math.isnan(rows[0].value)
    assert rows[0].missing == "0 bits: no latent fired"


def test_options_that_cannot_work_are_refused(tmp_path: Path):
    call = suite_call(SUITE, tmp_path, {"sae_batch_size": 100_000})
    (problem,) = SUITE.problems(call.subject, call.options)
    assert problem.startswith("sae_batch_size: 100000 needs about")
    assert not list(SUITE.problems(call.subject, SUITE.defaults()))
    call = suite_call(SUITE, tmp_path, {"shim": "no", "num_bins_values": 8})
    first, second = SUITE.problems(call.subject, call.options)
    assert first.startswith("shim: 'no' is neither true nor false")
    assert second.startswith("num_bins_values: 8 is not a list")
