"""What ``save_inference_model`` writes is stock SAELens, and says what it came from."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.topk_sae import act_times_W_dec
from safetensors.torch import load_file, save_file

from sae_baselines.baselines import save_covariance
from tests.helpers import (
    BASES,
    CONSTRAINTS,
    AnySAE,
    activations,
    by_stock_saelens,
    make_sae,
    train,
)
from tests.sparse_or_dense import sparse_first

STOCK_NAME = {
    "standard": "standard",
    "topk": "topk",
    "batchtopk": "jumprelu",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "matryoshka_batchtopk": "jumprelu",
    "abstopk": "abstopk",
}
STOCK_KEYS = {
    "standard": {"W_dec", "W_enc", "b_dec", "b_enc"},
    "topk": {"W_dec", "W_enc", "b_dec", "b_enc"},
    "abstopk": {"W_dec", "W_enc", "b_dec", "b_enc"},
    "jumprelu": {"W_dec", "W_enc", "b_dec", "b_enc", "threshold"},
    "gated": {"W_dec", "W_enc", "b_dec", "b_gate", "b_mag", "r_mag"},
}

# Runs where this package cannot be imported.


@dataclass
class Expected:
    """What the training SAE computes one sample at a time, and for which samples to compare."""

    acts: torch.Tensor
    out: torch.Tensor
    clear: torch.Tensor


@torch.no_grad()
def in_eval_mode(sae: AnySAE, x: torch.Tensor) -> Expected:
    """The BatchTopK family selects over a batch while it trains; on its own, a sample is cut
    off at the learned threshold. Folding the decoder norms into the encoder rounds, so
    samples with a pre-activation within that rounding of the threshold are left out."""
    sae.eval()
    if "topk_threshold" not in sae.state_dict():
        acts = sae.encode(x)
        return Expected(acts, sae.decode(acts), torch.ones(len(x), dtype=torch.bool))
    _, hidden_pre = sae.encode_with_hidden_pre(x)
    distance = hidden_pre - sae.get_buffer("topk_threshold")
    acts = hidden_pre * (distance > 0)
    out = act_times_W_dec(acts, sae.W_dec, sae.cfg.rescale_acts_by_decoder_norm) + sae.b_dec
    return Expected(acts, out, (distance.abs() > 1e-6).all(dim=1))


def exports() -> Iterator[tuple[str, AnySAE]]:
    """Every constraint on every base, and some with other options, all trained a little."""
    quick = {"topk_threshold_lr": 0.3}
    for constraint in CONSTRAINTS:
        for base in BASES:
            options = quick if "batchtopk" in base else {}
            yield f"{constraint}_{base}", make_sae(f"{constraint}_{base}", **options)
    scaled = {"normalize_activations": "expected_average_only_in"}
    yield "scaled topk", make_sae("soft_frozen_decoder_topk", **scaled)
    yield "scaled batchtopk", make_sae("frozen_encoder_batchtopk", **scaled, **quick)
    yield "scaled gated", make_sae("frozen_decoder_gated", **scaled)
    whitened = {"normalize_activations": "covariance_whitening"}
    yield "whitened jumprelu", make_sae("frozen_decoder_jumprelu", **whitened)
    yield "whitened topk", make_sae("frozen_encoder_topk", **whitened)
    layer_norm = {"normalize_activations": "layer_norm"}
    yield "layer norm standard", make_sae("soft_frozen_decoder_standard", **layer_norm)
    yield "no bias at the input", make_sae("frozen_decoder_topk", apply_b_dec_to_input=False)
    yield "steered", make_sae("frozen_encoder_standard", target_l0=4.0)
    yield "cov", make_sae("soft_frozen_decoder_jumprelu", init_scheme="cov")


@sparse_first
def test_stock_saelens_without_this_package_computes_the_same(tmp_path: Path) -> None:
    x = activations(256, seed=50)
    wanted: dict[str, Expected] = {}
    for name, sae in exports():
        train(sae, 12, lr=3e-2)
        sae.save_inference_model(tmp_path / name)
        wanted[name] = in_eval_mode(sae, x)

    results = by_stock_saelens(tmp_path, x)
    assert len(results) == 3 * len(wanted) == 3 * (3 * 7 + 9)
    wrong = {}
    for name, expected in wanted.items():
        clear = expected.clear
        assert clear.sum() >= 250, name
        assert (expected.acts != 0).any(), name
        for key, tensor in (
            ("acts", expected.acts),
            ("out", expected.out),
            ("forward", expected.out),
        ):
            error = (results[f"{name}/{key}"] - tensor)[clear].abs().max()
            if error > 1e-5 * tensor.abs().max():
                wrong[f"{name}/{key}"] = float(error)
        selected = results[f"{name}/acts"][clear] != 0
        if not torch.equal(selected, expected.acts[clear] != 0):
            wrong[f"{name}/selection"] = int(selected.sum())
    assert wrong == {}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("constraint", [*CONSTRAINTS, "seeded"])
def test_the_config_is_stock_and_says_where_it_came_from(
    tmp_path: Path, constraint: str, base: str
) -> None:
    options: dict[str, Any] = {"init_seed": 11}
    if constraint == "soft_frozen_decoder":
        options["tau"] = 0.65
    name = f"{constraint}_{base}"
    sae = make_sae(name, **options)
    train(sae, 2)
    sae.save_inference_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == STOCK_NAME[base]
    assert set(load_file(tmp_path / "sae_weights.safetensors")) == STOCK_KEYS[STOCK_NAME[base]]
    # Nothing in it that the stock class would not know.
    assert not {"tau", "init_seed", "init_scheme", "target_l0"} & config.keys()

    bare = base == "batchtopk" and constraint in CONSTRAINTS
    assert config["metadata"]["training_architecture"] == (constraint if bare else name)
    details = config["metadata"]["training_architecture_details"]
    expected = {"constraint": constraint, "base_architecture": base, "init_scheme": "iso"}
    assert {key: details[key] for key in expected} == expected
    assert details["init_seed"] == 11
    assert details.get("tau") == options.get("tau")
    # What SAELens itself records stays.
    assert details["decoder_init_norm"] == 1.0
    for key in ("l1_coefficient", "l0_coefficient", "aux_loss_coefficient"):
        if hasattr(sae.cfg, key):
            assert details[key] == getattr(sae.cfg, key)


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from strings_in(key)
            yield from strings_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_in(item)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("field", ["init_covariance_path", "init_activations_path"])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_no_path_of_this_machine_is_written(
    tmp_path: Path, constraint: str, field: str
) -> None:
    x = activations(200)
    private = tmp_path / "private folder"
    private.mkdir()
    if field == "init_covariance_path":
        path = save_covariance(torch.cov(x.double().T), private / "cov.safetensors")
    else:
        path = private / "acts.safetensors"
        save_file({"activations": x}, path)
    sae = make_sae(f"{constraint}_topk", init_scheme="cov", **{field: str(path)})
    sae.save_inference_model(tmp_path / "export")
    text = (tmp_path / "export" / "cfg.json").read_text()
    for string in strings_in(json.loads(text)):
        assert "/" not in string, string
        assert "private folder" not in string, string
    details = json.loads(text)["metadata"]["training_architecture_details"]
    assert details[field] == path.name
    assert details["init_scheme"] == "cov"
    # The SAE itself can still find its file, to be built again.
    assert getattr(sae.cfg, field) == str(path)


def test_a_path_of_another_system_is_cut_to_its_name_too() -> None:
    sae = make_sae("frozen_decoder_topk")
    sae.cfg.init_covariance_path = r"C:\Users\somebody\cov.npy"
    details = sae.cfg.get_training_architecture_details()
    assert details["init_covariance_path"] == "cov.npy"


def test_exporting_does_not_change_the_sae(tmp_path: Path) -> None:
    for name in ("frozen_decoder", "soft_frozen_decoder", "frozen_encoder_jumprelu"):
        sae = make_sae(name)
        train(sae, 5)
        before = {key: tensor.clone() for key, tensor in sae.state_dict().items()}
        sae.save_inference_model(tmp_path / name)
        after = sae.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
