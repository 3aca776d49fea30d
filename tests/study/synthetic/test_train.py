"""The synthetic study end to end, tiny: training, measuring, resume, report, command."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sae_lens import SAE
from sae_lens.synthetic import (
    HierarchyConfig,
    SyntheticModel,
    SyntheticModelConfig,
    SyntheticSAERunner,
    SyntheticSAERunnerConfig,
)
from typer.testing import CliRunner

from sae_baselines.baselines import cosine_to_start, sample_directions
from sae_baselines.drift import drift_table, find_drift
from sae_baselines.errors import UserError
from sae_baselines.paper.toy.report import write_toy_report
from sae_baselines.paper.toy.results import PRIMARY, load_toy, toy_verdicts
from sae_baselines.stats import verdicts
from sae_baselines.study.engine import train_study
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.plan import all_members
from sae_baselines.study.runner import InterruptedTrainingError
from sae_baselines.study.spec import spec_from_dict, spec_to_yaml
from sae_baselines.study.synthetic import curve as curve_module
from sae_baselines.study.synthetic.curve import snapshot_steps
from sae_baselines.study.synthetic.generator import paper_config
from sae_baselines.study.synthetic.spec import ToySpec, quick_spec
from sae_baselines_cli import app

TINY = ToySpec(
    name="tiny",
    n=10,
    m=40,
    mean_active=3,
    architecture=["batchtopk", "jumprelu", "topk", "matryoshka_batchtopk"],
    d_sae=40,
    l0=3,
    training_samples=12_800,
    train_batch_size=128,
    lr=3e-3,
    calibration_samples=8192,
    eval_samples=8192,
    n_snapshots=4,
    n_checkpoints=3,
    device="cpu",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "study"
    train_study(TINY, root)
    write_toy_report(root)
    return root


def _exports(root: Path) -> dict[tuple[str, str], Path]:
    folder = StudyFolder(root)
    return {(k.panel.name, k.member): folder.member(k) for k in all_members(TINY)}


def test_every_member_is_there_at_its_l0(study: Path) -> None:
    results = load_toy(study)
    assert len(results.frame) == 2 * 4 * 4
    for row in results.frame.to_dict("records"):
        assert row["l0"] == pytest.approx(3, rel=0.05), row["panel"]
        assert np.isfinite(row["ev"])
    # A seed whose run collapsed is known by these, whatever metric is compared.
    panel = results.rows.loc[results.rows["suite"] == "panel"]
    counts = panel["metric"].value_counts()
    assert counts["explained_variance"] == counts["alive"] == counts["l0"] == 2 * 4 * 4


def test_members_share_their_start_and_frozen_parts_keep_it(study: Path) -> None:
    start = sample_directions(40, 10, seed=0, scheme="iso")
    for (panel, member), folder in _exports(study).items():
        sae = SAE.load_from_disk(folder)
        decoder = cosine_to_start(sae.W_dec.data, start)
        encoder = cosine_to_start(sae.W_enc.data.T, start)
        ones = torch.ones_like(decoder)
        assert torch.allclose(decoder, ones, atol=1e-5) == (member == "frozen_decoder"), panel
        assert torch.allclose(encoder, ones, atol=1e-5) == (member == "frozen_encoder"), panel
        if member == "soft_frozen_decoder":
            assert float(decoder.min()) >= 0.8 - 1e-5


def test_training_beats_the_frozen_dictionaries_on_ev(study: Path) -> None:
    ev = load_toy(study).frame.set_index(["setting", "architecture", "member"])["ev"]
    for setting in ("constant", "variable"):
        for architecture in ("batchtopk", "topk", "matryoshka_batchtopk"):
            here = ev[setting][architecture]
            assert here["trained"] > here["frozen_decoder"]
            assert here["trained"] > here["frozen_encoder"]


def test_the_recorded_counts_are_those_of_the_exports(study: Path) -> None:
    features: dict[str, torch.Tensor] = {}
    for setting in ("constant", "variable"):
        model = SyntheticModel.load_from_disk(study / "models" / setting)
        features[setting] = model.feature_dict.feature_vectors.detach()
    for (panel, _), folder in _exports(study).items():
        measured = json.loads((folder / "measurement.json").read_text())
        sae = SAE.load_from_disk(folder)
        truth = features[panel.split("_")[0]].double().numpy()
        rows = sae.W_dec.detach().double().numpy()
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        best = (truth @ rows.T).max(axis=1)
        assert measured["recovered"] == int((best > 0.8).sum())
        assert measured["mean_best_cosine"] == pytest.approx(best.mean(), abs=1e-6)


def test_recovery_by_rate_is_of_the_recorded_counts(study: Path) -> None:
    results = load_toy(study)
    rows = results.frame.to_dict("records")
    assert len(results.rated) == len(rows)
    for row in rows:
        rated = results.rated[row["panel"], row["member"]]
        assert rated.recovers is not None
        assert rated.recovers.sum() == row["recovering_latents"]
        ((metric, (rates, found)),) = rated.truth.items()
        assert metric == (f"toy_{row['setting']}", "recovered_share")
        assert found.sum() == row["recovered"]
        assert rates.sum() == pytest.approx(row["true_l0"], rel=1e-6)
    page = (study / "report.md").read_text()
    for setting in ("constant", "variable"):
        assert f"Latents and features by how often they fire: {setting}" in page
        assert (study / f"figures/rates-{setting}-topk-l0-3.png").exists()
    assert "share of features recovered, features that fire on 1 to 10 % of samples" in page
    assert "of tokens" not in page
    assert "| recover a feature |" in page
    table = pd.read_csv(study / "by_rate.csv")
    parts = table.loc[
        (table["suite"] == "toy_variable")
        & table["metric"].str.startswith("recovered_share_at_rate_1e-")
        & (table["architecture"] == "topk")
        & (table["baseline"] == "frozen_decoder")
    ]
    firing = next(f for who, f in results.features if who["panel"].startswith("variable_topk"))
    decade = np.floor(np.log10(firing.firings / 8192))
    n = {d: int((decade == d).sum()) for d in np.unique(decade)}
    total = sum(
        share * n[int(name.rsplit("1e", 1)[1])]
        for name, share in zip(parts["metric"], parts["trained"], strict=True)
    )
    (trained,) = (
        row["recovered"]
        for row in rows
        if row["panel"].startswith("variable_topk") and row["member"] == "trained"
    )
    assert total == pytest.approx(trained)


def test_the_curve_ends_where_the_measurement_is(study: Path) -> None:
    """The last snapshot is the trained SAE: the same decoder, so the same recovery."""
    results = load_toy(study)
    last = results.curves[results.curves["step"] == 100]
    key = ["setting", "architecture", "member"]
    merged = last.merge(results.frame, on=key, suffixes=("_curve", ""))
    assert len(merged) == 32
    assert (merged["recovered_curve"] == merged["recovered"]).all()
    assert np.allclose(merged["mean_best_cosine_curve"], merged["mean_best_cosine"], atol=1e-6)
    assert sorted(set(results.curves["step"])) == sorted(snapshot_steps(100, 4))


def test_a_curve_with_text_for_a_number_is_one_line(study: Path, tmp_path: Path) -> None:
    copy = tmp_path / "study"
    shutil.copytree(study, copy)
    path = next((copy / "curves").glob("*.csv"))
    table = pd.read_csv(path, dtype=str)
    table.loc[2, "ev"] = "high"
    table.to_csv(path, index=False)
    said = rf"{path.name}: ev of row 3 is 'high', no number; delete it"
    with pytest.raises(UserError, match=said):
        load_toy(copy)
    # Also where a run would go on with it.
    with pytest.raises(UserError, match=said):
        curve_module.read_curve(path, "delete it")
    table.drop(columns="step").to_csv(path, index=False)
    with pytest.raises(UserError, match=rf"{path.name}: has no column step; delete it"):
        load_toy(copy)


def test_tables_say_what_was_measured(study: Path) -> None:
    rows = pd.read_csv(study / "results_constant.csv", keep_default_na=False)
    folder = _exports(study)["constant_topk_l0_3_seed_0", "trained"]
    measured = json.loads((folder / "measurement.json").read_text())
    mine = rows[(rows["panel"] == "constant_topk_l0_3_seed_0") & (rows["member"] == "trained")]
    value = dict(zip(mine["suite"] + "/" + mine["metric"], mine["value"], strict=True))
    assert value["toy_constant/explained_variance"] == pytest.approx(measured["ev"])
    assert value["panel/l0"] == pytest.approx(measured["l0"])
    assert measured["l0"] != 3.5
    text = (study / "report.md").read_text()
    assert f"{measured['ev']:.3f}" in text
    assert "one training seed" in text
    assert "paper, trained" not in text  # other sizes than the paper's
    names = {p.stem for p in (study / "figures").glob("*.png")}
    assert {"toy_recovery_curves", "toy_side_by_side", "toy_training_map"} <= names


def test_a_finished_study_is_not_repeated(study: Path) -> None:
    before = {
        f: (f / "sae_weights.safetensors").stat().st_mtime for f in _exports(study).values()
    }
    train_study(TINY, study)
    assert before == {f: (f / "sae_weights.safetensors").stat().st_mtime for f in before}


def test_another_spec_is_refused(study: Path) -> None:
    with pytest.raises(UserError, match=r"another spec \(differs in: lr\)"):
        train_study(replace(TINY, lr=1e-4), study)


SMALL = replace(TINY, settings=["variable"], architecture="topk", members=["trained"])


def test_an_interrupted_study_gives_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_study(SMALL, tmp_path / "whole")
    watch = curve_module.Curve.watch

    def interrupt(self: Any, step: int, saes: Any) -> None:
        watch(self, step, saes)
        if step == 60:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(curve_module.Curve, "watch", interrupt)
        with pytest.raises(InterruptedTrainingError):
            train_study(SMALL, tmp_path / "cut")
    with pytest.raises(UserError, match="--resume"):
        train_study(SMALL, tmp_path / "cut")
    train_study(SMALL, tmp_path / "cut", resume=True)
    whole, cut = (load_toy(tmp_path / name) for name in ("whole", "cut"))
    pd.testing.assert_frame_equal(
        whole.curves.drop(columns=["ev", "l0"]), cut.curves.drop(columns=["ev", "l0"])
    )
    assert whole.frame["ev"].to_list() == pytest.approx(cut.frame["ev"].to_list(), abs=1e-6)


class KilledError(Exception):
    """The process died."""


def test_a_killed_study_gives_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, from one of SAELens' own checkpoints: nothing twice, nothing left out."""
    train_study(SMALL, tmp_path / "whole")
    watch = curve_module.Curve.watch

    def kill(self: Any, step: int, saes: Any) -> None:
        watch(self, step, saes)
        if step == 70:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(curve_module.Curve, "watch", kill)
        with pytest.raises(KilledError):
            train_study(SMALL, tmp_path / "cut")
    assert list((tmp_path / "cut" / "checkpoints").glob("*/*/complete.json"))
    train_study(SMALL, tmp_path / "cut", resume=True)
    whole, cut = (load_toy(tmp_path / name) for name in ("whole", "cut"))
    assert whole.curves["step"].to_list() == cut.curves["step"].to_list()
    assert whole.frame["ev"].to_list() == pytest.approx(cut.frame["ev"].to_list(), abs=1e-6)
    folder = StudyFolder(tmp_path / "cut").root
    (record,) = folder.glob("panels/*/*/provenance.json")
    assert json.loads(record.read_text())["training_steps"] == 100


