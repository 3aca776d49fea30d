"""One training step: sparse, dense, and SAELens' own class.

In float64 the three must agree to a few dozen roundings of the largest element of each
tensor (or of the terms that it is a sum of): that is the proof that the sparse step computes
the same thing. In float32 the bound is the same number of (coarser) roundings. Measured over
3,000 cases of the kinds below, the worst is 8 roundings in either precision; the bound of 64
leaves room for another machine's order of summation. In half precision both are compared with
the float64 truth instead: the sparse step must not be further from it.
"""

import copy
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_baselines.sparse import active_latents, select, step
from tests.helpers import SIX_BASES, AnySAE, activations, make_sae, set_weights, weights
from tests.sparse.strategies import (
    PENALTY_BASES,
    SPARSE_CONSTRAINTS,
    TOPK_BASES,
    Built,
    Case,
    Step,
    build,
    cases,
    run_step,
)

ROUNDINGS = 64


def assert_close(
    got: torch.Tensor, wanted: torch.Tensor, what: str, terms: float = 0.0
) -> None:
    assert got.dtype == wanted.dtype, what
    assert got.shape == wanted.shape, what
    if wanted.numel() == 0:
        return
    bound = ROUNDINGS * torch.finfo(wanted.dtype).eps * max(float(wanted.abs().max()), terms)
    worst = (got - wanted).abs().max()
    assert worst <= bound, f"{what}: {worst} apart, {bound} allowed"


def assert_same_step(
    ours: Step, theirs: Step, *, other_gradients: tuple[str, ...] = ()
) -> None:
    """Everything that the trainer, a logger or an optimiser reads.

    Selections are equal bit for bit: a batch of these sizes is one block, and the same call
    forms the product in both steps.
    """
    assert torch.equal(ours.acts != 0, theirs.acts != 0)
    assert_close(ours.acts, theirs.acts, "feature_acts")
    assert_close(ours.output.sae_out.detach(), theirs.output.sae_out.detach(), "sae_out")
    assert_close(ours.output.loss.detach(), theirs.output.loss.detach(), "loss")
    assert ours.output.losses.keys() == theirs.output.losses.keys()
    for name, loss in theirs.output.losses.items():
        assert_close(ours.output.losses[name].detach(), loss.detach(), name)
    for name, metric in theirs.output.metrics.items():
        assert torch.is_tensor(metric)
        assert_close(torch.as_tensor(ours.output.metrics[name]).detach(), metric.detach(), name)
    latents = active_latents(ours.output.hidden_pre)
    assert latents is not None
    pre = theirs.output.hidden_pre.detach()[latents.entries.rows, latents.entries.cols]
    assert_close(latents.pre.detach(), pre, "hidden_pre")
    for name in ours.gradients.keys() - set(other_gradients):
        # What W_enc and biases get is a sum of products with decoder rows, which may cancel.
        terms = {"W_dec": 0.0, "b_dec": 0.0}.get(name, theirs.term)
        if name == "W_enc":
            terms *= theirs.read
        got, wanted = ours.gradients[name], theirs.gradients[name]
        assert_close(got, wanted, f"gradient of {name}", terms)


def missing_gradients(case: Case) -> set[str]:
    frozen = {"frozen_decoder": {"W_dec"}, "frozen_encoder": {"W_enc"}}.get(
        case.constraint, set()
    )
    if case.constraint == "frozen_encoder" and case.base == "gated":
        frozen = frozen | {"r_mag"}
    return frozen


def check(case: Case, dtype: str) -> None:
    built = build(case, dtype)
    ours, dense, stock = (
        run_step(sae, built.x, built.dead) for sae in (built.sparse, built.dense, built.stock)
    )
    assert built.sparse.sparse_state.sparse_steps == 1, built.sparse.sparse_state
    assert built.dense.sparse_state.dense_steps == {}
    assert ours.gradients.keys() == dense.gradients.keys()
    assert ours.gradients.keys() == stock.gradients.keys() - missing_gradients(case)
    assert_same_step(ours, dense)
    # With a frozen encoder, penalties do not reach the decoder (see frozen_encoder.py).
    penalised = case.constraint == "frozen_encoder" and case.base in PENALTY_BASES
    assert_same_step(ours, stock, other_gradients=("W_dec",) if penalised else ())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("constraint", SPARSE_CONSTRAINTS)
