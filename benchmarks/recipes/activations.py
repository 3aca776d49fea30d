"""Activations of one layer on Wikipedia, for search.py: documents of each part are others.

    python benchmarks/recipes/activations.py --out activations/smollm2 --layer 9
    python benchmarks/recipes/activations.py --model google/gemma-3-270m --layer 9 --bos \\
        --out activations/gemma

Writes train.npy, dev.npy and test.npy, ``[n, d_in]`` float32 (some tokens of gemma are beyond
float16; its BOS is left out). Without --model it is the demo's SmolLM2-135M-Instruct. 428,400
tokens take 10 to 15 minutes on two cores.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from searches import contexts

from sae_baselines.compat.arithmetic import emulates
from sae_baselines.paper.demo.assets import prepare_model, prepare_text
from sae_baselines.progress import progress

# The first positions of SmolLM2 have enormous norms.
SKIPPED = 2
BATCH = 16
# Documents and contexts of each part; held-out contexts are every eighth of more documents.
HELD_OUT_DOCUMENTS = 400
CONTEXTS = {"dev": 384, "test": 384, "train": 3400}
SPREAD = 8


def parts_of(texts: list[str], tokenizer: Any, bos: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Contexts of each part, ``[n, CONTEXT]``; those to train on in random order."""
    rng = np.random.default_rng(0)
    order, first = rng.permutation(len(texts)), 0
    for part, n in CONTEXTS.items():
        last = len(texts) if part == "train" else first + HELD_OUT_DOCUMENTS
        step = 1 if part == "train" else SPREAD
        chosen = []
        for i, ids in enumerate(
            contexts((texts[j] for j in order[first:last]), tokenizer, bos)
        ):
            if i % step == 0:
                chosen.append(ids)
            if len(chosen) == n:
                break
        found = np.array(chosen)
        yield part, found[rng.permutation(n)] if part == "train" else found
        first = last


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layer", type=int, required=True, help="whose output is taken")
    parser.add_argument("--model", help="Hub name or local folder")
    parser.add_argument("--bos", action="store_true", help="begin contexts with BOS")
    args = parser.parse_args()
    name = args.model or str(prepare_model())
    tokenizer = AutoTokenizer.from_pretrained(name)
    dtype = torch.float32 if emulates(torch.bfloat16, "cpu") else torch.bfloat16
    model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).eval()
    model.model.layers = model.model.layers[: args.layer + 1]
    (file,) = Path(prepare_text()).glob("*.parquet")
    texts = pq.read_table(file)["text"].to_pylist()
    seen: list[torch.Tensor] = []
    model.model.layers[-1].register_forward_hook(
        lambda _module, _inputs, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    args.out.mkdir(parents=True, exist_ok=True)
    for part, ids in parts_of(texts, tokenizer, args.bos):
        rows = []
        for first in progress(range(0, len(ids), BATCH), desc=part, unit="batch"):
            seen.clear()
            tokens = torch.tensor(ids[first : first + BATCH])
            with torch.no_grad():
                model.model(tokens, use_cache=False)
            kept = seen[0][:, SKIPPED:].float()
            if args.bos:  # between documents: 14 times the norm of other tokens in a Gemma
                kept = kept[tokens[:, SKIPPED:] != tokenizer.bos_token_id]
            rows.append(kept.reshape(-1, kept.shape[-1]).numpy().astype(np.float32))
        np.save(args.out / f"{part}.npy", np.concatenate(rows))


if __name__ == "__main__":
    main()
