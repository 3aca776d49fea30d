"""Whether `random_seed` of absorption makes two runs alike.

SAEBench's absorption on a tiny random model and SAE, all 26 letters taken, run again and again:
in processes' two states of random numbers, and with the language model's probe still to train
or already there. Exits with 1 where results differ.
"""

import os
import random
import string
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sae_bench.evals.absorption import main as absorption
from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig
from sae_lens import SAE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

D = 16


def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Words of every letter, and those of the prompt.

    It is saved, since TransformerLens loads it anew.
    """
    words = [f"{a}{b}{c}" for a in string.ascii_lowercase for b in "aeiou" for c in "nrst"]
    words += [*("has", "the", "first", "letter", ":"), *string.ascii_uppercase]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<unk>", "<s>", *words]))}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.decoder = decoders.WordPiece()
    special = {f"{name}_token": "<s>" for name in ("bos", "eos", "pad")}
    PreTrainedTokenizerFast(tokenizer_object=fast, **special).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def model(words: PreTrainedTokenizerFast) -> HookedTransformer:
    """A random transformer of one layer."""
    sizes: Any = {"n_layers": 1, "d_model": D, "n_ctx": 128, "d_head": 8, "n_heads": 2}
    config = HookedTransformerConfig(
        **sizes, d_vocab=len(words), act_fn="gelu", seed=0, model_name="tiny", device="cpu"
    )
    return HookedTransformer(config, tokenizer=words)


def some_sae() -> Any:
    """A random SAE."""
    torch.manual_seed(0)
    metadata = {"hook_name": "blocks.0.hook_resid_post", "model_name": "tiny"}
    fields = {"architecture": "topk", "d_in": D, "d_sae": 48, "k": 6, "device": "cpu"}
    sae = SAE.from_dict({**fields, "dtype": "float32", "metadata": metadata})
    directions = torch.nn.functional.normalize(torch.randn(48, D), dim=-1)
    with torch.no_grad():
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
    return sae


def result(words: PreTrainedTokenizerFast, folder: Path, state: int, again: bool) -> Any:
    """What SAEBench finds, from one state of the random numbers."""
    (folder / "results").mkdir(parents=True)
    os.chdir(folder)  # it writes where it runs
    tiny = model(words)
    loads: Any = type("Loads", (), {"from_pretrained_no_processing": lambda *_, **__: tiny})
    absorption.HookedTransformer = loads
    options: Any = {"llm_dtype": "float32", "k_sparse_probe_num_epochs": 2, "max_k_value": 2}
    config = AbsorptionEvalConfig(
        model_name="tiny", random_seed=42, min_feats_for_eval=1, min_GT_probe_f1=-1, **options
    )
    random.seed(state)
    torch.manual_seed(state)
    saes = [("a", some_sae()), *([("b", some_sae())] if again else [])]
    random.seed(state)
    torch.manual_seed(state)
    found = absorption.run_eval(config, saes, "cpu", str(folder / "results"))
    last = found[f"{saes[-1][0]}_custom_sae"]
    probed = folder / f"artifacts/absorption/{saes[-1][0]}_custom_sae_k_sparse_probing.json"
    text = probed.read_text().replace(f'"{saes[-1][0]}_custom_sae"', "")
    return last["eval_result_metrics"], last["eval_result_details"], text


def main() -> bool:
    """Whether all runs give one result."""
    stock = {
        name: getattr(absorption, name)
        for name in (
            "run_k_sparse_probing_experiment",
            "run_feature_absortion_experiment",
            "load_or_train_probe",
        )
        if hasattr(absorption, name)
    }
    found = []
    here = Path.cwd()
    with TemporaryDirectory() as scratch:
        words = tokenizer(Path(scratch) / "tokenizer")
        try:
            for state, again in ((0, False), (0, False), (1, False), (0, True)):
                folder = Path(scratch) / str(len(found))
                # Else it writes into the installed package.
                places: dict[str, dict[str, Path]] = {
                    name: {"probes_dir": folder} for name in stock
                }
                sparse = folder / "sparse"
                places["run_k_sparse_probing_experiment"]["experiment_dir"] = sparse
                places["run_feature_absortion_experiment"] |= {
                    "experiment_dir": folder / "absorption",
                    "sparse_probing_experiment_dir": sparse,
                }
                for name, function in stock.items():
                    setattr(absorption, name, partial(function, **places[name]))
                silent = StringIO()
                with redirect_stdout(silent), redirect_stderr(silent):
                    found.append(result(words, folder, state, again))
        finally:
            os.chdir(here)
    cases = ("once more", "after other random numbers", "as the second of two SAEs")
    for case, other in zip(cases, found[1:], strict=True):
        print(f"{case}: {'the same' if other == found[0] else 'differs'}")
    return all(other == found[0] for other in found[1:])


if __name__ == "__main__":
    sys.exit(0 if main() else "random_seed does not make absorption repeatable")