@pytest.mark.parametrize("base", SIX_BASES)
@settings(max_examples=10)
@given(data=st.data())
def test_a_step_has_the_selection_losses_and_gradients_of_the_stock_class(
    base: str, constraint: str, dtype: str, data: st.DataObject
) -> None:
    check(data.draw(cases(base, constraint)), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("constraint", SPARSE_CONSTRAINTS)
@pytest.mark.parametrize("base", PENALTY_BASES)
@settings(max_examples=10)
@given(data=st.data())
def test_a_step_whose_l0_is_held_is_the_dense_one(
    base: str, constraint: str, dtype: str, data: st.DataObject
) -> None:
    check_held(data.draw(cases(base, constraint)), dtype)


def test_gradients_at_constant_l0_may_cancel_to_a_rounding_of_their_terms() -> None:
    """All active values are of one latent: its bias has an exact gradient of 0."""
    options = {
        "apply_b_dec_to_input": False,
        "normalize_activations": "layer_norm",
        "l1_coefficient": 0.1,
    }
    check_held(
        Case("standard", "soft_frozen_decoder", options, seed=4559, kind="huge"), "float64"
    )


def check_held(case: Case, dtype: str) -> None:
    built = build(case, dtype)
    steps = []
    for sae in (built.sparse, built.dense):
        sae.cfg.l0_control, sae.cfg.target_l0 = 0.1, 2.0
        state = torch.tensor([3.0, 0.5, 0.1], dtype=torch.float64)
        sae.register_precise_buffer("l0_control_state", state)
        steps.append(run_step(sae, built.x, built.dead))
    assert built.sparse.sparse_state.sparse_steps == 1, built.sparse.sparse_state
    assert_same_step(*steps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("base", SIX_BASES)
@settings(max_examples=10)
@given(data=st.data())
def test_it_has_them_too_when_the_product_is_cut_into_many_blocks(
    base: str, dtype: str, data: st.DataObject
) -> None:
    """On a grid, so that blocks that round their sums differently have nothing to round."""
    case = data.draw(
        cases(
            base,
            "sparse",
            exact=True,
            kind=data.draw(st.sampled_from(["random", "ties", "zero rows", "few positive"])),
        )
    )
    if case.options["normalize_activations"] != "none":
        return
    with mock.patch.multiple(select, _BLOCK_BYTES={"cpu": 1000}, _MIN_ROWS=3):
        check(case, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("constraint", SPARSE_CONSTRAINTS)
@pytest.mark.parametrize("base", TOPK_BASES)
@settings(max_examples=8)
@given(data=st.data())
def test_the_auxiliary_loss_is_the_same_on_few_and_on_many_of_the_dead_latents(
    base: str, constraint: str, dtype: str, data: st.DataObject
) -> None:
    """It has a sparse way of its own, taken by itself only if dead latents abound."""
    dead = data.draw(st.sampled_from([0.05, 0.5, 1.0]))
    kind = data.draw(st.sampled_from(["random", "few positive", "huge", "all negative"]))
    case = data.draw(cases(base, constraint, dead=dead, kind=kind, exact=False))
    if case.options["normalize_activations"] != "none":
        return
    with mock.patch.object(step, "MAX_DENSITY", data.draw(st.sampled_from([1 / 32, 1.0]))):
        check(case, dtype)


def test_saelens_sparse_activations_option_is_honoured() -> None:
    options = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False, "k": 2}
    check(Case("topk", "sparse", options), "float64")
    check(Case("topk", "frozen_decoder", options), "float32")


@pytest.mark.parametrize("base", SIX_BASES)
def test_a_bias_that_is_not_trained_gets_no_gradient(base: str) -> None:
    built = build(Case(base, "sparse", {"k": 2} if base in TOPK_BASES else {}), "float64")
    for sae in (built.sparse, built.dense, built.stock):
        sae.b_dec.requires_grad_(False)
        sae.W_enc.requires_grad_(False)
    ours, stock = run_step(built.sparse, built.x), run_step(built.stock, built.x)
    assert ours.gradients.keys() == stock.gradients.keys()
    assert "b_dec" not in ours.gradients
    assert_same_step(ours, stock)


@pytest.mark.parametrize("base", TOPK_BASES)
@settings(max_examples=30)
@given(seed=st.integers(0, 2**20), kind=st.sampled_from(["ties", "zero rows", "random"]))
def test_among_equal_dead_latents_the_auxiliary_loss_chooses_as_saelens_does(
    base: str, seed: int, kind: str
) -> None:
    """More dead latents than the loss takes, and equal values on both sides of its cut."""
    case = Case(base, "sparse", {"k": 1}, d_sae=64, seed=seed, kind=kind, exact=True)
    built = build(case, "float64")
    dead = torch.rand(64, generator=torch.Generator().manual_seed(seed)) < 0.6
    ours, stock = run_step(built.sparse, built.x, dead), run_step(built.stock, built.x, dead)
    assert_same_step(ours, stock)


# -- half precision


def errors(step: Step, truth: Step) -> dict[str, float]:
    """Distance from the truth of each thing, squared, in units of its size."""
    output, exact = step.output, truth.output
    pairs = {
        "sae_out": (output.sae_out, exact.sae_out),
        "loss": (output.loss, exact.loss),
        **{n: (output.losses[n], exact.losses[n]) for n in exact.losses},
        **{f"gradient of {n}": (g, truth.gradients[n]) for n, g in step.gradients.items()},
    }
    return {
        name: float(((a.double() - b).norm() / b.norm().clamp(min=1e-30)).detach()) ** 2
        for name, (a, b) in pairs.items()
    }


def in_float64(sae: AnySAE) -> AnySAE:
    return copy.deepcopy(sae).to(torch.float64)


def half_precision_errors(
    base: str, built: list[Built], autocast: torch.dtype | None
) -> tuple[int, dict[str, float], dict[str, float]]:
    """Mean squared errors of the sparse and of the stock step over cases that agree with
    float64 on what is selected."""
    ours_total: dict[str, float] = {}
    stock_total: dict[str, float] = {}
    n = 0
    for i, one in enumerate(built):
        # Every other time the auxiliary loss is sparse too.
        with mock.patch.object(step, "MAX_DENSITY", 1.0 if i % 2 else step.MAX_DENSITY):
            ours = run_step(one.sparse, one.x, one.dead, autocast=autocast)
        if one.sparse.sparse_state.sparse_steps == 0:
            continue
        stock = run_step(one.stock, one.x, one.dead, autocast=autocast)
        assert torch.equal(ours.acts != 0, stock.acts != 0)
        truth = run_step(in_float64(one.stock), one.x.double(), one.dead)
        if base in TOPK_BASES and not torch.equal(truth.acts != 0, stock.acts != 0):
            continue
        n += 1
        for total, one_step in ((ours_total, ours), (stock_total, stock)):
            for name, error in errors(one_step, truth).items():
                total[name] = total.get(name, 0.0) + error
    return n, ours_total, stock_total


@pytest.mark.parametrize("base", SIX_BASES)
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        ("float32", torch.bfloat16),
        ("float32", torch.float16),
        ("bfloat16", None),
        ("bfloat16", torch.bfloat16),
    ],
    ids=["autocast to bfloat16", "autocast to float16", "bfloat16 weights", "bfloat16 both"],
)
def test_in_half_precision_the_step_is_as_near_the_truth_as_the_stock_class(
    base: str, dtype: str, autocast: torch.dtype | None
) -> None:
    options = {"jumprelu": {"jumprelu_bandwidth": 0.5}, **{b: {"k": 1} for b in TOPK_BASES}}
    built = [
        build(
            Case(base, "sparse", options.get(base, {}), d_in=16, batch=48, seed=seed, dead=0.1),
            dtype,
        )
        for seed in range(40)
    ]
    n, ours, stock = half_precision_errors(base, built, autocast)
    assert n >= 3
    # Root mean square: half as much again as the stock class, and one part in 2,000.
    for name in ours:
        allowed = 1.5 * (stock[name] / n) ** 0.5 + 2**-11
        assert (ours[name] / n) ** 0.5 <= allowed, name


