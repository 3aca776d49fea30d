import pytest
import torch
from torch import nn

from sae_baselines.compat.saes import shadow


def test_the_module_answers_with_the_other_tensor_inside_the_block_only() -> None:
    layer = nn.Linear(3, 2)
    weight, bias = layer.weight, layer.bias
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    before = layer(x)
    with shadow(layer, weight=torch.zeros(2, 3), bias=torch.ones(2)):
        assert torch.equal(layer(x), torch.ones(4, 2))
        # Optimisers, saving and moving go by the tables, which are untouched.
        assert dict(layer.named_parameters()) == {"weight": weight, "bias": bias}
        assert torch.equal(layer.state_dict()["weight"], weight)
    assert layer.weight is weight
    assert layer.bias is bias
    assert torch.equal(layer(x), before)


def test_an_error_inside_the_block_leaves_the_module_as_it_was() -> None:
    layer = nn.Linear(3, 2)
    weight = layer.weight
    with shadow(layer, weight=weight.detach()), pytest.raises(RuntimeError):
        layer(torch.zeros(4, 5))
    assert layer.weight is weight
    assert "weight" not in vars(layer)


def test_gradients_go_where_the_shadow_leads() -> None:
    layer = nn.Linear(3, 2)
    with shadow(layer, weight=layer.weight.detach()):
        layer(torch.ones(1, 3)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    assert torch.equal(layer.bias.grad, torch.ones(2))
