"""What benchmarks/toy and benchmarks/tau_sweep say is what their tables hold."""

import re
import runpy
from pathlib import Path

import pandas as pd
import pytest
import yaml

from sae_baselines.study.spec import load_spec, spec_to_dict
from sae_baselines.study.synthetic.spec import ToySpec

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TOY = BENCHMARKS / "toy"
STUDIES = ("constant", "variable", "tau", "tree")


def _rows(readme: Path) -> list[list[str]]:
    lines = readme.read_text(encoding="utf-8").splitlines()
    table = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in cells] for cells in table]


@pytest.mark.parametrize("name", STUDIES)
def test_the_study_files_are_what_was_run(name: str) -> None:
    spec = load_spec(TOY / f"{name}.yaml", ToySpec)
    ran = yaml.safe_load((TOY / name / "study.yaml").read_text(encoding="utf-8"))["spec"]
    assert spec.name == f"toy-{name}"
    now = spec_to_dict(spec)
    for member in now["members"]:
        if isinstance(member, dict):
            assert member.pop("learned") is None  # a field that came later
    # A study from before there were recipes.
    assert now["recipe"] == ran.get("recipe", "first")
    # Snapshots change no number of the tables.
    assert {k: v for k, v in ran.items() if k != "n_snapshots"} == {
        k: now[k] for k in ran if k != "n_snapshots"
    }


def test_the_sizes_are_the_papers() -> None:
    for name in ("constant", "variable"):
        spec = load_spec(TOY / f"{name}.yaml", ToySpec)
        sizes = (spec.n, spec.m, spec.d_sae, spec.l0, spec.mean_active)
        assert sizes == (100, 3200, 3200, 20, 20)
        assert spec.reading == "sigma"


def test_every_row_of_the_tables_is_measured() -> None:
    """setting | architecture | member: EV, recovered (share) | ..."""
    checked = 0
    members: list[str] = []
    study = ""
    for cells in _rows(TOY / "README.md"):
        if cells[:2] == ["setting", "architecture"]:
            members = [c.partition(":")[0] for c in cells[2:] if c.endswith("recovered")]
        if len(cells) < 3 or not re.fullmatch(r"-?\d\.\d{3}, \d+ \(.*%\)", cells[2]):
            continue
        study = {"constant": "constant", "variable": "variable"}.get(cells[0], "tree")
        if "soft_frozen_decoder_tau0.5" in members:
            study = "tau"
        table = pd.read_csv(TOY / study / f"results_{cells[0]}.csv.gz")
        mine = (table["architecture"] == cells[1]) & (table["suite"] != "panel")
        for member, cell in zip(members, cells[2:], strict=False):
            rows = table.loc[mine & (table["member"] == member)]
            values = rows.groupby("metric")["value"].mean()
            share = f"{values['recovered_share']:.1%}"
            wanted = f"{values['explained_variance']:.3f}, {values['recovered']:.0f} ({share})"
            assert cell == wanted, (cells[:2], member)
            checked += 1
    assert checked >= 2 * 4 * 4 + 2 * 2 * 10 + 2 * 4


def test_the_map_is_what_its_table_says() -> None:
    """setting | architecture | learning rate | samples | EV | recovered | mean best cosine."""
    found = pd.read_csv(TOY / "map.csv")
    checked = 0
    for cells in _rows(TOY / "README.md"):
        if len(cells) != 7 or not re.fullmatch(r"\d+\.\d M", cells[3]):
            continue
        rows = found.loc[
            (found["setting"] == cells[0])
            & (found["architecture"] == cells[1])
            & (found["lr"] == float(cells[2]))
        ]
        millions = float(cells[3].removesuffix(" M"))
        row = rows.iloc[int(abs(rows["samples"].to_numpy() / 1e6 - millions).argmin())]
        assert cells[3:] == [
            f"{row['samples'] / 1e6:.1f} M",
            f"{row['ev']:.3f}",
            f"{row['recovered']}",
            f"{row['mean_best_cosine']:.3f}",
        ]
        checked += 1
    assert checked >= 16


def test_the_plan_of_the_map_is_valid() -> None:
    specs = runpy.run_path(str(BENCHMARKS / "toy_map.py"))["studies"]()
    assert len({spec.name for spec in specs}) == len(specs)
    assert {spec.lr for spec in specs} >= {3e-4, 1e-3, 3e-3}
    assert all(spec.lr_decay_fraction == 0 for spec in specs)


def test_the_tau_sweep_is_what_its_table_says() -> None:
    table = pd.read_csv(BENCHMARKS / "tau_sweep" / "members.csv").set_index("member")
    checked = 0
    for cells in _rows(BENCHMARKS / "tau_sweep" / "README.md"):
        if len(cells) != 6 or not cells[1].startswith("0."):
            continue
        number = re.match(r"tau (\d\.\d+)", cells[0])
        name = (
            f"soft_frozen_decoder_tau{float(number[1]):g}"
            if number
            else cells[0].replace(" ", "_")
        )
        row = table.loc[name]
        probes = [row["sae_top_1_test_accuracy"], row["sae_top_5_test_accuracy"]]
        assert cells[1:] == [
            f"{row['explained_variance']:.3f}",
            f"{row['ce_recovered']:.3f}",
            f"{row['l0']:.1f}",
            f"{row['cos_to_start_mean']:.3f}",
            " / ".join(f"{p:.3f}" for p in probes),
        ]
        checked += 1
    assert checked == 9


def test_the_length_at_which_a_share_is_reached_is_the_first_snapshot_with_it() -> None:
    table = runpy.run_path(str(BENCHMARKS / "toy_length.py"))["table"]
    line = {"lr": 3e-3, "batch": 4096, "silent": 7}
    share = {1_000_000: 0.0, 9_000_000: 0.05, 35_000_000: 0.2, 100_000_000: 0.6}
    rows = [
        {"setting": "variable", "architecture": a, **line, "samples": n, "recovered_share": s,
         "ev": 0.6 + s / 10}
        for a, up in (("topk", 1.0), ("batchtopk", 0.1))
        for n, s in ((n, s * up) for n, s in share.items())
    ]  # fmt: skip
    found = table(pd.DataFrame(rows)).splitlines()[2:]
    assert "| 0.0% / 5.0% / 20.0% / 60.0% (100 M) |" in found[0]
    assert found[0].endswith("| 43.00%, 100 M |")
    assert found[1].endswith("| 9.28%, not reached |")


def test_lines_of_another_day_are_kept_and_those_run_again_replaced():
    with_kept = runpy.run_path(str(BENCHMARKS / "toy_length.py"))["with_kept"]
    committed = pd.read_csv(BENCHMARKS / "toy" / "length" / "curves.csv")
    line = ["setting", "architecture", "lr", "batch"]
    again = committed.loc[committed["batch"] == committed["batch"].max()].head(1)
    new = again.assign(setting="variable", architecture="batchtopk", lr=0.5)
    both = with_kept(pd.concat([again, new], ignore_index=True))
    same = (committed[line] == again[line].iloc[0]).all(axis=1)
    assert len(both) == len(committed) - same.sum() + 2
    assert (both["lr"] == 0.5).sum() == 1
