"""What metrics say of SAEs that measure nothing: dead, untrained, not a number."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_baselines.evals import collect, evaluate, get_suite, suite_names
from sae_baselines.evals import registry as suites
from sae_baselines.evals.measured import LOWER, not_finite
from sae_baselines.evals.metrics import OWN, Metric
from sae_baselines.evals.registry import metric_of
from sae_baselines.evals.store import EvalStore
from tests.evals.fake_suite import FakeSuite
from tests.evals.tiny_hub import tiny_sae

DOCUMENT = Path(__file__).parents[2] / "docs" / "evaluation.md"
MDL = {"suites": {"mdl": {"num_bins_values": [8], "sae_batch_size": 2}}}


def described() -> dict[str, Metric]:
    """Every metric with a better and a worse, of suites and of none."""
    found = {s: get_suite(s).metrics for s in suite_names()} | dict(OWN)
    return {
        f"{suite}/{metric.name}": metric
        for suite, metrics in found.items()
        for metric in metrics
        if metric.direction and suite != "*"
    }


def table() -> dict[str, list[str]]:
    """Cells of the page's table: metric to what a dead, a random, a NaN SAE gets."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    start = lines.index("| metric | better | dead | random | NaN weights |")
    rows: dict[str, list[str]] = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        names, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows |= dict.fromkeys(re.findall(r"`([^`]+)`", names), cells)
    return rows


def test_no_verdict_is_made_of_what_an_sae_gets_for_nothing() -> None:
    for suite in suite_names():
        for primary in get_suite(suite).primary:
            assert not metric_of(suite, primary).favours
    # Fewer of something is better: that a dead SAE has least of it is looked at for each.
    lower = {name for name, metric in described().items() if metric.direction == LOWER}
    honest = {"core/kl_div_with_sae", "core/ce_loss_with_sae", "core/mse", "panel/kl"}
    assert {name for name in lower if not described()[name].favours} == honest


def test_the_page_has_every_metric_and_what_the_registry_says() -> None:
    documented = table()
    assert documented.keys() == described().keys()
    for name, metric in described().items():
        better, dead, random, broken = documented[name]
        assert better == ("lower" if metric.direction == LOWER else "higher")
        assert ("no score" in dead) == ("dead" in metric.favours), name
        assert ("for nothing" in random) == ("random" in metric.favours), name
        assert "no score" in broken


BIOS = {"dataset_name": "a_tpp_results", "tpp_threshold_2_unintended_diff_only": 0.0}
DEAD: dict[str, dict[str, Any]] = {
    "absorption": {
        "eval_result_metrics": {
            "mean": {"mean_absorption_fraction_score": 0.0, "mean_full_absorption_score": 0.0}
        },
        "eval_result_details": [
            {
                "first_letter": "a",
                "mean_absorption_fraction": 0.0,
                "full_absorption_rate": 0.0,
                "num_probe_true_positives": 9,
            }
        ],
    },
    "ravel": {
        "eval_result_metrics": {
            "ravel": {"cause_score": 0.0, "isolation_score": 1.0, "disentanglement_score": 0.5}
        },
        "eval_result_unstructured": {},
    },
    "tpp": {
        "eval_config": {"test_set_size": 40},
        "eval_result_metrics": {
            "tpp_metrics": {
                "tpp_threshold_2_total_metric": 0.0,
                "tpp_threshold_2_unintended_diff_only": 0.0,
            }
        },
        "eval_result_details": [BIOS],
        "eval_result_unstructured": {},
    },
}


@pytest.mark.parametrize("suite", DEAD)
def test_what_a_dead_sae_gets_for_nothing_is_missing(suite: str) -> None:
    adapter = get_suite(suite)
    alive = {(r.metric, r.task): r.value for r in adapter.scores(DEAD[suite], {"fired": True})}
    assert all(math.isfinite(value) for value in alive.values())
    dead = adapter.scores(DEAD[suite], {"fired": False})
    given = {(r.metric, r.task) for r in dead if "dead" in metric_of(suite, r.metric).favours}
    assert given == {(r.metric, r.task) for r in dead if math.isnan(r.value)} != set()
    assert {row.missing for row in dead if row.metric in not_finite(dead)} == {
        "no latent fired"
    }
    # Honest numbers stay: a seed that collapsed must not drop out of a comparison.
    kept = {(r.metric, r.task): r.value for r in dead if math.isfinite(r.value)}
    assert kept.items() <= alive.items()


@pytest.mark.parametrize(
    ("explained", "why"),
    [(0.0, "all the same"), (-0.3, "less than the mean does (-0.3)"), (float("nan"), "")],
)
def test_a_meta_sae_that_failed_is_no_success(explained: float, why: str) -> None:
    metrics = {"decoder_fraction_variance_explained": explained, "train_time_seconds": 1.0}
    payload = {
        "eval_result_metrics": {"meta_structure": metrics},
        "sae_cfg_dict": {"d_sae": 64},
    }
    (row,) = get_suite("meta_structure").scores(payload, {})
    assert math.isnan(row.value)
    assert why in row.missing


@pytest.mark.usefixtures("tiny_hub")
def test_dead_and_broken_saes_are_missing_for_a_reason(tmp_path: Path) -> None:
    """Through the real suite: both would have the best description length there is, 0 bits."""
    saes: dict[str, Any] = {name: tiny_sae() for name in ("dead", "broken", "alive")}
    with torch.no_grad():
        saes["dead"].threshold.fill_(1e9)
        saes["broken"].W_enc[0, 0] = math.nan
    report = evaluate(saes, MDL["suites"], tmp_path)
    (failure,) = report.failures
    assert (failure.name, failure.reason) == (
        "broken",
        "UserError: W_enc: not all weights are finite numbers",
    )
    rows = collect(tmp_path)
    rows = rows[(rows["metric"] == "description_length") & (rows["task"] == "")]
    lengths = dict(zip(rows["member"], rows["value"], strict=True))
    assert lengths["alive"] > 0
    assert math.isnan(lengths["dead"])
    notes = [text for _, name, text in report.notes if name == "dead"]
    assert any(text.startswith("description_length is not a number: no lat") for text in notes)


@pytest.mark.usefixtures("tiny_hub")
def test_a_conversion_of_weights_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(suites._suites, "fake", FakeSuite)
    saes = {
        "half": tiny_sae().to(dtype=torch.bfloat16),
        "whole": tiny_sae(),
    }
    evaluate(saes, {"fake": {}}, tmp_path)
    notes = {r["name"]: r["notes"] for r in EvalStore(tmp_path).records()}
    assert notes["half"] == [
        "its weights are bfloat16 and were converted to float32",
        "a note",
    ]
    assert notes["whole"] == ["a note"]
