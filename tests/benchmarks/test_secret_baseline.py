"""Twins are exchangeable, words are counted rightly, and the committed counts add up."""

import copy
import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COMMITTED = BENCHMARKS / "results" / "secret_baseline.json"
KINDS = ("frozen_decoder", "frozen_encoder")
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def secret() -> Iterator[Any]:
    """The benchmark as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("secret_baseline")


def run(secret: Any, folder: Path, seeds: int) -> Rows:
    """A quick run as a user would start it; its rows."""
    secret.main(
        [
            "--quick",
            *("--seeds", str(seeds)),
            *("--out", str(folder / "secret.json")),
            *("--rows", str(folder / "rows.jsonl")),
        ]
    )
    lines = (folder / "rows.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


@pytest.fixture(scope="module")
def quick(secret: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """Three panels, of which the last was lost, and one more."""
    folder = tmp_path_factory.mktemp("secret")
    first = run(secret, folder, 3)
    assert [row["seed"] for row in first] == [0, 1, 2]
    file = folder / "rows.jsonl"
    file.write_text(file.read_text()[:-40])  # killed while it wrote
    again = run(secret, folder, 4)
    assert [row["seed"] for row in again] == [0, 1, 2, 3]
    for before, after in zip(first, again, strict=False):
        assert before["scores"] == after["scores"]
    # The first two were read, not trained again: even their times are the same.
    assert first[:2] == again[:2]
    return folder, again


@pytest.mark.thorough
def test_a_run_writes_what_it_counted(quick: tuple[Path, Rows]) -> None:
    folder, rows = quick
    found = json.loads((folder / "secret.json").read_text())
    assert found["panels"] == len(rows) == 4
    check_counts(found)
    assert (folder / "secret.svg").read_text().startswith("<?xml")
    assert (folder / "secret.png").read_bytes().startswith(b"\x89PNG")
    assert str(folder) not in (folder / "secret.json").read_text()


@pytest.mark.thorough
def test_other_settings_are_not_mixed_in(secret: Any, quick: tuple[Path, Rows]) -> None:
    other = replace(secret.QUICK, steps=7)
    with pytest.raises(SystemExit, match="other settings"):
        secret.train_missing(other, 3, quick[0] / "rows.jsonl")


def test_exchanging_initialisations_exchanges_the_twins(secret: Any) -> None:
    panels = importlib.import_module("secret_panels")
    world = panels.World(secret.QUICK)
    one, other = panels.train(world, 5, (1, 2)), panels.train(world, 5, (2, 1))
    for kind in KINDS:
        assert one[f"{kind}_0"] == other[f"{kind}_1"]
        assert one[f"{kind}_1"] == other[f"{kind}_0"]
        assert one[f"{kind}_0"] != one[f"{kind}_1"]


@pytest.mark.thorough
def test_floors_and_strata_are_judged(secret: Any, quick: tuple[Path, Rows]) -> None:
    rows, roles = quick[1], secret.secret("frozen_decoder")
    for verdict in secret.asked(rows, roles):
        has_tasks = verdict.metric in ("top_1_auc", "top_1_correlation")
        assert verdict.floor_is == (f"{verdict.metric}_null_random_latent" * has_tasks)
    # A twin that probes no better than a latent at random cannot be told from anything.
    blind = copy.deepcopy(rows)
    for row in blind:
        for member in roles:
            scores = row["scores"][member]
            scores["l0"] = 3.0
            scores["top_1_auc"] = [x - 0.01 for x in scores["top_1_auc_null_random_latent"]]
    (auc,) = [v for v in secret.asked(blind, roles) if v.metric == "top_1_auc"]
    assert auc.word == "cannot tell"
    at = secret.asked_at_rates(rows, roles)
    assert {one.verdict.baseline for one in at} == {"frozen_decoder"}
    assert len({one.decade for one in at}) == len(at)
    assert sum(one.n for one in at) <= rows[0]["settings"]["d_sae"]


def test_exchanging_roles_turns_differences_round(
    secret: Any, quick: tuple[Path, Rows]
) -> None:
    for kind in KINDS:
        roles = secret.secret(kind)
        assert sorted(roles) == [f"{kind}_0", f"{kind}_1"]
        turned = dict(zip(roles, reversed(list(roles.values())), strict=True))
        there, back = (secret.asked(quick[1], r) for r in (roles, turned))
        assert [v.metric for v in there] == sorted(secret.METRICS)
        for a, b in zip(there, back, strict=True):
            assert a.mean_difference == pytest.approx(-b.mean_difference, abs=1e-15)
            assert a.p == pytest.approx(b.p)
            assert (a.trained, a.other) == (b.other, b.trained)
            mirror = {"beats": "falls short", "falls short": "beats"}
            assert mirror.get(a.word, a.word) == b.word


@pytest.mark.thorough
def test_false_words_are_counted(secret: Any, quick: tuple[Path, Rows]) -> None:
    """Of two studies, the twin called 'trained' is pushed ahead in one."""
    rows = [{**copy.deepcopy(quick[1][i % 4]), "seed": i} for i in range(6)]
    for row in rows[:3]:
        for i in (0, 1):
            row["scores"][f"frozen_decoder_{i}"]["l0"] = 3.0
        scores = row["scores"]["frozen_decoder_1"]
        scores["mcc"] = row["scores"]["frozen_decoder_0"]["mcc"] + 0.5 + row["seed"] / 1000
    assert [len(study) for study in secret.studies(rows, 3)] == [3, 3]
    found = secret.null(rows, ["frozen_decoder"], 3)
    control = secret.null(rows[3:], ["frozen_decoder"], 3)
    assert found["false_beats_any_metric"]["of"] == 2
    more = found["false_beats_any_metric"]["hits"] - control["false_beats_any_metric"]["hits"]
    assert more == 1
    for row in rows:
        twins = row["scores"]
        twins["frozen_decoder_0"], twins["frozen_decoder_1"] = (
            twins["frozen_decoder_1"],
            twins["frozen_decoder_0"],
        )
    turned = secret.null(rows, ["frozen_decoder"], 3)
    assert turned["false_beats_any_metric"] == found["false_falls_short_any_metric"]
    assert turned["false_falls_short_any_metric"] == found["false_beats_any_metric"]


def test_committed_counts_add_up_and_hold() -> None:
    found = json.loads(COMMITTED.read_text())
    assert found["panels"] >= 150
    check_counts(found)
    for row in found["null"]:
        where = (row["kind"], row["seeds"])
        for key in ("false_beats_any_metric", "false_word_any_metric"):
            # Not above 5 % by more than chance.
            assert row[key]["low"] <= found["alpha"], (*where, key)
        assert row["relabelled"]["rate"] < 0.06, where
        assert row["relabelled"]["at_least_as_many"] > 0.01, where
    for row in found["strata"]:
        for key in ("false_beats_any_decade", "false_word_any_decade"):
            assert row[key]["low"] <= found["alpha"], (row["kind"], row["seeds"], key)
    for row in found["control"]:
        assert row["beats"]["explained_variance"]["rate"] == 1
        assert row["falls_short"]["explained_variance"]["hits"] == 0
    for row in found["differences"]:
        assert abs(row["mean"]) < 4 * row["standard_error"], (row["kind"], row["metric"])


def check_counts(found: dict[str, Any]) -> None:
    """Rates follow from counts, and counts from panels."""
    metrics = len(found["metrics"])
    for row in [*found["null"], *found["control"]]:
        for rate in rates(row):
            assert 0 <= rate["hits"] <= rate["of"]
            assert rate["rate"] == rate["hits"] / rate["of"]
            interval = binomtest(rate["hits"], rate["of"]).proportion_ci(method="exact")
            assert [rate["low"], rate["high"]] == pytest.approx([*interval])
    for row in found["null"]:
        kinds = len(row["kind"].split(" and "))
        n = kinds * (found["panels"] // row["seeds"])
        beats, short, either = (
            row[f"false_{key}_any_metric"] for key in ("beats", "falls_short", "word")
        )
        assert beats["of"] == short["of"] == either["of"] == n
        assert max(beats["hits"], short["hits"]) <= either["hits"]
        assert either["hits"] <= beats["hits"] + short["hits"]
        assert either["hits"] <= row["false_word_any_metric_without_holm"]["hits"]
        assert sum(row["words"].values()) == n * metrics
        assert beats["hits"] <= row["words"]["beats"] <= beats["hits"] * metrics
    both = [row for row in found["null"] if " and " in row["kind"]]
    for row in both:
        parts = [r for r in found["null"] if r["seeds"] == row["seeds"] and r not in both]
        total = sum(r["false_word_any_metric"]["hits"] for r in parts)
        assert row["false_word_any_metric"]["hits"] == total
    for row in found["control"]:
        assert sum(r["hits"] for r in row["beats"].values()) == row["words"]["beats"]
        assert sum(row["words"].values()) == found["panels"] // row["seeds"] * metrics


def rates(value: Any) -> Iterator[dict[str, Any]]:
    """Every rate below a record."""
    if isinstance(value, dict):
        if "hits" in value:
            yield value
        else:
            for below in value.values():
                yield from rates(below)


def test_the_table_in_the_readme_is_the_committed_one() -> None:
    """Typed by hand, so it is recomputed here."""
    record = json.loads(COMMITTED.read_text())
    both = {n["seeds"]: n for n in record["null"] if n["kind"] == " and ".join(KINDS)}

    def cell(counted: dict[str, Any]) -> str:
        return f"{counted['rate']:.1%} ({counted['low']:.1%} to {counted['high']:.1%})"

    readme = (BENCHMARKS / "README.md").read_text()
    for at in record["strata"]:
        if at["kind"] == " and ".join(KINDS):
            beats, either = (at[f"false_{key}_any_decade"] for key in ("beats", "word"))
            row = [str(at["seeds"]), str(beats["of"]), f"{at['decades']:.1f}"]
            assert f"| {' | '.join([*row, cell(beats), cell(either)])} |" in readme
    for seeds, null in both.items():
        cells = [
            str(seeds),
            str(null["false_beats_any_metric"]["of"]),
            cell(null["false_beats_any_metric"]),
            cell(null["false_falls_short_any_metric"]),
            cell(null["false_word_any_metric"]),
            f"{null['relabelled']['rate']:.1%}",
        ]
        assert f"| {' | '.join(cells)} |" in readme
