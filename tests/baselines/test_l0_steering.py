import functools
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import (
    BATCH,
    CONSTRAINTS,
    D_IN,
    D_SAE,
    AnySAE,
    activations,
    batches,
    checked,
    coefficients,
    cosines,
    differing,
    make_sae,
    make_trainer,
    only_checkpoint,
    resume,
    set_weights,
    step_input,
    train,
    weights,
)
from tests.sparse_or_dense import in_one_step

STEERED = ("standard", "gated")
MEMBERS = ("seeded", *CONSTRAINTS)
WIDE_IN, WIDE_SAE, N_FEATURES, WIDE_BATCH = 32, 128, 256, 256
# Enough for every member to settle within two per cent.
STEPS = 1000


def sparse_batches(seed: int) -> Iterator[torch.Tensor]:
    """About 7.7 of 256 known unit directions active in each sample."""
    directions = torch.randn(N_FEATURES, WIDE_IN, generator=torch.Generator().manual_seed(0))
    directions = torch.nn.functional.normalize(directions, dim=1)
    generator = torch.Generator().manual_seed(seed)
    shape = (WIDE_BATCH, N_FEATURES)
    while True:
        fires = torch.rand(shape, generator=generator) < 0.03
        yield (fires * (0.5 + torch.rand(shape, generator=generator))) @ directions


@functools.cache
def first_batches(seed: int, n: int) -> list[torch.Tensor]:
    """Made once: every member sees the same, and drawing them takes as long as a step."""
    return list(itertools.islice(sparse_batches(seed), n))


@pytest.fixture(scope="module", autouse=True)
def _batches_are_of_this_module() -> Iterator[None]:
    yield
    first_batches.cache_clear()


def measured_l0(sae: AnySAE, n_batches: int = 80) -> float:
    """On 20480 samples that the SAE has not seen."""
    with torch.no_grad():
        counts = [(sae.encode(x) != 0).sum(dim=1).double() for x in first_batches(2, n_batches)]
    return float(torch.cat(counts).mean())


@in_one_step(MEMBERS)
@pytest.mark.parametrize("base", STEERED)
def test_the_target_is_reached_within_five_per_cent_on_fresh_data(
    member: str, base: str
) -> None:
    sae = make_sae(
        f"{member}_{base}", d_in=WIDE_IN, d_sae=WIDE_SAE, target_l0=8.0, l1_coefficient=1.0
    )
    start = sae.W_dec.detach().clone()
    train(sae, STEPS, iter(first_batches(1, STEPS)), batch=WIDE_BATCH, lr=3e-3)
    assert measured_l0(sae) == pytest.approx(8.0, rel=0.05)
    # Not by giving up on the activations.
    x = next(sparse_batches(seed=3))
    error = (sae(x) - x).pow(2).sum() / (x - x.mean(dim=0)).pow(2).sum()
    assert error < 0.75
    if member == "soft_frozen_decoder":
        assert cosines(sae.W_dec, start).min() >= 0.8 - 1e-6
    elif member == "frozen_decoder":
        assert torch.equal(sae.W_dec, start)
    elif member == "frozen_encoder":
        assert torch.equal(sae.W_enc, start.T)


def steered(base: str, **options: Any) -> AnySAE:
    return make_sae(f"seeded_{base}", **{"target_l0": 4.0, **options})


@pytest.mark.parametrize("base", STEERED)
def test_too_many_active_latents_raise_the_coefficient_and_too_few_lower_it(
    base: str,
) -> None:
    for target, direction in ((1.0, 1), (D_SAE - 1.0, -1)):
        sae = steered(base, target_l0=target)
        factors: list[float] = []
        check = lambda: factors.append(sae.l0_coefficient_factor)  # noqa: B023, E731
        train(sae, 10, checked(batches(), check), lr=1e-4)
        assert all(direction * math.log(factor) > 0 for factor in factors)


def error_of(l0: float, target: float) -> float:
    return max(-2.0, min(2.0, math.log(l0 / target)))


