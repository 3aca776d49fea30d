"""Hundreds of steps under SAELens' own trainers, sparse beside dense.

Rounding makes two free runs drift apart, so most tests set the weights of the sparse run to
the dense one's before every step: then each step's losses must agree to float32 rounding
(1e-5 of the loss is allowed) and every count exactly. Free runs are
compared by where they end.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.multi_sae_trainer import MultiSAETrainer

from sae_baselines.sparse import step
from tests.helpers import (
    AnySAE,
    AnyTrainer,
    activations,
    batches,
    differing,
    make_sae,
    make_trainer,
    only_checkpoint,
    resume,
    set_weights,
    train,
    weights,
)
from tests.sparse.strategies import TOPK_BASES

D_IN = 32
D_SAE = 256
SIZES = {"d_in": D_IN, "d_sae": D_SAE}
STEPS = 150

# Penalties that make these small SAEs sparse within the run.
OPTIONS: dict[str, dict[str, Any]] = {
    "standard": {"l1_coefficient": 1.0},
    "gated": {"l1_coefficient": 1.0},
    "jumprelu": {
        "l0_coefficient": 0.1,
        "jumprelu_bandwidth": 0.1,
        "jumprelu_init_threshold": 0.4,
        "pre_act_loss_coefficient": 0.01,
    },
}


# Puts the penalised bases near the density below which a step is sparse.
FIRST_BIAS = 0.45


def reference_of(name: str, sae: AnySAE, **options: Any) -> AnySAE:
    """What a twin is compared with: SAELens' class, or the same twin with dense steps."""
    if name.startswith("sparse_"):
        dense = make_sae(name.removeprefix("sparse_"), **SIZES, **options)
    else:
        dense = make_sae(name, **SIZES, **options, sparse_step=False)
    set_weights(dense, weights(sae))
    return dense


def trainers(name: str, steps: int, **config: Any) -> tuple[AnyTrainer, AnyTrainer]:
    """Of the sparse SAE and of its reference, from the same start."""
    base = name.split("_")[-1]
    options = OPTIONS.get(base, {})
    sae = make_sae(name, **SIZES, **options)
    if base in OPTIONS:
        bias = sae.b_gate if base == "gated" else sae.b_enc
        with torch.no_grad():
            bias -= FIRST_BIAS
    dense = reference_of(name, sae, **options)
    settings = {"lr": 3e-3, "dead_feature_window": 10, **config}
    return (
        make_trainer(sae, steps, **copy.deepcopy(settings)),
        make_trainer(dense, steps, **copy.deepcopy(settings)),
    )


@pytest.fixture(autouse=True)
def _small_saes_may_be_denser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "MAX_DENSITY", 1 / 8)


def assert_same_counts(a: AnyTrainer, b: AnyTrainer) -> None:
    assert torch.equal(a.act_freq_scores, b.act_freq_scores)
    assert torch.equal(a.n_forward_passes_since_fired, b.n_forward_passes_since_fired)
    assert a.n_frac_active_samples == b.n_frac_active_samples


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize(
    "name",
    [
        "sparse_topk",
        "sparse_batchtopk",
        "sparse_matryoshka_batchtopk",
        "sparse_jumprelu",
        "sparse_standard",
        "sparse_gated",
        "frozen_decoder",
        "soft_frozen_decoder",
        "frozen_encoder",
        "frozen_encoder_topk",
        "frozen_decoder_jumprelu",
    ],
)
def test_every_step_of_a_run_is_the_dense_one(name: str, autocast: bool) -> None:
    steps = 40 if autocast else STEPS
    ours, theirs = trainers(name, steps, autocast=autocast)
    # bfloat16 rounds each output to 8 bits; a loss is a mean of thousands of them.
    tolerance = 2e-3 if autocast else 1e-5
    data = batches(d_in=D_IN)
    had_dead = False
    for _ in range(steps):
        batch = next(data)
        set_weights(ours.sae, weights(theirs.sae))
        had_dead = had_dead or bool(ours.dead_neurons.any())
        a, b = ours.step(batch), theirs.step(batch)
        assert torch.equal(
            a.feature_acts.detach().to_dense() != 0, b.feature_acts.detach() != 0
        )
        assert_same_counts(ours, theirs)
        for loss in b.losses:
            torch.testing.assert_close(
                a.losses[loss], b.losses[loss], rtol=tolerance, atol=1e-6
            )
        if "topk_threshold" in b.metrics:
            torch.testing.assert_close(
                a.metrics["topk_threshold"], b.metrics["topk_threshold"], rtol=1e-6, atol=0
            )
        ours.n_training_steps += 1
        theirs.n_training_steps += 1
    assert ours.sae.sparse_state.sparse_steps > steps // 10, ours.sae.sparse_state
    if any(base in name for base in ("topk", "frozen_decoder", "frozen_encoder")):
        assert had_dead or autocast


