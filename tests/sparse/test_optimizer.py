"""torch's fused Adam under SAELens' trainers: when it is used, and that it is the same Adam."""

import copy
from typing import Any

import pytest
import torch

from tests.helpers import AnySAE, bare_loop, make_sae, make_trainer, train, weights


def fused(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [group.get("fused") for group in optimizer.param_groups]


@pytest.mark.parametrize("name", ["frozen_decoder", "soft_frozen_decoder_topk", "sparse_gated"])
def test_saelens_adam_is_fused_for_twins_with_a_sparse_step(name: str) -> None:
    assert fused(train(make_sae(name), 2).optimizer) == [True]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("batchtopk", {}),
        ("seeded_batchtopk", {}),
        ("frozen_decoder_abstopk", {}),
        ("frozen_decoder", {"sparse_step": False}),
        # Rounded to bfloat16 once instead of several times, it would not be the same Adam.
        ("frozen_decoder", {"dtype": "bfloat16"}),
    ],
)
def test_others_keep_the_adam_they_were_given(
    name: str, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    if "dtype" in options:
        request.getfixturevalue("other_dtypes")
    assert fused(train(make_sae(name, **options), 2).optimizer) == [None]


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda p: torch.optim.Adam(p, foreach=True), [None]),
        (lambda p: torch.optim.Adam(p, fused=False), [False]),
        (lambda p: torch.optim.AdamW(p, weight_decay=0.1), [True]),
    ],
    ids=["foreach", "not fused", "adamw"],
)
def test_what_its_owner_chose_stays(make: Any, wanted: list[Any]) -> None:
    sae = make_sae("frozen_decoder")
    optimizer = make(sae.parameters())
    if optimizer.defaults.get("capturable"):
        assert not torch.cuda.is_available() or fused(optimizer) == wanted
        return
    bare_loop(sae, optimizer, 2)
    assert fused(optimizer) == wanted


def test_a_group_with_parameters_of_something_else_is_left_alone() -> None:
    sae = make_sae("frozen_decoder")
    other = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([*sae.parameters(), other])
    bare_loop(sae, optimizer, 2)
    assert fused(optimizer) == [None]


def one_step(sae: AnySAE, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        gradient = torch.randn(parameter.shape, generator=generator) * 10.0 ** (-seed % 7)
        parameter.grad = gradient.to(parameter)
    optimizer.step()


def test_its_update_is_adams() -> None:
    """The same gradients through both: float32 rounding apart after 50 steps."""
    ours = make_sae("sparse_batchtopk")
    theirs = copy.deepcopy(ours)
    theirs.cfg.sparse_step = False
    exact = copy.deepcopy(ours).to(torch.float64)
    exact.cfg.sparse_step = False
    saes = (ours, theirs, exact)
    optimizers = [torch.optim.Adam(s.parameters(), lr=1e-2) for s in saes]
    for seed in range(50):
        for sae, optimizer in zip(saes, optimizers, strict=True):
            one_step(sae, optimizer, seed)
    assert [fused(o) for o in optimizers] == [[True], [None], [None]]
    for name, truth in weights(exact).items():
        ours_error = (weights(ours)[name].double() - truth).abs().max()
        stock_error = (weights(theirs)[name].double() - truth).abs().max()
        assert ours_error <= 2 * stock_error + 1e-6, name


@pytest.mark.parametrize(("first", "then"), [(False, True), (True, False)])
def test_a_run_resumes_across_the_two(first: bool, then: bool) -> None:
    """The moments of one serve the other: only the arithmetic of a step differs."""
    sae = make_sae("frozen_decoder", sparse_step=first)
    trainer = train(sae, 5)
    state = copy.deepcopy(trainer.optimizer.state_dict())
    again = make_sae("frozen_decoder", sparse_step=then)
    again.load_state_dict(sae.state_dict())
    resumed = make_trainer(again, 5)
    resumed.optimizer.load_state_dict(state)
    for seed in range(3):
        one_step(sae, trainer.optimizer, seed)
        one_step(again, resumed.optimizer, seed)
    for name, value in weights(sae).items():
        torch.testing.assert_close(weights(again)[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("strided", ["parameter", "gradient", "moment"])
def test_memory_in_another_order_is_not_given_to_the_fused_adam(strided: str) -> None:
    """It walks through memory, where the transpose of W_dec lies in another order."""
    saes = [make_sae("sparse_batchtopk", sparse_step=on) for on in (True, False)]
    for sae in saes:
        optimizer = torch.optim.Adam(sae.parameters(), lr=0.1)
        for seed in range(3):
            one_step(sae, optimizer, seed)
        if strided == "parameter":
            sae.W_enc.data = sae.W_dec.data.T.clone()
        for seed in range(3, 6):
            if strided == "moment":
                moments = optimizer.state[sae.W_enc]
                moments["exp_avg"] = moments["exp_avg"].T.contiguous().T
            if strided == "gradient":
                for parameter in sae.parameters():
                    parameter.grad = None
                sae.W_enc.grad = torch.randn(sae.W_dec.shape).mul(0).add(seed).T
                sae.W_enc.grad[0] = -1.0
                optimizer.step()
            else:
                one_step(sae, optimizer, seed)
    for name, value in weights(saes[1]).items():
        torch.testing.assert_close(weights(saes[0])[name], value, rtol=1e-5, atol=1e-6)
