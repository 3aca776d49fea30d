"""Thresholds that give exported SAEs their target L0."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE

from sae_baselines.study.calibrate import calibrate
from tests.helpers import activations, make_sae, train

X = activations(4000, seed=11)


def _exported_l0(sae: Any, folder: Path) -> float:
    sae.save_inference_model(folder)
    stock = SAE.load_from_disk(folder)
    with torch.no_grad():
        return float((stock.encode(X) != 0).float().sum(-1).mean())


@pytest.mark.parametrize("constraint", ["seeded", "frozen_decoder", "frozen_encoder"])
@pytest.mark.parametrize(
    "base", ["batchtopk", "matryoshka_batchtopk", "jumprelu", "standard", "gated"]
)
def test_the_export_has_its_target_l0_on_calibration_data(
    base: str, constraint: str, tmp_path: Path
):
    sae = make_sae(f"{constraint}_{base}")
    train(sae, 30)
    start = _exported_l0(sae, tmp_path / "before")
    target = round(start * 0.85, 2)  # near enough for every base
    done = calibrate(sae, X, target)
    assert done.method != "none"
    by_k = "batchtopk" in base  # trained at its k, whatever its running threshold lets through
    assert done.l0_before == (None if by_k else pytest.approx(start, rel=2e-3))
    assert _exported_l0(sae, tmp_path / "after") == pytest.approx(target, rel=2e-3)


def test_a_lagging_batchtopk_threshold_is_put_right(tmp_path: Path):
    sae = make_sae("frozen_decoder", normalize_activations="expected_average_only_in")
    train(sae, 30)
    assert _exported_l0(sae, tmp_path / "before") > 1.05 * 4  # the running average lags
    done = calibrate(sae, X, 4)
    assert done.after is not None
    assert done.before is not None
    assert done.after > done.before
    assert _exported_l0(sae, tmp_path / "after") == pytest.approx(4, rel=2e-3)


def test_reconstructions_of_what_still_fires_are_unchanged():
    sae = make_sae("seeded_gated")
    train(sae, 30)
    with torch.no_grad():
        before = sae.encode(X)
        calibrate(sae, X, float((before != 0).float().sum(-1).mean()) * 0.9)
        after = sae.encode(X)
    both = (before != 0) & (after != 0)
    assert both.any()
    torch.testing.assert_close(after[both], before[both])


def test_a_standard_sae_far_from_its_target_is_left_alone():
    sae = make_sae("seeded_standard")
    train(sae, 5)
    bias = sae.b_enc.detach().clone()
    done = calibrate(sae, X, 1.0)
    assert done.method == "none"
    assert done.l0_before is not None
    assert done.l0_before > 1.25
    assert torch.equal(sae.b_enc, bias)


def test_a_gate_that_cannot_be_opened_far_enough_is_left_alone():
    sae = make_sae("frozen_encoder_gated")
    train(sae, 30)
    with torch.no_grad():
        l0 = float((sae.encode(X) != 0).float().sum(-1).mean())
        sae.b_mag.sub_(0.0).clamp_(max=0.0)
        magnitudes = float((sae.encode_with_hidden_pre(X)[1] > 0).float().sum(-1).mean())
    wanted = magnitudes + 1
    assert wanted > l0
    bias = sae.b_gate.detach().clone()
    assert calibrate(sae, X, wanted).method == "none"
    assert torch.equal(sae.b_gate, bias)


def test_topk_is_left_alone():
    sae = make_sae("seeded_topk")
    assert calibrate(sae, X, 4).method == "none"
