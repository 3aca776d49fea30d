import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import (
    BASES,
    BATCH,
    D_IN,
    D_SAE,
    AnySAE,
    activations,
    bare_loop,
    batches,
    checked,
    compile_like_the_runner,
    dense_step,
    make_sae,
    make_trainer,
    matrix_products,
    only_checkpoint,
    resume,
    step_input,
    train,
    weights,
)
from tests.sparse_or_dense import sparse_first


def frozen(base: str, **options: Any) -> tuple[AnySAE, torch.Tensor]:
    """A frozen-decoder SAE and a copy of its start."""
    sae = make_sae(f"frozen_decoder_{base}", **options)
    return sae, sae.W_dec.detach().clone()


@pytest.mark.parametrize("base", [*BASES, "matching_pursuit"])
def test_the_decoder_stays_at_its_start_bit_for_bit_while_the_rest_is_trained(
    base: str,
) -> None:
    sae, start = frozen(base)
    before = weights(sae)

    def check() -> None:
        assert torch.equal(sae.W_dec, start)

    train(sae, 15, checked(batches(), check))
    check()
    after = weights(sae)
    trained = {name for name, _ in sae.named_parameters()}
    assert "W_dec" not in trained
    assert trained >= ({"b_dec"} if base == "matching_pursuit" else {"b_dec", "W_enc"})
    for name in trained:
        assert not torch.equal(after[name], before[name]), name


@pytest.mark.parametrize("base", BASES)
def test_no_gradient_is_computed_for_it_and_no_optimiser_state_kept(base: str) -> None:
    sae, _ = frozen(base)
    trainer = train(sae, 3)
    assert not sae.W_dec.requires_grad
    assert sae.W_dec.grad is None
    states = trainer.optimizer.state
    assert {id(p) for p in states} == {id(p) for p in sae.parameters()}
    shapes = [t.shape for s in states.values() for t in s.values()]
    assert (D_IN, D_SAE) in shapes  # W_enc
    assert (D_SAE, D_IN) not in shapes


@pytest.mark.parametrize("base", ["standard", "topk", "batchtopk", "jumprelu"])
def test_the_work_of_its_gradient_is_not_done(base: str) -> None:
    # Training everything: two products forward, and backward W_dec, the activations, W_enc
    # and the input (for b_dec; that one takes two products with a vector in a baseline).
    assert matrix_products(make_sae(f"seeded_{base}")) == 6
    frozen_decoder = make_sae(f"frozen_decoder_{base}", **dense_step(base))
    assert matrix_products(frozen_decoder) == 4 + 2 / BATCH


def test_requires_grad_on_the_sae_does_not_thaw_it() -> None:
    sae, start = frozen("batchtopk")
    sae.requires_grad_(False)
    sae.requires_grad_(True)
    assert not sae.W_dec.requires_grad
    train(sae, 5)
    assert torch.equal(sae.W_dec, start)


@pytest.mark.parametrize("base", BASES)
def test_requires_grad_on_the_decoder_itself_stops_the_next_training_pass(base: str) -> None:
    sae, _ = frozen(base)
    sae.W_dec.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"W_dec.*is frozen"):
        sae.training_forward_pass(step_input(sae, activations(8)))
    sae.W_dec.requires_grad_(False)
    sae.training_forward_pass(step_input(sae, activations(8)))


def test_a_new_parameter_in_its_place_stops_the_next_training_pass() -> None:
    sae, _ = frozen("topk")
    sae.W_dec = torch.nn.Parameter(torch.zeros(D_SAE, D_IN))
    trainer = make_trainer(sae, 1)
    with pytest.raises(RuntimeError, match=r"W_dec.*is frozen"):
        trainer.fit()


@sparse_first
def test_the_error_also_comes_from_a_compiled_sae() -> None:
    sae, _ = frozen("standard")
    compile_like_the_runner(sae)
    train(sae, 1)
    sae.W_dec.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"W_dec.*is frozen"):
        sae.training_forward_pass(step_input(sae, activations(8)))


@pytest.mark.parametrize("base", BASES)
def test_weight_decay_clipping_and_autocast_do_not_reach_it(base: str) -> None:
    sae, start = frozen(base)
    optimizer = torch.optim.AdamW(sae.parameters(), lr=1e-2, weight_decay=0.5)
    bare_loop(sae, optimizer, 5, autocast=True, clip=0.1)
    assert torch.equal(sae.W_dec, start)
    sae, start = frozen(base)
    train(sae, 5, autocast=True)
    assert torch.equal(sae.W_dec, start)


