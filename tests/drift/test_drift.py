"""Drift recorded during training, against weights looked at by hand."""

import itertools
import json
import math
import shutil
import signal
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from hypothesis import given
from hypothesis import strategies as st
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
)
from sae_lens.synthetic import (
    SyntheticModelConfig,
    SyntheticSAERunner,
    SyntheticSAERunnerConfig,
)
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import save_file

from sae_baselines.baselines import covariance_of, sample_directions
from sae_baselines.drift import (
    FRACTIONS,
    DriftLog,
    DriftTracker,
    drift_from_checkpoints,
    drift_table,
    find_drift,
    read_drift,
)
from sae_baselines.drift.cosines import EDGES, cosines, drift_of
from sae_baselines.drift.record import step_of
from sae_baselines.errors import UserError
from sae_baselines.study import train_study
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.runner import InterruptedTrainingError
from sae_baselines.study.spec import ModelSpec, spec_from_dict, spec_hash
from tests import helpers
from tests.helpers import BATCH, D_SAE, make_sae, make_trainer, train
from tests.tiny_model import D_MODEL, HOOK, save_tiny_model, tiny_panel, tiny_text

STEPS = 40


class StopError(Exception):
    """Raised in the middle of training."""


def _record(log: DriftLog, fraction: float) -> dict[str, Any]:
    (found,) = (r for r in log.records if r["fraction"] == fraction)
    return found


def _watched(sae: Any, seen: list[dict[str, torch.Tensor]]) -> Iterator[torch.Tensor]:
    """The usual stream; before batch i + 1 the weights after step i are put into ``seen``."""
    for batch in helpers.batches():
        seen.append(helpers.weights(sae))
        yield batch


# --- which step a fraction means -------------------------------------------------------------


def test_a_fraction_means_the_step_that_completes_it():
    assert step_of(0.1, 30) == 3  # 0.1 * 30 is 3.0000000000000004
    assert step_of(0.05, 40) == 2
    assert step_of(0.05, 39) == 2
    assert step_of(0.05, 7) == 1
    assert step_of(1.0, 7) == 7


