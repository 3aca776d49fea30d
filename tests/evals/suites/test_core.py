"""SAEBench's core suite through the adapter, and the paper's EV beside it."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens import HookedTransformer

from sae_baselines.evals.measured import HIGHER, LOWER, NEITHER
from sae_baselines.evals.store import linked
from sae_baselines.evals.suites.core import PAPER_EV, Core, language_model
from tests.evals.tiny_hub import HOOK, MODEL, copy_of, evaluate_with, suite_call, tiny_sae

OPTIONS = {
    "n_eval_reconstruction_batches": 2,
    "n_eval_sparsity_variance_batches": 3,
    "context_size": 64,
}


def run(sae: Any, folder: Path, **options: Any) -> Any:
    call = suite_call(Core(), folder, {**OPTIONS, **options}, sae=sae, batch=8)
    return evaluate_with(Core(), sae, call)


@pytest.mark.usefixtures("tiny_hub")
def test_rows_are_saebenchs_numbers(tmp_path: Path) -> None:
    payload, _, rows = run(tiny_sae(), tmp_path)
    found = {row.metric: row for row in rows}
    metrics = payload["eval_result_metrics"]
    kept = metrics["model_performance_preservation"]
    assert found["ce_loss_score"].value == kept["ce_loss_score"]
    assert found["ce_loss_score"].direction == HIGHER
    assert found["ce_loss_with_sae"].direction == LOWER
    assert found["ce_loss_without_sae"].direction == NEITHER
    assert found["l0"].value == metrics["sparsity"]["l0"]
    assert found["l0"].n == 3 * 8 * 64
    assert found["ce_loss_score"].n == 2 * 8 * 64
    assert not any(row.task for row in rows)


@pytest.mark.usefixtures("tiny_hub")
def test_papers_ev_is_that_of_an_independent_computation(tmp_path: Path) -> None:
    sae = tiny_sae()
    _, extras, rows = run(sae, tmp_path)
    # The same tokens, drawn the way SAEBench draws them, in float64.
    model = HookedTransformer.from_pretrained_no_processing(MODEL, device="cpu")
    store = ActivationsStore.from_sae(
        model, copy_of(sae), context_size=64, dataset="Skylion007/openwebtext"
    )
    store.shuffle_input_dataset(seed=42)
    batches = [store.get_batch_tokens(8) for _ in range(2)]
    store.reset_input_dataset()
    batches = [store.get_batch_tokens(8) for _ in range(3)]
    tokens = torch.cat(batches)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=[HOOK])
        tokenizer: Any = model.tokenizer
        keep = torch.ones_like(tokens, dtype=torch.bool)
        for token in (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id):
            keep &= tokens != token
        x = cache[HOOK][keep]
        x_hat = sae(x).double()
    x = x.double()
    expected = 1 - (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert extras["n_variance_tokens"] == len(x)
    assert extras[PAPER_EV] == pytest.approx(float(expected), abs=1e-6)
    (row,) = [row for row in rows if row.metric == PAPER_EV]
    assert row.value == extras[PAPER_EV]
    assert row.n == len(x)


@pytest.mark.usefixtures("tiny_hub")
def test_saebenchs_own_ev_is_another_number(tmp_path: Path) -> None:
    """The finding behind the second number: SAEBench's EV counts a constant as variance."""
    sae = tiny_sae()
    payload, extras, _ = run(sae, tmp_path)
    theirs = payload["eval_result_metrics"]["reconstruction_quality"]["explained_variance"]
    assert theirs != pytest.approx(extras[PAPER_EV], abs=0.005)


