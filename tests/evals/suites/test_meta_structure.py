"""SAEBench's meta-structure suite on decoders with and without shared structure."""

import math
from pathlib import Path

import pytest
import torch

from sae_baselines.evals.measured import LOWER, Measured
from sae_baselines.evals.suites.meta_structure import MetaStructure
from tests.evals.tiny_hub import evaluate_with, suite_call, tiny_sae, transcoder_of

SUITE = MetaStructure()
EXPLAINED = "decoder_fraction_variance_explained"
SMALL = {"train_steps": 150, "train_batch_size": 128, "learning_rate": 3e-3}


def composed_sae():
    """Each decoder row is the sum of two out of eight atoms."""
    sae = tiny_sae()
    atoms = torch.linalg.qr(torch.randn(64, 8, generator=torch.Generator().manual_seed(1)))[0].T
    pairs = torch.combinations(torch.arange(8)).repeat(3, 1)[: sae.cfg.d_sae]
    with torch.no_grad():
        sae.W_dec.copy_(atoms[pairs].sum(1) / 2**0.5)
    return sae


def measure(sae, folder: Path, seed: int = 0, **options) -> list[Measured]:
    call = suite_call(SUITE, folder, {**SMALL, **options}, sae=sae, seed=seed)
    return evaluate_with(SUITE, sae, call)[2]


def test_a_composed_decoder_is_explained_and_a_random_one_is_not(tmp_path: Path):
    composed = measure(composed_sae(), tmp_path / "composed")[0]
    random = measure(tiny_sae(), tmp_path / "random")[0]
    assert composed.metric == random.metric == EXPLAINED
    assert composed.value > 0.9
    assert random.value < composed.value - 0.2
    # By the paper's account: the less the latents are made of one another, the better.
    assert composed.direction == random.direction == LOWER
    assert composed.n == 64


def test_the_score_is_a_function_of_sae_and_seed(tmp_path: Path):
    first = measure(tiny_sae(), tmp_path / "first")
    measure(composed_sae(), tmp_path / "between")
    with torch.no_grad():  # as other suites leave it
        again = measure(tiny_sae(), tmp_path / "again")
    other = measure(tiny_sae(), tmp_path / "other", seed=1)
    assert first == again
    assert first[0].value != other[0].value


def test_of_a_transcoder_it_reads_what_latents_write(tmp_path: Path):
    # 64 latents write one of 48 unit vectors each: 32 directions explain two thirds of them.
    twin = transcoder_of(tiny_sae())
    assert not list(SUITE.transcoder_problems(suite_call(SUITE, tmp_path, sae=twin).subject))
    written = measure(twin, tmp_path / "transcoder")[0]
    assert math.isfinite(written.value)
    assert written.value != measure(tiny_sae(), tmp_path / "sae")[0].value


def test_wall_time_is_no_result(tmp_path: Path):
    rows = measure(tiny_sae(), tmp_path, train_steps=2)
    assert {row.metric for row in rows} == {EXPLAINED, "final_reconstruction_mse"}


def test_the_caveat_about_random_decoders_travels_with_the_result(tmp_path: Path):
    sae = tiny_sae()
    call = suite_call(SUITE, tmp_path, {**SMALL, "train_steps": 2})
    torch.manual_seed(0)
    (note,) = SUITE.run(sae, call).notes
    assert "random directions share no structure" in note


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"k": 65}, "k: 65 is more than the 64 latents"),
        ({"width_ratio": 0.0}, "width_ratio"),
        ({"train_steps": 0}, "train_steps"),
        ({"learning_rate": "fast"}, "learning_rate"),
    ],
)
def test_bad_options_are_named_before_any_work(options, named: str, tmp_path: Path):
    call = suite_call(SUITE, tmp_path, options)
    (problem,) = SUITE.problems(call.subject, call.options)
    assert named in problem


def test_nothing_is_wrong_with_the_defaults(tmp_path: Path):
    call = suite_call(SUITE, tmp_path)
    assert not list(SUITE.problems(call.subject, call.options))
    assert call.options["train_steps"] == 1500
    assert "random_seed" not in call.options
