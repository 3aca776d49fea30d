"""The committed check of a stock SAE: complete, and its claims follow from its own table."""

import csv
import io
import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from sae_baselines.evals import load_results
from sae_baselines.evals.store import EvalStore
from sae_baselines.report import Report, report_of_study
from sae_baselines.report.write import placements_to_csv
from sae_baselines.study.spec import read_yaml
from tests.benchmarks.studies import BENCHMARKS, unpack_study

FOLDER = BENCHMARKS / "published"
METRICS = (
    ("panel", "l0", ".1f"),
    ("core", "explained_variance_paper", ".3f"),
    ("core", "ce_loss_score", ".3f"),
    ("sparse_probing_sae_probes", "sae_top_1_test_accuracy", ".3f"),
    ("sparse_probing_sae_probes", "sae_top_5_test_accuracy", ".3f"),
    ("panel", "alive", ".0f"),
)
SEEDS = 5


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_study("published", tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def built(study: Path) -> Report:
    return report_of_study(study)


@pytest.fixture(scope="module")
def results(study: Path) -> pd.DataFrame:
    return load_results(study)


def table_row(results: pd.DataFrame, member: str) -> str:
    cells = [f"`{member}`"]
    for suite, metric, digits in METRICS:
        chosen = results[
            (results["member"] == member)
            & (results["suite"] == suite)
            & (results["metric"] == metric)
            & (results["task"] == "")
        ]["value"]
        alone = len(chosen) == 1 or suite == "panel"
        spread = "" if alone else f" ± {format(chosen.std(), digits)}"
        cells.append(f"{format(chosen.mean(), digits)}{spread}")
    return f"| {' | '.join(cells)} |"


def test_every_member_has_every_score(results: pd.DataFrame) -> None:
    for suite, metric, _ in METRICS:
        rows = results[(results["suite"] == suite) & (results["metric"] == metric)]
        counts = Counter(rows.loc[rows["task"] == "", "member"])
        assert counts.pop("published") == 1
        assert len(counts) == 7
        assert set(counts.values()) == {SEEDS}


def test_it_was_the_stock_sae_at_the_same_budget(study: Path) -> None:
    record = json.loads((study / "published" / "record.json").read_text())
    assert record["tokens_recorded"] == record["training_tokens"] == 204_800
    assert record["base_architecture"] == "batchtopk"
    spec = read_yaml(study / "study.yaml")["spec"]
    assert spec["published"]["weights_sha256"] == record["weights_sha256"]
    assert all("-dirty" not in r["git_revision"] for r in EvalStore(study).records())


def test_placements_follow_from_the_table(built: Report) -> None:
    committed = list(csv.DictReader(io.StringIO((FOLDER / "placements.csv").read_text())))
    again = list(csv.DictReader(io.StringIO(placements_to_csv(built))))
    assert len(again) == len(committed)
    for mine, theirs in zip(again, committed, strict=True):
        for column in ("suite", "metric", "member", "word", "n_seeds"):
            assert mine[column] == theirs[column]
        assert float(mine["value"]) == pytest.approx(float(theirs["value"]), rel=1e-9)


def test_tables_and_words_of_the_readme_are_the_results(
    built: Report, results: pd.DataFrame
) -> None:
    readme = (FOLDER / "README.md").read_text()
    for member in dict.fromkeys(results["member"]):
        assert table_row(results, member) in readme
    for metric in ("explained_variance_paper", "ce_loss_score"):
        words = {p.member: p.word for p in built.placements if p.metric == metric}
        for member in ("trained", "soft_frozen_decoder"):
            assert words[member] == f"below all {SEEDS} seeds"
        for member in ("frozen_encoder", "frozen_decoder", "random"):
            assert words[member] == f"above all {SEEDS} seeds"