def test_controls_and_drift_are_of_a_synthetic_study_too(tmp_path: Path) -> None:
    members = ["trained", "frozen_decoder", "random", "permuted_decoder"]
    train_study(replace(SMALL, members=members, drift=[0.1, 1.0]), tmp_path)
    frame = load_toy(tmp_path).frame.set_index("member")
    assert frame["ev"]["trained"] > frame["ev"]["random"] > frame["ev"]["permuted_decoder"]
    assert frame["l0"]["random"] == pytest.approx(3, rel=0.05)
    logs = find_drift(tmp_path)
    assert {Path(name).name for name in logs} == {"trained", "frozen_decoder"}
    table = drift_table(logs)
    frozen = table[table["sae"].str.endswith("frozen_decoder") & (table["side"] == "decoder")]
    assert (frozen["mean"] == 1).all()
    found = {(v.baseline, v.metric) for v in toy_verdicts(load_toy(tmp_path))["variable"]}
    # A permuted decoder is a null of reconstruction, not of what recovery counts.
    assert {m for b, m in found if b == "permuted_decoder"} == {"explained_variance"}
    assert {m for b, m in found if b == "random"} == set(PRIMARY)


def test_seeds_share_the_data_and_differ_in_their_start(tmp_path: Path) -> None:
    spec = replace(SMALL, seeds=[0, 1], members=["trained", "frozen_decoder"])
    train_study(spec, tmp_path)
    results = load_toy(tmp_path)
    found = toy_verdicts(results)["variable"]
    assert {v.metric for v in found} == {
        "explained_variance",
        "recovered_share",
        "mean_best_cosine",
    }
    # The file says the same to anybody who reads it with the project's statistics.
    write_toy_report(tmp_path)
    table = pd.read_csv(tmp_path / "results_variable.csv", keep_default_na=False)
    again = verdicts(table, metrics=[f"toy_variable/{m}" for m in PRIMARY])
    assert [(v.metric, v.word) for v in again] == [(v.metric, v.word) for v in found]
    assert all(v.margin is not None for v in again)
    assert all(v.n_seeds == 2 for v in found)
    ev = results.frame.set_index(["member", "seed"])["ev"]
    assert ev["trained", 0] != ev["trained", 1]


