"""The benchmarks run and say what they should. Nothing here depends on how long it takes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.benchmarks.steps import check_same_work
from tests.forked import run_script
from tests.tiny_model import HOOK, save_tiny_model, tiny_panel, tiny_text

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BASES = ("standard", "topk", "batchtopk", "jumprelu", "gated", "matryoshka_batchtopk")
MEMBERS = ("stock", "stock_again", "frozen_decoder", "soft_frozen_decoder", "frozen_encoder")


def run(script: str, *args: str | Path) -> str:
    """Run a benchmark in a process of its own."""
    done = run_script(BENCHMARKS / script, *args)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def step_time(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One quick run: its file and what it printed."""
    out = tmp_path_factory.mktemp("step_time") / "step_time.json"
    return out, run("step_time.py", "--quick", "--repeats", "3", "--skip-memory", "--out", out)


def only_run(file: Path) -> dict[str, Any]:
    """The one measurement in a result file."""
    (measured,) = json.loads(file.read_text())["runs"]
    return measured


@pytest.mark.thorough
def test_step_time_measures_every_member_of_every_base(step_time: tuple[Path, str]) -> None:
    bases = only_run(step_time[0])["bases"]
    assert tuple(bases) == BASES
    for base in bases.values():
        assert tuple(base["members"]) == MEMBERS
        assert base["repeats"] == 3
        for member in base["members"].values():
            low, high = member["ratio_quartiles"]
            assert 0 < low <= member["ratio"] <= high < math.inf
            assert 0 < member["median_ms"] < math.inf
        assert base["projection"]["median_ms"] > 0
        assert 0 < base["projection"]["rows_moved"] < 1


@pytest.mark.thorough
def test_stock_is_its_own_reference(step_time: tuple[Path, str]) -> None:
    for base in only_run(step_time[0])["bases"].values():
        stock, again = base["members"]["stock"], base["members"]["stock_again"]
        assert stock["ratio"] == 1
        assert stock["meets_aim"] is again["meets_aim"] is None
        assert stock["l0_first"] == again["l0_first"]


@pytest.mark.thorough
def test_stock_and_twins_do_the_same_work(step_time: tuple[Path, str]) -> None:
    for name, base in only_run(step_time[0])["bases"].items():
        twins = [m for m in base["members"] if m not in ("stock", "stock_again")]
        check_same_work(name, base, twins, least=1.5)


@pytest.mark.thorough
def test_aims_are_marked_from_the_ratios(step_time: tuple[Path, str]) -> None:
    record = json.loads(step_time[0].read_text())
    for base in record["runs"][0]["bases"].values():
        for member, aim in record["aims"].items():
            result = base["members"][member]
            assert result["meets_aim"] == (result["ratio"] <= aim)


@pytest.mark.thorough
def test_results_name_the_machine_but_no_path_on_it(step_time: tuple[Path, str]) -> None:
    text = step_time[0].read_text()
    environment = json.loads(text)["environment"]
    assert environment["hardware"]["cpu_count"]
    assert environment["versions"]["sae-lens"]
    assert str(Path.home()) not in text
    assert str(BENCHMARKS.parent) not in text


@pytest.mark.thorough
def test_render_prints_what_the_run_printed(step_time: tuple[Path, str]) -> None:
    out, printed = step_time
    tables = run("render.py", out)
    assert tables.strip() in printed
    for base in BASES:
        assert sum(line.startswith(f"| {base} |") for line in tables.splitlines()) == 1


@pytest.mark.thorough
def test_dead_latents_and_memory(tmp_path: Path) -> None:
    """``--dead`` leaves out bases without a loss for them."""
    out = tmp_path / "dead.json"
    run("step_time.py", "--quick", "--dead", "--bases", "standard,topk", "--out", out)
    measured = only_run(out)
    assert list(measured["bases"]) == ["topk"]
    assert "every other latent" in measured["settings"]["dead_latents"]
    for member in measured["bases"]["topk"]["members"].values():
        # Around zero: at this size a step may reuse what the process has already.
        assert abs(member["peak_memory_mib"]) < 100


