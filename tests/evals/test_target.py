"""Where an SAE comes from, and how it is handed to SAEBench."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE

from sae_baselines.errors import UserError
from sae_baselines.evals import target as targets
from sae_baselines.evals.target import constraint_of, facts_of, prepare, target_of
from tests.evals.tiny_hub import D_MODEL, tiny_sae


def test_every_load_is_a_fresh_copy() -> None:
    sae = tiny_sae()
    target = target_of("mine", sae)
    first = target.load()
    with torch.no_grad():
        first.W_dec.zero_()
    assert torch.equal(target.load().W_dec, sae.W_dec)
    assert not torch.equal(target.load().W_dec, first.W_dec)


def test_hash_is_of_weights_and_config() -> None:
    one = target_of("a", tiny_sae()).weights
    assert target_of("b", tiny_sae()).weights == one
    assert target_of("a", tiny_sae(seed=1)).weights != one
    other = tiny_sae()
    other.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    assert target_of("a", other).weights != one


def test_a_release_is_loaded_by_saelens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def from_pretrained(release: str, sae_id: str, device: str) -> SAE[Any]:
        asked.append((release, sae_id, device))
        return tiny_sae()

    monkeypatch.setattr(targets.SAE, "from_pretrained", from_pretrained)
    found = target_of("pub", "gpt2-small-res-jb:blocks.8.hook_resid_pre")
    assert asked == [("gpt2-small-res-jb", "blocks.8.hook_resid_pre", "cpu")]
    assert torch.equal(found.load().W_dec, tiny_sae().W_dec)


def test_an_unknown_release_is_one_line() -> None:
    with pytest.raises(UserError, match="'nobody' is no release that SAELens knows") as raised:
        target_of("x", "nobody:nothing")
    assert "\n" not in str(raised.value)


def test_a_folder_without_an_sae(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(UserError, match="is not an SAE"):
        target_of("x", tmp_path)


def test_facts_come_from_metadata() -> None:
    sae = tiny_sae()
    assert facts_of("x", sae).constraint == "unknown"
    assert math.isnan(facts_of("x", sae).l0)
    sae.cfg.metadata.sae_baselines = {
        "panel": "jumprelu_l0_8_seed_1",
        "member": "frozen_decoder_cov",
        "architecture": "frozen_decoder_jumprelu",
        "base_architecture": "jumprelu",
        "l0_target": 8.0,
        "init_seed": 1,
    }
    facts = facts_of("x", sae)
    assert facts.constraint == "frozen_decoder"
    # Its own name is the one it was given here.
    assert (facts.panel, facts.member) == ("jumprelu_l0_8_seed_1", "x")
    assert (facts.architecture, facts.l0, facts.seed) == ("jumprelu", 8.0, 1)


@pytest.mark.parametrize(
    ("architecture", "constraint"),
    [
        ("soft_frozen_decoder", "soft_frozen_decoder"),
        ("frozen_decoder_topk", "frozen_decoder"),
        ("frozen_encoder_gated", "frozen_encoder"),
        ("seeded_batchtopk", "trained"),
        ("sparse_batchtopk", "trained"),
        ("batchtopk", "unknown"),
        ("sparse_of_somebody_else", "unknown"),
    ],
)
def test_constraint_of(architecture: str, constraint: str) -> None:
    assert constraint_of(architecture) == constraint


@pytest.mark.parametrize("architecture", ["jumprelu", "standard"])
def test_norms_are_folded_without_changing_the_sae(architecture: str) -> None:
    sae = tiny_sae(architecture=architecture)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(sae.cfg.d_sae, 1) + 0.5)
    x = torch.randn(20, D_MODEL)
    expected = sae(x)
    prepared, note = prepare(target_of("x", sae).load(), "cpu", fold=True)
    assert note is None
    assert torch.allclose(prepared.W_dec.norm(dim=-1), torch.ones(sae.cfg.d_sae))
    assert torch.allclose(prepared(x), expected, atol=1e-5)
    kept, _ = prepare(target_of("x", sae).load(), "cpu", fold=False)
    assert torch.equal(kept.W_dec, sae.W_dec)


def test_norms_that_cannot_be_folded_are_said() -> None:
    sae = tiny_sae(architecture="topk")
    with torch.no_grad():
        sae.W_dec.mul_(2)
    prepared, note = prepare(target_of("x", sae).load(), "cpu", fold=True)
    assert note is not None
    assert "cannot fold" in note
    assert torch.equal(prepared.W_dec, sae.W_dec)
    sae = tiny_sae(architecture="topk")
    assert prepare(sae, "cpu", fold=True)[1] is None
