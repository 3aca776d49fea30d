"""The cost of recording drift, and the summaries of its studies."""

import json
import runpy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from sae_baselines.drift import find_drift
from sae_baselines.study import load_spec, train_study
from sae_baselines.study.spec import spec_from_dict, spec_to_dict
from tests.forked import run_script
from tests.tiny_model import save_tiny_model, tiny_panel, tiny_text

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _run(script: str, *args: Any) -> str:
    """In a process of its own: the benchmarks' members share their start by a patch."""
    done = run_script(BENCHMARKS / script, *map(str, args))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_drift_cost_compares_the_same_steps(tmp_path: Path):
    out = tmp_path / "cost.json"
    text = _run(
        "drift_cost.py", "--shape", "quick", "--steps", 20, "--repeats", 2, "--out", out
    )
    record = json.loads(out.read_text())
    assert list(record["bases"]) == ["batchtopk", "jumprelu"]
    for found in record["bases"].values():
        runs = found["run_ms"]
        assert {len(ms) for ms in runs.values()} == {2}
        # Two repeats: their median is the mean of the ratios.
        ratios = [t / s for t, s in zip(runs["tracked"], runs["stock"], strict=True)]
        assert found["tracked"]["ratio"] == pytest.approx(sum(ratios) / 2)
        share = found["share_of_run"]
        assert share["120"] == pytest.approx(share["1000"] * 1000 / 120)
    assert "5 records in 122,000 steps" in text
    assert str(tmp_path) not in out.read_text()


def test_the_tau_sweep_is_summarised_as_measured(tmp_path: Path):
    spec = load_spec(BENCHMARKS / "tau_sweep" / "panel.yaml")
    taus = [m.tau for m in spec.member_specs if m.constraint == "soft_frozen_decoder"]
    assert taus == [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0]
    members = [m for m in spec_to_dict(spec)["members"] if m != "trained"][::3]
    panel = tiny_panel(
        save_tiny_model(tmp_path / "model"), drift=[0.5, 1.0], members=["trained", *members]
    )
    panel["training_tokens"] = 128 * 10
    study = train_study(spec_from_dict(panel), tmp_path / "study", dataset=tiny_text())
    runpy.run_path(str(BENCHMARKS / "drift_summary.py"))["main"](
        ["tau", str(study.folder), str(tmp_path / "out")]
    )
    table = pd.read_csv(tmp_path / "out" / "members.csv").set_index("member")
    for key, measured in study.measurements.items():
        row = table.loc[key.member]
        assert row["explained_variance"] == pytest.approx(measured["explained_variance"])
        assert row["tokens"] == 1280
    assert table.loc["soft_frozen_decoder_tau0.5", "tau"] == 0.5
    assert pd.isna(table.loc["trained", "tau"])
    drift = pd.read_csv(tmp_path / "out" / "drift.csv")
    assert set(drift["sae"]) == set(find_drift(study.folder))
    assert (tmp_path / "out" / "tau.png").read_bytes().startswith(b"\x89PNG")


def test_the_panel_files_are_what_their_commands_train():
    drift = load_spec(BENCHMARKS / "drift_smollm2" / "panel.yaml")
    assert drift.drift == [0.01, 0.05, 0.1, 0.25, 0.5, 1.0]
    assert drift.training_tokens >= 400_000
    # The settings are those of the study whose numbers they stand beside.
    earlier = yaml.safe_load((BENCHMARKS / "smollm2" / "panel.yaml").read_text())
    for folder in ("drift_smollm2", "tau_sweep"):
        ours = yaml.safe_load((BENCHMARKS / folder / "panel.yaml").read_text())
        free = {"name", "architecture", "seeds", "members", "sparse_step", "drift", "evals"}
        free |= {"data_order", "calibration_tokens", "eval_tokens", "ce_tokens"}
        assert {k: v for k, v in ours.items() if k not in free} == {
            k: v for k, v in earlier.items() if k not in free
        }


def test_the_table_of_the_real_run_is_that_of_its_records():
    folder = BENCHMARKS / "drift_smollm2"
    records = pd.read_csv(folder / "drift.csv").set_index(["sae", "side", "fraction"])
    base, checked = "", 0
    for line in (folder / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in ("BatchTopK", "JumpReLU"):
            base = cells[0].lower()
        if not base or len(cells) != 9 or not cells[0].endswith(" %"):
            continue
        fraction = float(cells[0].removesuffix(" %")) / 100
        panel = f"{base}_l0_32_seed_0"
        decoder, encoder = (
            records.loc[(f"{panel}/trained", side, fraction)] for side in ("decoder", "encoder")
        )
        soft = records.loc[(f"{panel}/soft_frozen_decoder", "decoder", fraction)]
        l0s = [f" ({r['l0']:.1f})" if base == "jumprelu" else "" for r in (decoder, soft)]
        expected = [str(decoder["step"])]
        for side in (decoder, encoder):
            share = f"{100 * side['share_at_least_0.8']:.1f}".replace("100.0", "100")
            expected += [f"{side['mean']:.3f}", f"{share} %"]
        expected.append(f"{decoder['explained_variance']:.3f}{l0s[0]}")
        expected += [f"{soft['mean']:.3f}", f"{soft['explained_variance']:.3f}{l0s[1]}"]
        assert cells[1:] == expected
        checked += 1
    assert checked == 12