@given(st.integers(1, 10**9), st.integers(1, 1000))
def test_no_earlier_step_completes_the_fraction(total: int, thousandths: int):
    step = step_of(thousandths / 1000, total)
    fraction = Fraction(thousandths, 1000)
    assert Fraction(step, total) >= fraction > Fraction(step - 1, total)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ([], "no fractions"),
        ([0.0], "0.0 is not a fraction"),
        ([0.5, 1.5], "1.5 is not a fraction"),
        ([float("nan")], "nan is not a fraction"),
        ([True], "True is not a fraction"),
        (["a"], "'a' is not a fraction"),
        ([0.5, 0.1, 0.5], "a fraction repeats"),
    ],
)
def test_bad_fractions_are_refused(fractions: list[Any], message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        DriftTracker(tmp_path, fractions=fractions)


# --- cosines ---------------------------------------------------------------------------------


@given(
    st.integers(0, 1000), st.floats(-30, 30), st.sampled_from([torch.float32, torch.float64])
)
def test_cosines_of_equal_rows_are_exactly_one(seed: int, scale: float, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(20, 7, generator=generator).to(dtype) * 10.0**scale
    assert cosines(rows, rows.clone()).tolist() == [1.0] * 20
    assert cosines(rows, -rows).tolist() == [-1.0] * 20


@given(st.integers(0, 1000), st.integers(1, 40))
def test_cosines_against_another_route(seed: int, width: int):
    a = helpers.random_unit_rows(50, width, seed) * 3
    b = helpers.random_unit_rows(50, width, seed + 1)
    assert torch.allclose(cosines(a, b), helpers.cosines(a, b), rtol=0, atol=1e-12)


def test_statistics_and_histogram_of_a_known_distribution():
    angle = torch.linspace(0, math.pi, 1001, dtype=torch.float64)
    now = torch.stack([angle.cos(), angle.sin()], dim=1)
    start = torch.tensor([[1.0, 0.0]]).repeat(1001, 1)
    found = drift_of(now, start, "decoder")
    assert found.facts["n"] == 1001
    assert found.facts["unmoved"] == 1
    assert found.facts["mean"] == pytest.approx(0, abs=1e-12)
    assert found.facts["quantiles"]["0.25"] == pytest.approx(math.cos(0.75 * math.pi))
    assert found.facts["share_at_least"]["0.5"] == pytest.approx(334 / 1001)
    assert found.counts.sum() == 1001
    expected = np.histogram(angle.cos().clamp(-1, 1).numpy(), EDGES)[0]
    assert np.abs(found.counts - expected).sum() <= 4  # cosines on the edge of a bin


def test_rows_without_a_cosine_are_counted_and_left_out():
    start = helpers.random_unit_rows(6, 4, seed=0)
    now = start.clone()
    now[0] = 0
    now[1, 2] = math.nan
    now[2, 0] = math.inf
    now[3] *= -2
    found = drift_of(now, start, "decoder").facts
    assert (found["n"], found["zero_norm"], found["not_finite"]) == (3, 1, 2)
    assert found["unmoved"] == 2
    assert found["mean"] == pytest.approx(1 / 3)
    nothing = drift_of(torch.zeros(3, 4), start[:3], "decoder").facts
    assert (nothing["n"], nothing["mean"], nothing["zero_norm"]) == (0, None, 3)


def test_rows_on_the_edge_of_a_cap_count_as_inside():
    start = torch.tensor([[1.0, 0.0]])
    edge = torch.tensor([[0.8 - 4e-7, math.sqrt(1 - 0.8**2)]])
    below = torch.tensor([[0.8 - 4e-5, math.sqrt(1 - 0.8**2)]])
    assert drift_of(edge, start, "decoder").facts["share_at_least"]["0.8"] == 1.0
    assert drift_of(below, start, "decoder").facts["share_at_least"]["0.8"] == 0.0


# --- inside SAELens' trainer -----------------------------------------------------------------


@pytest.mark.parametrize(
    "architecture",
    [
        "batchtopk",
        "standard",
        "gated",
        "sparse_topk",
        "frozen_decoder",
        "frozen_encoder_jumprelu",
    ],
)
def test_records_are_those_of_the_weights_after_the_step(architecture: str, tmp_path: Path):
    sae = make_sae(architecture)
    seen: list[dict[str, torch.Tensor]] = []
    with DriftTracker(tmp_path) as tracker:
        train(
            sae, STEPS, _watched(sae, seen), normalize_activations="none"
        ) if False else train(sae, STEPS, _watched(sae, seen))
    seen.append(helpers.weights(sae))
    log = read_drift(tmp_path)
    assert log.records == tracker.logs[""].records
    assert [(r["fraction"], r["step"]) for r in log.records] == [
        (0.05, 2),
        (0.1, 4),
        (0.25, 10),
        (0.5, 20),
        (1.0, 40),
    ]
    for index, record in enumerate(log.records):
        assert record["samples"] == record["step"] * BATCH
        now = seen[record["step"]]
        for side, rows, start in (
            ("decoder", now["W_dec"], seen[0]["W_dec"]),
            ("encoder", now["W_enc"].T, seen[0]["W_enc"].T),
        ):
            expected = helpers.cosines(rows, start)
            assert record[side]["n"] == D_SAE
            assert record[side]["mean"] == pytest.approx(float(expected.mean()), abs=1e-12)
            assert record[side]["quantiles"]["0"] == pytest.approx(
                float(expected.min()), abs=1e-12
            )
            counts = log.histogram(index, side)
            assert counts is not None
            centres = (EDGES[1:] + EDGES[:-1]) / 2
            assert counts.sum() == D_SAE
            assert (counts * centres).sum() / D_SAE == pytest.approx(
                float(expected.mean()), abs=1e-3
            )


def test_ev_and_l0_are_of_the_weights_after_the_step(tmp_path: Path):
    sae = make_sae("topk")
    seen: list[dict[str, torch.Tensor]] = []
    with DriftTracker(tmp_path / "batch", fractions=[0.5]):
        train(sae, STEPS, _watched(sae, seen))
    log = read_drift(tmp_path / "batch")
    assert log.header["measured_on"] == "training batch of the step"
    other = make_sae("topk")
    helpers.set_weights(other, seen[20])
    batch = next(itertools.islice(helpers.batches(), 19, None))
    assert (log.records[0]["explained_variance"], log.records[0]["l0"]) == pytest.approx(
        _ev_by_hand(other, batch), abs=1e-6
    )
    held_out = helpers.activations(300, seed=5)
    sae = make_sae("topk")
    with DriftTracker(tmp_path / "held_out", fractions=[1.0], held_out=held_out):
        train(sae, STEPS)
    log = read_drift(tmp_path / "held_out")
    assert log.header["measured_on"] == "300 held-out activations"
    assert (log.records[0]["explained_variance"], log.records[0]["l0"]) == pytest.approx(
        _ev_by_hand(sae, held_out), abs=1e-6
    )


@torch.no_grad()
def _ev_by_hand(sae: Any, x: torch.Tensor) -> tuple[float, float]:
    acts = sae.encode(x).to_dense()
    residual = (x - sae.decode(acts)).double().var(dim=0, correction=0).sum() + (
        (x - sae.decode(acts)).double().mean(dim=0) ** 2
    ).sum()
    total = x.double().var(dim=0, correction=0).sum()
    return float(1 - residual / total), float((acts != 0).sum() / x.shape[0])


def test_held_out_activations_are_scaled_as_in_training(tmp_path: Path):
    """A JumpReLU's L0 depends on the scale; at the end SAELens folds it into the weights."""
    held_out = 5 * helpers.activations(200, seed=5)
    stream = (5 * batch for batch in helpers.batches())
    sae = make_sae(
        "jumprelu",
        normalize_activations="expected_average_only_in",
        jumprelu_init_threshold=0.5,
        decoder_init_norm=1.0,
    )
    with DriftTracker(tmp_path, fractions=[1.0], held_out=held_out):
        train(sae, 20, stream)
    record = read_drift(tmp_path).records[0]
    ev, l0 = _ev_by_hand(sae, held_out)
    assert l0 > 1
    assert abs(_ev_by_hand(sae, held_out / 5)[1] - l0) > 0.5
    assert record["l0"] == pytest.approx(l0, abs=0.02)  # float32 at the threshold
    assert record["explained_variance"] == pytest.approx(ev, abs=1e-3)


@pytest.mark.parametrize("constraint", helpers.CONSTRAINTS)
@pytest.mark.parametrize("base", ["batchtopk", "jumprelu"])
def test_what_is_frozen_has_not_moved(constraint: str, base: str, tmp_path: Path):
    sae = make_sae(f"{constraint}_{base}", init_seed=3)
    with DriftTracker(tmp_path):
        train(sae, STEPS, lr=0.05)
    records = read_drift(tmp_path).records
    assert len(records) == len(FRACTIONS)
    for record in records:
        if constraint == "soft_frozen_decoder":
            assert record["decoder"]["quantiles"]["0"] >= sae.cfg.tau - 1e-6
            assert record["decoder"]["share_at_least"]["0.8"] == 1.0
        else:
            frozen = constraint.removeprefix("frozen_")
            learned = {"decoder": "encoder", "encoder": "decoder"}[frozen]
            assert record[frozen]["unmoved"] == D_SAE
            assert record[frozen]["mean"] == 1.0
            assert set(record[frozen]["quantiles"].values()) == {1.0}
            assert record[learned]["mean"] < 1.0
    if constraint == "soft_frozen_decoder":
        # The cap is felt: without it rows would have left it.
        free = make_sae(f"seeded_{base}", init_seed=3)
        with DriftTracker(tmp_path / "free"):
            train(free, STEPS, lr=0.05)
        last = read_drift(tmp_path / "free").records[-1]
        assert last["decoder"]["quantiles"]["0"] < sae.cfg.tau - 0.05


@pytest.mark.parametrize("options", [{}, {"init_scheme": "cov", "init_cov_samples": 2 * BATCH}])
def test_an_encoder_that_starts_scaled_has_not_moved_either(
    options: dict[str, Any], tmp_path: Path
):
    sae = make_sae("frozen_encoder", encoder_init_scale=0.3, **options)
    with DriftTracker(tmp_path, fractions=[1.0]):
        train(sae, 10)
    (record,) = read_drift(tmp_path).records
    assert record["encoder"]["unmoved"] == D_SAE
    assert record["encoder"]["mean"] == 1.0
    assert record["decoder"]["unmoved"] == 0


@pytest.mark.parametrize("architecture", ["batchtopk", "soft_frozen_decoder"])
def test_training_is_bitwise_the_same_with_a_tracker(architecture: str, tmp_path: Path):
    results = []
    for tracked in (False, True):
        torch.manual_seed(0)
        sae = make_sae(architecture)
        if tracked:
            held_out = helpers.activations(100)
            with DriftTracker(tmp_path, held_out=held_out):
                trainer = train(sae, STEPS)
        else:
            trainer = train(sae, STEPS)
        results.append((helpers.weights(sae), torch.rand(1), trainer.act_freq_scores))
    assert helpers.differing(results[0][0], results[1][0]) == []
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][2], results[1][2])


