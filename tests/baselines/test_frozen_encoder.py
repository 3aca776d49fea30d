import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import SAE

from sae_baselines.baselines import CONSTRAINTS, get_baseline
from sae_baselines.baselines.frozen_encoder import selection_depends_on_decoder
from tests.baselines.test_export import in_eval_mode
from tests.helpers import (
    BASES,
    BATCH,
    D_IN,
    D_SAE,
    TOPK_FAMILY,
    AnySAE,
    activations,
    bare_loop,
    batches,
    checked,
    compile_like_the_runner,
    dense_step,
    gradients,
    make_sae,
    make_trainer,
    matrix_products,
    only_checkpoint,
    randomise_,
    resume,
    set_weights,
    step_input,
    train,
    weights,
)
from tests.sparse_or_dense import is_close, sparse_first

# The paper's reading, and what is trained then beside W_dec and b_dec.
PAPER = {"learned": "threshold"}
THRESHOLD = {"standard": {"b_enc"}, "jumprelu": {"threshold"}, "gated": {"b_gate"}}


def frozen(base: str, **options: Any) -> tuple[AnySAE, torch.Tensor]:
    """A frozen-encoder SAE and a copy of its start."""
    sae = make_sae(f"frozen_encoder_{base}", **options)
    return sae, sae.W_enc.detach().clone()


@pytest.mark.parametrize("base", BASES)
def test_the_encoder_stays_at_its_start_bit_for_bit_while_the_rest_is_trained(
    base: str,
) -> None:
    sae, start = frozen(base)
    before = weights(sae)

    def check() -> None:
        assert torch.equal(sae.W_enc, start)

    train(sae, 15, checked(batches(), check))
    check()
    after = weights(sae)
    trained = {name for name, _ in sae.named_parameters()}
    assert trained >= {"b_dec", "W_dec"}
    assert not trained & {"W_enc", "r_mag"}
    for name in trained:
        assert not torch.equal(after[name], before[name]), name


@pytest.mark.parametrize("base", BASES)
def test_no_gradient_is_computed_for_it_and_no_optimiser_state_kept(base: str) -> None:
    sae, _ = frozen(base)
    trainer = train(sae, 3)
    assert not sae.W_enc.requires_grad
    assert sae.W_enc.grad is None
    states = trainer.optimizer.state
    assert {id(p) for p in states} == {id(p) for p in sae.parameters()}
    shapes = [t.shape for s in states.values() for t in s.values()]
    assert (D_SAE, D_IN) in shapes  # W_dec
    assert (D_IN, D_SAE) not in shapes


@pytest.mark.parametrize("base", ["standard", "topk", "batchtopk", "jumprelu"])
def test_the_work_of_its_gradient_is_not_done(base: str) -> None:
    # Of the six products of training everything, W_enc and the input are gone.
    assert matrix_products(frozen(base, **dense_step(base))[0]) == 4 + 2 / BATCH


@pytest.mark.parametrize("base", BASES)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), spread=st.floats(0.01, 3))
def test_selection_and_activations_do_not_depend_on_the_decoder_norms(
    base: str, seed: int, spread: float
) -> None:
    sae, _ = frozen(base)
    randomise_(sae, seed)
    x = activations(16, seed=seed)
    before = sae.encode(x)
    trained_before = sae.training_forward_pass(step_input(sae, x)).feature_acts
    generator = torch.Generator().manual_seed(seed)
    scale = torch.exp(spread * torch.randn(D_SAE, 1, generator=generator))
    with torch.no_grad():
        sae.W_dec.mul_(scale)
    assert (before != 0).any()
    assert torch.equal(sae.encode(x), before)
    trained = sae.training_forward_pass(step_input(sae, x)).feature_acts
    assert torch.equal(trained.to_dense(), trained_before.to_dense())


@pytest.mark.parametrize("base", BASES)
def test_selection_does_not_depend_on_the_decoder_at_all(base: str) -> None:
    sae, _ = frozen(base)
    x = activations(32)
    before = sae.encode(x)
    with torch.no_grad():
        sae.W_dec.normal_(generator=torch.Generator().manual_seed(3))
    assert torch.equal(sae.encode(x), before)


@pytest.mark.parametrize("base", TOPK_FAMILY)
def test_rescaling_by_the_decoder_norm_is_off_and_cannot_be_turned_on(base: str) -> None:
    config: Any = get_baseline(f"frozen_encoder_{base}").config_class(d_in=4, d_sae=8)
    assert config.rescale_acts_by_decoder_norm is False
    with pytest.raises(ValueError, match=r"rescale_acts_by_decoder_norm.*decoder norms would"):
        frozen(base, rescale_acts_by_decoder_norm=True)
    # Everybody else keeps SAELens' default.
    assert make_sae(f"frozen_decoder_{base}").cfg.rescale_acts_by_decoder_norm is True


