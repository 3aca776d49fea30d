"""The hooked model is the model in the folder, or nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens import loading_from_pretrained
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

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


def test_a_gemma_in_a_folder_is_loaded_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As gemma-3-270m, six layers deep: five with a window, one without."""
    folder = save_tiny_model(tmp_path / "tiny", 10_000.0)
    n_vocab = AutoModelForCausalLM.from_pretrained(folder).config.vocab_size
    config = Gemma3TextConfig(
        hidden_size=32,
        num_hidden_layers=6,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        vocab_size=n_vocab,
        sliding_window=8,
    )
    torch.manual_seed(0)
    Gemma3ForCausalLM(config).save_pretrained(folder)
    known = dict(loading_from_pretrained.convert_hf_model_config("google/gemma-3-270m"))
    known |= {"d_model": 32, "n_layers": 6, "d_mlp": 48, "d_head": 16, "n_ctx": 64}
    known |= {"d_vocab": n_vocab, "window_size": 8, "attn_types": known["attn_types"][:6]}
    monkeypatch.setattr(
        loading_from_pretrained, "convert_hf_model_config", lambda *_, **__: dict(known)
    )
    hook = "blocks.5.hook_resid_post"
    model = load_language_model(ModelSpec(name=str(folder)), hook, "cpu")
    reference = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.arange(24)[None] % 20
    with torch.no_grad():
        # The last of transformers' hidden states is behind the final norm.
        seen: list[torch.Tensor] = []
        reference.model.layers[5].register_forward_hook(
            lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        expected = reference(tokens).logits
        logits, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cache[hook], seen[0], atol=1e-4, rtol=1e-4)


def test_a_model_that_predicts_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = save_tiny_model(tmp_path / "tiny", rope_theta=100.0)
    monkeypatch.setattr(language_model, "set_rotary_base", lambda *_: None)
    with pytest.raises(UserError, match="predicts otherwise than transformers'"):
        load_language_model(ModelSpec(name=str(folder)), HOOK, "cpu")


@pytest.mark.parametrize("emulated", [False, True])
def test_a_dtype_without_instructions_is_said_once(
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    emulated: bool,
):
    monkeypatch.setattr(language_model, "emulates", lambda *_: emulated)
    language_model.say_if_emulated.cache_clear()
    spec = ModelSpec(name=str(model_folder), dtype="bfloat16")
    for _ in range(2):
        load_language_model(spec, HOOK, "cpu")
    language_model.say_if_emulated.cache_clear()
    said = [r.getMessage() for r in caplog.records if "instructions" in r.getMessage()]
    assert len(said) == emulated
    assert all("cpu" in s and "bfloat16" in s and "use float32" in s for s in said)


def test_a_hook_that_does_not_exist_names_near_ones(model_folder: Path):
    with pytest.raises(UserError, match=r"hook_name: .*did you mean blocks"):
        load_language_model(ModelSpec(name=str(model_folder)), "blocks.1.resid_post", "cpu")
    spec = ModelSpec(name=str(model_folder), loader="AutoModelForCausalLM")
    with pytest.raises(UserError, match=r"hook_name: 'model.layers.9' is not a module"):
        load_language_model(spec, "model.layers.9", "cpu")


def test_a_model_that_does_not_exist_is_named():
    with pytest.raises(UserError, match=r"model.name: cannot load 'no-such-model'"):
        load_language_model(ModelSpec(name="no-such-model"), HOOK, "cpu")


def _edit(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("loader", ["HookedTransformer", "AutoModelForCausalLM"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda m: (m / "config.json").write_text("[]"),
            "config.json is damaged .no mapping",
        ),
        (lambda m: (m / "config.json").unlink(), "has no config.json"),
        (lambda m: _cut(m / "model.safetensors"), "model.safetensors is damaged .* bytes long"),
        (lambda m: (m / "model.safetensors").write_bytes(b""), "safetensors is damaged .*cut"),
        (lambda m: (m / "model.safetensors").unlink(), "Error no file named"),
        (lambda m: (m / "tokenizer.json").write_text("{"), "tokenizer.json is damaged"),
        (lambda m: (m / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda m: _edit(m, hidden_size=48), "config.json does not fit its weights"),
        (lambda m: _edit(m, num_hidden_layers=5), "lack 18 tensors that its config.json asks"),
        (lambda m: _edit(m, num_attention_heads=0), "is its config.json whole"),
        (lambda m: _edit(m, hidden_size="x"), "is its config.json whole"),
    ],
)
def test_a_damaged_folder_says_which_file(
    model_folder: Path, tmp_path: Path, loader: Any, damage: Any, message: str
):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    damage(folder)
    hook = HOOK if loader == "HookedTransformer" else "model.layers.1"
    with pytest.raises(UserError, match=message) as caught:
        load_language_model(ModelSpec(name=str(folder), loader=loader), hook, "cpu")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("model.name: ")


def test_a_shard_that_is_missing_is_named(model_folder: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model-00001-of-00002.safetensors is missing"):
        load_language_model(ModelSpec(name=str(folder)), HOOK, "cpu")


def test_a_gpt2_without_n_ctx_says_what_to_add(model_folder: Path, tmp_path: Path):
    folder = tmp_path / "gpt2"
    config = GPT2Config(vocab_size=23, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(folder)
    for file in model_folder.glob("*token*"):
        shutil.copy(file, folder)
    told = json.loads((folder / "config.json").read_text())
    told.pop("n_ctx", None)
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"config.json has no 'n_ctx'; add it \(the value"):
        load_language_model(ModelSpec(name=str(folder)), HOOK, "cpu")
    _edit(folder, n_ctx=64)
    assert load_language_model(ModelSpec(name=str(folder)), HOOK, "cpu") is not None
