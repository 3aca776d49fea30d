"""Dictionaries held against each other: known answers, and nulls that simulations bear out."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from sae_baselines.errors import UserError
from sae_baselines.evals import write_results
from sae_baselines.pipeline import latents as add_latents
from sae_baselines.report import build_report, study_context
from sae_baselines.report.write import to_html
from sae_baselines.stats.u_statistic import half_widths, mean_over_pairs
from sae_baselines.study.engine import train_study
from sae_baselines.study.latents import LATENTS_FILE
from sae_baselines.study.spec import spec_from_dict
from sae_baselines.study.stability import (
    STABILITY_FILE,
    Dictionary,
    agreement,
    measure_stability,
    read_stability,
)
from tests.tiny_model import tiny_panel

D_IN, M, TOKENS = 20, 300, 400


def dictionary(rows: np.ndarray, seed: int = 0) -> Dictionary:
    random = np.random.default_rng(seed)
    rates = 10 ** random.uniform(-3, -0.5, len(rows))
    acts = (random.random((TOKENS, len(rows))) < rates) * random.random((TOKENS, len(rows)))
    unit = torch.nn.functional.normalize(torch.from_numpy(rows).float(), dim=1)
    return Dictionary(unit, rates, csr_array(acts))


def isotropic(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((M, D_IN))


def test_the_same_latents_in_another_order_are_found_again():
    first = dictionary(isotropic(0))
    order = np.random.default_rng(5).permutation(M)
    second = Dictionary(first.rows[order], first.rates[order], csr_array(first.acts[:, order]))
    found = agreement(first, second)
    for name in ("best", "reappear", "near", "one_to_one", "activations", "subspace"):
        assert found[name] == pytest.approx(1, abs=1e-5), name
    assert abs(found["activations_shuffled"]) < 0.1
    assert sum(n for n, _ in found["by_rate"].values()) == 2 * M
    assert all(n == reappeared for n, reappeared in found["by_rate"].values())


def test_random_dictionaries_are_at_the_closed_form_and_at_the_simulated_null():
    found = [
        agreement(dictionary(isotropic(a), a), dictionary(isotropic(b), b), seed=a)
        for a, b in combinations(range(4), 2)
    ]
    mean = {name: np.mean([f[name] for f in found]) for name in found[0] if name != "by_rate"}
    for null in ("chance", "random", "covariance"):
        assert mean["best"] == pytest.approx(mean[f"best_{null}"], abs=0.01)
        assert mean["reappear"] == pytest.approx(mean[f"reappear_{null}"], abs=0.03)
    assert mean["one_to_one"] == pytest.approx(mean["one_to_one_random"], abs=0.01)
    assert mean["one_to_one"] < mean["best"]
    assert mean["subspace"] == pytest.approx(mean["subspace_chance"], abs=0.12)
    assert abs(mean["activations"]) < 0.02


def test_directions_that_crowd_are_alike_for_no_other_reason_than_that():
    shape = np.diag(np.r_[np.full(4, 3.0), np.full(D_IN - 4, 0.3)])
    first, second = (dictionary(isotropic(s) @ shape, s) for s in (1, 2))
    found = agreement(first, second)
    assert found["best"] > found["best_chance"] + 0.15
    assert found["best"] == pytest.approx(found["best_covariance"], abs=0.03)


def test_an_interval_over_pairs_knows_that_they_share_seeds():
    a = {0: 0.1, 1: 0.4, 2: 0.2, 3: 0.7}
    mean, interval = mean_over_pairs({(i, j): a[i] + a[j] for i, j in combinations(a, 2)})
    # Of sums over seeds it is the t interval of twice their mean.
    values = 2 * np.array(list(a.values()))
    half = 3.182446 * values.std(ddof=1) / 2
    assert mean == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx((mean - half, mean + half), rel=1e-5)
    assert np.isnan(mean_over_pairs({(0, 1): 0.5})[1].low)
    assert np.isnan(mean_over_pairs({(0, 1): 0.5, (0, 2): 0.6})[1].low)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_covers_where_pairs_differ_by_their_seeds(n: int):
    pairs = list(combinations(range(n), 2))
    of_seed = np.random.default_rng(n).standard_normal((4000, n))
    values = of_seed[:, np.array(pairs)].sum(axis=2)
    covered = np.abs(values.mean(axis=1)) <= half_widths(pairs, values)
    assert covered.mean() == pytest.approx(0.95, abs=0.015)


def test_seeds_of_a_study_are_held_against_each_other_once(
    model_folder: Path, text_file: Path, tmp_path: Path
):
    panel = tiny_panel(model_folder, members=["trained", "frozen_decoder"], seeds=[0, 1, 2])
    panel["dataset"] = {"path": str(text_file)}
    spec = spec_from_dict({**panel, "training_tokens": 128 * 4})
    train_study(spec, tmp_path)
    for file in list(tmp_path.rglob(LATENTS_FILE))[:1]:
        file.unlink()  # as of a study of before
    add_latents(tmp_path)
    pairs = read_stability(tmp_path)
    assert len(pairs) == 2 * 3 + 9
    assert all(0 < pair["best"] <= 1 for pair in pairs)
    same = [p for p in pairs if "trained" in p["first"] and "frozen" in p["second"]]
    start = [p["best"] for p in same if p["first"].split(".")[0] == p["second"].split(".")[0]]
    assert min(start) > max(p["best"] for p in same if p["best"] not in start)
    before = (tmp_path / STABILITY_FILE).stat().st_mtime_ns
    assert measure_stability(spec, tmp_path) == pairs
    assert (tmp_path / STABILITY_FILE).stat().st_mtime_ns == before

    built = build_report(write_results(tmp_path), study_context(tmp_path))
    (section,) = (s for s in built.sections if s.id == "stability")
    assert "`trained`, between seeds | 3 |" in section.text
    assert "trained and the frozen decoder of the same start | 3 |" in section.text
    assert "trained and frozen decoders of other starts | 6 |" in section.text
    assert "random directions, closed form" in section.text
    assert "reappearance-" in to_html(built)

    (tmp_path / STABILITY_FILE).write_text(
        (tmp_path / STABILITY_FILE).read_text().replace('"best": 0', '"best": 1', 1)
    )
    with pytest.raises(UserError, match=STABILITY_FILE):
        read_stability(tmp_path)
