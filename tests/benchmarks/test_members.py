"""Tables of committed studies are what their archives give."""

import csv
import importlib
import runpy
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import yaml

from sae_baselines.evals.judge import AUTOINTERP, JudgeTest
from sae_baselines.files import read_json
from sae_baselines.report.blind import score
from tests.benchmarks.studies import BENCHMARKS


@pytest.fixture(autouse=True)
def _importable() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def members() -> dict[str, Any]:
    return runpy.run_path(str(BENCHMARKS / "members.py"))


@pytest.fixture
def render() -> ModuleType:
    return importlib.import_module("render_rows")


FOLDERS = [
    folder
    for folder in ("headline", "random_transformer", "transcoders")
    if (BENCHMARKS / folder / "members.csv").exists()
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_committed_table_is_that_of_the_archives(
    folder: str, members: dict[str, Any]
) -> None:
    with (BENCHMARKS / folder / "members.csv").open(newline="", encoding="utf-8") as file:
        committed = list(csv.reader(file))
    found = [list(members["FIELDS"])]
    for path in sorted((BENCHMARKS / folder).glob("*/study.tar.gz")):
        with members["unpacked"](path) as study:
            found += members["lines"](study, members["COLUMNS"][folder])
    assert found == committed


def test_floors_of_members_are_shown_as_a_range(
    members: dict[str, Any], render: ModuleType
) -> None:
    def row(member: str, column: str, **given: str) -> dict[str, str]:
        empty = dict.fromkeys(members["FIELDS"], "")
        where = {"study": "s", "base": "topk", "l0": "8", "member": member, "column": column}
        return {**empty, **where, "mean": "0.5", "sd": "0.01", "seeds": "3", **given}

    shown = render.scores_tables(
        {
            "rows": [
                row("trained", "EV", mean="0.8", floor="0.1"),
                row("trained", "probing", floor="0.51234", ceiling="0.9"),
                row("random", "EV", mean="0.3", floor="0.1", word="beats"),
                row("random", "probing", floor="0.50012", ceiling="0.9", word="cannot tell"),
            ]
        }
    )
    assert shown.splitlines() == [
        "**s, topk, L0 8**",
        "",
        "| member | EV | probing |",
        "| --- | --- | --- |",
        "| `trained` | 0.800 ± 0.010 | 0.500 ± 0.010 |",
        "| `random` | 0.300 ± 0.010, beats | 0.500 ± 0.010, cannot tell |",
        "| *floor* | 0.100 | 0.500 to 0.512 |",
        "| *ceiling* |  | 0.900 |",
    ]


def test_absorption_stands_beside_each_members_own_null(
    members: dict[str, Any], render: ModuleType
) -> None:
    where = {"study": "s", "base": "topk", "l0": "8", "column": render.ABSORPTION}
    empty = dict.fromkeys(members["FIELDS"], "")
    rows = [
        {**empty, **where, "member": name, "mean": score, "sd": "0.01", "floor": null}
        for name, score, null in (("trained", "0.3", "0.9"), ("random", "0.05", "0.06"))
    ]
    shown = render.absorption_table({"rows": rows}).splitlines()
    assert shown[-2:] == [
        "| `trained` | 0.300 ± 0.010 | 0.900 | 67 % |  |",
        "| `random` | 0.050 ± 0.010 | 0.060 | 17 % |  |",
    ]
    assert render.scores_tables({"rows": rows}) == "Not run yet."


def test_a_judge_that_ranks_latents_alike_agrees() -> None:
    agree = runpy.run_path(str(BENCHMARKS / "headline" / "agree.py"))
    rows = [
        {
            "sae": f"panel.{member}",
            "member": member,
            "latent": i,
            "embedding_auc": 0.5 + i / 50,
            "embedding_auc_hard": (7 * i % 20) / 20,
            "detection_auc": 0.6 + i / 100,
            "detection_auc_null_exchanged": 0.5,
        }
        for member, n in (("trained", 20), ("random", 12), ("rare", 3))
        for i in range(n)
    ]
    found = agree["agreement"](rows, draws=200)["agreement"]
    assert list(found) == ["all", "trained", "random"]
    assert found["all"]["latents"] == 35
    assert found["random"]["detection_auc_null_exchanged"] == 0.5
    same, other = found["trained"]["embedding_auc"], found["trained"]["embedding_auc_hard"]
    assert same == pytest.approx({"rho": 1.0, "low": 1.0, "high": 1.0})
    assert other["low"] < 0 < other["high"]
    assert -0.5 < other["rho"] < 0.5


def test_the_blind_answers_are_counted_in_the_readme() -> None:
    folder = BENCHMARKS / "headline"
    told, left = score(folder / "blind/page_key.json", folder / "blind/answers.json")
    assert left == 0
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for one in told:
        name = f"`{one.against}`" if one.against else "all"
        ends = (f"{end:.2f}".removeprefix("0") for end in (one.interval.low, one.interval.high))
        assert f"| {name} | {one.right} | {one.n} | {' to '.join(ends)} |" in readme


def test_what_the_judge_scored_is_as_the_readme_says() -> None:
    folder = BENCHMARKS / "headline"
    readme = " ".join((folder / "README.md").read_text(encoding="utf-8").split())
    for suite, may in ((AUTOINTERP, False), ("interp_detection", True)):
        record = read_json(folder / "judges" / f"{suite}_seed_0.json")
        assert record is not None
        tested = JudgeTest(**record)
        assert (tested.flaw is None) == may
        low, high = (f"{end:.3f}".replace("0.", ".") for end in tested.interval)
        right, floor = (f"{v:.3f}".lstrip("0") for v in (tested.accuracy, tested.floor))
        assert f"{tested.measure} {right}, floor {floor} (" in readme
        assert f"{low} to {high})" in readme


@pytest.mark.parametrize("model", ["smollm2", "gemma"])
def test_transcoders_with_and_without_a_skip_differ_in_nothing_else(model: str) -> None:
    panels = [
        yaml.safe_load((BENCHMARKS / "transcoders" / f"{name}.yaml").read_text())
        for name in (model, f"{model}-no-skip")
    ]
    told = [(panel.pop("name"), panel["sae"].pop("skip")) for panel in panels]
    assert told == [(told[0][0], True), (f"{told[0][0]}-no-skip", False)]
    assert panels[0] == panels[1]


def test_circuits_are_of_every_layer_of_one_panel() -> None:
    circuits = runpy.run_path(str(BENCHMARKS / "transcoders" / "circuits.py"))
    panels = [circuits["panel_of"](i) for i in (0, 12, circuits["LAYERS"] - 1)]
    for panel, i in zip(panels, (0, 12, 29), strict=True):
        assert panel.hook_name == f"blocks.{i}.ln2.hook_normalized"
        assert panel.hook_name_out == f"blocks.{i}.hook_mlp_out"
    assert panels[0].member_specs[0].name == "trained"
    # circuit-tracer puts a special token first, and leaves its position out.
    assert all((p.prepend_bos, p.seqpos_slice[0]) == (True, 1) for p in panels)