def test_saelens_is_left_as_it_was(tmp_path: Path):
    original = SAETrainer.step
    with DriftTracker(tmp_path / "a"), DriftTracker(tmp_path / "b"):
        train(make_sae("topk"), 10)
        assert SAETrainer.step is not original
    assert SAETrainer.step is original
    assert read_drift(tmp_path / "a").records == read_drift(tmp_path / "b").records

    def stream() -> Iterator[torch.Tensor]:
        yield from itertools.islice(helpers.batches(), 5)
        raise StopError

    with pytest.raises(StopError), DriftTracker(tmp_path / "c"):
        train(make_sae("topk"), 10, stream())
    assert SAETrainer.step is original
    assert [r["step"] for r in read_drift(tmp_path / "c").records] == [1, 1, 3, 5]
    tracker = DriftTracker(tmp_path / "d")
    with tracker, pytest.raises(RuntimeError, match="active already"):
        tracker.__enter__()
    assert SAETrainer.step is original


def test_dead_and_zero_rows_are_events_not_errors(tmp_path: Path):
    sae = make_sae("topk", rescale_acts_by_decoder_norm=False)
    # Far below zero on every activation: never active, so the decoder row never moves.
    sae.b_enc.data[:3] = -1e4

    def stream() -> Iterator[torch.Tensor]:
        for i, batch in enumerate(helpers.batches()):
            if i == 25:
                sae.W_dec.data[0] = 0
            yield batch

    with DriftTracker(tmp_path):
        train(sae, STEPS, stream())
    before, last = (r["decoder"] for r in read_drift(tmp_path).records[-2:])
    assert (before["zero_norm"], last["zero_norm"]) == (0, 1)
    assert (before["n"], last["n"]) == (D_SAE, D_SAE - 1)
    assert (before["unmoved"], last["unmoved"]) == (3, 2)


