"""The hooked model is the model in the folder, or nothing."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sae_baselines.errors import UserError
from sae_baselines.study import language_model
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.spec import ModelSpec
from tests.tiny_model import HOOK, save_tiny_model


@pytest.mark.parametrize("rope_theta", [10_000.0, 100_000.0])
def test_a_local_folder_gives_transformers_logits_and_residual_stream(
    tmp_path: Path, rope_theta: float
):
    folder = save_tiny_model(tmp_path / "tiny-llama", rope_theta)
    model = load_language_model(ModelSpec(name=str(folder)), HOOK, "cpu")
    reference = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.arange(24)[None] % 20
    with torch.no_grad():
        expected = reference(tokens, output_hidden_states=True)
        logits, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cache[HOOK], expected.hidden_states[2], atol=1e-4, rtol=1e-4)


def test_a_model_that_predicts_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = save_tiny_model(tmp_path / "tiny", rope_theta=100.0)
    monkeypatch.setattr(language_model, "set_rotary_base", lambda *_: None)
    with pytest.raises(UserError, match="predicts otherwise than transformers'"):
        load_language_model(ModelSpec(name=str(folder)), HOOK, "cpu")


def test_a_hook_that_does_not_exist_names_near_ones(model_folder: Path):
    with pytest.raises(UserError, match=r"hook_name: .*did you mean blocks"):
        load_language_model(ModelSpec(name=str(model_folder)), "blocks.1.resid_post", "cpu")
    spec = ModelSpec(name=str(model_folder), loader="AutoModelForCausalLM")
    with pytest.raises(UserError, match=r"hook_name: 'model.layers.9' is not a module"):
        load_language_model(spec, "model.layers.9", "cpu")


def test_a_model_that_does_not_exist_is_named():
    with pytest.raises(UserError, match=r"model.name: cannot load 'no-such-model'"):
        load_language_model(ModelSpec(name="no-such-model"), HOOK, "cpu")