def test_a_synthsaebench_style_model(tmp_path: Path) -> None:
    """SAELens' own hierarchies and correlations, as another setting."""
    config = SyntheticModelConfig(
        num_features=48,
        hidden_dim=12,
        hierarchy=HierarchyConfig(total_root_nodes=4, branching_factor=3, max_depth=2),
        std_firing_magnitudes=0.1,
        seed=1,
    )
    spec = replace(SMALL, settings=["tree"], models={"tree": config.to_dict()})
    train_study(spec, tmp_path)
    row = load_toy(tmp_path).frame.iloc[0]
    assert row["n_features"] == 48
    assert row["setting"] == "tree"
    assert SyntheticModel.load_from_disk(tmp_path / "models" / "tree").hierarchy is not None


def test_the_paper_setting_trains_in_saelens_own_runner() -> None:
    """SyntheticSAERunner unchanged, on our generator, with a frozen decoder."""
    runner_config = SyntheticSAERunnerConfig.from_dict(
        {
            "synthetic_model": paper_config("variable", n=10, m=40, mean_active=2).to_dict(),
            "sae": {"architecture": "frozen_decoder", "d_in": 10, "d_sae": 40, "k": 3},
            "training_samples": 2048,
            "batch_size": 128,
            "eval_samples": 1024,
            "output_path": None,
            "logger": {"log_to_wandb": False},
        }
    )
    result = SyntheticSAERunner(runner_config).run()
    start = sample_directions(40, 10, seed=0, scheme="iso")
    assert torch.equal(result.sae.W_dec.data, start.to(result.sae.W_dec))
    assert result.final_eval is not None
    assert result.final_eval.true_l0 == pytest.approx(2, abs=0.3)


