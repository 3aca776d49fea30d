import pytest
import torch
from torch import nn

from sae_baselines.baselines.constraint import assert_frozen, freeze_


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.free = nn.Parameter(torch.ones(2))


def frozen_pair() -> Pair:
    pair = Pair()
    freeze_(pair, "fixed")
    return pair


def test_a_frozen_parameter_is_no_parameter_but_stays_in_the_state_dict() -> None:
    pair = frozen_pair()
    assert [n for n, _ in pair.named_parameters()] == ["free"]
    assert set(pair.state_dict()) == {"fixed", "free"}
    assert torch.equal(pair.state_dict()["fixed"], torch.arange(6.0).reshape(2, 3))


def test_its_value_is_still_the_storage_it_had() -> None:
    pair = Pair()
    pointer = pair.fixed.data_ptr()
    freeze_(pair, "fixed")
    assert pair.fixed.data_ptr() == pointer


def test_requires_grad_on_the_module_does_not_thaw_it() -> None:
    pair = frozen_pair()
    pair.requires_grad_(True)
    assert not pair.fixed.requires_grad
    loss = (pair.fixed.sum(dim=1) * pair.free).sum()
    loss.backward()
    assert pair.fixed.grad is None
    assert pair.free.grad is not None
    assert_frozen(pair, "fixed")


def test_a_state_dict_loads_into_it_in_place_and_by_assignment() -> None:
    values = {"fixed": torch.full((2, 3), 9.0), "free": torch.zeros(2)}
    for assign in (False, True):
        pair = frozen_pair()
        pair.load_state_dict(values, assign=assign)
        assert torch.equal(pair.fixed, values["fixed"])
        assert [n for n, _ in pair.named_parameters()] == ["free"]


def test_it_moves_and_is_cast_with_the_module() -> None:
    pair = frozen_pair().to(torch.float64)
    assert pair.fixed.dtype == torch.float64
    assert pair.to("meta").fixed.is_meta


def test_gradients_asked_of_the_tensor_itself_are_an_error_that_says_what_to_do() -> None:
    pair = frozen_pair()
    pair.fixed.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"fixed of Pair is frozen.*requires_grad_\(False\)"):
        assert_frozen(pair, "fixed")
    pair.fixed.requires_grad_(False)
    assert_frozen(pair, "fixed")


def test_freezing_what_is_no_parameter_names_the_parameters_there_are() -> None:
    with pytest.raises(ValueError, match=r"Pair has no parameter 'W_dec'.*fixed, free"):
        freeze_(Pair(), "W_dec")
    pair = frozen_pair()
    with pytest.raises(ValueError, match="no parameter 'fixed'"):
        freeze_(pair, "fixed")
