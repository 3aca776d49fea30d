"""What this package takes for granted of TransformerLens' loading."""

import inspect
from typing import Any

import pytest
from transformer_lens import loading_from_pretrained
from transformer_lens.components.abstract_attention import AbstractAttention
from transformers import Gemma3TextConfig, LlamaConfig

from sae_baselines.compat.models import as_class, known_as, official_name


def _names() -> list[str]:
    names = getattr(loading_from_pretrained, "OFFICIAL_MODEL_NAMES", None)
    assert isinstance(names, list), (
        "transformer_lens.loading_from_pretrained.OFFICIAL_MODEL_NAMES is no list any more: "
        "local folders cannot be loaded under a name of their own"
    )
    return names


def test_a_class_is_given_back_whatever_happens() -> None:
    class Other:
        pass

    class Another(Other):
        pass

    instance = Other()

    def interrupted() -> None:
        with as_class(instance, Another):
            assert isinstance(instance, Another)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert type(instance) is Other


def test_a_name_is_on_the_list_for_a_while_whatever_happens() -> None:
    before = list(_names())

    def fail() -> None:
        with official_name("a/name"):
            assert "a/name" in _names()
            assert loading_from_pretrained.get_official_model_name("a/name") == "a/name"
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert _names() == before


def test_sines_and_cosines_of_rotary_positions_are_made_from_a_base() -> None:
    method = getattr(AbstractAttention, "calculate_sin_cos_rotary", None)
    assert method is not None, "AbstractAttention.calculate_sin_cos_rotary moved"
    assert list(inspect.signature(method).parameters)[1:] == [
        "rotary_dim",
        "n_ctx",
        "base",
        "dtype",
    ], "AbstractAttention.calculate_sin_cos_rotary takes something else"


def test_a_gemma_is_known_by_its_sizes() -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 640,
        "num_hidden_layers": 18,
        "intermediate_size": 2048,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 262_144,
    }
    config = Gemma3TextConfig(**sizes, architectures=["Gemma3ForCausalLM"])
    name = "google/gemma-3-270m"
    assert known_as(config) == name, "transformer_lens calls gemma-3-270m otherwise now"
    known = loading_from_pretrained.convert_hf_model_config(name)
    assert known["original_architecture"] == "Gemma3ForCausalLM"
    other = Gemma3TextConfig(
        **{**sizes, "hidden_size": 64}, architectures=["Gemma3ForCausalLM"]
    )
    assert known_as(other) is None
    assert known_as(LlamaConfig(**sizes, architectures=["LlamaForCausalLM"])) is None