def test_a_run_that_diverges_is_recorded_in_strict_json(tmp_path: Path):
    sae = make_sae("topk")

    def stream() -> Iterator[torch.Tensor]:
        for i, batch in enumerate(helpers.batches()):
            yield batch * math.nan if i == 30 else batch

    with DriftTracker(tmp_path):
        train(sae, STEPS, stream())
    before, last = read_drift(tmp_path).records[-2:]
    assert before["decoder"]["not_finite"] == 0
    assert last["decoder"]["not_finite"] == D_SAE
    assert (last["decoder"]["n"], last["decoder"]["mean"]) == (0, None)
    assert last["explained_variance"] is None
    strict = json.loads((tmp_path / "drift.json").read_text(), parse_constant=pytest.fail)
    assert strict["versions"]["sae-lens"]


def test_cov_directions_that_come_from_the_run(tmp_path: Path):
    sae = make_sae("frozen_decoder", init_scheme="cov", init_cov_samples=5 * BATCH - 10)
    with DriftTracker(tmp_path, fractions=[0.05, 0.25, 1.0]):
        train(sae, STEPS)
    log = read_drift(tmp_path)
    assert _record(log, 0.05)["decoder"] is None  # step 2: nothing had started
    assert _record(log, 0.05)["explained_variance"] is None
    x = torch.cat(list(itertools.islice(helpers.batches(), 5)))
    start = sample_directions(
        D_SAE, helpers.D_IN, seed=0, scheme="cov", covariance=covariance_of(x)
    )
    assert torch.allclose(sae.W_dec.data, start, atol=1e-5)
    assert _record(log, 1.0)["decoder"]["mean"] == 1.0
    expected = helpers.cosines(sae.W_enc.T, start)
    assert _record(log, 1.0)["encoder"]["mean"] == pytest.approx(
        float(expected.mean()), abs=1e-6
    )
    assert _record(log, 1.0)["encoder"]["mean"] < 0.99
    assert "cov" in log.header["start"]


# --- resume ----------------------------------------------------------------------------------