@pytest.mark.parametrize("base", SIX_BASES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_many_small_terms_of_a_bias_gradient_do_not_vanish(base: str, dtype: str) -> None:
    """One latent fires on each of 4,096 rows: added up in bfloat16, the sum would stop
    growing after 256 terms."""
    options = {"k": 1} if base in TOPK_BASES else {}
    sae = make_sae(f"sparse_{base}", d_sae=128, dtype=dtype, **options)
    stock = make_sae(base, d_sae=128, dtype=dtype, **options)
    start = weights(sae)
    bias = "b_gate" if base == "gated" else "b_enc"
    start[bias] -= 8
    start[bias][3] = 10
    if base == "gated":
        start["b_mag"][3] = 10
    for one in (sae, stock):
        set_weights(one, start)
    x = activations(4096).to(sae.dtype)
    ours, theirs = run_step(sae, x), run_step(stock, x)
    assert sae.sparse_state.sparse_steps == 1
    truth = run_step(in_float64(stock), x.double())
    # A float32 sum of 4,096 rows one by one (W_dec) is 8 roundings off; bfloat16 must not
    # be added up in bfloat16 at all.
    slack = (2 if dtype == "bfloat16" else 16) * torch.finfo(sae.dtype).eps
    for name, wanted in truth.gradients.items():
        error = (ours.gradients[name].double() - wanted).norm()
        stock_error = (theirs.gradients[name].double() - wanted).norm()
        assert error <= 1.5 * stock_error + slack * wanted.norm(), name
