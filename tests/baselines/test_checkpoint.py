"""Training checkpoints of baselines, loaded by SAELens' `SAE.load_from_disk`."""

from pathlib import Path

import pytest
import torch
from sae_lens import SAE, JumpReLUSAE, TopKSAE

from sae_baselines.baselines import baseline_architectures
from sae_baselines.errors import UserError
from tests.helpers import activations, make_sae, randomise_, train


@pytest.mark.parametrize("name", [*baseline_architectures(), "seeded_topk", "seeded_gated"])
def test_a_training_checkpoint_loads_as_what_is_exported_of_it(
    tmp_path: Path, name: str
) -> None:
    sae = make_sae(name, init_seed=3)
    randomise_(sae)
    sae.save_model(tmp_path / "checkpoint")
    sae.save_inference_model(tmp_path / "export")
    loaded, exported = (SAE.load_from_disk(tmp_path / f) for f in ("checkpoint", "export"))
    assert type(loaded) is type(exported)
    assert loaded.cfg.to_dict() == exported.cfg.to_dict()
    x = activations(8)
    assert torch.equal(loaded(x), exported(x))
    assert vars(loaded).keys() == vars(exported).keys()
    assert loaded.training is True  # torch's own flag, and no training SAE
    # Saved again it is what anybody's SAELens loads.
    loaded.save_model(tmp_path / "again")
    assert SAE.load_from_disk(tmp_path / "again").cfg.architecture() == (
        exported.cfg.architecture()
    )


def test_it_loads_by_the_class_in_another_precision_and_scaled_as_stock_does(
    tmp_path: Path,
) -> None:
    for name in ("frozen_decoder_topk", "topk"):
        sae = make_sae(name, normalize_activations="expected_average_only_in")
        train(sae, 2)
        sae.cfg.normalize_activations = "expected_average_only_in"  # as before fit folds it
        sae.save_model(tmp_path / name)
        loaded = TopKSAE.load_from_disk(tmp_path / name, dtype="float64")
        assert loaded.dtype == loaded.W_dec.dtype == torch.float64
        assert loaded.cfg.normalize_activations == "expected_average_only_in"
        assert loaded(activations(4)).dtype == torch.float64
        with pytest.raises(ValueError, match="not of type JumpReLUSAE"):
            JumpReLUSAE.load_from_disk(tmp_path / name)


def test_a_checkpoint_whose_start_is_pending_has_no_inference_form(tmp_path: Path) -> None:
    sae = make_sae("frozen_encoder_topk", init_scheme="cov")
    sae.save_model(tmp_path)
    with pytest.raises(UserError, match=r"^init_scheme: .*no weights to export yet"):
        SAE.load_from_disk(tmp_path)
