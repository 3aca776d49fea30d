"""Kinds of third-party architectures: each gets its baselines, which keep their promises."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE

from sae_baselines.show import describe_sae
from tests.examples.test_examples import load

KINDS = ("deep", "experts", "complex")
CONSTRAINTS = ("frozen_decoder", "soft_frozen_decoder", "frozen_encoder")


@pytest.fixture(scope="module")
def example() -> Any:
    return load("third_party_architectures")


def test_these_are_all(example: Any) -> None:
    assert tuple(example.KINDS) == KINDS
    assert example.CONSTRAINTS == CONSTRAINTS


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_trains_and_has_k_latents_on(example: Any, kind: str) -> None:
    trained = example.train(kind, 5000)
    assert 0 < trained.final_eval.explained_variance < 1
    assert trained.final_eval.sae_l0 == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_baseline_of_a_kind_keeps_its_promise_and_is_exported_as_the_kind(
    example: Any, kind: str, constraint: str, tmp_path: Path
) -> None:
    trained = example.train(f"{constraint}_{kind}", 5000)
    sae = trained.sae
    assert isinstance(sae, example.KINDS[kind])
    about = describe_sae(kind, sae)
    assert about.promise is not None
    assert about.promise.holds is True
    assert 0 < trained.final_eval.explained_variance < 1
    # What the architecture has beside SAELens' weights is learned by every baseline.
    start = example.KINDS[kind].own_weights(sae)
    for name in start:
        assert getattr(sae, name).requires_grad, name
    sae.save_inference_model(tmp_path)
    exported = SAE.load_from_disk(tmp_path)
    assert exported.cfg.architecture() == kind
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(exported(x), sae(x), rtol=1e-5, atol=1e-5)
    assert int((exported.encode(x) != 0).sum(-1).max()) <= 4
