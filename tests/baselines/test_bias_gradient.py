import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_baselines.baselines.bias_gradient import has_linear_encoder
from tests.helpers import (
    BATCH,
    D_IN,
    D_SAE,
    TOPK_FAMILY,
    AnySAE,
    activations,
    dense_step,
    gradients,
    make_sae,
    matrix_products,
    randomise_,
    set_weights,
    step_input,
    train,
    weights,
)

LINEAR = ("standard", "topk", "batchtopk", "jumprelu", "matryoshka_batchtopk", "abstopk")
VARIANTS: dict[str, dict[str, Any]] = {
    **{base: {} for base in LINEAR},
    "topk one latent": {"k": 1},
    "topk every latent": {"k": D_SAE},
    "topk without rescaling": {"rescale_acts_by_decoder_norm": False},
    "batchtopk half a latent": {"k": 0.5},
    "jumprelu tanh": {"jumprelu_sparsity_loss_mode": "tanh"},
    "jumprelu ste to input": {"jumprelu_ste_to_input": True},
    "jumprelu pre-act": {"pre_act_loss_coefficient": 0.1},
    "standard layer norm": {"normalize_activations": "layer_norm"},
}


def pair(variant: str, constraint: str, seed: int, **more: Any) -> tuple[AnySAE, AnySAE]:
    """A baseline and SAELens' own class with the same weights, off their start."""
    base = variant.split()[0]
    options = {**VARIANTS[variant], **more}
    sae = make_sae(f"{constraint}_{base}", **dense_step(base), **options)
    randomise_(sae, seed)
    stock = make_sae(base, **options)
    set_weights(stock, weights(sae))
    return sae, stock