def explained_variance(sae: AnySAE) -> float:
    x = activations(1024, d_in=D_IN, seed=99)
    with torch.no_grad():
        return float(1 - (sae(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


@pytest.mark.parametrize(
    "name",
    [
        "sparse_batchtopk",
        "frozen_decoder",
        *(
            pytest.param(name, marks=pytest.mark.thorough)
            for name in ("sparse_topk", "sparse_standard", "frozen_encoder")
        ),
    ],
)
def test_two_free_runs_end_at_the_same_quality(name: str) -> None:
    ours, theirs = trainers(name, STEPS)
    ours.fit()
    theirs.fit()
    assert ours.sae.sparse_state.sparse_steps > STEPS // 10
    a, b = explained_variance(ours.sae), explained_variance(theirs.sae)
    assert b > 0.2
    assert abs(a - b) < 0.01


@pytest.mark.parametrize("base", [*TOPK_BASES, "jumprelu", "standard", "gated"])
def test_what_saelens_logs_is_the_same(base: str) -> None:
    ours, theirs = trainers(f"sparse_{base}", 2)
    if base in ("standard", "gated"):
        for trainer in (ours, theirs):
            sae = trainer.sae
            (sae.b_gate if base == "gated" else sae.b_enc).data.sub_(0.5)
    batch = next(batches(d_in=D_IN))
    logs = [
        trainer.build_train_step_log_dict(output=trainer.step(batch), n_training_samples=64)
        for trainer in (ours, theirs)
    ]
    assert ours.sae.sparse_state.sparse_steps == 1
    assert logs[0].keys() == logs[1].keys()
    for key, value in logs[1].items():
        assert logs[0][key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
    for trainer in (ours, theirs):
        trainer.n_training_steps = trainer.cfg.feature_sampling_window = 1
    a, b = ours.full_sparsity_window_log(), theirs.full_sparsity_window_log()
    assert a.keys() == b.keys()
    assert a["sparsity/below_1e-5"] == b["sparsity/below_1e-5"]
    assert a["metrics/mean_log10_feature_sparsity"] == b["metrics/mean_log10_feature_sparsity"]


@pytest.mark.parametrize(
    "name", ["sparse_topk", "sparse_batchtopk", "frozen_decoder", "soft_frozen_decoder"]
)
def test_a_resumed_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    config = {"n_checkpoints": 1, "checkpoint_path": str(tmp_path), "dead_feature_window": 5}
    whole = train(make_sae(name, **SIZES), 30, **config)
    assert whole.sae.sparse_state.sparse_steps == 30
    again = make_sae(name, **SIZES, init_seed=5)
    trainer = make_trainer(again, 30)
    resume(trainer, only_checkpoint(tmp_path))
    seen = trainer.n_training_samples // 64
    assert 0 < seen < 30
    trainer.n_training_steps = seen  # SAELens saves before it counts the step
    rest = make_trainer(again, 30, batches(d_in=D_IN, first=seen), dead_feature_window=5)
    resume(rest, only_checkpoint(tmp_path))
    rest.n_training_steps = seen
    rest.fit()
    assert again.sparse_state.sparse_steps == 30 - seen
    assert not differing(weights(whole.sae), weights(again))


@pytest.mark.parametrize("name", ["sparse_batchtopk", "frozen_decoder_topk", "frozen_encoder"])
def test_a_start_from_the_first_batches_comes_before_the_first_sparse_step(name: str) -> None:
    options = {"init_scheme": "cov", "init_cov_samples": 150}
    ours = make_sae(name, **SIZES, **options)
    dense = make_sae(name, **SIZES, **options, sparse_step=False)
    a, b = make_trainer(ours, 6), make_trainer(dense, 6)
    data = batches(d_in=D_IN)
    for i in range(6):
        batch = next(data)
        one, other = a.step(batch), b.step(batch)
        assert ours.start_is_pending == dense.start_is_pending == (i < 2)
        assert ours.sparse_state.sparse_steps == max(0, i - 1)
        torch.testing.assert_close(one.loss, other.loss, rtol=1e-4, atol=1e-6)


def test_the_trainer_of_several_saes_takes_sparse_ones() -> None:
    names = {"a": "sparse_topk", "b": "frozen_decoder", "c": "batchtopk"}
    runs = []
    for sparse_step in (True, False):
        saes = {
            key: make_sae(
                name, **SIZES, **({} if name == "batchtopk" else {"sparse_step": sparse_step})
            )
            for key, name in names.items()
        }
        set_weights(saes["c"], weights(saes["b"]))
        stream = ({"hook": batch} for batch in batches(d_in=D_IN))
        config = SAETrainerConfig(
            total_training_samples=20 * 64,
            train_batch_size_samples=64,
            lr=1e-3,
            lr_end=1e-3,
            logger=LoggingConfig(log_to_wandb=False),
        )
        trainer = MultiSAETrainer(config, saes, dict.fromkeys(saes, "hook"), stream)
        trainer.fit()
        runs.append(saes)
    on, off = runs
    assert on["a"].sparse_state.sparse_steps == on["b"].sparse_state.sparse_steps == 20
    assert not differing(weights(on["c"]), weights(off["c"]))
    for key in ("a", "b"):
        for name, value in weights(off[key]).items():
            torch.testing.assert_close(weights(on[key])[name], value, rtol=1e-2, atol=1e-3)