def test_weights_that_are_loaded_in_the_wait_are_the_start_of_the_records(tmp_path: Path):
    sae, other = (
        make_sae("frozen_decoder", init_scheme="cov"),
        make_sae("seeded_topk", init_seed=9),
    )
    rows = {"W_dec": other.W_dec.detach(), "W_enc": other.W_enc.detach()}

    def stream() -> Iterator[torch.Tensor]:
        for step, batch in enumerate(helpers.batches(batch=8)):
            if step == 2:
                sae.load_state_dict(rows, strict=False)
            yield batch

    with DriftTracker(tmp_path, fractions=[0.25, 1.0]):
        train(sae, 8, stream(), batch=8)
    waiting, end = read_drift(tmp_path).records
    assert waiting["decoder"] is None
    assert torch.equal(
        sae.W_dec, rows["W_dec"]
    )  # not drawn over when the wait would have ended
    assert end["decoder"]["quantiles"]["0"] == pytest.approx(1.0, abs=1e-6)
    assert end["encoder"]["quantiles"]["0"] < 1 - 1e-6


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("seeded_batchtopk", {"init_seed": 4}),
        ("batchtopk", {}),
        ("frozen_decoder", {"init_scheme": "cov", "init_cov_samples": 3 * BATCH}),
    ],
)
def test_a_resumed_run_has_the_records_of_an_uninterrupted_one(
    architecture: str, options: dict[str, Any], tmp_path: Path
):
    torch.manual_seed(0)
    sae = make_sae(architecture, **options)
    start = helpers.weights(sae)
    with DriftTracker(tmp_path / "whole"):
        train(sae, STEPS)

    def broken() -> Iterator[torch.Tensor]:
        yield from itertools.islice(helpers.batches(), 25)
        raise StopError

    first = make_sae(architecture, **options)
    helpers.set_weights(first, start)
    checkpoints = {"n_checkpoints": 3, "checkpoint_path": str(tmp_path / "checkpoints")}
    with pytest.raises(StopError), DriftTracker(tmp_path / "parts"):
        train(first, STEPS, broken(), **checkpoints)
    # The last checkpoint is of step 21; step 20 is recorded, 40 is not.
    steps = [r["step"] for r in read_drift(tmp_path / "parts").records]
    assert steps == [2, 4, 10, 20]
    # Resume from an earlier one: the record of step 20 is made again, the first three kept.
    checkpoint = sorted((tmp_path / "checkpoints").iterdir(), key=lambda p: int(p.name))[0]
    done = int(checkpoint.name) // BATCH
    assert 10 <= done < 20
    torch.manual_seed(1)
    second = make_sae(architecture, **options)  # other weights, until the checkpoint is read
    trainer = make_trainer(second, STEPS, helpers.batches(first=done))
    helpers.resume(trainer, checkpoint)
    # SAELens saves before it counts the step, so its own count is one short from here on.
    assert trainer.n_training_steps == done - 1
    with DriftTracker(tmp_path / "parts"):
        trainer.fit()
    whole, parts = read_drift(tmp_path / "whole"), read_drift(tmp_path / "parts")
    assert parts.header["start"] == whole.header["start"]
    assert [r["step"] for r in parts.records] == [2, 4, 10, 20, 40]
    for a, b in zip(whole.records, parts.records, strict=True):
        if a["decoder"] is None:  # cov: the run had not started
            assert b["decoder"] is None
            continue
        assert b["decoder"]["mean"] == pytest.approx(a["decoder"]["mean"], abs=1e-6)
        assert b["encoder"]["mean"] == pytest.approx(a["encoder"]["mean"], abs=1e-6)
        assert b["explained_variance"] == pytest.approx(a["explained_variance"], abs=1e-5)


def test_a_resumed_run_without_its_start_is_refused(tmp_path: Path):
    checkpoints = {"n_checkpoints": 1, "checkpoint_path": str(tmp_path / "checkpoints")}
    train(make_sae("batchtopk"), 10, **checkpoints)
    trainer = make_trainer(make_sae("batchtopk"), 10)
    helpers.resume(trainer, helpers.only_checkpoint(tmp_path / "checkpoints"))
    with (
        pytest.raises(UserError, match="has no drift_start"),
        DriftTracker(tmp_path / "drift"),
    ):
        trainer.fit()


def test_a_new_run_replaces_old_records(tmp_path: Path):
    for seed, steps in ((0, 40), (1, 10)):
        torch.manual_seed(seed)
        sae = make_sae("batchtopk")
        start = sae.W_dec.detach().clone()
        with DriftTracker(tmp_path):
            train(sae, steps)
        log = read_drift(tmp_path)
        assert [r["total_steps"] for r in log.records] == [steps] * 5
        expected = float(helpers.cosines(sae.W_dec, start).mean())
        assert log.records[-1]["decoder"]["mean"] == pytest.approx(expected, abs=1e-12)