@pytest.mark.parametrize("base", STEERED)
def test_the_proportional_part_is_the_gain_times_the_log_of_the_smoothed_l0(
    base: str,
) -> None:
    gain, target = 0.7, 5.0
    sae = steered(base, target_l0=target, l0_steering_rate=0.0, l0_steering_gain=gain)
    trainer = make_trainer(sae, 100)
    data = batches()
    smoothed = target
    for i in range(40):
        factor = math.exp(gain * error_of(smoothed, target))
        output = trainer.step(next(data))
        assert output.metrics["l0_coefficient_factor"] == pytest.approx(factor, rel=1e-12)
        l0 = float((output.feature_acts != 0).double().sum(dim=1).mean())
        smoothed = l0 if i == 0 else 0.9 * smoothed + 0.1 * l0


@pytest.mark.parametrize("base", STEERED)
def test_the_integral_part_moves_by_the_rate_times_the_error_or_waits(base: str) -> None:
    rate, target = 0.013, 5.0
    sae = steered(base, target_l0=target, l0_steering_rate=rate, l0_steering_gain=0.0)
    trainer = make_trainer(sae, 100)
    data = batches()
    smoothed, moves = 0.0, 0
    for i in range(40):
        before = math.log(sae.l0_coefficient_factor)
        output = trainer.step(next(data))
        l0 = float((output.feature_acts != 0).double().sum(dim=1).mean())
        smoothed = l0 if i == 0 else 0.9 * smoothed + 0.1 * l0
        moved = math.log(sae.l0_coefficient_factor) - before
        wanted = rate * error_of(smoothed, target)
        moves += moved != 0
        # It may wait while L0 is on its way to the target by itself, never overshoot.
        assert moved == 0 or moved == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert moves > 10


@pytest.mark.parametrize("base", STEERED)
def test_the_factor_multiplies_the_sparsity_loss_and_nothing_else(base: str) -> None:
    sae = steered(base)
    trainer = make_trainer(sae, 100)
    data = batches()
    for _ in range(10):
        trainer.step(next(data))
    plain = make_sae(f"seeded_{base}")
    set_weights(plain, weights(sae))
    x = next(data)
    ours = trainer.step(x)
    theirs = make_trainer(plain, 1).step(x)
    factor: Any = ours.metrics["l0_coefficient_factor"]
    assert abs(factor - 1) > 0.05
    for name, loss in theirs.losses.items():
        wanted = loss * factor if name == "l1_loss" else loss
        torch.testing.assert_close(ours.losses[name], wanted, rtol=1e-5, atol=0)


