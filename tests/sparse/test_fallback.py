"""When the sparse step steps aside, it is SAELens' step bit for bit; nothing is left behind."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sae_baselines.sparse import active_latents
from tests.helpers import (
    SIX_BASES,
    AnySAE,
    activations,
    batches,
    compile_like_the_runner,
    differing,
    make_sae,
    set_weights,
    step_input,
    train,
    weights,
)
from tests.sparse.strategies import (
    SPARSE_CONSTRAINTS,
    TOPK_BASES,
    Built,
    Case,
    Step,
    build,
    run_step,
)


def built_case(
    base: str, constraint: str = "sparse", dtype: str = "float32", **more: Any
) -> Built:
    options = {"k": 2} if base in TOPK_BASES else {}
    case = Case(base, constraint, {**options, **more.pop("options", {})}, **more)
    return build(case, dtype)


def assert_bitwise(ours: Step, theirs: Step, but: set[str] | None = None) -> None:
    """Equal, NaN at the same places included; ``but`` names gradients left out."""
    for name in ("feature_acts", "hidden_pre", "sae_out", "loss"):
        a, b = getattr(ours.output, name), getattr(theirs.output, name)
        assert torch.equal(a.isnan(), b.isnan()), name
        assert torch.equal(a.nan_to_num(), b.nan_to_num()), name
    assert ours.output.losses.keys() == theirs.output.losses.keys()
    for name in ours.gradients.keys() - (but or set()):
        a, b = ours.gradients[name], theirs.gradients[name]
        assert torch.equal(a.isnan(), b.isnan()), name
        assert torch.equal(a.nan_to_num(), b.nan_to_num()), name


def too_many(sae: AnySAE) -> None:
    for name in ("b_enc", "b_gate"):
        if name in dict(sae.named_parameters()):
            getattr(sae, name).data.add_(100)


def reason_hooks(sae: AnySAE) -> None:
    sae.hook_sae_acts_post.register_forward_hook(lambda *_: None)


def reason_pre_hooks(sae: AnySAE) -> None:
    sae.hook_sae_acts_pre.register_full_backward_hook(lambda *_: None)


def reason_backward_pre_hooks(sae: AnySAE) -> None:
    sae.hook_sae_acts_post.register_full_backward_pre_hook(lambda *_: None)


def reason_norm(sae: AnySAE) -> None:
    sae.W_dec.data[3] = 0


def nothing(sae: AnySAE) -> None:
    del sae


# reason -> base, config fields, what is done to the SAEs beforehand
REASONS: dict[str, tuple[str, dict[str, Any], Callable[[AnySAE], None]]] = {
    "dense (k)": ("topk", {"k": 40}, nothing),
    "dense (k of a batch)": ("batchtopk", {"k": 10.5}, nothing),
    "dense (standard)": ("standard", {}, too_many),
    "dense (jumprelu)": ("jumprelu", {}, too_many),
    "dense (gated)": ("gated", {}, too_many),
    "dtype": ("topk", {"dtype": "float16"}, nothing),
    "hooks": ("batchtopk", {}, reason_hooks),
    "hooks (pre)": ("standard", {}, reason_pre_hooks),
    "hooks (backward)": ("topk", {}, reason_backward_pre_hooks),
    "not finite": ("topk", {"rescale_acts_by_decoder_norm": True}, reason_norm),
    "lp_norm": ("standard", {"lp_norm": 2.0}, nothing),
    "matryoshka auxiliary loss": (
        "matryoshka_batchtopk",
        {"use_matryoshka_aux_loss": True},
        nothing,
    ),
    "normalize_activations": ("gated", {"normalize_activations": "layer_norm"}, nothing),
}


@pytest.mark.parametrize("constraint", ["sparse", "soft_frozen_decoder"])
@pytest.mark.parametrize("label", REASONS)
def test_each_reason_gives_the_dense_step_bit_for_bit_and_is_counted(
    label: str, constraint: str
) -> None:
    base, options, prepare = REASONS[label]
    options = dict(options)
    dtype = options.pop("dtype", "float32")
    built = built_case(base, constraint, dtype, options=options, dead=0.2)
    for sae in (built.sparse, built.dense, built.stock):
        prepare(sae)
    dead = built.dead if options.get("normalize_activations") is None else None
    ours, dense, stock = (
        run_step(sae, built.x, dead) for sae in (built.sparse, built.dense, built.stock)
    )
    assert built.sparse.sparse_state.dense_steps == {label.split(" (")[0]: 1}
    assert built.sparse.sparse_state.sparse_steps == 0
    assert not ours.output.feature_acts.is_sparse
    assert_bitwise(ours, dense)
    # The gradient of b_dec is summed in another order (see bias_gradient.py).
    assert_bitwise(ours, stock, but={"b_dec"})


@pytest.mark.parametrize("base", SIX_BASES)
def test_input_that_is_not_a_batch_to_train_on_is_left_to_saelens(base: str) -> None:
    built = built_case(base)
    x = built.x
    with torch.no_grad():
        built.sparse.training_forward_pass(step_input(built.sparse, x))
    wants_gradient = x.clone().requires_grad_()
    ours = built.sparse.training_forward_pass(step_input(built.sparse, wants_gradient))
    theirs = built.stock.training_forward_pass(
        step_input(built.stock, x.clone().requires_grad_())
    )
    assert torch.equal(ours.loss, theirs.loss)
    ours.loss.backward()
    assert wants_gradient.grad is not None
    if base == "matryoshka_batchtopk":
        assert built.sparse.sparse_state.dense_steps == {"input": 2}
        return  # SAELens' inner losses take batches of two dimensions only
    three_d = x.reshape(2, -1, x.shape[1])
    ours = built.sparse.training_forward_pass(step_input(built.sparse, three_d))
    theirs = built.stock.training_forward_pass(step_input(built.stock, three_d))
    assert torch.equal(ours.loss, theirs.loss)
    assert built.sparse.sparse_state.dense_steps == {"input": 3}


@pytest.mark.parametrize("base", SIX_BASES)
@pytest.mark.parametrize("hook", ["hook_sae_acts_pre", "hook_sae_acts_post"])
def test_a_hook_on_activations_sees_dense_ones(base: str, hook: str) -> None:
    built = built_case(base)
    seen: list[torch.Tensor] = []
    handle = getattr(built.sparse, hook).register_forward_hook(
        lambda _m, _i, output: seen.append(output)
    )
    run_step(built.sparse, built.x)
    assert seen[0].layout is torch.strided
    assert seen[0].shape == (built.x.shape[0], built.case.d_sae)
    handle.remove()
    ours = run_step(built.sparse, built.x)
    assert built.sparse.sparse_state.sparse_steps == 1
    assert ours.output.feature_acts.is_sparse


@pytest.mark.parametrize("base", ["standard", "gated", "jumprelu"])
def test_a_run_that_is_dense_at_first_comes_back_to_the_sparse_step(base: str) -> None:
    built = built_case(base)
    sae, state = built.sparse, built.sparse.sparse_state
    bias = sae.b_gate if base == "gated" else sae.b_enc
    bias.data.add_(100)
    for _ in range(20):
        run_step(sae, built.x)
    assert state.sparse_steps == 0
    assert state.dense_steps == {"dense": 20}
    bias.data.sub_(100)
    for _ in range(40):
        run_step(sae, built.x)
    assert state.sparse_steps > 0
    n = sum(state.dense_steps.values())
    run_step(sae, built.x)
    assert sum(state.dense_steps.values()) == n


def assert_finite_only_if_saelens_is(built: Built, x: torch.Tensor) -> None:
    ours, stock = run_step(built.sparse, x, built.dead), run_step(built.stock, x, built.dead)
    if bool(stock.output.loss.isfinite()):
        torch.testing.assert_close(ours.output.loss, stock.output.loss)
    else:
        assert not bool(ours.output.loss.isfinite())


@pytest.mark.parametrize("dead", [None, 0.3])
@pytest.mark.parametrize("where", ["x", "W_enc", "b_enc", "b_dec"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("base", SIX_BASES)
def test_one_bad_number_gives_a_finite_loss_only_if_it_does_in_saelens(
    base: str, bad: float, where: str, dead: float | None
) -> None:
    built = built_case(base, d_sae=128, dead=dead)
    x = built.x.clone()
    name = "b_gate" if (where, base) == ("b_enc", "gated") else where
    if where == "x":
        x[2, 1] = bad
    else:
        for sae in (built.sparse, built.stock):
            getattr(sae, name).data.view(-1)[3] = bad
    assert_finite_only_if_saelens_is(built, x)


@pytest.mark.parametrize("constraint", ["sparse", "frozen_decoder"])
@pytest.mark.parametrize("base", SIX_BASES)
def test_so_does_one_in_a_decoder_row_that_nothing_selects(base: str, constraint: str) -> None:
    """Dense, it is multiplied by 0, which is NaN."""
    options = {"rescale_acts_by_decoder_norm": False} if base in TOPK_BASES else {}
    built = built_case(base, constraint, d_sae=128, options=options)
    unused = int((run_step(built.stock, built.x).acts.sum(0) == 0).nonzero()[0])
    run_step(built.sparse, built.x)  # whatever is remembered of a good decoder
    for sae in (built.sparse, built.stock):
        sae.W_dec.data[unused, 1] = math.inf
    assert_finite_only_if_saelens_is(built, built.x)


@pytest.mark.parametrize("base", SIX_BASES)
def test_an_error_in_the_middle_leaves_nothing_behind(base: str) -> None:
    built = built_case(base)
    sae = built.sparse

    def fail(*_: Any) -> None:
        raise RuntimeError("from a hook")

    handle = sae.hook_sae_recons.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="from a hook"):
        run_step(sae, built.x)
    handle.remove()
    assert not sae.sparse_state.inside
    assert not sae.encode(built.x).is_sparse
    with pytest.raises(RuntimeError):
        run_step(sae, built.x[:, :-1])
    assert not sae.sparse_state.inside
    ours, stock = run_step(sae, built.x), run_step(built.stock, built.x)
    torch.testing.assert_close(ours.output.loss, stock.output.loss)


@pytest.mark.parametrize("constraint", SPARSE_CONSTRAINTS)
@pytest.mark.parametrize("base", SIX_BASES)
def test_outside_the_training_step_everything_is_saelens(base: str, constraint: str) -> None:
    built = built_case(base, constraint)
    run_step(built.sparse, built.x)
    for call in (
        lambda sae: sae.encode(built.x),
        lambda sae: sae(built.x),
        lambda sae: sae.decode(sae.encode(built.x)),
        lambda sae: sae.encode_with_hidden_pre(built.x)[1],
    ):
        ours, stock = call(built.sparse), call(built.stock)
        assert ours.layout is torch.strided
        assert active_latents(ours) is None
        assert torch.equal(ours, stock)


def test_a_hook_that_encodes_during_the_step_gets_a_dense_answer() -> None:
    built = built_case("topk")
    seen: list[torch.Tensor] = []
    built.sparse.hook_sae_recons.register_forward_hook(
        lambda *_: seen.append(built.sparse.encode(built.x))
    )
    run_step(built.sparse, built.x)
    assert seen[0].layout is torch.strided


def test_a_hook_that_changes_the_input_counts_where_it_does_in_saelens() -> None:
    """The gated auxiliary loss is taken on the input before the hook."""
    for base in SIX_BASES:
        built = built_case(base, dtype="float64")
        for sae in (built.sparse, built.stock):
            sae.hook_sae_input.register_forward_hook(lambda _m, _i, output: output * 1.01)
        ours, stock = run_step(built.sparse, built.x), run_step(built.stock, built.x)
        torch.testing.assert_close(ours.output.losses, stock.output.losses)


# -- the norms of a frozen decoder


def rescaled(sae: AnySAE) -> None:
    sae.W_dec.data.mul_(torch.linspace(0.1, 3.0, sae.cfg.d_sae)[:, None])


def copied(sae: AnySAE) -> None:
    sae.W_dec.data.copy_(sae.W_dec.flip(0) * 2)


def loaded(sae: AnySAE) -> None:
    state = weights(sae)
    state["W_dec"] = state["W_dec"] * torch.linspace(3.0, 0.1, sae.cfg.d_sae)[:, None]
    sae.load_state_dict(state)


def one_row(sae: AnySAE) -> None:
    sae.W_dec.data[1] *= 100


def folded(sae: AnySAE) -> None:
    sae.fold_activation_norm_scaling_factor(0.25)


def replaced(sae: AnySAE) -> None:
    sae.W_dec.data = sae.W_dec.data * torch.linspace(3.0, 0.1, sae.cfg.d_sae)[:, None]


@pytest.mark.parametrize("change", [rescaled, copied, loaded, one_row, folded, replaced])
@pytest.mark.parametrize("base", TOPK_BASES)
def test_norms_of_a_frozen_decoder_follow_the_decoder(
    base: str, change: Callable[[AnySAE], None]
) -> None:
    built = built_case(base, "frozen_decoder", d_sae=256)
    for sae in (built.sparse, built.dense):
        run_step(sae, built.x)
        change(sae)
    ours, dense = run_step(built.sparse, built.x), run_step(built.dense, built.x)
    assert built.sparse.sparse_state.sparse_steps == 2
    assert torch.equal(ours.acts != 0, dense.acts != 0)
    torch.testing.assert_close(ours.acts, dense.acts)
    torch.testing.assert_close(ours.output.loss, dense.output.loss)


# -- copies


@pytest.mark.parametrize(
    "name", ["frozen_decoder", "sparse_batchtopk", "soft_frozen_decoder_topk"]
)
def test_a_copy_trains_on_its_own(name: str) -> None:
    sae = make_sae(name, d_sae=256)
    x = activations(64)
    run_step(sae, x)
    twin = copy.deepcopy(sae)
    assert twin.sparse_state is not sae.sparse_state
    with torch.no_grad():
        twin.W_enc.mul_(1.5)
        twin.W_dec.data.mul_(torch.linspace(0.5, 2.0, 256)[:, None])
    before = weights(sae)
    a, b = run_step(twin, x), run_step(sae, x)
    assert twin.sparse_state.sparse_steps == sae.sparse_state.sparse_steps == 2
    assert not differing(
        before, {**weights(sae), **{k: v for k, v in before.items() if k == "topk_threshold"}}
    )
    assert not torch.equal(a.output.loss, b.output.loss)
    reference = make_sae(name, d_sae=256, sparse_step=False)
    set_weights(reference, weights(twin))
    wanted = run_step(reference, x)
    assert torch.equal(a.acts != 0, wanted.acts != 0)
    torch.testing.assert_close(a.output.loss, wanted.output.loss)


# -- torch.compile


@pytest.mark.parametrize(
    "name", ["topk", "seeded_topk", "frozen_decoder_topk", "frozen_decoder", "sparse_jumprelu"]
)
def test_a_compiled_step_is_the_dense_one_and_stays_compiled(name: str) -> None:
    """SAELens' own class is in the list to show that it could stay so."""
    is_twin = name not in ("topk", "seeded_topk")
    sae = make_sae(name, d_sae=256)
    dense = make_sae(name, d_sae=256, **({"sparse_step": False} if is_twin else {}))
    set_weights(dense, weights(sae))
    graphs: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_like_the_runner(sae, backend=backend)  # type: ignore[arg-type]
    data = batches()
    train(sae, 4, data)
    settled = len(graphs)
    assert settled > 0
    train(sae, 8, data)
    assert len(graphs) == settled
    if is_twin:
        assert sae.sparse_state.sparse_steps == 0
    data = batches()
    train(dense, 4, data)
    train(dense, 8, data)
    for key, value in weights(dense).items():
        torch.testing.assert_close(weights(sae)[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("base", SIX_BASES)
def test_decoding_the_output_of_an_earlier_step_is_decoding_with_the_weights_of_now(
    base: str,
) -> None:
    built = built_case(base)
    acts = run_step(built.sparse, built.x, None).output.feature_acts.detach_()
    assert acts.is_sparse
    with torch.no_grad():
        for sae in (built.sparse, built.stock):
            sae.W_dec.mul_(torch.linspace(0.5, 2.0, sae.cfg.d_sae)[:, None])
        assert_close = torch.testing.assert_close
        decoded = built.sparse.decode(acts)
        assert_close(decoded, built.stock.decode(acts.to_dense()), rtol=0, atol=0)