def test_the_fitted_start_is_the_best_factor() -> None:
    """At the start no other factor on the encoder gives a better reconstruction."""
    from sae_baselines.study.build import encoder_start  # noqa: PLC0415

    x = torch.randn(4096, 12, generator=torch.Generator().manual_seed(0))
    start = encoder_start(x, 64, 6, 3, "iso", None)
    rows = sample_directions(64, 12, seed=3, scheme="iso")
    z = x @ rows.T
    z = torch.where(z >= start.threshold, z, 0)
    assert float((z > 0).float().sum(dim=1).mean()) == pytest.approx(6, abs=0.01)
    errors = {f: float((x - f * z @ rows).pow(2).sum()) for f in np.linspace(0.01, 1, 100)}
    assert min(errors, key=errors.__getitem__) == pytest.approx(start.scale, abs=0.011)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": ["varable"]}, "did you mean variable"),
        ({"settings": []}, "name at least one"),
        ({"models": {"constant": {}}}, "one of the paper's settings"),
        ({"architecture": "batchtop"}, "did you mean batchtopk"),
        ({"members": ["frozen_decoder"]}, "'trained' is missing"),
        ({"training_samples": 10}, "less than one batch"),
        ({"l0": 50}, "not below d_sae"),
        ({"n_sample": 3}, "n_samples?|not a field"),
        ({"name": "../x"}, "names a folder"),
    ],
)
def test_bad_specs_are_named(change: dict[str, Any], message: str) -> None:
    base = {"n": 10, "m": 40, "d_sae": 40, "l0": 3}
    with pytest.raises(UserError, match=message):
        spec_from_dict({**base, **change}, "toy.yaml", ToySpec)


def test_a_model_that_saelens_cannot_read_is_named(tmp_path: Path) -> None:
    spec = replace(SMALL, settings=["mine"], models={"mine": {"num_features": 4}})
    with pytest.raises(UserError, match="models: mine"):
        train_study(spec, tmp_path)


def test_the_command(tmp_path: Path) -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["toy", "--quick", "--show"])
    assert shown.exit_code == 0
    assert spec_from_dict(yaml.safe_load(shown.stdout), "x", ToySpec) == quick_spec()
    study = tmp_path / "tiny.yaml"
    small = replace(SMALL, members=["trained", "frozen_decoder"])
    study.write_text(spec_to_yaml(small))
    command = ["toy", str(study), "--out", str(tmp_path / "out"), "--samples", "2560"]
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "report.html").exists()
    assert load_toy(tmp_path / "out").spec.training_samples == 2560