def test_damaged_records_are_named(tmp_path: Path):
    with DriftTracker(tmp_path):
        train(make_sae("topk"), 10)
    (tmp_path / "drift.npz").write_bytes(b"not a zip")
    with pytest.raises(UserError, match=r"drift.json: is damaged"):
        read_drift(tmp_path)
    with pytest.raises(UserError, match=r"has no drift.json"):
        read_drift(tmp_path / "elsewhere")


# --- SAELens' runners ------------------------------------------------------------------------


def test_the_synthetic_runner(tmp_path: Path):
    config = SyntheticSAERunnerConfig(
        synthetic_model=SyntheticModelConfig(num_features=20, hidden_dim=12, seed=0),
        sae=make_sae("batchtopk", d_in=12, d_sae=24, k=3).cfg,
        training_samples=64 * 30,
        batch_size=64,
        lr=3e-3,
        output_path=None,
        checkpoint_path=str(tmp_path / "checkpoints"),
        n_checkpoints=2,
        save_final_checkpoint=True,
        run_final_eval=False,
        logger=LoggingConfig(log_to_wandb=False),
    )
    runner = SyntheticSAERunner(config)
    start = runner.sae.W_dec.detach().clone()
    with DriftTracker(tmp_path / "drift"):
        sae = runner.run().sae
    log = read_drift(tmp_path / "drift")
    assert [r["step"] for r in log.records] == [2, 3, 8, 15, 30]
    expected = helpers.cosines(sae.W_dec, start)
    assert log.records[-1]["decoder"]["mean"] == pytest.approx(float(expected.mean()), abs=1e-9)
    assert (tmp_path / "drift" / "drift_start.safetensors").is_file()

    # From the checkpoints, against the start that the tracker kept.
    (logs,) = drift_from_checkpoints(
        tmp_path / "checkpoints", start=tmp_path / "drift"
    ).values()
    assert [r["samples"] for r in logs.records] == [704, 1344, 1920]
    assert [r["fraction"] for r in logs.records] == [704 / 1920, 1344 / 1920, 1.0]
    assert logs.records[-1]["decoder"]["mean"] == pytest.approx(
        float(expected.mean()), abs=1e-6
    )
    # Without a start: from the earliest checkpoint, and every output says so.
    (logs,) = drift_from_checkpoints(tmp_path / "checkpoints", out=tmp_path / "out").values()
    assert logs.records[0]["decoder"]["mean"] == 1.0
    assert logs.records[0]["decoder"]["unmoved"] == 24
    assert logs.header["start"].startswith("earliest checkpoint (704 samples), not the true")
    (stored,) = find_drift(tmp_path / "out").values()
    assert stored.records == logs.records
    assert stored.header["start"] == logs.header["start"]
    assert drift_table({"x": logs})["start"].str.contains("not the true start").all()


def test_the_language_model_runner_and_its_checkpoints(model_folder: Path, tmp_path: Path):
    config = LanguageModelSAERunnerConfig(
        sae=make_sae("topk", d_in=D_MODEL, d_sae=64).cfg,
        model_name="tiny",
        hook_name=HOOK,
        dataset_path="in memory",
        streaming=False,
        context_size=32,
        n_batches_in_buffer=8,
        store_batch_size_prompts=16,
        train_batch_size_tokens=128,
        training_tokens=128 * 20,
        lr=3e-3,
        device="cpu",
        n_checkpoints=1,
        save_final_checkpoint=True,
        checkpoint_path=str(tmp_path / "checkpoints"),
        output_path=None,
        logger=LoggingConfig(log_to_wandb=False),
    )
    model = load_language_model(ModelSpec(name=str(model_folder)), HOOK, "cpu")
    runner = LanguageModelSAETrainingRunner(
        config, override_dataset=tiny_text(), override_model=model
    )
    start = runner.sae.W_enc.detach().T.clone()
    with DriftTracker(tmp_path / "drift"):
        sae = runner.run()
    log = read_drift(tmp_path / "drift")
    assert [r["step"] for r in log.records] == [1, 2, 5, 10, 20]
    expected = float(helpers.cosines(sae.W_enc.T, start).mean())
    assert log.records[-1]["encoder"]["mean"] == pytest.approx(expected, abs=1e-6)
    # SAELens puts a random name between; there is one run, and it is found.
    (later,) = drift_from_checkpoints(
        tmp_path / "checkpoints", start=tmp_path / "drift"
    ).values()
    assert [r["fraction"] for r in later.records] == [0.55, 1.0]
    assert later.records[-1]["encoder"]["mean"] == pytest.approx(expected, abs=1e-6)
    assert later.header["start"] == "weights before the first step"