def test_the_warm_up_of_the_coefficient_is_saelens() -> None:
    sae = steered("standard", l1_warm_up_steps=10, l0_steering_gain=0.0, l0_steering_rate=0.0)
    stock = make_sae("standard", l1_warm_up_steps=10, decoder_init_norm=1.0)
    set_weights(stock, weights(sae))
    ours, theirs = make_trainer(sae, 20), make_trainer(stock, 20)
    for x, _ in zip(batches(), range(15), strict=False):
        assert torch.equal(ours.step(x).losses["l1_loss"], theirs.step(x).losses["l1_loss"])


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("base", STEERED)
def test_the_state_survives_checkpoint_and_resume(
    tmp_path: Path, base: str, member: str
) -> None:
    sae = make_sae(f"{member}_{base}", target_l0=4.0)
    train(sae, 40, n_checkpoints=1, checkpoint_path=str(tmp_path))
    checkpoint = only_checkpoint(tmp_path)
    stored = load_file(checkpoint / "sae_weights.safetensors")["l0_steering_state"]
    assert stored.dtype == torch.float64
    assert torch.equal(stored[:2] != 0, torch.tensor([True, True]))
    other = make_sae(f"{member}_{base}", target_l0=4.0)
    trainer = make_trainer(other, 40, batches(first=int(checkpoint.name) // BATCH))
    resume(trainer, checkpoint)
    assert torch.equal(other.get_buffer("l0_steering_state"), stored)
    trainer.fit()
    assert differing(weights(other), weights(sae)) == []
    assert other.l0_coefficient_factor == sae.l0_coefficient_factor


def test_the_export_holds_nothing_of_it(tmp_path: Path) -> None:
    sae = steered("gated")
    train(sae, 3)
    sae.save_inference_model(tmp_path)
    stored = load_file(tmp_path / "sae_weights.safetensors")
    assert set(stored) == {"W_dec", "W_enc", "b_dec", "b_gate", "b_mag", "r_mag"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_casting_the_sae_does_not_round_the_state(dtype: torch.dtype) -> None:
    sae = steered("standard")
    train(sae, 20)
    state = sae.get_buffer("l0_steering_state").clone()
    sae.to(dtype)
    assert torch.equal(sae.get_buffer("l0_steering_state"), state)


@pytest.mark.parametrize("base", STEERED)
def test_without_a_target_training_is_the_stock_class_bit_for_bit(base: str) -> None:
    sae = make_sae(f"seeded_{base}")
    assert sae.cfg.target_l0 is None
    stock = make_sae(base, decoder_init_norm=1.0)
    set_weights(stock, weights(sae))
    before = sae.get_buffer("l0_steering_state").clone()
    ours, theirs = make_trainer(sae, 20), make_trainer(stock, 20)
    for x, _ in zip(batches(), range(20), strict=False):
        a, b = ours.step(x), theirs.step(x)
        assert torch.equal(a.loss, b.loss)
        assert "l0_coefficient_factor" not in a.metrics
    assert differing(weights(sae), weights(stock)) == ["l0_steering_state"]
    assert torch.equal(sae.get_buffer("l0_steering_state"), before)
    assert coefficients(sae) == coefficients(stock)


def test_waiting_for_the_start_does_not_steer() -> None:
    sae = steered("gated", init_scheme="cov", init_cov_samples=3 * BATCH)
    before = sae.get_buffer("l0_steering_state").clone()
    states: list[torch.Tensor] = []
    check = lambda: states.append(sae.get_buffer("l0_steering_state").clone())  # noqa: E731
    train(sae, 4, checked(batches(), check))
    assert torch.equal(states[0], before)
    assert torch.equal(states[1], before)
    assert not torch.equal(states[2], before)


@pytest.mark.parametrize("target", [0.0, -3.0, float(D_SAE), 1e6, math.nan, math.inf])
@pytest.mark.parametrize("name", ["seeded_standard", "frozen_decoder_gated"])
def test_a_target_out_of_range_is_refused(name: str, target: float) -> None:
    with pytest.raises(ValueError, match=rf"target_l0.*d_sae={D_SAE}"):
        make_sae(name, target_l0=target)


@pytest.mark.parametrize("field", ["l0_steering_rate", "l0_steering_gain"])
def test_a_negative_gain_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field}: -0.1 is negative"):
        make_sae("soft_frozen_decoder_standard", target_l0=4.0, **{field: -0.1})


@pytest.mark.parametrize("base", ["topk", "batchtopk", "jumprelu", "matryoshka_batchtopk"])
def test_bases_with_a_k_or_a_target_of_their_own_are_not_steered(base: str) -> None:
    for member in MEMBERS:
        sae = make_sae(f"{member}_{base}")
        assert not hasattr(sae.cfg, "l0_steering_rate")
        assert "l0_steering_state" not in sae.state_dict()


def test_l0_is_counted_per_token_whatever_the_shape_of_a_batch() -> None:
    measured = []
    for shape in ((60, D_IN), (3, 20, D_IN)):
        sae = make_sae("frozen_decoder_standard", target_l0=8.0)
        x = activations(60).reshape(shape)
        sae.training_forward_pass(step_input(sae, x))
        measured.append(float(sae.l0_steering_state[1]))
    assert measured[0] == pytest.approx(measured[1], rel=1e-6)
    assert 0 < measured[0] < sae.cfg.d_sae
