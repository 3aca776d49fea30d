import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.multi_sae_trainer import MultiSAETrainer

from sae_baselines.baselines.cap import share_at_edge
from sae_baselines.baselines.directions import sample_directions, save_covariance
from sae_baselines.baselines.registry import (
    base_architectures,
    baseline_architectures,
    get_baseline,
    parse_name,
)
from sae_baselines.baselines.transcoder import TRANSCODERS, PairStart
from sae_baselines.controls import question_of
from sae_baselines.errors import UserError
from sae_baselines.reconstruction import explained_variance
from sae_baselines.show.sae import describe_sae
from tests.helpers import (
    BATCH,
    CONSTRAINTS,
    D_IN,
    D_OUT,
    D_SAE,
    activations,
    by_stock_saelens,
    cosines,
    differing,
    gradients,
    make_sae,
    make_trainer,
    only_checkpoint,
    randomise_,
    resume,
    step_input,
    train,
    weights,
)

STOCK = "sae_lens.saes.transcoder"
MEMBERS = (*CONSTRAINTS, "soft_frozen_encoder", "seeded")
EXPORTED = {
    ("transcoder_standard", False): "Transcoder",
    ("transcoder_standard", True): "SkipTranscoder",
    **{(b, False): "JumpReLUTranscoder" for b in TRANSCODERS if b != "transcoder_standard"},
    **{(b, True): "JumpReLUSkipTranscoder" for b in TRANSCODERS if b != "transcoder_standard"},
}


@pytest.fixture(autouse=True)
def either_step() -> None:
    """Once is enough: a test here holds the two kinds of step together."""


def mlp(x: torch.Tensor) -> torch.Tensor:
    """What a transcoder has to learn, ``[n, D_OUT]``, far from 0 and of another size than x."""
    generator = torch.Generator().manual_seed(3)
    into = torch.randn(D_IN, 24, generator=generator) / D_IN**0.5
    out = torch.randn(24, D_OUT, generator=generator)
    return 4 * (torch.relu(x @ into) @ out) + 5


def pairs(n: int, seed: int = 0) -> torch.Tensor:
    x = activations(n, seed=seed) + 0.5
    return torch.cat([x, mlp(x)], dim=1)


def stream(first: int = 0) -> Iterator[torch.Tensor]:
    i = first
    while True:
        yield pairs(BATCH, seed=50 + i)
        i += 1


def make(name: str, skip: bool = True, **overrides: Any) -> Any:
    return make_sae(name, skip=skip, **overrides)


def started(name: str, skip: bool = True, **overrides: Any) -> Any:
    start = PairStart.of(pairs(512), D_IN)
    scales = {"input_scale": start.input_scale, "output_scale": start.output_scale}
    sae = make(name, skip, **{**scales, **overrides})
    sae.set_start(start)
    return sae