@sparse_first
@pytest.mark.parametrize("base", ["standard", "batchtopk", "gated", "jumprelu"])
def test_a_compiled_sae_keeps_it_and_learns_the_same(base: str) -> None:
    compiled, start = frozen(base)
    plain = copy.deepcopy(compiled)
    compile_like_the_runner(compiled)
    train(compiled, 4)
    train(plain, 4)
    assert torch.equal(compiled.W_dec, start)
    assert torch.equal(plain.W_dec, start)
    torch.testing.assert_close(compiled.W_enc, plain.W_enc, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_a_run_compiled_with_inductor_keeps_it() -> None:
    sae, start = frozen("standard")
    compile_like_the_runner(sae, backend="inductor")
    train(sae, 5)
    assert torch.equal(sae.W_dec, start)
    assert not torch.equal(sae.W_enc, start.T)


def test_checkpoint_and_resume_keep_it(tmp_path: Path) -> None:
    sae, start = frozen("batchtopk")
    train(sae, 10, n_checkpoints=1, checkpoint_path=str(tmp_path), save_final_checkpoint=True)
    # Resumed in an SAE that was built from another seed, the run's own start counts.
    other, other_start = frozen("batchtopk", init_seed=5)
    assert not torch.equal(other_start, start)
    trainer = make_trainer(other, 10, batches(first=6))
    resume(trainer, only_checkpoint(tmp_path))
    assert torch.equal(other.W_dec, start)
    trainer.fit()
    assert torch.equal(other.W_dec, start)
    assert torch.equal(other.W_enc, sae.W_enc)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_moving_and_casting_keep_it_frozen_at_the_cast_start(dtype: torch.dtype) -> None:
    sae, start = frozen("topk")
    sae.to("cpu")
    sae.to(dtype)
    assert sae.W_dec.dtype == dtype
    train(sae, 5, (b.to(dtype) for b in batches()))
    assert torch.equal(sae.W_dec, start.to(dtype))
    assert not sae.W_dec.requires_grad
    assert "W_dec" not in dict(sae.named_parameters())


@pytest.mark.usefixtures("other_dtypes")
def test_an_sae_born_in_bfloat16_keeps_its_rounded_start() -> None:
    sae, start = frozen("batchtopk", dtype="bfloat16")
    assert start.dtype == torch.bfloat16
    train(sae, 5)
    assert torch.equal(sae.W_dec, start)


def test_a_deep_copy_is_frozen_too() -> None:
    sae, start = frozen("batchtopk")
    twin = copy.deepcopy(sae)
    train(twin, 5)
    assert torch.equal(twin.W_dec, start)
    assert not torch.equal(twin.W_enc, sae.W_enc)


@pytest.mark.parametrize("base", ["standard", "jumprelu", "gated", "batchtopk", "topk"])
def test_the_fold_of_the_input_scale_is_all_that_changes_it(base: str) -> None:
    sae, start = frozen(base, normalize_activations="expected_average_only_in")

    def check() -> None:
        assert torch.equal(sae.W_dec, start)

    trainer = make_trainer(sae, 8, checked(batches(), check))
    trainer.activation_scaler.scaling_factor = 1.7
    trainer.fit()
    assert torch.equal(sae.W_dec, start / 1.7)


@pytest.mark.parametrize("base", ["standard", "jumprelu", "gated", "batchtopk"])
def test_with_whitened_activations_it_ends_as_the_start_times_the_unwhitening(
    base: str,
) -> None:
    options = {} if base != "batchtopk" else {"rescale_acts_by_decoder_norm": False}
    sae, start = frozen(base, normalize_activations="covariance_whitening", **options)

    def check() -> None:
        assert torch.equal(sae.W_dec, start)

    trainer = make_trainer(sae, 8, checked(batches(), check))
    trainer.activation_scaler.estimate_whitening(D_IN, batches(), 20)
    whitening = trainer.activation_scaler.whitening
    assert whitening is not None
    trainer.fit()
    wanted = (start.double() @ whitening.inverse_matrix).float()
    assert torch.equal(sae.W_dec, wanted)
    # Unwhitening is no rotation: the check above is one that a kept start would fail.
    assert not torch.allclose(wanted, start, atol=0.1)


def test_whitening_with_rescaled_activations_folds_the_unit_norms_first() -> None:
    sae, start = frozen("topk", normalize_activations="covariance_whitening")
    trainer = make_trainer(sae, 8)
    trainer.activation_scaler.estimate_whitening(D_IN, batches(), 20)
    whitening = trainer.activation_scaler.whitening
    assert whitening is not None
    trainer.fit()
    wanted = (start.double() @ whitening.inverse_matrix).float()
    torch.testing.assert_close(sae.W_dec, wanted, rtol=1e-5, atol=1e-6)
