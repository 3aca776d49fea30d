"""What each latent does: firings, and shares of variance that sum to the explained variance."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sae_lens import SAE

from sae_baselines.controls.latents import firing_rates
from sae_baselines.errors import UserError
from sae_baselines.reconstruction import explained_variance
from sae_baselines.study.engine import measure_latents, train_study
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.latents import LATENTS_FILE, SAMPLE, Latents, latents_of
from sae_baselines.study.plan import all_members
from sae_baselines.study.spec import spec_from_dict
from tests.helpers import SIX_BASES, activations, make_sae, train
from tests.tiny_model import tiny_panel


def exported(base: str, folder: Path) -> SAE:
    sae = make_sae(base)
    train(sae, 40)
    sae.save_inference_model(folder)
    return SAE.load_from_disk(folder)


@pytest.mark.parametrize("base", SIX_BASES)
def test_shares_of_latents_sum_to_the_explained_variance(base: str, tmp_path: Path):
    sae, x = exported(base, tmp_path), activations(3000, seed=3) + 2.0
    found = latents_of(sae, x)
    ev, l0, alive = explained_variance(sae, x)
    assert found.explained_variance == pytest.approx(ev, abs=1e-5)
    assert found.rates.sum() == pytest.approx(l0)
    assert (found.firings > 0).sum() == alive
    assert np.allclose(found.rates, firing_rates(sae, x))
    # What never fires explains nothing, and neither does what always does the same.
    assert (found.explained[found.firings == 0] == 0).all()
    acts = torch.zeros(SAMPLE, sae.cfg.d_sae)
    row = np.repeat(np.arange(SAMPLE), np.diff(found.rows))
    acts[row, found.indices.astype(np.int64)] = torch.from_numpy(found.values)
    # Encoded in other chunks.
    assert torch.allclose(acts, sae.encode(x[:SAMPLE]), atol=1e-5)


def test_a_share_is_the_mean_over_all_orders_of_what_a_latent_adds():
    sae = make_sae("standard", d_sae=4)
    with torch.no_grad():
        sae.b_enc += 0.2
    x = activations(500)
    acts = sae.encode(x).detach().double()
    parts = (acts - acts.mean(0))[:, :, None] * sae.W_dec.detach().double()
    centred = x.double() - x.double().mean(0)

    def pay(chosen: frozenset[int]) -> float:
        left = centred - sum((parts[:, j] for j in chosen), torch.zeros_like(centred))
        return float(1 - left.pow(2).sum() / centred.pow(2).sum())

    orders = list(permutations(range(4)))
    mean = np.zeros(4)
    for order in orders:
        for i, j in enumerate(order):
            mean[j] += pay(frozenset(order[: i + 1])) - pay(frozenset(order[:i]))
    found = latents_of(sae, x)
    assert found.explained == pytest.approx(mean / len(orders), abs=1e-5)


def test_a_study_has_them_and_an_older_one_gets_the_same(
    model_folder: Path, text: Dataset, tmp_path: Path
):
    panel = tiny_panel(model_folder, members=["trained", "frozen_decoder", "random"])
    spec = spec_from_dict({**panel, "training_tokens": 128 * 4})
    train_study(spec, tmp_path, dataset=text)
    folder = StudyFolder(tmp_path)
    files = {key: folder.member(key) / LATENTS_FILE for key in all_members(spec)}
    before = {key: file.read_bytes() for key, file in files.items()}
    for key, file in files.items():
        measured, latents = folder.measurement(key), Latents.load(file.parent)
        assert measured is not None
        assert latents is not None
        assert latents.explained_variance == pytest.approx(
            measured["explained_variance"], abs=1e-4
        )
        assert (latents.firings > 0).sum() == measured["alive"]
        if measured["cos_to_start_mean"] is None:
            assert np.isnan(latents.cos_to_start).all()
        else:
            mean = measured["cos_to_start_mean"]
            assert latents.cos_to_start.mean() == pytest.approx(mean, abs=1e-6)
        file.unlink()
    # A study of before is finished as it is, and is not trained again.
    assert not train_study(spec, tmp_path, dataset=text).trained
    assert not any(file.exists() for file in files.values())
    assert set(measure_latents(spec, tmp_path, dataset=text)) == set(files)
    assert {key: file.read_bytes() for key, file in files.items()} == before

    first = next(iter(files.values()))
    latents = Latents.load(first.parent)
    assert latents is not None
    arrays = dict(np.load(first))
    arrays["firings"] = arrays["firings"] + 1
    np.savez_compressed(first, **arrays)
    with pytest.raises(UserError, match="was changed after it was written"):
        Latents.load(first.parent)