def by_hand(sae: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and outputs that an export should make of inputs, in float64.

    From the weights in training. A decoder whose norms rescale latents is exported with unit
    rows, so that its latents are the rescaled ones.
    """
    w = {name: tensor.double() for name, tensor in sae.state_dict().items()}
    norm = w["W_dec"].norm(dim=1) if getattr(sae.cfg, "rescale_acts_by_decoder_norm", 0) else 1
    pre = (x.double() * sae.cfg.input_scale @ w["W_enc"] + w["b_enc"]) * norm
    threshold = w.get("topk_threshold", w.get("threshold", torch.tensor(0.0)))
    acts = torch.where(pre > threshold.clamp(min=0), pre, 0)
    out = acts / norm @ w["W_dec"] + w["b_dec"]
    if sae.cfg.skip:
        out = out + x.double() * sae.cfg.input_scale @ w["W_skip"].T
    return acts, out / sae.cfg.output_scale


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("base", TRANSCODERS)
@pytest.mark.parametrize("constraint", MEMBERS)
def test_trained_exported_loaded_by_saelens_and_resumed(
    constraint: str, base: str, skip: bool, tmp_path: Path
) -> None:
    name = f"{constraint}_{base}"
    config = {"n_checkpoints": 1, "checkpoint_path": str(tmp_path / "checkpoints")}
    sae = started(name, skip)
    start = weights(sae)
    train(sae, 6, stream(), **config)
    moved = set(differing(start, weights(sae)))
    frozen = {"frozen_decoder": "W_dec", "frozen_encoder": "W_enc"}.get(constraint)
    assert moved >= {"W_enc", "W_dec", "b_enc", "b_dec", *(["W_skip"] if skip else [])} - {
        frozen
    }
    assert frozen not in moved
    if constraint == "soft_frozen_decoder":
        assert cosines(sae.W_dec, start["W_dec"]).min() >= sae.cfg.tau - 1e-6
    if constraint == "soft_frozen_encoder":
        assert cosines(sae.W_enc.T, start["W_enc"].T).min() >= sae.cfg.tau - 1e-6

    again = started(name, skip)
    trainer = make_trainer(again, 6, stream(3 + 1))
    checkpoint = only_checkpoint(tmp_path / "checkpoints")
    resume(trainer, checkpoint)
    assert trainer.n_training_samples == 4 * BATCH
    trainer.fit()
    assert differing(weights(again), weights(sae)) == []

    sae.save_inference_model(tmp_path / "exported")
    x = pairs(256, seed=9)[:, :D_IN]
    for loaded, expected in (
        (SAE.load_from_disk(tmp_path / "exported"), by_hand(sae, x)[1]),
        (SAE.load_from_disk(checkpoint), None),
    ):
        assert (type(loaded).__module__, type(loaded).__name__) == (STOCK, EXPORTED[base, skip])
        if expected is not None:
            torch.testing.assert_close(loaded(x).double(), expected, rtol=1e-4, atol=1e-4)
    details = loaded.cfg.metadata.training_architecture_details
    assert details["base_architecture"] == base


def test_stock_saelens_without_this_package_computes_the_same(tmp_path: Path) -> None:
    x = pairs(256, seed=9)[:, :D_IN]
    expected = {}
    for base, constraint, skip in itertools.product(TRANSCODERS, MEMBERS, (False, True)):
        sae = started(f"{constraint}_{base}", skip)
        train(sae, 6, stream())
        name = f"{constraint}_{base}_{skip}"
        sae.save_inference_model(tmp_path / name)
        expected[name] = by_hand(sae, x)
    found = by_stock_saelens(tmp_path, x)
    assert len(found) == 3 * len(expected) == 3 * 40
    for name, (acts, out) in expected.items():
        for what, wanted in (("acts", acts), ("forward", out)):
            got = found[f"{name}/{what}"].double()
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_the_documented_way_to_train_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[2] / "docs" / "transcoders.md"
    code = page.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    x = activations(4096, d_in=576)
    both = torch.cat([x, 3 * x.relu() + 1], dim=1)
    monkeypatch.chdir(tmp_path)
    names = {"pairs": both, "batches": itertools.repeat(both)}
    assert code.count("4_096_000") == 1
    exec(code.replace("4_096_000", "8_192"), names)
    made: Any = SAE.load_from_disk(tmp_path / "out")
    assert (made.cfg.architecture(), made.cfg.d_sae) == ("jumprelu_skip_transcoder", 4608)
    assert made.cfg.metadata.hook_name_out == "blocks.12.hook_mlp_out"
    # It starts as a study's, with little to unlearn.
    sae: Any = names["sae"]
    assert sae.cfg.encoder_init_scale < 0.5
    assert sae.cfg.aux_loss_coefficient == 0.003


@pytest.mark.parametrize("base", ["transcoder_standard", "transcoder_jumprelu"])
def test_an_export_without_a_running_threshold_is_the_training_sae(
    base: str, tmp_path: Path
) -> None:
    sae = started(base)
    train(sae, 4, stream())
    sae.save_inference_model(tmp_path)
    both = pairs(128, seed=9)
    out = SAE.load_from_disk(tmp_path)(both[:, :D_IN])
    for given in (both, both[:, :D_IN]):
        torch.testing.assert_close(sae(given), out, rtol=1e-4, atol=1e-4)


def test_saelens_multi_trainer_trains_a_panel_of_them_in_step() -> None:
    saes = {c: started(f"{c}_transcoder_batchtopk") for c in MEMBERS}
    alone = started("frozen_decoder_transcoder_batchtopk")
    train(alone, 4, stream())
    cfg = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=4 * BATCH,
        train_batch_size_samples=BATCH,
        lr=1e-2,
        lr_end=1e-2,
        logger=LoggingConfig(log_to_wandb=False),
    )
    data = ({"pair": batch} for batch in stream())
    MultiSAETrainer(cfg, saes, dict.fromkeys(saes, "pair"), data).fit()
    assert differing(weights(alone), weights(saes["frozen_decoder"])) == []


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("base", TRANSCODERS)
@pytest.mark.parametrize("constraint", MEMBERS)
def test_the_sparse_step_is_the_dense_one(constraint: str, base: str, skip: bool) -> None:
    wide = {"d_sae": 512, "sparse_step": True}
    if base == "transcoder_standard":
        wide |= {"encoder_init_scale": 0.5}
    name = f"{constraint}_{base}"
    sparse, dense = started(name, skip, **wide), started(name, skip, **wide)
    dense.cfg.sparse_step = False
    if base in ("transcoder_standard", "transcoder_jumprelu"):
        for sae in (sparse, dense):
            sae.b_enc.data.sub_(2.0 * sae.cfg.encoder_init_scale)
    batch, dead = pairs(BATCH, seed=4), torch.zeros(512, dtype=torch.bool)
    dead[5:40] = True
    outputs = []
    for sae in (sparse, dense):
        if skip:
            sae.W_skip.data.add_(0.01)
        outputs.append(sae.training_forward_pass(step_input(sae, batch, dead)))
    assert sparse.sparse_state.sparse_steps == 1, sparse.sparse_state
    ours, stock = outputs
    assert ours.losses.keys() == stock.losses.keys()
    for loss, value in ours.losses.items():
        torch.testing.assert_close(value, stock.losses[loss], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.sae_out, stock.sae_out, rtol=1e-4, atol=1e-5)
    found, expected = gradients(sparse, ours.loss), gradients(dense, stock.loss)
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        size = float(expected[key].abs().max())
        torch.testing.assert_close(gradient, expected[key], rtol=1e-3, atol=1e-5 * size + 1e-9)
    if base == "transcoder_topk":
        torch.testing.assert_close(sparse.topk_threshold, dense.topk_threshold)


def test_the_loss_is_the_squared_error_of_scaled_outputs() -> None:
    sae = started("transcoder_batchtopk")
    randomise_(sae)
    batch = pairs(BATCH, seed=4)
    output = sae.training_forward_pass(step_input(sae, batch))
    error = (output.sae_out - sae.cfg.output_scale * batch[:, D_IN:]).pow(2).sum(dim=1).mean()
    torch.testing.assert_close(output.losses["mse_loss"], error)
    torch.testing.assert_close(output.sae_in, sae.cfg.output_scale * batch[:, D_IN:])
    torch.testing.assert_close(
        sae(batch), output.sae_out / sae.cfg.output_scale, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("skip", [False, True])
def test_scales_train_as_scaled_data_do(skip: bool, tmp_path: Path) -> None:
    scaled = make("frozen_decoder_transcoder_batchtopk", skip, input_scale=4, output_scale=0.5)
    plain = make("frozen_decoder_transcoder_batchtopk", skip)
    factor = torch.cat([torch.full((D_IN,), 4.0), torch.full((D_OUT,), 0.5)])
    train(scaled, 5, stream())
    train(plain, 5, (batch * factor for batch in stream()))
    assert differing(weights(scaled), weights(plain)) == []  # powers of 2 do not round
    x = pairs(64, seed=9)[:, :D_IN]
    for sae in (scaled, plain):
        sae.save_inference_model(tmp_path / sae.cfg.output_scale.hex())
    of_scaled, of_plain = (
        SAE.load_from_disk(tmp_path / sae.cfg.output_scale.hex()) for sae in (scaled, plain)
    )
    torch.testing.assert_close(of_scaled(x), 2 * of_plain(4 * x), rtol=1e-5, atol=1e-5)


def test_shuffled_pairs_teach_nothing_of_the_pairing() -> None:
    name, held_out, found = "seeded_transcoder_batchtopk", pairs(1024, seed=9), {}
    for shuffled in (False, True):
        sae = started(name, shuffled_pairs=shuffled)
        train(sae, 60, stream())
        found[shuffled] = explained_variance(sae, held_out)[0]
    assert found[False] > 0.8
    assert found[True] < 0.1
    batch = pairs(BATCH, seed=4)
    rolled = torch.cat([batch[:, :D_IN], batch[:, D_IN:].roll(1, dims=0)], dim=1)
    plain = started(name, skip_start="zero")
    null = started(name, shuffled_pairs=True)
    losses = [
        sae.training_forward_pass(step_input(sae, x)).loss
        for sae, x in ((plain, rolled), (null, batch))
    ]
    assert torch.equal(*losses)


def test_a_least_squares_skip_starts_at_the_affine_null() -> None:
    both = pairs(2048)
    start = PairStart.of(both, D_IN)
    x, y = both[:, :D_IN].double().numpy(), both[:, D_IN:].double().numpy()
    with_one = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    best = with_one @ np.linalg.lstsq(with_one, y, rcond=None)[0]
    np.testing.assert_allclose(start.predict(both[:, :D_IN].double()), best, atol=1e-6)

    sae = make("seeded_transcoder_batchtopk", input_scale=3.0, output_scale=0.2)
    sae.set_start(start)
    centred = sae.b_enc.clone()
    sae.b_enc.data.fill_(-1e6)  # no latent is active
    np.testing.assert_allclose(sae(both).detach(), best, atol=2e-3)
    sae.b_enc.data.copy_(centred)
    # The encoder is centred: the mean input gives 0 everywhere.
    mean = torch.tensor(x.mean(axis=0, keepdims=True)).float()
    pre = sae.encode_with_hidden_pre(mean)[1]
    assert pre.abs().max() < 1e-4

    zero = make("seeded_transcoder_batchtopk", skip_start="zero")
    zero.set_start(start)
    assert not zero.W_skip.any()
    np.testing.assert_allclose(zero.b_dec.detach(), y.mean(axis=0), rtol=1e-5)


def test_encoder_and_decoder_are_two_draws_that_a_seed_names(tmp_path: Path) -> None:
    saes = [make(f"{c}_transcoder_topk", init_seed=3) for c in MEMBERS]
    for sae in saes:
        assert torch.equal(sae.W_dec, saes[0].W_dec)
        assert torch.equal(sae.W_enc, saes[0].W_enc)
    assert torch.equal(saes[0].W_dec, sample_directions(D_SAE, D_OUT, seed=3))
    square = make("seeded_transcoder_topk", init_seed=3, d_out=D_IN)
    assert cosines(square.W_dec, square.W_enc.T).abs().mean() < 0.35

    both = pairs(4096)
    both[:, 0] *= 100  # inputs vary along the first axis, outputs along the last
    both[:, -1] *= 100
    save_covariance(torch.cov(both.double().T), tmp_path / "c.safetensors")
    path = str(tmp_path / "c.safetensors")
    cov = make("frozen_encoder_transcoder_topk", init_scheme="cov", init_covariance_path=path)
    waiting = make("frozen_encoder_transcoder_topk", init_scheme="cov", init_cov_samples=4096)
    assert waiting.start_is_pending
    waiting.training_forward_pass(step_input(waiting, both))
    for sae in (cov, waiting):
        assert sae.W_enc[0].abs().mean() > 0.9
        assert sae.W_dec[:, -1].abs().mean() > 0.9
    torch.testing.assert_close(cov.W_enc, waiting.W_enc)


def test_a_frozen_encoder_may_learn_its_threshold_alone() -> None:
    sae = started("frozen_encoder_transcoder_jumprelu", learned="threshold")
    start = weights(sae)
    train(sae, 4, stream())
    assert set(differing(start, weights(sae))) == {"W_dec", "b_dec", "W_skip", "threshold"}


def test_a_soft_frozen_encoder_stays_in_its_cap_and_leaves_no_trace(tmp_path: Path) -> None:
    # A cap so narrow, and steps so large, that it binds.
    name = "soft_frozen_encoder_transcoder_batchtopk"
    sae, free = started(name, tau=0.999), started("seeded_transcoder_batchtopk")
    start = sae.W_enc.detach().T.clone()
    train(free, 8, stream())
    assert cosines(free.W_enc.T, start).min() < 0.99  # it would leave
    seen = []

    def watched() -> Iterator[torch.Tensor]:
        for batch in stream():
            seen.append(cosines(sae.W_enc.T, start).min())
            yield batch

    train(sae, 8, watched())
    assert min(seen) >= 0.999 - 1e-6
    assert share_at_edge(sae.W_enc.detach().T, start, 0.999) > 0.1
    norms = sae.W_enc.detach().norm(dim=0)
    assert (norms - 1).abs().max() > 1e-3  # lengths are learned
    assert cosines(sae.W_dec, started(name, tau=0.999).W_dec).min() < 0.99
    # The whole buffer is of the starts as rows, and exports have none of it.
    torch.testing.assert_close(sae.get_buffer("W_enc_start"), start)
    sae.save_inference_model(tmp_path)
    loaded: Any = SAE.load_from_disk(tmp_path)
    assert "W_enc_start" not in loaded.state_dict()
    assert cosines(loaded.W_enc.T, start).min() >= 0.999 - 1e-6
    told = describe_sae(tmp_path)
    assert told.promise is not None
    assert told.promise.holds
    assert told.promise.text == "encoder columns within cosine 0.999 of their start"
    edge = share_at_edge(sae.W_enc.detach().T, start, 0.999)
    assert told.facts["cap_bound_share"] == pytest.approx(edge)
    assert question_of("soft_frozen_encoder") == "nearly free"


def test_an_sae_has_no_soft_frozen_encoder_and_the_error_says_why() -> None:
    for name, base in (
        ("soft_frozen_encoder", "batchtopk"),
        ("soft_frozen_encoder_topk", "topk"),
    ):
        with pytest.raises(
            ValueError, match=f"use soft_frozen_decoder_{base}, or a transcoder"
        ):
            get_baseline(name)
    assert "soft_frozen_encoder_topk" not in baseline_architectures()
    assert parse_name("soft_frozen_encoder_transcoder_topk") == (
        get_baseline("soft_frozen_encoder_transcoder_topk").constraint,
        "transcoder_topk",
    )


def test_a_constraint_is_one_file_for_saes_and_transcoders() -> None:
    assert set(TRANSCODERS) <= set(base_architectures())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_out": 0}, "d_out: 0"),
        ({"output_scale": 0.0}, "output_scale: 0.0"),
        ({"skip_start": "ones"}, "skip_start: 'ones'"),
        ({"apply_b_dec_to_input": True}, "apply_b_dec_to_input: True.*space of outputs"),
        (
            {"normalize_activations": "expected_average_only_in"},
            "normalize_activations.*input_scale and output_scale",
        ),
    ],
)
def test_a_config_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    for name in ("transcoder_topk", "frozen_encoder_transcoder_topk"):
        with pytest.raises(ValueError, match=message):
            make(name, **options)


def test_batches_and_starts_that_do_not_fit_are_refused() -> None:
    sae = make("transcoder_topk")
    with pytest.raises(ValueError, match=f"width {D_OUT} is neither that of inputs, {D_IN}"):
        sae.encode(torch.zeros(4, D_OUT))
    with pytest.raises(ValueError, match=f"width {D_IN} has no outputs"):
        sae.training_forward_pass(step_input(sae, torch.zeros(4, D_IN)))
    with pytest.raises(UserError, match=f"{D_IN} of them say too little"):
        PairStart.of(pairs(D_IN), D_IN)
    still = pairs(64)
    still[:, D_IN:] = 1
    with pytest.raises(UserError, match="the outputs do not vary"):
        PairStart.of(still, D_IN)
    waiting = make("seeded_transcoder_topk", init_scheme="cov")
    with pytest.raises(UserError, match="init_covariance_path"):
        waiting.set_start(PairStart.of(pairs(64), D_IN))