def test_the_gain_of_the_gated_sae_is_frozen_too() -> None:
    sae, _ = frozen("gated")
    assert "r_mag" not in dict(sae.named_parameters())
    optimizer = torch.optim.AdamW(sae.parameters(), lr=1e-2, weight_decay=0.5)
    bare_loop(sae, optimizer, 5)
    assert torch.equal(sae.get_buffer("r_mag"), torch.zeros(D_SAE))
    # The other two learn it.
    for name in ("frozen_decoder_gated", "soft_frozen_decoder_gated"):
        other = make_sae(name)
        train(other, 5)
        assert other.get_parameter("r_mag").abs().max() > 0


@pytest.mark.parametrize("base", BASES)
def test_requires_grad_on_the_encoder_itself_stops_the_next_training_pass(base: str) -> None:
    sae, _ = frozen(base)
    sae.requires_grad_(True)
    sae.training_forward_pass(step_input(sae, activations(8)))
    sae.W_enc.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"W_enc.*is frozen"):
        sae.training_forward_pass(step_input(sae, activations(8)))


def test_requires_grad_on_the_gain_of_the_gated_sae_stops_the_next_training_pass() -> None:
    sae, _ = frozen("gated")
    sae.get_buffer("r_mag").requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"r_mag.*is frozen"):
        sae.training_forward_pass(step_input(sae, activations(8)))


@pytest.mark.parametrize("base", BASES)
def test_weight_decay_clipping_and_autocast_do_not_reach_it(base: str) -> None:
    sae, start = frozen(base)
    optimizer = torch.optim.AdamW(sae.parameters(), lr=1e-2, weight_decay=0.5)
    bare_loop(sae, optimizer, 5, autocast=True, clip=0.1)
    assert torch.equal(sae.W_enc, start)
    sae, start = frozen(base)
    train(sae, 5, autocast=True)
    assert torch.equal(sae.W_enc, start)


@sparse_first
@pytest.mark.parametrize("base", ["standard", "batchtopk", "gated", "jumprelu"])
def test_a_compiled_sae_keeps_it_and_learns_the_same(base: str) -> None:
    compiled, start = frozen(base)
    plain = copy.deepcopy(compiled)
    compile_like_the_runner(compiled)
    train(compiled, 4)
    train(plain, 4)
    assert torch.equal(compiled.W_enc, start)
    assert torch.equal(plain.W_enc, start)
    torch.testing.assert_close(compiled.W_dec, plain.W_dec, rtol=1e-4, atol=1e-5)


def test_checkpoint_and_resume_keep_it(tmp_path: Path) -> None:
    sae, start = frozen("gated")
    train(sae, 10, n_checkpoints=1, checkpoint_path=str(tmp_path))
    other, other_start = frozen("gated", init_seed=5)
    assert not torch.equal(other_start, start)
    trainer = make_trainer(other, 10, batches(first=6))
    resume(trainer, only_checkpoint(tmp_path))
    assert torch.equal(other.W_enc, start)
    trainer.fit()
    assert torch.equal(other.W_enc, start)
    assert torch.equal(other.W_dec, sae.W_dec)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_casting_keeps_it_frozen_at_the_cast_start(dtype: torch.dtype) -> None:
    sae, start = frozen("batchtopk")
    sae.to(dtype)
    train(sae, 5, (b.to(dtype) for b in batches()))
    assert torch.equal(sae.W_enc, start.to(dtype))


@pytest.mark.parametrize("base", ["standard", "jumprelu", "gated", "batchtopk"])
def test_the_folds_at_the_end_of_training_are_all_that_changes_it(base: str) -> None:
    sae, start = frozen(base, normalize_activations="expected_average_only_in")
    trainer = make_trainer(sae, 5)
    trainer.activation_scaler.scaling_factor = 1.7
    trainer.fit()
    assert torch.equal(sae.W_enc, start * 1.7)
    sae, start = frozen(base, normalize_activations="covariance_whitening")
    trainer = make_trainer(sae, 5)
    trainer.activation_scaler.estimate_whitening(D_IN, batches(), 20)
    whitening = trainer.activation_scaler.whitening
    assert whitening is not None
    trainer.fit()
    assert torch.equal(sae.W_enc, (whitening.matrix @ start.double()).float())


PENALISED = {
    "standard": {},
    "gated": {},
    "jumprelu tanh": {"jumprelu_sparsity_loss_mode": "tanh"},
    "jumprelu pre-act": {"pre_act_loss_coefficient": 1.0},
}


