"""What this package takes for granted of SAELens' SAE classes and of torch's modules."""

import inspect
from typing import Any

import pytest
import torch
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE
from torch import nn

from sae_baselines.compat import saes
from tests.helpers import activations, make_sae, train


@pytest.mark.parametrize("name", saes.OVERRIDDEN)
def test_methods_that_are_overridden_are_there(name: str) -> None:
    owner, what_for = saes.OVERRIDDEN[name]
    method = getattr(owner, name, None)
    assert callable(method), f"SAELens' {owner.__name__} has no {name} any more: {what_for}"


PARAMETERS = {
    saes.act_times_W_dec: ["feature_acts", "W_dec", "rescale_acts_by_decoder_norm"],
    saes.calculate_pre_act_loss: [
        "pre_act_loss_coefficient",
        "threshold",
        "hidden_pre",
        "dead_neuron_mask",
        "W_dec_norm",
    ],
    saes.JumpReLU.forward: ["x", "threshold", "bandwidth", "ste_to_input"],
    saes.Step.forward: ["x", "threshold", "bandwidth", "ste_to_input"],
}


@pytest.mark.parametrize("function", PARAMETERS, ids=lambda f: f.__qualname__)
def test_functions_that_are_called_take_what_they_took(function: Any) -> None:
    assert list(inspect.signature(function).parameters) == PARAMETERS[function], (
        f"the parameters of SAELens' {function.__module__}.{function.__qualname__} moved; "
        "sae_baselines/sparse/bases.py calls it"
    )


def test_the_registry_is_a_dictionary_of_pairs_of_classes() -> None:
    for name in ("topk", "batchtopk"):
        assert saes.SAE_TRAINING_CLASS_REGISTRY[name] == get_sae_training_class(name), (
            "SAELens' registry moved: baselines/registry.py lists architectures from it"
        )


@pytest.mark.parametrize("name", ["standard", "topk", "batchtopk", "jumprelu"])
def test_encoders_that_are_called_linear_are(name: str) -> None:
    """hidden_pre = (x - b_dec) @ W_enc + b_enc, up to decoder norms, which start at 1 here."""
    sae = make_sae(name, decoder_init_norm=1.0)
    assert type(sae).encode_with_hidden_pre in saes.LINEAR_ENCODERS
    assert type(sae).process_sae_in is TrainingSAE.process_sae_in
    x = activations(8)
    with torch.no_grad():
        sae.b_dec.normal_()
        pre = sae.encode_with_hidden_pre(x)[1]
        expected = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    torch.testing.assert_close(
        pre,
        expected,
        msg=lambda m: f"SAELens' {name} encodes otherwise; see bias_gradient.py: {m}",
    )


@pytest.mark.parametrize("name", ["standard", "jumprelu", "gated"])
def test_penalties_weighted_by_decoder_norms_are_those_that_are_known(name: str) -> None:
    stock = get_sae_training_class(name)[0]
    assert stock.calculate_aux_loss in saes.NORM_PENALTIES, (
        f"SAELens' {name} has another auxiliary loss; see frozen_encoder.py"
    )


def test_what_is_shadowed_is_seen_and_comes_back_whatever_happens() -> None:
    sae = make_sae("topk")
    own, other, seen = sae.W_dec, torch.zeros_like(sae.W_dec), []

    def fail() -> None:
        with saes.shadow(sae, W_dec=other):
            seen.append(sae.W_dec)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen[0] is other, "torch finds parameters before the instance dictionary"
    assert sae.W_dec is own


def test_an_in_place_change_is_counted_and_one_through_data_is_not() -> None:
    tensor = torch.zeros(3)
    before = saes.version_of(tensor)
    tensor.data.add_(1)
    assert saes.version_of(tensor) == before, "torch counts edits through .data now"
    tensor.add_(1)
    assert saes.version_of(tensor) == before + 1, "torch's Tensor._version moved"


HOOKS = {
    "register_forward_hook": lambda *_: None,
    "register_forward_pre_hook": lambda *_: None,
    "register_full_backward_hook": lambda *_: None,
    "register_full_backward_pre_hook": lambda *_: None,
}


@pytest.mark.parametrize("register", HOOKS)
def test_every_kind_of_hook_is_seen(register: str) -> None:
    module = nn.Identity()
    assert not saes.has_hooks(module)
    handle = getattr(module, register)(HOOKS[register])
    assert saes.has_hooks(module), f"torch keeps the hooks of {register} elsewhere"
    handle.remove()
    assert not saes.has_hooks(module)


def test_a_weight_of_its_own_is_told_from_a_property() -> None:
    assert saes.has_own(make_sae("topk"), "W_enc")
    assert saes.has_own(make_sae("frozen_encoder_topk"), "W_enc")
    tied = make_sae("matching_pursuit")
    assert not saes.has_own(tied, "W_enc"), "matching pursuit has an encoder of its own now"


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_every_way_of_casting_a_module_passes_through_apply(cast: str) -> None:
    sae = make_sae("soft_frozen_decoder_gated", target_l0=4.0)
    train(sae, 3)
    start = sae.get_buffer("W_dec_start").clone()
    steering = sae.get_buffer("l0_steering_state").clone()
    getattr(sae, cast)()
    assert sae.W_enc.dtype != torch.float32
    for name, kept in (("W_dec_start", start), ("l0_steering_state", steering)):
        assert torch.equal(sae.get_buffer(name), kept), (
            f"Module._apply moved: {name} is rounded"
        )
