"""Figures of the synthetic case study, by what is drawn in them."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.lines import Line2D
from sae_lens import SAE
from sae_lens.config import LoggingConfig
from sae_lens.synthetic import SyntheticModel, SyntheticSAERunner, SyntheticSAERunnerConfig

from sae_baselines.drift.sphere import quantile_of_best_cosine
from sae_baselines.errors import UserError
from sae_baselines.paper.toy import plots as toy_plots
from sae_baselines.paper.toy.chance import chance_curve, reachable_curve
from sae_baselines.paper.toy.plots import Drawn, feature_frame
from sae_baselines.report.style import looks
from sae_baselines.study.synthetic.generator import paper_config, register_generators
from sae_baselines.study.synthetic.measure import PerFeature, measure_toy
from sae_baselines.study.synthetic.recovery import (
    THRESHOLDS,
    recovery_by_frequency,
    recovery_curve,
)
from tests.helpers import make_sae

SIZES: dict[str, Any] = {"d_in": 20, "d_sae": 64}
ARCHITECTURES = ("topk", "batchtopk", "matryoshka_batchtopk", "jumprelu")
MEMBERS = ("frozen_decoder", "trained")


def _features(seeds: int = 1, n: int = 64) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for setting in ("variable", "constant"):
        p = np.geomspace(1e-5, 1e-1, n) if setting == "variable" else np.full(n, 0.01)
        for architecture in ARCHITECTURES:
            for member in MEMBERS:
                for seed in range(seeds):
                    rise = (np.log10(p) + 5) / 4 if member == "trained" else 0.0
                    best = np.clip(0.4 + 0.5 * rise + 0.1 * rng.random(n), 0, 1)
                    arrays = PerFeature(best, best, p, (p * 1000).astype(int), np.zeros(64))
                    key = {"setting": setting, "architecture": architecture}
                    rows.append(({**key, "member": member, "seed": seed}, arrays))
    return feature_frame(rows)


def _snapshots(seeds: int = 1) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "setting": setting,
                "architecture": architecture,
                "member": member,
                "seed": seed,
                "lr": lr,
                "samples": 1000 * 10**i,
                "step": 10**i,
                "ev": 0.2 * i + 0.01 * seed + lr,
                "l0": 20.0 + (i == 0) * 3,
                "recovered": i,
                "recovered_share": i / 10 + 0.02 * seed,
                "mean_best_cosine": 0.4,
                "dead": 0,
            }
            for setting in ("variable", "constant")
            for architecture in ARCHITECTURES
            for member in MEMBERS
            for seed in range(seeds)
            for lr in (1e-2, 1e-3)
            for i in range(4)
        ]
    )


def _axes(drawn: Drawn, row: int, column: int) -> Axes:
    found = [
        ax
        for ax in drawn.canvas.axes
        if (spec := ax.get_subplotspec()) is not None
        and (spec.rowspan.start, spec.colspan.start) == (row, column)
    ]
    assert len(found) == 1
    return found[0]


def _lines(ax: Axes, label: str) -> list[Line2D]:
    return [line for line in ax.lines if line.get_label() == label]


def _line(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    (line,) = _lines(ax, label)
    return np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)


def _legend(drawn: Drawn) -> list[str]:
    return [text.get_text() for text in drawn.canvas.legends[0].get_texts()]


def _one(frame: pd.DataFrame, **equal: Any) -> pd.DataFrame:
    for column, value in equal.items():
        frame = frame.loc[frame[column] == value]
    return frame


def test_rows_are_settings_and_columns_architectures_in_the_papers_order() -> None:
    drawn = toy_plots.recovery_curves(_features(), **SIZES)
    assert [_axes(drawn, 0, c).get_title() for c in range(4)] == [
        "BatchTopK",
        "JumpReLU",
        "TopK",
        "Matryoshka",
    ]
    names = [_axes(drawn, r, 3).texts[0].get_text() for r in range(2)]
    assert names == ["constant", "variable"]
    assert _legend(drawn) == ["trained", "frozen decoder", "random directions"]


def test_curves_are_the_recovery_curves_beside_chance() -> None:
    features = _features()
    drawn = toy_plots.recovery_curves(features, **SIZES, tau=0.8)
    ax = _axes(drawn, 1, 2)
    best = _one(features, setting="variable", architecture="topk", member="trained", seed=0)
    x, y = _line(ax, "trained")
    assert x.tolist() == list(THRESHOLDS)
    np.testing.assert_allclose(y, recovery_curve(best["best_cosine"]))
    _, reach = _line(ax, "reach of tau = 0.8")
    np.testing.assert_allclose(reach, reachable_curve(20, 64, 0.8))
    (shade,) = (c for c in ax.collections if c.get_label() == "random directions")
    outline = shade.get_paths()[0].vertices
    chance = chance_curve(20, 64)
    assert np.asarray(outline)[:, 1].max() == pytest.approx(chance.max())
    for t in (0.4, 0.5, 0.6):
        at = np.asarray(outline)[np.isclose(np.asarray(outline)[:, 0], t), 1]
        assert chance[THRESHOLDS.index(t)] in at
    verticals = [line.get_xdata() for line in ax.lines if line.get_linestyle() == ":"]
    assert [0.8, 0.8] in [list(np.asarray(v, float)) for v in verticals]
    assert ax.get_xlabel() == "threshold"
    assert "Single seed." in drawn.caption


def test_a_logarithmic_curve_shows_one_feature_and_no_less() -> None:
    features = _features(seeds=2)
    drawn = toy_plots.recovery_curves(features, **SIZES, log=True)
    ax = _axes(drawn, 0, 0)
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] == pytest.approx(0.5 / 64)
    # A mean over seeds counts those that have none.
    linear = toy_plots.recovery_curves(features, **SIZES)
    np.testing.assert_array_equal(
        _line(ax, "trained")[1], _line(_axes(linear, 0, 0), "trained")[1]
    )
    assert drawn.name != linear.name


def test_members_keep_their_looks() -> None:
    drawn = toy_plots.recovery_curves(_features(), **SIZES)
    for member in MEMBERS:
        (line,) = _lines(_axes(drawn, 0, 0), member.replace("_", " "))
        look = looks(list(MEMBERS))[member]
        assert to_hex(line.get_color()) == look.colour
        assert line.get_linestyle() == look.line


def test_several_seeds_are_a_mean_and_a_range() -> None:
    features = _features(seeds=3)
    drawn = toy_plots.recovery_curves(features, **SIZES)
    ax = _axes(drawn, 1, 0)
    part = _one(features, setting="variable", architecture="batchtopk", member="trained")
    curves = np.array([recovery_curve(g["best_cosine"]) for _, g in part.groupby("seed")])
    np.testing.assert_allclose(_line(ax, "trained")[1], curves.mean(axis=0))
    bands = [c for c in ax.collections if c.get_label() != "random directions"]
    assert len(bands) == len(MEMBERS)
    # One band spans exactly from the least to the largest seed.
    where = THRESHOLDS.index(0.7)
    assert curves[:, where].min() < curves[:, where].max()
    ends = [
        np.asarray(b.get_paths()[0].vertices)[
            np.isclose(np.asarray(b.get_paths()[0].vertices)[:, 0], 0.7), 1
        ]
        for b in bands
    ]
    expected = (curves[:, where].min(), curves[:, where].max())
    assert any((e.min(), e.max()) == pytest.approx(expected) for e in ends)
    assert "mean over 3 seeds" in drawn.caption
    one = toy_plots.recovery_curves(_features(), **SIZES)
    assert len(_axes(one, 1, 0).collections) == 1


def test_histograms_hold_every_feature_and_the_null() -> None:
    features = _features()
    drawn = toy_plots.recovery_histograms(features, **SIZES)
    ax = _axes(drawn, 0, 1)
    stairs: dict[str, Any] = {str(p.get_label()): p.get_data() for p in ax.patches}  # type: ignore[attr-defined]
    best = _one(features, setting="constant", architecture="jumprelu", member="trained")
    edges = stairs["trained"].edges
    counts = [
        ((best["best_cosine"] >= a) & (best["best_cosine"] < b)).mean()
        for a, b in pairwise(edges)
    ]
    np.testing.assert_allclose(stairs["trained"].values, counts)
    assert stairs["trained"].values.sum() == pytest.approx(1.0)
    null = stairs["random directions"]
    assert null.values.sum() == pytest.approx(1.0, abs=1e-6)
    assert null.values[:20].sum() == pytest.approx(1 - chance_curve(20, 64, [edges[20]])[0])
    assert len(edges) == 26
    assert 0.8 in np.round(edges, 12)
    fine = toy_plots.recovery_histograms(_one(_features(n=1000), seed=0), **SIZES)
    patch: Any = _axes(fine, 0, 1).patches[0]
    assert len(patch.get_data().edges) == 51
    assert 0.8 in np.round(patch.get_data().edges, 12)
    assert ax.get_ylim()[1] > max(max(counts), null.values.max())


def test_recovery_against_frequency_is_the_binned_table() -> None:
    features = _features()
    drawn = toy_plots.recovery_against_frequency(features, **SIZES, bins=5)
    dots, share = _axes(drawn, 0, 2), _axes(drawn, 1, 2)
    part = _one(features, setting="variable", architecture="topk", member="trained", seed=0)
    points = dots.lines[0]
    np.testing.assert_array_equal(np.asarray(points.get_xdata()), part["firing_probability"])
    np.testing.assert_array_equal(np.asarray(points.get_ydata()), part["best_cosine"])
    table = recovery_by_frequency(part["best_cosine"], part["firing_probability"], 5)
    x, y = _line(share, "trained")
    np.testing.assert_allclose(y, table["share"])
    assert (x >= table["low"]).all()
    assert (x <= table["high"]).all()
    bars = [c for c in share.collections if len(c.get_paths()) == 5]
    ends = [[path.vertices[:, 1].tolist() for path in c.get_paths()] for c in bars]  # type: ignore[index]
    assert any(np.allclose(e, table[["share_low", "share_high"]]) for e in ends)
    assert share.get_xscale() == "log"
    assert share.get_xlabel() == "firing probability"
    (band,) = (p for p in dots.patches if p.get_label() == "random directions")
    box = band.get_extents().transformed(dots.transData.inverted())
    assert box.y0 == pytest.approx(quantile_of_best_cosine(20, 64, 0.025))
    assert box.y1 == pytest.approx(quantile_of_best_cosine(20, 64, 0.975))
    assert "Wilson" in drawn.caption
    assert (
        "range over seeds"
        in toy_plots.recovery_against_frequency(_features(seeds=2), **SIZES).caption
    )


def test_observed_frequencies_and_features_that_never_fire() -> None:
    frame = _features()
    assert "firing_frequency" not in frame
    arrays = PerFeature(
        np.array([0.9, 0.1, 0.5]),
        np.zeros(3),
        np.full(3, 0.1),
        np.array([5, 0, 50]),
        np.zeros(2),
    )
    row = {"setting": "tree", "architecture": "mine", "member": "trained", "seed": 0}
    frame = feature_frame([({**row, "n_samples": 1000}, arrays)])
    assert frame["firing_frequency"].tolist() == [0.005, 0.0, 0.05]
    drawn = toy_plots.recovery_against_frequency(
        frame, **SIZES, setting="tree", frequency="firing_frequency", bins=2
    )
    # A logarithmic axis has no place for the one that never fired.
    x = np.asarray(_axes(drawn, 0, 0).lines[0].get_xdata(), float)
    assert x.tolist() == [0.005, 0.05]
    assert _axes(drawn, 0, 0).get_title() == "mine"
    assert _axes(drawn, 1, 0).get_xlabel() == "firing frequency"


def test_side_by_side_has_every_seed_the_paper_and_chance() -> None:
    results = _one(_snapshots(seeds=2), lr=1e-2, step=1000)
    drawn = toy_plots.side_by_side(
        results,
        chance=0.01,
        paper_recovered={("constant", "topk"): 0.999},
        paper_ev={("variable", "batchtopk"): 0.71},
    )
    recovered, ev = _axes(drawn, 0, 0), _axes(drawn, 1, 1)
    assert [_axes(drawn, 0, c).get_title() for c in range(2)] == ["constant", "variable"]
    ticks = [label.get_text() for label in ev.get_xticklabels()]
    assert ticks == ["BatchTopK", "JumpReLU", "TopK", "Matryoshka"]
    marks = _lines(recovered, "trained")
    assert len(marks) == 4
    for x, line in enumerate(marks):
        assert np.asarray(line.get_ydata()).tolist() == pytest.approx([0.3, 0.32])
        assert abs(np.asarray(line.get_xdata(), float) - x).max() < 0.5
    (paper,) = _lines(recovered, "paper")
    assert list(np.asarray(paper.get_ydata())) == [0.999, 0.999]
    assert np.mean(np.asarray(paper.get_xdata(), float)) == pytest.approx(2)
    assert np.asarray(_lines(ev, "paper")[0].get_ydata())[0] == 0.71
    assert not _lines(_axes(drawn, 1, 0), "paper")
    assert np.asarray(_lines(recovered, "random directions")[0].get_ydata())[0] == 0.01
    assert _legend(drawn) == ["trained", "frozen decoder", "paper", "random directions"]


class TestTrainingMap:
    def test_a_line_per_learning_rate_over_samples(self) -> None:
        drawn = toy_plots.training_map(_snapshots(), paper_ev={("constant", "jumprelu"): 0.67})
        labels = [_axes(drawn, r, 0).get_ylabel() for r in range(4)]
        assert labels == ["recovered", "EV", "recovered", "EV"]
        assert _legend(drawn) == ["lr 0.001", "lr 0.01", "paper"]
        ax = _axes(drawn, 1, 1)
        assert ax.get_xscale() == "log"
        x, y = _line(ax, "lr 0.001")
        assert x.tolist() == [1e3, 1e4, 1e5, 1e6]
        assert y.tolist() == pytest.approx([0.001, 0.201, 0.401, 0.601])
        assert np.asarray(_lines(ax, "paper")[0].get_ydata())[0] == 0.67
        assert not _lines(_axes(drawn, 3, 1), "paper")
        assert _axes(drawn, 3, 0).get_xlabel() == "training samples"

    def test_rates_differ_in_marker_and_lightness(self) -> None:
        drawn = toy_plots.training_map(_snapshots())
        lines = [_lines(_axes(drawn, 0, 0), f"lr {lr}")[0] for lr in ("0.001", "0.01")]
        assert lines[0].get_marker() != lines[1].get_marker()
        dark, light = (sum(to_rgb(line.get_color())) for line in lines)
        assert light - dark > 0.5

    def test_seeds_are_averaged_and_members_kept_apart(self) -> None:
        snapshots = _snapshots(seeds=2)
        snapshots.loc[snapshots["member"] == "frozen_decoder", "ev"] = -5.0
        drawn = toy_plots.training_map(snapshots)
        _, y = _line(_axes(drawn, 0, 0), "lr 0.01")
        assert y.tolist() == pytest.approx([0.01, 0.11, 0.21, 0.31])
        assert (_line(_axes(drawn, 1, 0), "lr 0.01")[1] > 0).all()
        assert len(_axes(drawn, 0, 0).collections) == 2
        frozen = toy_plots.training_map(snapshots, member="frozen_decoder")
        assert (_line(_axes(frozen, 1, 0), "lr 0.01")[1] == -5).all()
        assert frozen.name != drawn.name

    def test_moments_at_another_l0_are_hollow(self) -> None:
        ax = _axes(toy_plots.training_map(_snapshots(), l0=20.0), 1, 0)
        hollow = [line for line in ax.lines if line.get_markerfacecolor() == "#ffffff"]
        assert [np.asarray(line.get_xdata()).tolist() for line in hollow] == [[1000], [1000]]

    def test_batches_are_lines_too(self) -> None:
        snapshots = _snapshots()
        other = snapshots.assign(batch=4096, samples=snapshots["samples"] * 4)
        frame = pd.concat([snapshots.assign(batch=1024), other])
        assert _legend(toy_plots.training_map(frame)) == [
            "lr 0.001, batch 1,024",
            "lr 0.001, batch 4,096",
            "lr 0.01, batch 1,024",
            "lr 0.01, batch 4,096",
        ]


def test_an_architecture_missing_in_one_setting_leaves_its_panel_empty() -> None:
    features = _features()
    gone = (features["setting"] == "constant") & (features["architecture"] == "topk")
    drawn = toy_plots.recovery_curves(features.loc[~gone], **SIZES)
    assert not _axes(drawn, 0, 2).lines
    assert _lines(_axes(drawn, 1, 2), "trained")


def test_what_cannot_be_drawn_is_refused() -> None:
    features = _features()
    misspelt = features.rename(columns={"best_cosine": "best_cosin"})
    with pytest.raises(UserError, match=r"best_cosine: no such column; .*best_cosin"):
        toy_plots.recovery_curves(misspelt, **SIZES)
    with pytest.raises(UserError, match="best_cosine: has missing values"):
        toy_plots.recovery_histograms(features.assign(best_cosine=np.nan), **SIZES)
    with pytest.raises(UserError, match="nothing to draw"):
        toy_plots.recovery_curves(features.head(0), **SIZES)
    with pytest.raises(UserError, match=r"setting: 'varible' was not .* did you mean variable"):
        toy_plots.recovery_against_frequency(features, **SIZES, setting="varible")
    with pytest.raises(UserError, match="member: 'frozen_encoder' has no snapshot"):
        toy_plots.training_map(_snapshots(), member="frozen_encoder")
    with pytest.raises(UserError, match="nothing to draw"):
        feature_frame([])
    arrays = PerFeature(*[np.zeros(2)] * 5)
    with pytest.raises(UserError, match="seed: missing"):
        feature_frame([({"setting": "a", "architecture": "b", "member": "c"}, arrays)])


def test_files_are_png_and_pdf_with_equal_bytes(tmp_path: Path) -> None:
    features = _one(_features(), architecture="topk")
    written = [
        toy_plots.recovery_curves(features, **SIZES).save(tmp_path / name) for name in "ab"
    ]
    assert [p.name for p in written[0]] == [
        "toy_recovery_curves.png",
        "toy_recovery_curves.pdf",
    ]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert written[0][0].read_bytes().startswith(b"\x89PNG")
    pdf = written[0][1].read_bytes()
    assert pdf.startswith(b"%PDF")
    # Nothing of the machine or the day.
    assert b"CreationDate" not in pdf


def test_from_training_to_figures(tmp_path: Path) -> None:
    """SAELens' runner, its export, the measurement and the figures: what a reader sees."""
    register_generators()
    measured, results = [], []
    for setting in ("constant", "variable"):
        model = SyntheticModel(paper_config(setting, n=20, m=64, mean_active=2.0))
        for name, member in (("topk", "trained"), ("frozen_decoder_topk", "frozen_decoder")):
            folder = tmp_path / setting / member
            config = SyntheticSAERunnerConfig(
                synthetic_model=model.cfg,
                sae=make_sae(name, d_in=20, d_sae=64, k=2).cfg,
                training_samples=300 * 128,
                batch_size=128,
                lr=1e-2,
                output_path=str(folder),
                checkpoint_path=None,
                eval_samples=0,
                logger=LoggingConfig(log_to_wandb=False),
            )
            SyntheticSAERunner(config, override_synthetic_model=model).run()
            ours = measure_toy(SAE.load_from_disk(folder), model, n_samples=4000, mcc=False)
            key = {"setting": setting, "architecture": "topk", "member": member, "seed": 0}
            assert ours.per_feature is not None
            measured.append(({**key, "n_samples": ours.n_samples}, ours.per_feature))
            results.append({**key, **ours.to_dict()})
    features, table = feature_frame(measured), pd.DataFrame(results)
    drawn = toy_plots.recovery_curves(features, **SIZES)
    at = THRESHOLDS.index(0.8)
    for row, setting in enumerate(("constant", "variable")):
        found = _one(table, setting=setting, member="trained")["recovered_share"].item()
        assert _line(_axes(drawn, row, 0), "trained")[1][at] == pytest.approx(found)
        # A frozen decoder is a draw of random directions, and training is not.
        assert _line(_axes(drawn, row, 0), "frozen decoder")[1][at] <= 2 / 64
        assert found > 10 / 64
    frequent = toy_plots.recovery_against_frequency(features, **SIZES, bins=4)
    _, share = _line(_axes(frequent, 1, 0), "trained")
    assert share[-1] > share[0] + 0.3
    toy_plots.side_by_side(table)
    toy_plots.recovery_histograms(features, **SIZES)