@pytest.mark.thorough
def test_panel_against_runs(tmp_path: Path) -> None:
    tiny_text().to_parquet(str(tmp_path / "text.parquet"))
    spec = {
        "name": "tiny",
        "model": {"name": str(save_tiny_model(tmp_path / "model")), "dtype": "bfloat16"},
        "hook_name": HOOK,
        "dataset": {"path": str(tmp_path / "text.parquet")},
        "d_sae": 64,
        "l0": 4,
        "context_size": 16,
        "store_batch_size_prompts": 8,
        "n_batches_in_buffer": 32,
        "n_batches_for_norm_estimate": 2,
        "train_batch_size_tokens": 128,
        "calibration_tokens": 512,
        "eval_tokens": 512,
        "device": "cpu",
    }
    (tmp_path / "panel.yaml").write_text(yaml.safe_dump(spec))
    out = tmp_path / "panel_vs_runs.json"
    run("panel_vs_runs.py", "--spec", tmp_path / "panel.yaml", "--tokens", "2048", "--out", out)
    record = json.loads(out.read_text())
    assert list(record["runs"]) == ["trained", *MEMBERS[2:]]
    assert len(record["panels"]) == 2
    for part in ("training", "whole"):
        runs = record["runs_total"][f"{part}_s"]
        mean = sum(p[f"{part}_s"] for p in record["panels"]) / 2
        assert record["ratios"][part] == pytest.approx(mean / runs)
    assert str(tmp_path) not in out.read_text()
    assert "one panel of 4" in run("render.py", out)


def sparse_spec(folder: Path) -> Path:
    """A tiny panel with 6 of 128 latents active: few enough for the sparse step."""
    tiny_text().to_parquet(str(folder / "text.parquet"))
    panel = tiny_panel(save_tiny_model(folder / "model"), str(folder / "text.parquet"))
    (folder / "panel.yaml").write_text(yaml.safe_dump(panel))
    return folder / "panel.yaml"


def test_sparse_against_dense_at_the_same_weights(tmp_path: Path) -> None:
    out = tmp_path / "sparse_stepwise.json"
    run("sparse_stepwise.py", "--spec", sparse_spec(tmp_path), "--tokens", "2560", "--out", out)
    members = json.loads(out.read_text())["members"]
    assert list(members) == ["seeded_batchtopk", *MEMBERS[2:]]
    for member in members.values():
        assert member["steps"] == member["sparse_steps"] == member["same_selection"] == 20
        assert 0 < max(member["worst_gradient"].values()) < 1e-5
        assert member["worst_loss"] < 1e-5
    assert "W_dec" not in members["frozen_decoder"]["worst_gradient"]
    assert str(tmp_path) not in out.read_text()


@pytest.mark.thorough
def test_a_panel_with_the_sparse_step_off_and_on(tmp_path: Path) -> None:
    out = tmp_path / "sparse_panel.json"
    run("sparse_panel.py", "--spec", sparse_spec(tmp_path), "--tokens", "2560", "--out", out)
    record = json.loads(out.read_text())
    nudged = "none, input one rounding off"
    assert list(record["ways"]) == ["none", "baselines", "all", nudged]
    assert list(record["differences"]) == ["baselines", "all", nudged]
    dense = record["ways"]["none"]["members"]
    for name, differences in record["differences"].items():
        way = record["ways"][name]
        assert 0 < way["steps_s"] < way["training_s"] < way["whole_s"]
        for member, change in differences.items():
            ev = way["members"][member]["explained_variance"]
            was = dense[member]["explained_variance"]
            assert change["explained_variance"] == pytest.approx(ev - was)
            assert 0 <= change["W_enc"] < 1e-2
    # The trained member is dense in both, to the last bit; sparse in the third.
    assert record["differences"]["baselines"]["trained"]["W_enc"] == 0
    assert record["differences"]["all"]["trained"]["W_enc"] > 0
    assert record["differences"][nudged]["trained"]["W_enc"] > 0
    assert str(tmp_path) not in out.read_text()


def test_the_tables_in_the_readmes_are_those_of_the_results() -> None:
    run("readme.py", "--check")
