"""The numbers in the table, against independent ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE

from sae_baselines.reconstruction import explained_variance, reconstruction
from sae_baselines.study import measure
from sae_baselines.study.held_out import HeldOut
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.measure import base_losses, loss_and_divergence, splice_loss
from sae_baselines.study.shared_model import Memory, sharing
from sae_baselines.study.spec import spec_from_dict
from tests.helpers import activations, make_sae, train
from tests.tiny_model import D_MODEL, tiny_panel


def test_explained_variance_is_the_papers_on_data_with_a_mean(tmp_path: Path):
    shift = 5.0 * torch.ones(16)
    x = activations(3000, seed=2) + shift
    sae = make_sae("seeded_topk")
    train(sae, 20)
    sae.save_inference_model(tmp_path)
    stock = SAE.load_from_disk(tmp_path)
    ev, l0, alive = explained_variance(stock, x)

    with torch.no_grad():
        acts = stock.encode(x)
        out = stock.decode(acts).double().numpy()
    a = x.double().numpy()
    reference = 1 - ((a - out) ** 2).sum(1).mean() / ((a - a.mean(0)) ** 2).sum(1).mean()
    assert ev == pytest.approx(reference, rel=1e-6)
    assert l0 == pytest.approx((acts != 0).sum(1).double().mean().item())
    assert alive == int(np.count_nonzero((acts != 0).any(0)))


def test_a_handful_of_tokens_is_told_from_the_rest(tmp_path: Path):
    x = activations(4000, seed=3)
    sae = make_sae("seeded_topk")
    train(sae, 20)
    sae.save_inference_model(tmp_path)
    stock = SAE.load_from_disk(tmp_path)
    before = reconstruction(stock, x)
    assert before.error_in_few < 0.05
    x[[7, 2000, 3001]] *= 100.0
    found = reconstruction(stock, x)

    with torch.no_grad():
        error = (x.double() - stock(x).double()).square().sum(1)
    far = (x.double() - x.double().mean(0)).square().sum(1)
    worst = sorted(error.tolist())[-4:]  # 0.1 % of 4,000
    assert found.error_in_few == pytest.approx(sum(worst) / error.sum().item())
    assert found.error_in_few > 0.9
    assert found.ev_median_token == pytest.approx((1 - error / far).median().item())
    # Their share of the mean is small.
    assert found.ev_median_token == pytest.approx(before.ev_median_token, abs=0.02)
    assert abs(found.explained_variance - before.explained_variance) > 0.05


@pytest.fixture(scope="module")
def spliced(model_folder: Path) -> tuple[Any, Any, torch.Tensor]:
    spec = spec_from_dict(tiny_panel(model_folder, seqpos_slice=[4, None]))
    model = load_language_model(spec.model, spec.hook_name, "cpu")
    tokens = torch.randint(3, 20, (12, 32), generator=torch.Generator().manual_seed(0))
    return spec, model, tokens


def test_splicing_in_the_activations_themselves_changes_nothing(spliced: Any):
    spec, model, tokens = spliced
    clean = splice_loss(model, spec, tokens, None)
    assert splice_loss(model, spec, tokens, lambda x: x) == pytest.approx(clean, rel=1e-6)
    reference = model(tokens, return_type="loss")
    assert clean == pytest.approx(float(reference), rel=1e-5)


def test_shared_passes_measure_the_same_bit_for_bit(spliced: Any):
    spec, model, tokens = spliced
    replacements = [None, torch.zeros_like, lambda x: 0.5 * x, lambda x: x.relu()]
    alone = [splice_loss(model, spec, tokens, new) for new in replacements]
    memory = Memory()
    for _ in range(2):
        with sharing(model, spec.hook_name, memory):
            assert [splice_loss(model, spec, tokens, new) for new in replacements] == alone
    assert memory.hits


@pytest.mark.parametrize("read", ["blocks.1.ln2.hook_normalized", "blocks.0.hook_resid_post"])
def test_shared_passes_measure_transcoders_the_same(model_folder: Path, read: str):
    """Also where they read in another block, and the replaced passes are none of the shared."""
    hooks = {"hook_name": read, "hook_name_out": "blocks.1.hook_mlp_out"}
    base = {"architecture": "transcoder_topk", "members": ["trained"], "dead_feature_window": 9}
    spec = spec_from_dict(tiny_panel(model_folder, **hooks, **base))
    model = load_language_model(spec.model, spec.hook_name, "cpu")
    tokens = torch.randint(3, 20, (12, 32), generator=torch.Generator().manual_seed(0))
    weights = torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(1)) / 8
    replacements = [lambda x: x @ weights, lambda x: x.relu() @ weights]
    alone = [loss_and_divergence(model, spec, tokens, new) for new in replacements]
    clean = splice_loss(model, spec, tokens, None)
    memory = Memory()
    with sharing(model, spec.hook_written, memory):
        assert splice_loss(model, spec, tokens, None) == clean
        known = memory.hits
        assert [loss_and_divergence(model, spec, tokens, new) for new in replacements] == alone
    # Of each replacement and batch: the model's own logits, and what enters the block of both.
    batches = -(-len(tokens) // spec.store_batch_size_prompts)
    shared = 2 if read.startswith("blocks.1") else 1
    assert memory.hits - known >= shared * len(replacements) * batches


def test_a_large_vocabulary_is_read_some_contexts_at_a_time(
    spliced: Any, monkeypatch: pytest.MonkeyPatch
):
    spec, model, tokens = spliced
    half = lambda x: 0.5 * x  # noqa: E731
    whole = loss_and_divergence(model, spec, tokens, half)
    asked: list[int] = []
    run = model.run_with_hooks
    monkeypatch.setattr(
        model,
        "run_with_hooks",
        lambda batch, **o: (asked.append(len(batch)), run(batch, **o))[1],
    )
    monkeypatch.setattr(measure, "_LOGITS", 3 * 32 * model.cfg.d_vocab)
    assert loss_and_divergence(model, spec, tokens, half) == pytest.approx(whole, rel=1e-6)
    assert max(asked) == 3
    assert sum(asked) == 2 * len(tokens)


def test_only_trained_positions_are_spliced(spliced: Any):
    spec, model, tokens = spliced
    seen: list[int] = []
    splice_loss(model, spec, tokens, lambda x: (seen.append(len(x)), x)[1])
    assert sum(seen) == 12 * (32 - 4)


def test_special_tokens_are_not_spliced(model_folder: Path):
    spec = spec_from_dict(tiny_panel(model_folder, exclude_special_tokens=True))
    model = load_language_model(spec.model, spec.hook_name, "cpu")
    tokens = torch.randint(3, 20, (4, 32), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0  # bos
    tokens[1, 5:8] = 1  # eos
    seen: list[int] = []
    splice_loss(model, spec, tokens, lambda x: (seen.append(len(x)), x)[1])
    assert sum(seen) == 4 * 31 - 3


def test_zeroing_costs_loss_and_no_tokens_means_no_losses(spliced: Any):
    spec, model, tokens = spliced
    empty = torch.zeros(0, 4)
    losses = base_losses(model, spec, HeldOut(empty, empty, tokens))
    assert losses is not None
    assert losses.zero != pytest.approx(losses.clean, rel=1e-3)
    assert base_losses(model, spec, HeldOut(empty, empty, tokens[:0])) is None