@pytest.mark.parametrize("constraint", ["frozen_decoder", "soft_frozen_decoder"])
@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**31),
    apply_b_dec_to_input=st.booleans(),
    dead=st.sampled_from([0.0, 0.3, 1.0]),
    offset=st.sampled_from([0.0, 5.0]),
)
def test_every_gradient_is_that_of_the_stock_class_within_float32_rounding(
    variant: str,
    constraint: str,
    seed: int,
    apply_b_dec_to_input: bool,
    dead: float,
    offset: float,
) -> None:
    sae, stock = pair(variant, constraint, seed, apply_b_dec_to_input=apply_b_dec_to_input)
    exact = copy.deepcopy(stock).to(torch.float64)
    generator = torch.Generator().manual_seed(seed)
    x = activations(BATCH, seed=seed) + offset
    mask = torch.rand(D_SAE, generator=generator) < dead
    if "layer norm" in variant:
        mask = None

    ours = sae.training_forward_pass(step_input(sae, x, mask))
    theirs = stock.training_forward_pass(step_input(stock, x, mask))
    for attribute in ("loss", "feature_acts", "hidden_pre", "sae_out"):
        assert torch.equal(getattr(ours, attribute), getattr(theirs, attribute)), attribute

    got, wanted = gradients(sae, ours.loss), gradients(stock, theirs.loss)
    assert got.keys() == wanted.keys() - (
        {"W_dec"} if constraint == "frozen_decoder" else set()
    )
    for name in got.keys() - {"b_dec"}:
        assert torch.equal(got[name], wanted[name]), name

    # b_dec: the same sum in another order. Each route is as close to the float64 value as
    # float32 allows for the size of what is summed.
    reference = exact.training_forward_pass(step_input(exact, x.double(), mask))
    if torch.equal(reference.feature_acts != 0, theirs.feature_acts != 0):
        truth = gradients(exact, reference.loss)["b_dec"]
        through_encoder = wanted["b_enc"].double().abs() @ sae.W_enc.detach().double().abs().T
        size = (
            through_encoder + truth.abs() + (x - ours.sae_out.detach()).double().abs().mean(0)
        )
        rounding = 64 * torch.finfo(torch.float32).eps * size
        assert ((got["b_dec"].double() - truth).abs() <= rounding).all()
        assert ((wanted["b_dec"].double() - truth).abs() <= rounding).all()
    torch.testing.assert_close(
        got["b_dec"], wanted["b_dec"], rtol=1e-5, atol=1e-5 * float(wanted["b_dec"].abs().max())
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_frozen_encoder_has_the_stock_gradients_of_the_reconstruction(
    variant: str,
) -> None:
    topk = variant.split()[0] in TOPK_FAMILY
    more = {"rescale_acts_by_decoder_norm": False} if topk else {}
    sae, stock = pair(variant, "frozen_encoder", 3, **more)
    x = activations(BATCH, seed=1)
    ours = sae.training_forward_pass(step_input(sae, x)).losses["mse_loss"]
    theirs = stock.training_forward_pass(step_input(stock, x)).losses["mse_loss"]
    got, wanted = gradients(sae, ours), gradients(stock, theirs)
    assert got.keys() == wanted.keys() - {"W_enc"}
    for name in got.keys() - {"b_dec"}:
        assert torch.equal(got[name], wanted[name]), name
    scale = float(wanted["b_dec"].abs().max())
    torch.testing.assert_close(got["b_dec"], wanted["b_dec"], rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("base", LINEAR)
def test_the_gradient_check_of_torch_agrees(base: str) -> None:
    """Central differences in float64, for a smooth stretch of the loss."""
    sae = make_sae(f"soft_frozen_decoder_{base}", dtype="float64")
    randomise_(sae, 2)
    x = activations(8, seed=3).double()
    loss = sae.training_forward_pass(step_input(sae, x)).losses["mse_loss"]
    gradient = gradients(sae, loss)["b_dec"]
    h = 1e-6
    for i in range(D_IN):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                sae.b_dec[i] += sign * h
                ends.append(
                    sae.training_forward_pass(step_input(sae, x)).losses["mse_loss"].item()
                )
                sae.b_dec[i] -= sign * h
        slope = (ends[0] - ends[1]) / (2 * h)
        assert abs(slope - gradient[i].item()) < 1e-6 * max(1.0, abs(slope))


@pytest.mark.parametrize("base", ["standard", "topk", "batchtopk", "jumprelu"])
def test_the_product_over_the_batch_is_not_done(base: str) -> None:
    saved = matrix_products(make_sae(base)) - matrix_products(
        make_sae(f"soft_frozen_decoder_{base}", **dense_step(base))
    )
    # One product of [batch, d_sae] with W_enc, less two of a vector with it.
    assert saved == 1 - 2 / BATCH


def test_without_b_dec_at_the_input_there_is_nothing_to_save() -> None:
    sae = make_sae("soft_frozen_decoder_topk", apply_b_dec_to_input=False, **dense_step("topk"))
    assert matrix_products(sae) == matrix_products(make_sae("topk", apply_b_dec_to_input=False))


def test_a_bias_that_is_not_trained_gets_no_gradient() -> None:
    sae, stock = pair("standard", "soft_frozen_decoder", 0)
    for one in (sae, stock):
        one.b_dec.requires_grad_(False)
    x = activations(BATCH)
    got = gradients(sae, sae.training_forward_pass(step_input(sae, x)).loss)
    wanted = gradients(stock, stock.training_forward_pass(step_input(stock, x)).loss)
    assert got.keys() == wanted.keys()
    assert "b_dec" not in got
    assert all(torch.equal(got[name], wanted[name]) for name in got)


@pytest.mark.parametrize("base", LINEAR)
def test_in_bfloat16_the_gradient_is_as_good_as_the_stock_class_has_it(base: str) -> None:
    # Every latent selected, so that rounding cannot change which.
    options = {"k": D_SAE} if base in TOPK_FAMILY else {}
    sae = make_sae(f"soft_frozen_decoder_{base}", dtype="bfloat16", **options)
    stock = make_sae(base, dtype="bfloat16", **options)
    exact = make_sae(base, dtype="float64", **options)
    randomise_(sae, 1)
    set_weights(stock, weights(sae))
    x = activations(BATCH).to(torch.bfloat16)
    ours = sae.training_forward_pass(step_input(sae, x))
    theirs = stock.training_forward_pass(step_input(stock, x))
    assert torch.equal(ours.loss, theirs.loss)
    set_weights(exact, weights(sae))
    truth = gradients(exact, exact.training_forward_pass(step_input(exact, x.double())).loss)[
        "b_dec"
    ]
    error = (gradients(sae, ours.loss)["b_dec"].double() - truth).norm()
    stock_error = (gradients(stock, theirs.loss)["b_dec"].double() - truth).norm()
    assert error <= 1.5 * stock_error + 2**-8 * truth.norm()


def test_an_error_while_encoding_leaves_the_parameters_in_place() -> None:
    sae = make_sae("frozen_decoder_topk")
    parameters = dict(sae.named_parameters())
    with pytest.raises(RuntimeError):
        sae.training_forward_pass(step_input(sae, torch.zeros(4, D_IN + 1)))
    assert sae.b_dec is parameters["b_dec"]
    assert sae.b_enc is parameters["b_enc"]
    before = weights(sae)
    train(sae, 2)
    assert not torch.equal(sae.b_dec, before["b_dec"])


def test_hooks_on_the_encoder_see_what_they_see_in_the_stock_class() -> None:
    sae, stock = pair("batchtopk", "soft_frozen_decoder", 0)
    x = activations(BATCH)
    caches = []
    for one in (sae, stock):
        _, cache = one.run_with_cache(x)
        caches.append({name: cache[name].detach() for name in cache})
    assert caches[0].keys() == caches[1].keys()
    assert all(torch.equal(caches[0][name], caches[1][name]) for name in caches[0])


def test_only_saelens_own_linear_encoders_are_taken_to_be_linear() -> None:
    for base in LINEAR:
        assert has_linear_encoder(type(make_sae(base)))
    for base in ("gated", "matching_pursuit"):
        assert not has_linear_encoder(type(make_sae(base)))

    class Own(type(make_sae("topk"))):
        def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return super().encode_with_hidden_pre(x.abs())

    assert not has_linear_encoder(Own)