@pytest.mark.usefixtures("tiny_hub")
def test_the_floor_of_cross_entropy_is_the_score_of_an_sae_that_says_the_mean(
    tmp_path: Path,
) -> None:
    sae, suite = tiny_sae(), Core()
    call = suite_call(suite, tmp_path, OPTIONS, sae=sae, batch=8)
    evaluate_with(suite, sae, call)
    floors = {row.metric: row for row in suite.floors(sae, call)}
    tokens = torch.cat(torch.load(call.cache / "tokens.pt"))
    assert tokens.shape == (2 * 8, 64)
    model = HookedTransformer.from_pretrained_no_processing(MODEL, device="cpu")
    tokenizer: Any = model.tokenizer
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    keep = ~torch.isin(tokens, torch.tensor(special))
    constant = tiny_sae(architecture="standard")
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=[HOOK])
        for weight in constant.parameters():
            weight.zero_()
        constant.b_dec.copy_(cache[HOOK][keep].mean(0))
    payload, _, rows = run(constant, tmp_path / "mean", floors=False)
    own = {row.metric: row.value for row in rows}
    for name in ("ce_loss_score", "kl_div_score"):
        floor = floors[f"{name}_null_mean_ablation"]
        assert floor.value == pytest.approx(own[name], abs=1e-5)
        assert floor.direction == NEITHER
        known = suite.metric(name)
        assert known is not None
        assert known.floors == (floor.metric,)
    assert payload["eval_result_metrics"]["sparsity"]["l0"] == 0
    # Of a result that was made without: from nothing but the SAE.
    other = suite_call(suite, tmp_path / "later", OPTIONS, sae=sae, batch=8)
    assert {r.metric: r.value for r in suite.floors(sae, other)} == {
        name: row.value for name, row in floors.items()
    }


@pytest.mark.usefixtures("tiny_hub")
def test_what_saebench_swallows_is_raised(tmp_path: Path) -> None:
    sae = tiny_sae()
    call = suite_call(
        Core(), tmp_path, {**OPTIONS, "dataset": "nobody/nothing"}, sae=sae, batch=8
    )
    with pytest.raises(RuntimeError, match="nobody/nothing"):
        evaluate_with(Core(), sae, call)


@pytest.mark.usefixtures("tiny_hub")
def test_a_local_dataset_leaves_no_path_in_the_result(tmp_path: Path, tiny_hub: Path) -> None:
    data = tiny_hub / "monology/pile-uncopyrighted/data"
    suite, sae = Core(), tiny_sae()
    call = suite_call(suite, tmp_path, {**OPTIONS, "dataset": str(data)}, sae=sae, batch=8)
    options = linked(call.options, suite.local_data, call.work)
    payload, _, _ = evaluate_with(suite, sae, dataclasses.replace(call, options=options))
    assert payload["eval_config"]["dataset"] == "data_data"
    assert str(tmp_path) not in json.dumps(payload)


def test_minus_one_is_not_a_number() -> None:
    stats = {"total_tokens_eval_reconstruction": 8, "total_tokens_eval_sparsity_variance": 8}
    payload = {
        "eval_result_metrics": {
            "model_behavior_preservation": {"kl_div_score": -1},
            "token_stats": stats,
        }
    }
    (row,) = Core().rows(payload, {})
    assert math.isnan(row.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [("n_eval_reconstruction_batches", 0), ("n_eval_sparsity_variance_batches", "many")],
)
def test_problems_name_the_option(tmp_path: Path, option: str, value: Any) -> None:
    call = suite_call(Core(), tmp_path, {option: value})
    (problem,) = Core().problems(call.subject, call.options)
    assert option in problem
    assert repr(value) in problem


def test_the_language_model_is_the_one_that_the_sae_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}

    def load(name: str, **kwargs: Any) -> Any:
        asked.update(kwargs, name=name)
        return SimpleNamespace(
            tokenizer=SimpleNamespace(pad_token_id=0, eos_token_id=1, bos_token_id=2)
        )

    monkeypatch.setattr(HookedTransformer, "from_pretrained_no_processing", load)
    sae = tiny_sae(0)  # SAEBench has not had it yet
    sae.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
    call: Any = SimpleNamespace(subject=SimpleNamespace(model_name="m", device="cpu"))
    _, ignored = language_model(sae, call)
    assert asked == {
        "name": "m",
        "device": "cpu",
        "dtype": sae.W_enc.dtype,
        "center_writing_weights": True,
    }
    assert ignored == {0, 1, 2}
