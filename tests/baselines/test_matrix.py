"""Every constraint on every base: trained, saved, loaded by stock SAELens, resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.sae import TrainingSAE

from tests.helpers import (
    BASES,
    BATCH,
    CONSTRAINTS,
    D_SAE,
    SIX_BASES,
    TOPK_FAMILY,
    AnySAE,
    activations,
    batches,
    checked,
    cosines,
    differing,
    gradients,
    make_sae,
    make_trainer,
    only_checkpoint,
    randomise_,
    resume,
    set_weights,
    step_input,
    train,
    weights,
)
from tests.sparse_or_dense import is_close

# Half of the matrix with a scaled input, so that each constraint and each base meets it.
SCALED = {
    ("frozen_decoder", "standard"),
    ("frozen_decoder", "jumprelu"),
    ("frozen_decoder", "batchtopk"),
    ("soft_frozen_decoder", "batchtopk"),
    ("soft_frozen_decoder", "topk"),
    ("soft_frozen_decoder", "gated"),
    ("frozen_encoder", "matryoshka_batchtopk"),
    ("frozen_encoder", "gated"),
    ("frozen_encoder", "standard"),
}
STEPS = 24


def assert_constrained(
    sae: AnySAE, constraint: str, start: torch.Tensor, scale: float = 1.0
) -> None:
    """The constraint, measured against the original start.

    ``scale`` is the input scale that SAELens has folded into the weights.
    """
    if constraint == "frozen_decoder":
        assert torch.equal(sae.W_dec, start / scale)
    elif constraint == "frozen_encoder":
        assert torch.equal(sae.W_enc, start.T * scale)
    else:
        assert cosines(sae.W_dec, start).min() >= 0.8 - 1e-6


@pytest.mark.parametrize("base", SIX_BASES)
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_train_save_load_in_stock_saelens_and_resume(
    tmp_path: Path, constraint: str, base: str
) -> None:
    name = f"{constraint}_{base}"
    scaled = (constraint, base) in SCALED
    mode = "expected_average_only_in" if scaled else "none"
    config: dict[str, Any] = {"lr": 3e-2, "n_checkpoints": 1, "checkpoint_path": str(tmp_path)}

    sae = make_sae(name, normalize_activations=mode)
    start = sae.W_dec.detach().clone()
    check = lambda: assert_constrained(sae, constraint, start)  # noqa: E731
    trainer = make_trainer(sae, STEPS, checked(batches(), check), **config)
    trainer.fit()
    checkpoint = only_checkpoint(tmp_path)
    scaler = json.loads((checkpoint / "activation_scaler.json").read_text())
    scale = scaler["scaling_factor"] or 1.0
    assert (scale != 1.0) == scaled
    assert_constrained(sae, constraint, start, scale)
    assert sae.cfg.normalize_activations == "none"

    # It learnt something: better than the mean by a margin, on data it has not seen.
    x = activations(512, seed=99)
    error = (sae.eval()(x) - x).pow(2).sum() / (x - x.mean(dim=0)).pow(2).sum()
    assert error < 0.9

    # Stock SAELens loads the export, without a trace of the constraint in the weights.
    sae.save_inference_model(tmp_path / "export")
    exported = SAE.load_from_disk(tmp_path / "export")
    assert type(exported).__module__.startswith("sae_lens.")
    assert cosines(exported.W_dec, sae.W_dec).min() > 1 - 1e-9

    # The checkpoint of half way: the constraint holds in the file and the rest of the run
    # from it is the run, bit for bit.
    stored = TrainingSAE.load_from_disk(checkpoint)
    assert type(stored) is type(sae)
    assert_constrained(stored, constraint, start)
    other = make_sae(name, normalize_activations=mode, init_seed=1)
    check = lambda: assert_constrained(other, constraint, start)  # noqa: E731
    consumed = int(checkpoint.name) // BATCH + (4 if scaled else 0)
    again = make_trainer(other, STEPS, checked(batches(first=consumed), check), lr=3e-2)
    resume(again, checkpoint)
    assert 0 < again.n_training_samples < STEPS * BATCH
    halfway = weights(other)
    again.fit()
    assert_constrained(other, constraint, start, scale)
    assert differing(weights(other), weights(sae)) == []
    trained = {n for n, _ in other.named_parameters()}
    assert set(differing(weights(other), halfway)) >= trained


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_losses_and_activations_are_those_of_the_stock_class(
    constraint: str, base: str, either_step: str
) -> None:
    sae = make_sae(f"{constraint}_{base}")
    options = {}
    if base in TOPK_FAMILY:
        options = {"rescale_acts_by_decoder_norm": sae.cfg.rescale_acts_by_decoder_norm}
    stock = make_sae(base, **options)
    randomise_(sae, seed=4)
    set_weights(stock, weights(sae))
    x = activations(BATCH, seed=5)
    ours = sae.training_forward_pass(step_input(sae, x))
    theirs = stock.training_forward_pass(step_input(stock, x))
    assert ours.losses.keys() == theirs.losses.keys()
    same = torch.equal if either_step == "dense step" else is_close
    for key, loss in theirs.losses.items():
        assert same(ours.losses[key], loss), key
    for attribute in ("loss", "sae_out"):
        assert same(getattr(ours, attribute), getattr(theirs, attribute)), attribute
    # What is active is the same set in either case, not one latent more or less.
    acts, stock_acts = ours.feature_acts.to_dense(), theirs.feature_acts
    assert torch.equal(acts != 0, stock_acts != 0)
    assert same(acts, stock_acts)
    pre = ours.hidden_pre.to_dense()
    assert same(pre, theirs.hidden_pre * (pre != 0 if ours.hidden_pre.is_sparse else 1))
    assert torch.equal(sae.encode(x), stock.encode(x))
    assert torch.equal(sae(x), stock(x))


DEAD_CASES = {
    **{base: {} for base in TOPK_FAMILY},
    "matryoshka_batchtopk with its own": {"use_matryoshka_aux_loss": True},
    "topk without rescaling": {"rescale_acts_by_decoder_norm": False},
    # SAELens' own backward pass does not do sparse tensors and rescaling together.
    "topk with sparse tensors": {
        "use_sparse_activations": True,
        "rescale_acts_by_decoder_norm": False,
    },
}


@pytest.mark.parametrize("case", DEAD_CASES)
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_the_loss_that_revives_dead_latents_is_saelens(
    constraint: str, case: str, either_step: str
) -> None:
    base, options = case.split()[0], dict(DEAD_CASES[case])
    sae = make_sae(f"{constraint}_{base}", **options)
    options["rescale_acts_by_decoder_norm"] = sae.cfg.rescale_acts_by_decoder_norm
    stock = make_sae(base, **options)
    randomise_(sae, seed=4)
    set_weights(stock, weights(sae))
    x = activations(BATCH, seed=5)
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[torch.arange(1, D_SAE, 3)] = True
    ours = sae.training_forward_pass(step_input(sae, x, dead))
    theirs = stock.training_forward_pass(step_input(stock, x, dead))
    assert theirs.losses["auxiliary_reconstruction_loss"] > 0
    same = torch.equal if either_step == "dense step" else is_close
    for key, loss in theirs.losses.items():
        assert same(ours.losses[key], loss), key
    wanted = gradients(stock, theirs.loss)
    for name, gradient in gradients(sae, ours.loss).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("base", TOPK_FAMILY)
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_reviving_dead_latents_does_not_break_the_constraint(
    constraint: str, base: str
) -> None:
    sae = make_sae(f"{constraint}_{base}", k=1, d_sae=4 * D_SAE)
    start = sae.W_dec.detach().clone()
    n_dead: list[int] = []

    def check() -> None:
        n_dead.append(int(trainer.dead_neurons.sum()))
        assert_constrained(sae, constraint, start)

    data = checked(batches(batch=8), check)
    trainer = make_trainer(sae, 30, data, batch=8, lr=3e-2, dead_feature_window=1)
    trainer.fit()
    assert_constrained(sae, constraint, start)
    assert max(n_dead) > D_SAE


@pytest.mark.parametrize("base", SIX_BASES)
def test_the_trained_twin_is_the_stock_sae_from_another_start(base: str) -> None:
    """``seeded_<base>``: SAELens' own training, bit for bit, once the starts agree."""
    twin = make_sae(f"seeded_{base}")
    stock = make_sae(base, decoder_init_norm=1.0)
    set_weights(stock, weights(twin))
    train(twin, 20)
    train(stock, 20)
    left_over = set(differing(weights(twin), weights(stock)))
    assert left_over <= {"l0_steering_state"}