@pytest.mark.parametrize("case", PENALISED)
def test_the_decoder_is_trained_by_the_reconstruction_and_not_by_the_penalty(
    case: str, either_step: str
) -> None:
    base = case.split()[0]
    sae, _ = frozen(base, **PENALISED[case])
    stock = make_sae(base, **PENALISED[case])
    randomise_(sae)
    set_weights(stock, weights(sae))
    x = activations(BATCH)
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[::3] = True
    ours = sae.training_forward_pass(step_input(sae, x, dead))
    theirs = stock.training_forward_pass(step_input(stock, x, dead))
    # The losses are SAELens', every one; the penalties are not zero.
    assert ours.losses.keys() == theirs.losses.keys()
    for name, loss in theirs.losses.items():
        same = torch.equal if either_step == "dense step" else is_close
        assert same(ours.losses[name], loss), name
        assert loss > 0, name
    whole = gradients(sae, ours.loss)
    mse_only = gradients(
        sae, sae.training_forward_pass(step_input(sae, x, dead)).losses["mse_loss"]
    )
    assert torch.equal(whole["W_dec"], mse_only["W_dec"])
    # What the penalty may train, it trains as in SAELens.
    stock_gradients = gradients(stock, theirs.loss)
    assert not torch.equal(stock_gradients["W_dec"], whole["W_dec"])
    for name in whole.keys() - {"W_dec", "b_dec"}:
        torch.testing.assert_close(whole[name], stock_gradients[name], rtol=1e-5, atol=1e-6)


@sparse_first
@pytest.mark.parametrize("base", ["standard", "gated"])
def test_the_decoder_cannot_escape_the_penalty_by_shrinking(base: str) -> None:
    sae, _ = frozen(base, l1_coefficient=3.0)
    train(sae, 300)
    stock = make_sae(f"seeded_{base}", l1_coefficient=3.0)
    for name in ("W_enc", "r_mag"):  # the same encoder, fixed by hand, and SAELens' penalty
        if name in dict(stock.named_parameters()):
            stock.get_parameter(name).requires_grad_(False)
    train(stock, 300)
    used = sae.encode(activations(512)).any(dim=0)
    assert used.any()
    norm = sae.W_dec.norm(dim=1)[used].mean()
    assert norm > 0.3
    assert stock.W_dec.norm(dim=1).mean() < norm


@pytest.mark.parametrize("base", BASES)
def test_the_check_for_third_parties_tells_the_encoders_of_saelens_apart(base: str) -> None:
    sae, _ = frozen(base)
    before = weights(sae)
    assert not selection_depends_on_decoder(sae)
    assert all(torch.equal(t, before[n]) for n, t in sae.state_dict().items())


@pytest.mark.parametrize("base", [*TOPK_FAMILY, "matching_pursuit"])
def test_the_check_finds_an_encoder_that_uses_the_decoder(base: str) -> None:
    # With SAELens' default, rescaled by the decoder norm; matching pursuit by construction.
    sae = make_sae(base)
    before = weights(sae)
    assert selection_depends_on_decoder(sae)
    assert all(torch.equal(t, before[n]) for n, t in sae.state_dict().items())


def threshold_only(base: str, **options: Any) -> AnySAE:
    """As the paper says, with a b_dec to start from."""
    sae, _ = frozen(base, **PAPER, **options)
    sae.set_start_b_dec(activations(512).mean(dim=0))
    return sae


@pytest.mark.parametrize("base", BASES)
def test_only_the_decoder_and_the_threshold_are_learned(base: str, tmp_path: Path) -> None:
    sae = threshold_only(base)
    wanted = {"W_dec", "b_dec", *THRESHOLD.get(base, ())}
    assert {name for name, _ in sae.named_parameters()} == wanted
    before = weights(sae)
    kept = [n for n in ("W_enc", "b_enc", "b_mag", "r_mag") if n in before.keys() - wanted]
    assert all(before[name].any() for name in kept if name != "r_mag")

    def check() -> None:
        for name in kept:
            assert torch.equal(getattr(sae, name), before[name]), name

    train(sae, 12, checked(batches(), check), n_checkpoints=1, checkpoint_path=str(tmp_path))
    check()
    for name in wanted:
        assert not torch.equal(sae.state_dict()[name], before[name]), name
    resumed, _ = frozen(base, **PAPER, init_seed=5)
    trainer = make_trainer(resumed, 12, batches(first=7))
    resume(trainer, only_checkpoint(tmp_path))
    trainer.fit()
    for name in (*kept, *wanted):
        assert torch.equal(resumed.state_dict()[name], sae.state_dict()[name]), name
    getattr(sae, kept[-1]).requires_grad_(True)
    with pytest.raises(RuntimeError, match=rf"{kept[-1]}.*is frozen"):
        sae.training_forward_pass(step_input(sae, activations(8)))


