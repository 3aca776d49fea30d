"""The files: complete in themselves, well formed, the same every time."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
import yaml

from sae_baselines.errors import UserError
from sae_baselines.report import (
    Failure,
    Report,
    build_report,
    to_html,
    to_markdown,
    write_report,
)
from sae_baselines.report.names import of_transcoders
from tests.report.page import Node, cells, markdown_rows, parse
from tests.report.studies import MEMBERS, PRIMARY, autointerp, clean, context

_PRIMARY = ("core/explained_variance_paper", "autointerp/autointerp_score")


@pytest.fixture(scope="module")
def report() -> Report:
    given = context(
        primary=_PRIMARY,
        failures=[Failure("mdl", "", "<script>alert(1)</script> a|b `c`\n*d*")],
        commands=["sae-baselines train <x> & y"],
    )
    return build_report(autointerp(), given)


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return to_html(report)


@pytest.fixture(scope="module")
def page(html: str) -> Node:
    return parse(html)


def test_the_page_loads_nothing(html: str, page: Node):
    assert not {"script", "link", "img", "iframe", "object", "embed", "image"} & {
        n.tag for n in page.all()
    }
    for node in page.all():
        for name, value in node.attributes.items():
            if name in ("src", "href", "xlink:href", "data", "srcset"):
                assert value.startswith("#"), (node.tag, name, value)
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert "http" not in html


def test_the_page_is_well_formed(html: str, page: Node):
    assert html.startswith("<!doctype html>")
    assert page.all("html")[0].attributes["lang"] == "en"
    assert [n.tag for n in page.all("body")[0].children if isinstance(n, Node)] == [
        "header",
        "main",
    ]
    ids = [n.attributes["id"] for n in page.all() if "id" in n.attributes]
    assert len(ids) == len(set(ids))
    targets = [n.attributes["href"][1:] for n in page.all() if "href" in n.attributes]
    targets += re.findall(r"url\(#([^)]+)\)", html)
    targets += [n.attributes["aria-labelledby"] for n in page.all("svg")]
    assert targets
    assert set(targets) <= set(ids)


def test_every_figure_is_on_the_page(report: Report, page: Node):
    captions = [n.all("figcaption")[0].text for n in page.all("figure")]
    assert len(page.all("svg")) == len(report.figures) == len(captions)
    assert all(caption for caption in captions)
    # One of scores and one of differences per metric, one of distributions and the answer's.
    assert len(report.figures) == 2 * len(_PRIMARY) + 2


def test_figures_follow_light_and_dark(report: Report, html: str):
    style = html[html.index("<style>") : html.index("</style>")]
    light, dark = style.split("@media (prefers-color-scheme: dark)")[:2]
    for figure in report.figures:
        # A colour left as it is would be illegible on one of the two.
        assert not re.findall(r"#[0-9a-f]{6}\b", figure.inline)
        for variable in set(re.findall(r"var\((--\w+)\)", figure.inline)):
            assert f"{variable}:" in light
            assert f"{variable}:" in dark


def test_foreign_text_stays_text(html: str, page: Node, report: Report):
    assert "alert(1)" in page.section("caveats").text
    assert "sae-baselines train <x> & y" in page.section("sceptic").text
    md = to_markdown(report)
    assert "`<script>alert(1)</script> a|b 'c' *d*`" in md
    assert "<script" not in html


def test_a_failed_suite_is_named(page: Node):
    assert "mdl gave no result" in page.section("caveats").text


def test_latents_have_a_distribution_with_the_null_floor(report: Report):
    (figure,) = [f for f in report.figures if "distribution" in f.name]
    assert "null floor" in figure.caption
    for member in MEMBERS:
        assert f"{member} 90" in figure.caption
    without = build_report(autointerp(floor=None), context(primary=_PRIMARY[1:]))
    (bare,) = [f for f in without.figures if "distribution" in f.name]
    assert "No null floor" in bare.caption
    assert bare.png != figure.png


def test_l0_sweep_is_drawn_as_lines_and_one_l0_as_points():
    report = build_report(
        clean(l0s=(16, 32, 64)), context(primary=PRIMARY[:1], l0s=(16, 32, 64))
    )
    names = [f.name for f in report.figures]
    assert names[0] == "core-explained_variance_paper-vs_l0-batchtopk"
    svg = report.figures[0].inline
    # Every baseline's line is dashed, the trained one's is not; the legend repeats each.
    assert svg.count("stroke-dasharray") == 2 * (len(MEMBERS) - 1)
    assert len(report.verdicts) == 3 * (len(MEMBERS) - 1)
    page = parse(to_html(report))
    assert len(page.section("verdicts").all("details")) == 3
    assert len(cells(page.section("verdicts"))) == len(report.verdicts)


def test_score_table_is_mean_and_sd(page: Node):
    shown = {r["member"]: r for r in cells(page.section("scores")) if "L0" in r}
    values = autointerp().query("metric == 'explained_variance_paper' and member == 'trained'")
    text = f"{values['value'].mean():.4f} ± {values['value'].std():.4f}"
    assert shown["trained"]["Explained variance, the paper's definition ↑"] == text
    assert shown["trained"]["L0"] == "32.0"


def test_tasks_are_listed():
    report = build_report(clean(), context(primary=PRIMARY[2:]))
    shown = [r for r in cells(parse(to_html(report)).section("all")) if "task" in r]
    assert [r["task"] for r in shown] == ["city", "name"]
    assert shown[0]["trained"].startswith("0.65")
    assert [r["task"] for r in markdown_rows(to_markdown(report), "task")] == [
        "`city`",
        "`name`",
    ]


def test_the_sceptic_finds_a_command_for_every_suite(page: Node):
    text = page.section("sceptic").text
    for suite in ("core", "ravel", "absorption", "autointerp"):
        assert f"sae-baselines eval studies/tiny --force --suites {suite}" in text
    code = next(n.text for n in page.section("sceptic").all("pre") if "import" in n.text)
    compile(code, "snippet", "exec")
    assert str(list(_PRIMARY)) in code


def test_commands_are_those_recorded_or_what_would_make_it_again(page: Node):
    recorded = page.section("sceptic").text
    assert "recorded with the results" in recorded
    assert "panel.yaml --config" not in recorded
    report = build_report(clean(), context(commands=(), primary=PRIMARY[:1]))
    generic = parse(to_html(report)).section("sceptic").text
    assert "These would make it again" in generic
    assert "recorded with the results" not in generic
    assert "sae-baselines train panel.yaml --out <other>" in generic


def test_evaluation_settings_are_printed_without_home_folders():
    given = context(
        primary=PRIMARY[:1],
        evals={"suites": {"core": {"n": 7, "data": "/home/ann/x"}}, "seed": 42},
        commands=["sae-baselines eval '/Users/bob/s' --model /home/ann --out /homes/x"],
    )
    page = parse(to_html(build_report(clean(), given)))
    shown = {d.all("summary")[0].text: d for d in page.section("provenance").all("details")}
    (settings,) = shown["The evaluation settings"].all("pre")
    assert yaml.safe_load(settings.text) == {
        "suites": {"core": {"n": 7, "data": "~/x"}},
        "seed": 42,
    }
    command = "sae-baselines eval '~/s' --model ~ --out /homes/x"
    assert command in page.section("sceptic").text


def test_written_files_are_what_the_report_lists(report: Report, tmp_path: Path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.png").write_bytes(b"")
    written = write_report(report, tmp_path)
    there = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    assert there == sorted(written)
    md = (tmp_path / "report.md").read_text()
    linked = re.findall(r"\]\((figures/[^)]+)\)", md)
    assert len(linked) == len(report.figures)
    assert all((tmp_path / link).exists() for link in linked)
    with (tmp_path / "verdicts.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["word"] for row in table] == [v.word for v in report.verdicts]
    assert [float(row["p_adjusted"]) for row in table] == [
        v.p_adjusted for v in report.verdicts
    ]


def test_a_table_from_disk_gives_the_same_report(tmp_path: Path):
    frame = clean(seeds=2)
    frame.to_csv(tmp_path / "results.csv", index=False)
    given = context(primary=PRIMARY[:1])
    again = build_report(pd.read_csv(tmp_path / "results.csv"), given)
    assert to_html(again) == to_html(build_report(frame, given))


_REMAKE = """
import sys
import sae_baselines, sae_baselines.report
assert "sae_baselines.report.plots" not in sys.modules, "figures are loaded at import"
from sae_baselines.report import build_report, write_report
from tests.report.studies import PRIMARY, clean, context
write_report(build_report(clean(), context(primary=PRIMARY[1:])), sys.argv[1])
"""


def test_bytes_are_the_same_in_another_process_and_style(tmp_path: Path):
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", _REMAKE, str(tmp_path / "b")],
        check=True,
        cwd=root,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(root)},
    )
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 7, "savefig.dpi": 40}):
        write_report(build_report(clean(), context(primary=PRIMARY[1:])), tmp_path / "a")
    first = {
        p.relative_to(tmp_path / "a"): p.read_bytes()
        for p in (tmp_path / "a").rglob("*")
        if p.is_file()
    }
    second = {
        p.relative_to(tmp_path / "b"): p.read_bytes()
        for p in (tmp_path / "b").rglob("*")
        if p.is_file()
    }
    assert len(first) == 3 + 2 * 5
    assert first == second


def test_a_panel_without_trained_is_named_and_the_rest_is_compared():
    frame = clean(architectures=("batchtopk", "jumprelu"))
    frame = frame.loc[(frame["architecture"] != "jumprelu") | (frame["member"] != "trained")]
    report = build_report(frame, context(primary=PRIMARY[:1]))
    assert {v.architecture for v in report.verdicts} == {"batchtopk"}
    (said,) = [c for c in report.caveats if c.kind == "nothing to compare"]
    assert "jumprelu, L0 32" in said.text


def test_a_primary_metric_without_rows_is_named():
    given = context(primary=[*PRIMARY[:1], "tpp/*", "panel/l0"])
    report = build_report(clean(), given)
    said = {c.text for c in report.caveats if c.kind == "missing"}
    assert said == {
        "Primary metric `tpp/*` has no rows; nothing here speaks of it.",
        "Primary metric `panel/l0` describes only and is never compared; nothing here speaks "
        "of it.",
    }


def test_a_broken_table_is_refused():
    with pytest.raises(UserError, match="duplicate row"):
        build_report(pd.concat([clean(), clean()]), context())


def test_a_report_of_transcoders_says_so():
    given = context(primary=_PRIMARY, spec={"hook_name_out": "blocks.0.hook_mlp_out"})
    built = build_report(clean(), given)
    assert built.lede.startswith("A trained transcoder beside baselines")
    text = to_markdown(built)
    assert "Does the trained transcoder beat random?" in text
    assert not re.search(
        r"\bSAEs?\b(?!-)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    )
    assert not re.search(r"\ban transcoder", text)
    # What is in code is a file's or a command's own name.
    assert of_transcoders("an SAE, `SAE`, SAELens, SAE-probes; SAEs") == (
        "a transcoder, `SAE`, SAELens, SAE-probes; transcoders"
    )