def test_several_saes_need_names_and_get_folders(tmp_path: Path):
    names = ("trained", "frozen")
    saes = {n: make_sae(a) for n, a in zip(names, ("batchtopk", "frozen_decoder"), strict=True)}

    def data() -> Iterator[dict[str, torch.Tensor]]:
        for batch in helpers.batches():
            yield {"hook": batch}

    def trainer(saes: dict[str, Any]) -> MultiSAETrainer:
        cfg = make_trainer(make_sae("topk"), 20).cfg
        cfg.n_checkpoints, cfg.checkpoint_path = 1, str(tmp_path / "checkpoints")
        cfg.save_final_checkpoint = True
        return MultiSAETrainer(cfg, saes, dict.fromkeys(saes, "hook"), data())

    with pytest.raises(UserError, match="each needs a name"), DriftTracker(tmp_path / "x"):
        trainer({n: make_sae("topk") for n in names}).fit()
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    with DriftTracker(tmp_path / "drift", saes):
        trainer(saes).fit()
    logs = find_drift(tmp_path / "drift")
    assert sorted(logs) == ["frozen", "trained"]
    assert logs["frozen"].records[-1]["decoder"]["mean"] == 1.0
    assert logs["trained"].records[-1]["decoder"]["mean"] < 1.0
    assert logs["trained"].header["name"] == "trained"

    later = drift_from_checkpoints(
        tmp_path / "checkpoints", start=tmp_path / "drift" / "trained"
    )
    assert sorted(later) == ["frozen", "trained"]
    assert [r["checkpoint"] for r in later["trained"].records] == ["704", "final_1280"]
    assert later["trained"].records[-1]["decoder"]["mean"] == pytest.approx(
        logs["trained"].records[-1]["decoder"]["mean"], abs=1e-6
    )
    # A twin's own start needs no file.
    alone = drift_from_checkpoints(tmp_path / "checkpoints")["frozen"]
    assert alone.header["start"] == "init_seed 0, iso"
    assert [r["decoder"]["mean"] for r in alone.records] == [1.0, 1.0]


def test_ev_of_checkpoints_on_given_activations(tmp_path: Path):
    sae = make_sae("seeded_topk", normalize_activations="expected_average_only_in")
    folder = tmp_path / "checkpoints"
    train(sae, 20, n_checkpoints=1, checkpoint_path=str(folder), save_final_checkpoint=True)
    x = helpers.activations(500, seed=9)
    (log,) = drift_from_checkpoints(folder, activations=x).values()
    before, final = log.records
    assert final["explained_variance"] == pytest.approx(_ev_by_hand(sae, x)[0], abs=1e-5)
    assert final["l0"] == 4.0
    assert 0 < before["explained_variance"] < final["explained_variance"]
    (log,) = drift_from_checkpoints(folder).values()
    assert log.records[0]["explained_variance"] is None


