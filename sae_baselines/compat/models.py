"""What is patched of TransformerLens to load a model from a folder.

tests/compat/test_models.py has a contract per name, whose failure says what moved.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformer_lens import loading_from_pretrained
from transformer_lens.components.abstract_attention import AbstractAttention


@contextmanager
def official_name(name: str) -> Iterator[None]:
    """TransformerLens takes only names on its list; put one there for a while."""
    known: list[str] = vars(loading_from_pretrained)["OFFICIAL_MODEL_NAMES"]
    known.append(name)
    try:
        yield
    finally:
        known.remove(name)


@contextmanager
def as_class(instance: Any, other: type) -> Iterator[None]:
    """While open, an object is of another class."""
    before = type(instance)
    instance.__class__ = other
    try:
        yield
    finally:
        instance.__class__ = before


# Positions that a causal mask has at first: more than most texts have.
MASKED_AT_FIRST = 1024


@contextmanager
def growing_masks() -> Iterator[None]:
    """While open, attention is built with a small causal mask, which grows when text is longer.

    TransformerLens gives every layer a mask of its longest context (67 MB for 8,192 positions;
    SmolLM2 has 30 of them) and takes longer to make them than to read the weights. It lengthens
    a mask by itself where a text asks for it, so that no number changes (seen in 3.2.1).
    """
    build, waves = AbstractAttention.__init__, AbstractAttention.calculate_sin_cos_rotary
    grows = hasattr(AbstractAttention, "_extend_mask")
    if not grows or hasattr(build, "grows"):  # open already
        yield
        return
    whole: list[int] = []

    def built(self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
        whole.append(cfg.n_ctx)
        cfg.n_ctx = min(cfg.n_ctx, MASKED_AT_FIRST)
        try:
            build(self, cfg, *args, **kwargs)
        finally:
            cfg.n_ctx = whole.pop()

    # Positions are small, and where they are lengthened a layer's own base is forgotten.
    def all_waves(self: Any, rotary_dim: int, n_ctx: int, *args: Any, **kwargs: Any) -> Any:
        return waves(self, rotary_dim, whole[-1] if whole else n_ctx, *args, **kwargs)

    vars(built)["grows"] = True
    replaced: Any = AbstractAttention
    replaced.__init__, replaced.calculate_sin_cos_rotary = built, all_waves
    try:
        yield
    finally:
        replaced.__init__, replaced.calculate_sin_cos_rotary = build, waves


# What TransformerLens and transformers call the sizes of a model.
_SIZES = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "d_mlp": "intermediate_size",
    "n_heads": "num_attention_heads",
    "d_head": "head_dim",
    "d_vocab": "vocab_size",
}


def known_as(config: Any) -> str | None:
    """The name that TransformerLens wants for a model whose shape it knows by name alone.

    It reads no config of a Gemma: all that it knows of one stands in its code, by name (seen in
    3.2.1: a folder ends in "Gemma3ForCausalLM is not currently supported").

    Args:
        config: Of transformers.

    Returns:
        The first of its Gemmas of that architecture and these sizes; None for other models.
    """
    architecture = (getattr(config, "architectures", None) or [""])[0]
    if not architecture.startswith("Gemma"):
        return None
    for name in vars(loading_from_pretrained)["OFFICIAL_MODEL_NAMES"]:
        if "gemma" not in name.lower():
            continue
        known = loading_from_pretrained.convert_hf_model_config(name)
        same = all(
            known.get(ours) == getattr(config, theirs, None) for ours, theirs in _SIZES.items()
        )
        if same and known["original_architecture"] == architecture:
            return name
    return None


def set_rotary_base(model: Any, config: Any) -> None:
    """Give the model the rotary base of its own config.

    TransformerLens' reading of a local Llama-style folder leaves the base at 10,000 whatever
    the config says (seen in 3.2.1: logits of SmolLM2, base 100,000, off by up to 4).
    """
    cfg: Any = model.cfg
    parameters = getattr(config, "rope_parameters", None) or {}
    base = getattr(config, "rope_theta", None) or parameters.get("rope_theta")
    if cfg.positional_embedding_type != "rotary" or not base or base == cfg.rotary_base:
        return
    cfg.rotary_base = base
    for block in model.blocks:
        attn: Any = block.attn
        sin, cos = attn.calculate_sin_cos_rotary(
            cfg.rotary_dim, cfg.n_ctx, base=base, dtype=cfg.dtype
        )
        attn.rotary_sin.copy_(sin)
        attn.rotary_cos.copy_(cos)
