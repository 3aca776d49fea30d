"""The control that holds the L0 of training batches at its target."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file

from sae_baselines.baselines.l0_control import at_constant_number
from tests.helpers import (
    BATCH,
    CONSTRAINTS,
    D_IN,
    D_SAE,
    AnySAE,
    activations,
    batches,
    coefficients,
    differing,
    make_sae,
    make_trainer,
    only_checkpoint,
    resume,
    set_weights,
    train,
    weights,
)
from tests.sparse_or_dense import in_one_step, sparse_first

CONTROLLED = ("jumprelu", "standard", "gated")
MEMBERS = ("seeded", *CONSTRAINTS)
STATE = "l0_control_state"


def controlled(name: str, **options: Any) -> AnySAE:
    more = {"jumprelu_init_threshold": 0.2} if name.endswith("jumprelu") else {}
    return make_sae(name, **{"target_l0": 4.0, "l0_control": 0.2, **more, **options})


@in_one_step(MEMBERS)
@pytest.mark.parametrize("base", CONTROLLED)
def test_batches_have_the_target_l0_at_the_end_of_training(member: str, base: str) -> None:
    sae = controlled(f"{member}_{base}")
    trainer = make_trainer(sae, 300)
    data = batches()
    l0 = []
    for i in range(300):
        acts = trainer.step(next(data)).feature_acts
        if i >= 200:
            l0.append(float((acts.to_dense() != 0).float().sum(-1).mean()))
    assert sum(l0) / len(l0) == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize("member", ["seeded", "frozen_decoder"])
def test_thresholds_are_multiplied_by_a_power_of_the_ratio(member: str) -> None:
    sae = controlled(f"{member}_jumprelu", l0_coefficient=0.0)
    x = activations(64)
    trainer = make_trainer(sae, 10, lr=0.0)
    before = sae.threshold.detach().clone()
    output = trainer.step(x)
    assert torch.equal(sae.threshold, before)  # nothing was known before the first batch
    l0 = float((output.feature_acts.to_dense() != 0).float().sum(-1).mean())
    trainer.step(x)
    torch.testing.assert_close(sae.threshold, before * (l0 / 4.0) ** 0.2)


@pytest.mark.parametrize(("options", "left"), [({}, 0.97), ({"threshold_return": 0.3}, 0.7)])
def test_thresholds_go_back_to_their_mean(options: dict[str, float], left: float) -> None:
    sae = controlled("seeded_jumprelu", l0_coefficient=0.0, **options)
    x = activations(64)
    trainer = make_trainer(sae, 10, lr=0.0)
    with torch.no_grad():
        sae.threshold[::2] *= 4
    before = sae.threshold.detach().log()
    trainer.step(x)
    trainer.step(x)
    after = sae.threshold.detach().log()
    torch.testing.assert_close(after - after.mean(), left * (before - before.mean()))


def test_a_threshold_of_zero_comes_back_and_moves_no_other() -> None:
    """SAELens clamps a threshold that a step took below 0."""
    sae, other = (controlled("seeded_jumprelu", l0_coefficient=0.0) for _ in range(2))
    sae.threshold.data[3] = 0.0
    x = activations(64)
    for one in (sae, other):
        trainer = make_trainer(one, 10, lr=0.0)
        for _ in range(3):
            trainer.step(x)
    assert float(sae.threshold[3]) > 0.01 * float(sae.threshold.mean())
    kept = torch.arange(len(sae.threshold)) != 3
    moved = (sae.threshold / other.threshold)[kept].log()
    assert float(moved.abs().max()) < 0.05


@pytest.mark.parametrize(
    ("options", "missed"),
    [
        ({"jumprelu_init_threshold": 1e3}, True),  # nothing can fire yet
        # Half of the latents are below 0, whatever the thresholds.
        ({"target_l0": D_SAE - 1.0, "learned": "threshold"}, True),
        ({}, False),
    ],
)
def test_a_target_that_was_not_held_is_said_when_it_is_saved(
    options: dict[str, Any], missed: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sae = controlled("frozen_encoder_jumprelu", **options)
    train(sae, 5 if "jumprelu_init_threshold" in options else 150)
    sae.save_inference_model(tmp_path)
    said = [r.getMessage() for r in caplog.records if "target_l0" in r.getMessage()]
    assert len(said) == missed
    assert all(f"not target_l0={sae.cfg.target_l0:g}" in s for s in said)


@pytest.mark.parametrize(("base", "bias"), [("standard", "b_enc"), ("gated", "b_gate")])
def test_biases_are_shifted_by_one_number_in_units_of_the_active_values(
    base: str, bias: str
) -> None:
    sae = controlled(f"seeded_{base}")
    x = activations(64)
    trainer = make_trainer(sae, 10, lr=0.0)
    before = getattr(sae, bias).detach().clone()
    acts = trainer.step(x).feature_acts.to_dense().detach()
    assert torch.equal(getattr(sae, bias), before)
    trainer.step(x)
    active = acts != 0
    l0, mean = float(active.float().sum(-1).mean()), float(acts[active].mean())
    torch.testing.assert_close(
        getattr(sae, bias).detach(), before - 0.2 * math.log(l0 / 4.0) * mean
    )


@given(
    acts=arrays(np.float32, (7, 11), elements=st.floats(0, 8, width=32)),
    grads=arrays(np.float32, (7, 11), elements=st.floats(-1, 1, width=32)),
)
def test_a_gradient_at_constant_number_moves_none_over_zero_in_common(
    acts: np.ndarray, grads: np.ndarray
) -> None:
    x = torch.from_numpy(acts).requires_grad_()
    y = at_constant_number(x)
    assert torch.equal(y, x)
    y.backward(torch.from_numpy(grads))
    assert x.grad is not None
    active = x.detach() > 0
    marginal = active & (x.detach() <= 0.25 * x.detach()[active].mean())
    changed = x.grad != torch.from_numpy(grads)
    assert not bool((changed & ~marginal).any())
    if bool(marginal.any()):
        # A common change of all active values is no direction of the loss any more.
        assert float(x.grad[active].sum()) == pytest.approx(0.0, abs=1e-4)


@sparse_first
def test_held_biases_do_not_run_away_from_an_encoder_that_grows() -> None:
    """Shifted alone they fell by 20 mean values in 400 steps, and EV with them."""
    sae = controlled("soft_frozen_decoder_standard", l1_coefficient=0.0)
    trainer = make_trainer(sae, 600, lr=3e-3)
    data = batches()
    losses = [trainer.step(next(data)).losses["mse_loss"].item() for _ in range(600)]
    assert sum(losses[-50:]) < sum(losses[250:300])


def test_an_sae_with_nothing_active_comes_back() -> None:
    sae = controlled("frozen_decoder_jumprelu", jumprelu_init_threshold=1e3)
    train(sae, 150)
    assert float(sae.l0_control_state[0]) == pytest.approx(4.0, rel=0.3)


@pytest.mark.parametrize("base", CONTROLLED)
def test_off_it_is_saelens_own_training_bit_for_bit(base: str) -> None:
    sae, stock = make_sae(f"seeded_{base}"), make_sae(base, decoder_init_norm=1.0)
    assert sae.cfg.l0_control == 0
    assert STATE not in sae.state_dict()
    set_weights(stock, weights(sae))
    ours, theirs = make_trainer(sae, 20), make_trainer(stock, 20)
    for x, _ in zip(batches(), range(20), strict=False):
        assert torch.equal(ours.step(x).loss, theirs.step(x).loss)
    assert set(differing(weights(sae), weights(stock))) <= {"l0_steering_state"}


@pytest.mark.parametrize("base", ["standard", "gated"])
def test_the_coefficient_is_left_alone_while_biases_are_moved(base: str) -> None:
    sae = controlled(f"seeded_{base}")
    before = coefficients(sae)
    output = make_trainer(sae, 10).step(activations(64))
    assert "l0_coefficient_factor" not in output.metrics
    assert coefficients(sae) == before


@pytest.mark.parametrize("base", CONTROLLED)
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(base: str, tmp_path: Path) -> None:
    name = f"frozen_decoder_{base}"
    whole = controlled(name)
    train(whole, 20, n_checkpoints=1, checkpoint_path=str(tmp_path))
    checkpoint = only_checkpoint(tmp_path)
    assert STATE in load_file(checkpoint / "sae_weights.safetensors")
    resumed = controlled(name)
    trainer = make_trainer(resumed, 20, batches(first=int(checkpoint.name) // BATCH))
    resume(trainer, checkpoint)
    trainer.fit()
    assert differing(weights(whole), weights(resumed)) == []


@pytest.mark.parametrize("base", CONTROLLED)
def test_the_export_has_no_trace_of_it(base: str, tmp_path: Path) -> None:
    sae = controlled(f"seeded_{base}")
    train(sae, 3)
    sae.save_inference_model(tmp_path)
    assert STATE not in load_file(tmp_path / "sae_weights.safetensors")


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, math.inf])
def test_a_gain_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"l0_control: .* is out of range"):
        make_sae("seeded_jumprelu", target_l0=4.0, l0_control=value)


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, math.inf])
def test_a_share_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"threshold_return: .* is out of range"):
        make_sae("seeded_jumprelu", target_l0=4.0, threshold_return=value)


@pytest.mark.parametrize("target", [None, 0.0, float(D_SAE), math.nan])
@pytest.mark.parametrize("base", CONTROLLED)
def test_a_control_needs_a_target(base: str, target: float | None) -> None:
    with pytest.raises(ValueError, match=r"target_l0"):
        make_sae(f"frozen_decoder_{base}", target_l0=target, l0_control=0.1, d_in=D_IN)


@pytest.mark.parametrize("base", ["topk", "batchtopk", "matryoshka_batchtopk"])
def test_a_base_with_a_k_has_no_control(base: str) -> None:
    assert not hasattr(make_sae(f"seeded_{base}").cfg, "l0_control")