def test_checkpoints_that_cannot_be_compared(tmp_path: Path):
    with pytest.raises(UserError, match="is not a folder"):
        drift_from_checkpoints(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no checkpoints in .*; looked for <samples>/"):
        drift_from_checkpoints(tmp_path)
    folder = tmp_path / "white"
    white = make_sae("seeded_topk", normalize_activations="covariance_whitening")
    train(white, 10, n_checkpoints=1, checkpoint_path=str(folder), save_final_checkpoint=True)
    with pytest.raises(UserError, match="trained on whitened activations and is folded back"):
        drift_from_checkpoints(folder)
    folder = tmp_path / "one"
    train(make_sae("topk"), 10, checkpoint_path=str(folder), save_final_checkpoint=True)
    with pytest.raises(UserError, match="only checkpoint and does not say where it started"):
        drift_from_checkpoints(folder)
    with pytest.raises(UserError, match=r"start: .* has no sae_weights.safetensors"):
        drift_from_checkpoints(folder, start=tmp_path / "nowhere")
    other = tmp_path / "other"
    save_file({"W_dec": torch.ones(3, 5)}, _made(other) / "sae_weights.safetensors")
    with pytest.raises(
        UserError, match=r"its decoder is \[3, 5\], but the SAE's is \[32, 16\]"
    ):
        drift_from_checkpoints(folder, start=other)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_whitened_training_is_tracked_in_its_own_space(tmp_path: Path):
    sae = make_sae("seeded_topk", normalize_activations="covariance_whitening")
    seen: list[dict[str, torch.Tensor]] = []
    with DriftTracker(tmp_path, fractions=[0.5]):
        train(sae, 20, _watched(sae, seen))
    start = sample_directions(D_SAE, helpers.D_IN, seed=0)
    # Four batches went into the whitening before the first step.
    expected = float(helpers.cosines(seen[4 + 10]["W_dec"], start).mean())
    record = read_drift(tmp_path).records[0]
    assert record["decoder"]["mean"] == pytest.approx(expected, abs=1e-9)


def test_wandb_gets_numbers_and_histograms_in_the_order_of_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    logged: list[tuple[int, dict[str, Any]]] = []

    def log(values: dict[str, Any], step: int) -> None:
        logged.append((step, values))

    monkeypatch.setattr(wandb, "log", log)
    monkeypatch.setattr(wandb, "run", object())
    with DriftTracker(tmp_path / "on"):
        logger = LoggingConfig(log_to_wandb=True, wandb_log_frequency=3)
        train(make_sae("topk"), STEPS, logger=logger)
    steps = [step for step, _ in logged]
    assert steps == sorted(steps)
    ours = [(s, v) for s, v in logged if "drift/decoder_cosine_mean" in v]
    # wandb's step is SAELens': the number of the step before it is counted.
    assert [s for s, _ in ours] == [1, 3, 9, 19, 39]
    record = read_drift(tmp_path / "on").records[-1]
    last = ours[-1][1]
    assert last["drift/decoder_cosine_mean"] == record["decoder"]["mean"]
    assert last["drift/explained_variance"] == record["explained_variance"]
    histogram = last["drift/encoder_cosine"]
    assert isinstance(histogram, wandb.Histogram)
    assert sum(histogram.histogram) == D_SAE
    logged.clear()
    with DriftTracker(tmp_path / "off"):
        train(make_sae("topk"), STEPS)
    assert logged == []


def test_widths_that_do_not_fit_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="held_out: shape"):
        DriftTracker(tmp_path, held_out=torch.zeros(5))
    with (
        pytest.raises(UserError, match="held_out: width 9 is not the SAE's d_in, 16"),
        DriftTracker(tmp_path, held_out=torch.zeros(5, 9)),
    ):
        train(make_sae("topk"), 10)


# --- panels ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def _panel(model_folder: Path, **overrides: Any) -> Any:
    members = ["trained", "frozen_decoder:cov", "soft_frozen_decoder", "frozen_encoder"]
    return spec_from_dict(
        tiny_panel(model_folder, members=members, drift=[0.1, 0.5, 1.0], **overrides)
    )


def test_a_panel_records_drift_also_when_it_is_resumed(model_folder: Path, tmp_path: Path):
    text = tiny_text()
    spec = _panel(model_folder)
    whole = train_study(spec, tmp_path / "whole", dataset=text)

    original, calls = SAETrainer.step, itertools.count()

    def interrupted(trainer: Any, batch: torch.Tensor) -> Any:
        if next(calls) == 4 * 30:
            signal.raise_signal(signal.SIGTERM)
        return original(trainer, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SAETrainer, "step", interrupted)
        with pytest.raises(InterruptedTrainingError):
            train_study(spec, tmp_path / "parts", dataset=text)
    parts = train_study(spec, tmp_path / "parts", dataset=text, resume=True)
    logs, again = find_drift(whole.folder), find_drift(parts.folder)
    assert sorted(logs) == sorted(again)
    assert len(logs) == 4
    for name, log in logs.items():
        assert [r["step"] for r in log.records] == [4, 20, 40]
        assert [r["step"] for r in again[name].records] == [4, 20, 40]
        # A resumed run goes on with other batches, so only what came before is the same.
        assert again[name].records[:2] == log.records[:2]
        assert again[name].records[2] != log.records[2]
    for study, found in ((whole, logs), (parts, again)):
        for key, measured in study.measurements.items():
            last = found[f"{key.panel.name}/{key.member}"].records[-1]
            assert last["decoder"]["mean"] == pytest.approx(
                measured["cos_to_start_mean"], abs=1e-6
            )
            assert last["encoder"]["mean"] == pytest.approx(
                measured["encoder_cos_to_start_mean"], abs=1e-6
            )


def test_drift_is_checked_and_no_part_of_what_is_trained(model_folder: Path):
    assert spec_hash(_panel(model_folder)) == spec_hash(
        spec_from_dict({**tiny_panel(model_folder), "members": _panel(model_folder).members})
    )
    with pytest.raises(UserError, match="is not a fraction of training"):
        spec_from_dict(tiny_panel(model_folder, drift=[2.0]))
