"""A language model of any size with random weights, and text for it: for timings alone."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_VOCABULARY = 32_000
_HEAD = 64
_WORDS_A_TEXT = 1_000


def random_language_model(folder: Path, width: int, layers: int, dtype: torch.dtype) -> Path:
    """A Llama with four times its width in its MLPs, and a tokenizer of words.

    Args:
        folder: Where it is written, as a transformers folder.
        width: Dimensions of its residual stream.
        layers: Its blocks.
        dtype: Of the weights on disk.
    """
    words = {f"w{i}": i for i in range(_VOCABULARY - 3)}
    words |= {token: len(words) + i for i, token in enumerate(("<s>", "</s>", "<unk>"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        model_max_length=1024,
    ).save_pretrained(folder)
    heads = max(1, width // _HEAD)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        bos_token_id=words["<s>"],
        eos_token_id=words["</s>"],
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    torch.nn.Module.to(model, dtype)  # its own override loses its types
    model.save_pretrained(folder)
    return folder


def random_text(file: Path, tokens: int) -> Path:
    """Words of that vocabulary, one text a line, as JSON lines."""
    generator = torch.Generator().manual_seed(0)
    with file.open("w", encoding="utf-8") as out:
        for _ in range(-(-tokens // _WORDS_A_TEXT)):
            ids = torch.randint(_VOCABULARY - 3, (_WORDS_A_TEXT,), generator=generator)
            out.write(json.dumps({"text": " ".join(f"w{i}" for i in ids.tolist())}) + "\n")
    return file