@pytest.mark.parametrize("base", BASES)
def test_the_encoder_sees_the_starts_b_dec_whatever_is_learned_of_it(base: str) -> None:
    x, mean = activations(64, seed=9), activations(512).mean(dim=0)
    sae, (other, _) = threshold_only(base), frozen(base)
    other.set_start_b_dec(mean)
    acts = sae.encode(x)
    assert torch.allclose(acts, other.encode(x), atol=1e-5)
    assert torch.allclose(sae.decode(acts), other.decode(acts))
    with torch.no_grad():
        for each in (sae, other):
            each.b_dec.add_(0.5)
    assert torch.equal(sae.encode(x), acts)
    assert not torch.allclose(other.encode(x), acts, atol=1e-5)
    assert torch.allclose(sae.decode(acts), other.decode(acts))
    # Who subtracts nothing starts with nothing.
    plain = threshold_only(base, apply_b_dec_to_input=False)
    assert not any(plain.state_dict()[n].any() for n in ("b_enc", "b_mag") if hasattr(plain, n))


def test_directions_that_come_later_are_folded_in_again() -> None:
    sae = threshold_only("topk")
    rows = make_sae("seeded_topk", init_seed=3).W_dec.detach()
    sae.set_start_directions(rows)
    assert torch.allclose(sae.b_enc, -rows @ sae.b_dec, atol=1e-6)
    assert frozen("topk", **PAPER)[0].cfg.apply_b_dec_to_input is False


@pytest.mark.parametrize("base", BASES)
def test_the_export_computes_what_training_with_a_threshold_did(
    base: str, tmp_path: Path
) -> None:
    quick = {"topk_threshold_lr": 0.3} if "batchtopk" in base else {}
    scaled = {"normalize_activations": "expected_average_only_in"}
    sae = threshold_only(base, **quick, **scaled)
    train(sae, 12, lr=3e-2)
    x = activations(128, seed=50)
    wanted = in_eval_mode(sae, x)
    sae.save_inference_model(tmp_path)
    stock = SAE.load_from_disk(tmp_path)
    acts = stock.encode(x)
    assert wanted.clear.sum() >= 100
    assert (wanted.acts != 0).any()
    assert torch.allclose(acts[wanted.clear], wanted.acts[wanted.clear], atol=1e-5)
    assert torch.allclose(stock.decode(acts)[wanted.clear], wanted.out[wanted.clear], atol=1e-5)
    assert stock.cfg.metadata.training_architecture_details["learned"] == "threshold"


@pytest.mark.parametrize("base", ["standard", "jumprelu", "gated", "topk"])
def test_biases_that_are_frozen_are_folded_too(base: str) -> None:
    x, out = activations(64, seed=9), []
    mean, scale = x.mean(dim=0), torch.linspace(0.5, 2, D_IN).diag()
    for white in (True, False):
        sae = threshold_only(base)
        randomise_(sae)
        if white:
            sae.fold_activation_whitening(mean, scale, scale.inverse())
            out.append(sae(x))
        else:
            out.append(sae((x - mean) @ scale) @ scale.inverse() + mean)
    assert torch.allclose(out[0], out[1], atol=1e-5)
    if base != "topk":  # SAELens refuses there
        before = sae(x)
        sae.fold_W_dec_norm()
        assert torch.allclose(sae(x), before, atol=1e-5)


@pytest.mark.parametrize("base", BASES)
def test_with_a_threshold_either_step_is_the_same(base: str) -> None:
    ours, stock = threshold_only(base), threshold_only(base, **dense_step(base))
    for sae in (ours, stock):
        randomise_(sae)
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[::3] = True
    found = []
    for sae in (ours, stock):
        step = sae.training_forward_pass(step_input(sae, activations(BATCH), dead))
        found.append({**gradients(sae, step.loss), "loss": step.loss.detach()})
    assert found[0].keys() == found[1].keys()
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-5, atol=1e-6)


def test_casting_and_what_is_said_of_it() -> None:
    sae = threshold_only("jumprelu").to(torch.bfloat16)
    start = sae.b_enc.clone()
    train(sae, 3, (b.bfloat16() for b in batches()))
    assert torch.equal(sae.b_enc, start)
    constraint = CONSTRAINTS["frozen_encoder"]
    assert constraint.in_words(PAPER).endswith(
        "learned: W_dec, b_dec at the output, the activation threshold"
    )
    assert constraint.in_words({"learned": None}).endswith("learned: W_dec, biases, thresholds")
    with pytest.raises(ValueError, match="learned: 'all' is unknown; use biases or threshold"):
        frozen("topk", learned="all")
