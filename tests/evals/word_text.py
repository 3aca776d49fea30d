"""Texts whose words are numbers of a vocabulary: what suites of contexts read."""

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sae_baselines.study.held_out import HeldOut


def word_tokenizer(n_words: int) -> Any:
    """Token i says "w<i>", with a space before it."""
    words = {f"\u2581w{i}": i for i in range(n_words)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="\u2581w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def held_out_text(halves: Iterable[torch.Tensor]) -> list[HeldOut]:
    """Contexts ``[contexts, tokens]`` of both halves, without activations."""
    none = torch.empty(0, 1)
    return [HeldOut(none, none, ids[:0], ids, torch.arange(ids.numel())) for ids in halves]
