"""The page of a study around a published SAE: complete, true to its table, never paired."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from sae_baselines.report import (
    Report,
    build_report,
    report_of_study,
    study_context,
    to_html,
    to_markdown,
    write_report,
)
from sae_baselines.results import COLUMNS
from sae_baselines.stats import Placement, placed_against_random, placements, verdicts
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.presets import preset, preset_names
from sae_baselines_cli import app
from tests.report.checks import (
    CONSTRAINTS,
    METRICS,
    PRIMARY,
    RECORD,
    SEEDS,
    checked,
    context,
    row,
)
from tests.report.page import Node, cells, markdown_rows, parse
from tests.report.studies import change

BASELINES = tuple(m for m in CONSTRAINTS if m not in ("trained", "permuted_decoder"))
UNTRAINED = tuple(m for m in CONSTRAINTS if m != "trained")
FEW = PRIMARY[:1]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return checked()


@pytest.fixture(scope="module")
def report(table: pd.DataFrame) -> Report:
    return build_report(table, context())


@pytest.fixture(scope="module")
def page(report: Report) -> Node:
    return parse(to_html(report))


def kinds(report: Report) -> set[str]:
    return {c.kind for c in report.caveats}


def said(report: Report, kind: str) -> str:
    return " ".join(c.text for c in report.caveats if c.kind == kind)


def test_it_comes_first_and_says_what_was_checked(report: Report, page: Node):
    assert [s.id for s in report.sections][:3] == ["published", "answer", "caveats"]
    assert report.title == f"Is it better than random? {RECORD['source']}"
    assert f"`{RECORD['source']}`" in report.lede
    assert "one training run" in report.lede
    assert "5 training seeds of each" in report.lede
    told = page.section("published").text
    for fact in ("4,000,000,000", "20,000,000", "org/uncopyrighted-pile", "articles.parquet"):
        assert fact in told
    assert "31.4 (32.9 recorded)" in told
    assert "Its context size is not recorded; 128 tokens are used." in told
    assert RECORD["weights_sha256"] in page.section("provenance").text
    assert "SAE that was trained here" in page.section("answer").all("h2")[0].text


def test_the_answer_counts_what_the_placements_say(report: Report, page: Node):
    told = page.section("published").text
    assert "Better than every seed of every random SAE on 5 of 6 metrics" in told
    assert "not better than every seed of every random SAE on 1 of 6 metrics (Abs" in told
    above = [p for p in report.placed if p.above_all]
    assert len(above) == 5
    small = [p for p in report.placed if p.p_adjusted is not None and p.p_adjusted <= 0.05]
    assert f"(Holm p at most 0.05) on {len(small)} of 6 metrics" in told
    own = [p for p in report.placements if p.member == "trained"]
    within = [p for p in own if p.word == "within"]
    assert f"within on {len(within)} (Sparse probing, top-1 accuracy)" in told


def test_what_is_below_all_seeds_is_named_so(report: Report, page: Node):
    """Absorption: lower is better, and both frozen baselines have less."""
    (item,) = [p for p in report.placed if p.below]
    assert item.below == ("frozen_decoder", "frozen_encoder")
    shown = [r for r in cells(page.section("published")) if "Holm p, prediction" in r]
    assert [r["place"] for r in shown].count("below all seeds") == 1
    told = page.section("published").text
    assert "Below all seeds of frozen_decoder, which is random, on 1 of 6 metrics (Abs" in told
    assert "nearly free ones (`soft_frozen_decoder`)" in report.lede
    assert "random SAEs (`frozen_decoder`, `frozen_encoder`, `random`)" in report.lede


def test_one_seed_is_explained(page: Node):
    told = page.section("published").text
    assert "how its scores would vary with its seed is unknown" in told
    assert "none of them is about other seeds of the published SAE" in told
    assert "From 5 seeds the ranks alone can give no p below 0.17; 19 would be needed" in told
    assert "same data in the same order" in told
    other = build_report(checked(seeds=2), context(primary=FEW, spec={}))
    text = to_markdown(other)
    assert "From 2 seeds the ranks alone can give no p below 0.33" in text
    assert "same data in the same order" not in text


def rounded(text: str) -> list[float]:
    """Numbers of a cell."""
    kept = "".join(c if c.isdigit() or c in ".-" else " " for c in text)
    return [float(part) for part in kept.split()]


def test_numbers_on_the_page_are_those_of_the_results(
    table: pd.DataFrame, report: Report, page: Node
):
    found = {
        (r["heading"], r["among"]): r for r in cells(page.section("published")) if "among" in r
    }
    assert len(found) == len(report.placements) == 4 * 6 + 2 * 5
    whole = table.loc[table["task"] == ""]
    for (heading, member), shown in found.items():
        (name,) = [p for p in PRIMARY if f" {p}: " in heading]
        suite, metric = name.split("/")
        name = member.removesuffix(" (control)")
        here = whole.loc[(whole["suite"] == suite) & (whole["metric"] == metric)]
        (own,) = here.loc[here["member"] == "published", "value"]
        others = here.loc[here["member"] == name, "value"]
        assert rounded(heading.split("published")[1]) == [pytest.approx(own, abs=5e-4)]
        mean, sd = rounded(shown["mean ± sd"])
        assert mean == pytest.approx(others.mean(), abs=5e-3)
        assert sd == pytest.approx(others.std(), rel=0.1)
        sign = -1 if (here["direction"] == -1).all() else 1
        below = int((sign * others < sign * own).sum())
        place = {0: "below all 5 seeds", 5: "above all 5 seeds"}.get(below, "within")
        assert shown["place"] == place
        assert rounded(shown["share below"])[0] == 100 * below / 5
        assert rounded(shown["rank p"]) == [pytest.approx((6 - below) / 6, abs=0.005)]
        assert shown["seeds"] == "5"


def test_the_page_the_text_and_the_file_agree(report: Report, page: Node, tmp_path: Path):
    in_html = [r for r in cells(page.section("published")) if "among" in r]
    in_md = markdown_rows(to_markdown(report), "among")

    def plain(shown: dict[str, str]) -> list[str]:
        return [v.translate(dict.fromkeys(map(ord, "`*\\"))) for v in list(shown.values())[1:9]]

    assert [plain(r) for r in in_md] == [plain(r) for r in in_html]
    write_report(report, tmp_path)
    with (tmp_path / "placements.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [r["word"] for r in written] == [r["place"] for r in in_html]
    for line, item in zip(written, report.placements, strict=True):
        assert float(line["p_prediction"] or "nan") == pytest.approx(
            math.nan if item.p_prediction is None else item.p_prediction, nan_ok=True
        )
        assert float(line["value"]) == item.value


def test_placements_are_those_of_the_table_alone(table: pd.DataFrame, report: Report):
    found = placements(table, metrics=PRIMARY, on_missing="exclude")

    def key(p: Placement) -> tuple[str, str]:
        return p.metric, p.member

    assert sorted(map(repr, found)) == sorted(map(repr, report.placements))
    assert [key(p) for p in report.placements][:6] == [
        ("explained_variance", m)
        for m in (*list(CONSTRAINTS)[:4], "permuted_decoder", "random")
    ]
    assert list(report.placed) == placed_against_random(report.placements)


def test_the_published_sae_is_never_paired(table: pd.DataFrame, report: Report):
    assert {v.baseline for v in report.verdicts} == set(BASELINES)
    assert all(v.trained != 0.842 for v in report.verdicts)
    constraints = table["constraint"]
    rest = table.loc[(constraints != "published") & (constraints != "permuted_decoder")]
    alone = build_report(rest, context(published={}))
    assert alone.verdicts == report.verdicts
    assert alone.against_random == report.against_random
    assert repr(alone.retained) == repr(report.retained)
    assert alone.placements == ()
    # The snippet on the page, on the whole table.
    found = verdicts(table, metrics=PRIMARY, on_missing="exclude")
    assert sorted(map(repr, found)) == sorted(map(repr, report.verdicts))


def test_one_strip_per_metric_holds_every_member(report: Report):
    strips = [f for f in report.figures if "-published-" in f.name]
    assert len(strips) == len(METRICS)
    assert not [f for f in report.figures if "-by_member-" in f.name]
    for figure, (_, _, _, _, own, _, _) in zip(strips, METRICS, strict=True):
        assert f"(line: {own:.3f})" in figure.caption
        for member in CONSTRAINTS:
            assert f">{member}<" in figure.inline
        assert ">published<" in figure.inline
    (probing,) = [f for f in strips if f.name.startswith("sparse_probing")]
    assert "Off the axis" not in probing.caption or "trained" not in probing.caption


def test_without_an_sae_trained_here_the_report_is_whole():
    found = build_report(checked(UNTRAINED), context())
    assert found.verdicts == ()
    assert len(found.placements) == 4 * 5 + 2 * 4
    assert "nothing to compare" not in kinds(found)
    names = [s.id for s in found.sections]
    assert names[0] == "published"
    assert not {"answer", "verdicts", "retained"} & set(names)
    assert {"scores", "caveats", "controls", "all", "sceptic"} <= set(names)
    text = to_markdown(found)
    assert "its own architecture trained here" not in text
    assert "How a verdict is computed" not in text
    assert "How the published SAE is placed" in text


def test_caveats_of_a_check(report: Report):
    assert {"one published seed", "budgets differ", "other text", "shared data order"} == kinds(
        report
    )
    assert "the published SAE had 200 times as many" in said(report, "budgets differ")
    assert "`trained` is its architecture at the others' budget" in said(
        report, "budgets differ"
    )
    assert "`articles.parquet`" in said(report, "other text")


@pytest.mark.parametrize(
    ("record", "kind", "says"),
    [
        ({"tokens_recorded": None}, "budget unknown", "not recorded"),
        ({"tokens_recorded": 10_000_000}, "budgets differ", "the others had 2"),
        ({"tokens_recorded": 20_000_000}, None, ""),
        ({"dataset_recorded": None}, "text unknown", "is not recorded"),
        ({"dataset_recorded": "articles.parquet"}, None, ""),
    ],
)
def test_budget_and_text_are_told(record: dict[str, Any], kind: str | None, says: str):
    same = {"tokens_recorded": 20_000_000, "dataset_recorded": RECORD["dataset"]}
    given = context(primary=FEW, published={**RECORD, **same, **record}, spec={})
    found = build_report(checked(), given)
    expected = {"one published seed"} | ({kind} if kind else set())
    assert kinds(found) == expected
    assert kind is None or says in said(found, kind)


def test_a_permuted_control_must_have_the_published_saes_latents(table: pd.DataFrame):
    other = change(table, 0.5, member="permuted_decoder", suite="sparse_probing", seed=1)
    found = build_report(other, context(primary=FEW))
    assert "has the published SAE's latents" in said(found, "control differs")
    assert "sae_top_1_test_accuracy" in said(found, "control differs")


def test_members_at_another_l0_are_drawn_but_not_placed(table: pd.DataFrame):
    apart = change(table, 40.0, metric="l0", member="frozen_encoder", seed=2)
    found = build_report(apart, context(primary=PRIMARY[:2]))
    words = {p.member: p.word for p in found.placements}
    assert words["frozen_encoder"] == "no placement"
    assert words["frozen_decoder"] == "above all 5 seeds"
    assert all(p.above_all is None for p in found.placed)
    (text,) = [c.text for c in found.caveats if c.kind == "no placement"]
    assert "frozen_encoder 40 at seed 2" in text
    page = parse(to_html(found))
    (shown, *_) = [
        r for r in cells(page.section("published")) if r.get("among") == "frozen_encoder"
    ]
    assert shown["place"] == "no placement"
    assert shown["rank p"] == shown["prediction p"] == shown["share below"] == "n/a"
    assert "L0 differs" in shown["note"]
    strips = [f for f in found.figures if "-published-" in f.name]
    assert all("not placed among" in f.caption for f in strips)
    assert all("frozen_encoder" in f.caption for f in strips)


def test_a_value_that_is_no_number_is_said(table: pd.DataFrame):
    broken = change(table, math.nan, member="published", metric="ce_recovered")
    found = build_report(broken, context(primary=PRIMARY[:2]))
    of_metric = [p for p in found.placements if p.metric == "ce_recovered"]
    assert {p.word for p in of_metric} == {"no placement"}
    assert "published" in said(found, "not a number")
    assert "panel/ce_recovered" in said(found, "no placement")
    # The strip would have no line; the members' own figure is there in its place.
    assert {f.name.split("-")[2] for f in found.figures if "ce_recovered" in f.name} == {
        "by_member",
        "differences",
    }


def test_one_seed_of_the_others_gives_ranks_alone():
    found = build_report(checked(seeds=1), context(primary=FEW))
    assert {p.word for p in found.placements} == {"above the one seed"}
    assert all(p.p is None for p in found.placed)
    assert "single seed" in kinds(found)
    assert "shared data order" not in kinds(found)
    assert "No prediction p could be computed" in to_markdown(found)


def test_records_may_be_short(table: pd.DataFrame):
    for record in ({}, {"source": "folder"}):
        found = build_report(table, context(primary=FEW, published=record))
        assert found.sections[0].id == "published"
        text = to_markdown(found)
        assert "None" not in text.split("## Caveats")[0]
        assert parse(to_html(found))
    alone = table.loc[table["member"] == "published"]
    assert build_report(alone, context(primary=FEW)).placements == ()


def test_other_studies_are_told_nothing_of_it(table: pd.DataFrame, tmp_path: Path):
    rest = table.loc[table["constraint"] != "published"]
    (tmp_path / "placements.csv").write_text("old")
    found = build_report(rest, context(primary=FEW, published={}))
    write_report(found, tmp_path)
    assert not (tmp_path / "placements.csv").exists()
    text = to_markdown(found)
    assert "published SAE" not in text
    assert "placement" not in text


def test_equal_input_gives_equal_bytes(table: pd.DataFrame, tmp_path: Path):
    given = context(primary=PRIMARY[:2])
    for name, rows in (("a", table), ("b", checked())):
        write_report(build_report(rows, given), tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert "placements.csv" in files
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file():
            other = tmp_path / "b" / path.relative_to(tmp_path / "a")
            assert path.read_bytes() == other.read_bytes()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = StudyFolder(tmp_path)
    folder.open(preset(preset_names()[0]), resume=False)
    folder.published.mkdir(parents=True)
    (folder.published / "record.json").write_text(json.dumps(RECORD))
    rows = checked().assign(task=lambda t: t["task"].fillna(""))
    rows[list(COLUMNS)].to_csv(tmp_path / "results.csv", index=False)
    return tmp_path


def test_a_study_folder_tells_what_is_recorded(study: Path):
    assert study_context(study).published == RECORD
    found = report_of_study(study)
    assert found.title.endswith(RECORD["source"])
    assert len(found.placements) == 4 * 6 + 2 * 5


def test_the_command_prints_where_it_falls(study: Path):
    result = CliRunner().invoke(app, ["report", str(study)])
    assert result.exit_code == 0, result.output
    for line in report_of_study(study).placed:
        assert f"{line.suite}/{line.metric}: {line.reason}" in result.output
    assert (study / "placements.csv").exists()


def test_the_helpers_published_row_is_what_a_check_writes():
    told = row("published", -1, "panel", "l0")
    assert (told["panel"], told["member"], told["constraint"]) == ("published",) * 3
    assert told["seed"] == -1
    assert SEEDS == 5
