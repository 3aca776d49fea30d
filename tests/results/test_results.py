"""One table, validated once and indexed once, and filters that do neither again."""

import re
from pathlib import Path

import pandas as pd
import pytest

from sae_baselines.errors import UserError
from sae_baselines.evals.registry import get_suite, suite_names
from sae_baselines.report import build_report
from sae_baselines.results import COLUMNS, Results, load_results, results, row, table_of
from sae_baselines.stats import differences, placements, retained, to_frame, verdicts
from tests.report.checks import checked
from tests.report.studies import clean, context
from tests.stats.tables import frame, paired, rows

TWO = frame(
    rows(paired([0.8, 0.9], [0.5, 0.5])),
    rows(paired([0.7, 0.8], [0.5, 0.4]), metric="ce_loss_score", l0=64),
    rows({("trained", 0): {"b": 0.5, "a": 0.1}}, suite="ravel", metric="score"),
)


@pytest.fixture
def validations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every table that was validated."""
    counted: list[int] = []
    normalised = results.normalised

    def count(table: pd.DataFrame) -> pd.DataFrame:
        counted.append(len(table))
        return normalised(table)

    monkeypatch.setattr(results, "normalised", count)
    return counted


def test_a_report_of_many_groups_validates_once(validations: list[int]) -> None:
    table = clean(seeds=3, l0s=(16, 32, 64), architectures=("batchtopk", "topk"))
    report = build_report(table, context())
    assert len({(v.architecture, v.l0) for v in report.verdicts}) == 6
    assert validations == [len(table)]


def test_what_is_validated_is_not_validated_again(validations: list[int]) -> None:
    table = Results.of(clean(seeds=3))
    assert Results.of(table) is table
    differences(table.only(group=table.groups[0], metrics=["core/*"]))
    verdicts(table)
    retained(table)
    assert len(validations) == 1


def test_values_are_found_by_group_metric_member_and_seed() -> None:
    table = Results.of(TWO)
    narrow, wide = table.groups
    assert (narrow, wide) == (("batchtopk", 32), ("batchtopk", 64))
    assert table.members == ["trained", "frozen_decoder"]
    assert table.metrics[0] == ("panel", "l0")
    assert table.values(narrow, ("core", "explained_variance"), "trained") == {0: 0.8, 1: 0.9}
    assert table.values(wide, ("core", "explained_variance"), "trained") == {}
    ravel = ("ravel", "score")
    assert table.cells(narrow, ravel, "trained") == {(0, "a"): 0.1, (0, "b"): 0.5}
    assert table.values(narrow, ravel, "trained") == {0: 0.3}
    assert table.tasks(narrow, ravel) == {
        "a": {"trained": {0: 0.1}},
        "b": {"trained": {0: 0.5}},
    }
    assert table.present(narrow, ravel) == ["trained"]
    assert table.present(narrow) == ["trained", "frozen_decoder"]
    assert table.compared_with(narrow, "trained") == ["frozen_decoder"]
    assert table.l0(wide, "trained") == 64
    assert table.direction(("panel", "l0")) == 0


def test_a_filter_on_metrics_leaves_members_seeds_and_l0() -> None:
    table = Results.of(TWO)
    part = table.only(group=("batchtopk", 32), metrics=["ravel/*"])
    assert part.metrics == [("ravel", "score")]
    assert part.groups == [("batchtopk", 32)]
    assert part.seeds(("batchtopk", 32), "frozen_decoder") == [0, 1]
    assert part.l0(("batchtopk", 32), "frozen_decoder") == 32
    alone = table.only(members=["trained"])
    assert alone.members == ["trained"]
    assert set(alone.frame["member"]) == {"trained"}
    assert len(alone.measured_l0) == 4
    with pytest.raises(UserError, match="no metric 'core/nothing'"):
        table.only(metrics=["core/nothing"])


def test_written_and_read_back_to_the_last_digit(tmp_path: Path) -> None:
    facts = {
        "panel": "p",
        "member": "trained",
        "constraint": "trained",
        "architecture": "topk",
        "l0": 32.0,
        "seed": 0,
    }
    table = table_of([row(facts, ("core", "mse"), 0.1 + 0.2, direction=-1, versions="a=1")])
    assert tuple(table.columns) == COLUMNS
    written = Results.of(table)
    written.write(tmp_path / "results.csv")
    assert load_results(tmp_path).equals(table)
    read = Results.read(tmp_path)
    assert read.values(("topk", 32), ("core", "mse"), "trained") == {0: 0.1 + 0.2}
    again = tmp_path / "again.csv"
    read.write(again)
    assert again.read_bytes() == (tmp_path / "results.csv").read_bytes()


def documented() -> dict[str, list[str]]:
    """Columns of every table, as docs/columns.md lists them."""
    page = (Path(__file__).parents[2] / "docs" / "columns.md").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    for section in page.split("\n## ")[1:]:
        name, _, text = section.partition("\n")
        table = text.partition("| column |")[2].partition("\n\n")[0]
        cells = [line.split("|")[1] for line in table.splitlines()[2:]]
        found[name] = [column for cell in cells for column in re.findall(r"`(\w+)`", cell)]
    return found


def test_every_column_of_every_table_is_documented() -> None:
    tables = {
        "results.csv": COLUMNS,
        "verdicts.csv": to_frame(verdicts(clean(seeds=2))).columns,
        "placements.csv": to_frame(placements(checked(seeds=2))).columns,
    }
    assert documented() == {name: list(columns) for name, columns in tables.items()}


def test_what_n_counts_is_said_of_every_suite() -> None:
    page = (Path(__file__).parents[2] / "docs" / "columns.md").read_text(encoding="utf-8")
    lines = page.partition("| suite | `n` counts |")[2].partition("\n\n")[0].splitlines()[2:]
    counted = {
        suite: re.findall(r"`(\w+)`", line.split("|")[2])[0]
        for line in lines
        for suite in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    (silent,) = re.findall(r"(.*) report no count", page)
    without = re.findall(r"`(\w+)`", silent)
    assert sorted([*counted, *without]) == sorted(["panel", *suite_names()])
    assert counted.pop("panel") == "tokens"
    assert counted == {name: get_suite(name).n_of for name in counted}


def test_a_table_of_before_n_of_is_read(tmp_path: Path) -> None:
    facts = {"panel": "p", "member": "trained", "constraint": "trained"}
    facts |= {"architecture": "topk", "l0": 32.0, "seed": 0, "versions": "a=1"}
    rows = [
        row(facts, ("core", m), 1.0, n=n, n_of="tokens") for m, n in (("a", 3), ("b", None))
    ]
    table = table_of(rows)
    assert list(table["n_of"]) == ["tokens", ""]
    table.drop(columns="n_of").to_csv(tmp_path / "results.csv", index=False)
    assert load_results(tmp_path).equals(table.assign(n_of=""))


GOOD = table_of(
    [
        row(
            {**dict.fromkeys(COLUMNS[:4], "a"), "l0": 8.0, "seed": 0},
            ("core", "x"),
            0.5,
            versions="v",
        )
    ]
)
CSV = GOOD.to_csv(index=False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is damaged .*No columns"),
        (b"\x89PNG\xff\xfe\0\0", "is damaged"),
        (CSV.encode("utf-16"), "is damaged"),
        (b"a,b\n1,2\n", "columns are a, b, and should be panel, member"),
        (CSV.replace(",0.5,", ",x,").encode(), "value of row 1 is 'x', no number"),
        (CSV.replace(",8.0,0,", ",8.0,0.5,").encode(), "seed of row 1 is .*0.5.*, no whole"),
        (CSV.replace(",8.0,0,", ",8.0,,").encode(), "seed of row 1 is .*, no whole"),
        (CSV.replace(",8.0,0,", ",many,0,").encode(), "l0 of row 1 is 'many', no number"),
        (CSV.replace(",x,0,", ",x,0.5,").encode(), "direction of row 1 is .*0.5"),
        (CSV.replace(",x,0,", f",x,{2**70},").encode(), "direction of row 1 is "),
        (
            CSV.splitlines()[0].encode() + b"\n",
            "has a header and no rows: .*; run sae-baselines",
        ),
        (None, "cannot be read: Is a directory"),
    ],
)
def test_a_table_that_is_none_is_one_line(content: bytes | None, words: str, tmp_path: Path):
    path = tmp_path / "results.csv"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=rf"results\.csv:? {words}") as said:
        load_results(tmp_path)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("ending", ["gz", "xz", "bz2", "zip"])
def test_a_compressed_table_is_read_or_said_to_be_cut(ending: str, tmp_path: Path):
    path = tmp_path / f"results.csv.{ending}"
    GOOD.to_csv(path, index=False)
    assert load_results(path).equals(GOOD)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"results\.csv\..*: is damaged"):
        load_results(path)


def test_numbers_of_a_panel_are_of_a_seed() -> None:
    """Where one panel holds several seeds, as in tables made by hand."""
    table = frame(rows({("trained", s): 0.5 + s for s in range(3)}, suite="panel"))
    table["panel"] = "all"
    found = Results.of(table).of_panel("explained_variance", ("batchtopk", 32.0), "trained")
    assert found == {0: 0.5, 1: 1.5, 2: 2.5}
