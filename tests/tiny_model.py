"""A language model small enough to train in tests, saved as an ordinary local folder."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

D_MODEL = 32
HOOK = "blocks.1.hook_resid_post"
_TEXT = "the a cat dog sat ran on under mat tree and then it saw red blue old new one two"
_WORDS = _TEXT.split()

# Fields of a panel that make it quick.
QUICK: dict[str, Any] = {
    "context_size": 32,
    "store_batch_size_prompts": 16,
    "n_batches_in_buffer": 32,
    "n_batches_for_norm_estimate": 2,
    "train_batch_size_tokens": 128,
    "lr": 3e-3,
    "calibration_tokens": 1024,
    "eval_tokens": 1024,
    "held_out_spread": 1,
    "ce_tokens": 256,
    "n_checkpoints": 3,
    "device": "cpu",
}


def save_tiny_model(folder: Path, rope_theta: float = 10_000.0) -> Path:
    """A random three-layer Llama over a vocabulary of words; deterministic."""
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2}
    for word in _WORDS:
        vocabulary[word] = len(vocabulary)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        model_max_length=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(vocabulary),
                hidden_size=D_MODEL,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=64,
                bos_token_id=0,
                eos_token_id=1,
                tie_word_embeddings=False,
                rope_theta=rope_theta,
                initializer_range=0.3,
                architectures=["LlamaForCausalLM"],
            )
        )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def tiny_text(documents: int = 400, words: int = 60) -> Dataset:
    """Random word salad with some structure; deterministic."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(documents):
        ids = torch.randint(len(_WORDS), (words,), generator=generator).tolist()
        rows.append(" ".join(_WORDS[i] for i in ids))
    return Dataset.from_dict({"text": rows})


def tiny_panel(model: Path, dataset: str = "in memory", **overrides: Any) -> dict[str, Any]:
    """A panel on the tiny model that trains in about a second."""
    panel = {
        "name": "tiny",
        "model": {"name": str(model)},
        "hook_name": HOOK,
        "dataset": {"path": dataset},
        "architecture": "batchtopk",
        "expansion": 4,
        "l0": 6,
        "training_tokens": 128 * 40,
        **QUICK,
    }
    return {**panel, **overrides}
