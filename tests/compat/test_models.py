"""What this package takes for granted of TransformerLens' loading."""

import inspect
from typing import Any

import pytest
import torch
from transformer_lens import (
    HookedTransformer,
    HookedTransformerConfig,
    loading_from_pretrained,
)
from transformer_lens.components.abstract_attention import AbstractAttention
from transformers import Gemma3TextConfig, LlamaConfig

from sae_baselines.compat.models import (
    MASKED_AT_FIRST,
    as_class,
    growing_masks,
    known_as,
    official_name,
)


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


def _in_two_ways(positions: str) -> tuple[HookedTransformer, HookedTransformer]:
    """A model that sees everything and, in its second layer, a window; as it is and growing."""

    def built() -> HookedTransformer:
        config = HookedTransformerConfig(
            n_layers=2,
            d_model=16,
            d_head=8,
            n_heads=2,
            n_ctx=MASKED_AT_FIRST + 200,
            d_vocab=50,
            act_fn="gelu",
            attn_types=["global", "local"],
            use_local_attn=True,
            window_size=7,
            positional_embedding_type=positions,
            rotary_dim=8 if positions == "rotary" else None,
            rotary_base_local=100 if positions == "rotary" else None,
            seed=0,
        )
        return HookedTransformer(config)

    with growing_masks(), growing_masks():  # a suite's loader and this package's
        growing = built()
    return built(), growing


@pytest.mark.parametrize("positions", ["rotary", "standard"])
def test_a_mask_that_grows_changes_no_number(positions: str) -> None:
    assert hasattr(AbstractAttention, "_extend_mask"), (
        "AbstractAttention._extend_mask moved: models are built with whole masks again"
    )
    stock: Any
    growing: Any
    stock, growing = _in_two_ways(positions)
    assert growing.cfg.n_ctx == stock.cfg.n_ctx
    masks = [block.attn.mask for block in growing.blocks]
    assert [len(mask) for mask in masks] == [MASKED_AT_FIRST] * 2
    assert [len(block.attn.mask) for block in stock.blocks] == [stock.cfg.n_ctx] * 2
    for one, other in zip(growing.blocks, stock.blocks, strict=True):
        for name, buffer in other.attn.named_buffers(recurse=False):
            assert name == "mask" or torch.equal(getattr(one.attn, name), buffer)
    generator = torch.Generator().manual_seed(1)
    for length in (20, MASKED_AT_FIRST, MASKED_AT_FIRST + 150, 30):
        tokens = torch.randint(50, (1, length), generator=generator)
        padded = torch.ones(1, length, dtype=torch.int64)
        padded[:, :5] = 0
        assert torch.equal(growing(tokens), stock(tokens))
        assert torch.equal(
            growing(tokens, attention_mask=padded), stock(tokens, attention_mask=padded)
        )
    assert len(growing.blocks[0].attn.mask) == MASKED_AT_FIRST + 150


def test_a_mask_grows_while_text_is_generated() -> None:
    start = torch.randint(50, (1, MASKED_AT_FIRST - 2), generator=torch.Generator())
    said: list[Any] = [
        model.generate(start, max_new_tokens=6, do_sample=False, verbose=False, eos_token_id=-1)
        for model in _in_two_ways("rotary")
    ]
    assert torch.equal(said[0], said[1])


def test_attention_is_built_as_before_after_a_failure() -> None:
    before = (AbstractAttention.__init__, AbstractAttention.calculate_sin_cos_rotary)

    def fail() -> None:
        with growing_masks():
            assert AbstractAttention.__init__ is not before[0]
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert (AbstractAttention.__init__, AbstractAttention.calculate_sin_cos_rotary) == before


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
