"""Whether an SAE's score depends on its place in the list: sparse probing, TPP.

One SAE is scored twice, on one folder of artifacts: first it finds it empty, then filled by
itself. Activations are made up, everything else is SAEBench's. Exits with 1 where scores
differ.
"""

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["JAXTYPING_DISABLE"] = "1"  # beartype 0.18 stops sparse probing for other reasons

import torch
from sae_bench.evals.scr_and_tpp import main as tpp
from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig
from sae_bench.evals.sparse_probing import main as probing
from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
from sae_bench.sae_bench_utils.dataset_info import chosen_classes_per_dataset
from sae_lens import SAE

D, TOKENS, DATASET = 16, 8, "LabHC/bias_in_bios_class_set1"
CLASSES = chosen_classes_per_dataset[DATASET]


def drawn(examples: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Activations by class, [examples, tokens, d], of classes that overlap."""
    means = torch.randn(len(CLASSES), D, generator=torch.Generator().manual_seed(7))
    return {
        name: 0.6 * mean + 2 * torch.randn(examples, TOKENS, D, generator=generator)
        for name, mean in zip(CLASSES, means, strict=True)
    }


def activations(*_: Any, **__: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """In place of a language model's on a dataset."""
    generator = torch.Generator().manual_seed(3)
    return drawn(100, generator), drawn(60, generator)


def some_sae() -> Any:
    """A random SAE."""
    torch.manual_seed(0)
    metadata = {"hook_name": "blocks.0.hook_resid_post", "model_name": "none"}
    fields = {"architecture": "topk", "d_in": D, "d_sae": 64, "k": 8, "device": "cpu"}
    sae = SAE.from_dict({**fields, "dtype": "float32", "metadata": metadata})
    torch.nn.init.normal_(sae.W_enc)
    torch.nn.init.normal_(sae.W_dec)
    sae.cfg.hook_name, sae.cfg.hook_layer = "blocks.0.hook_resid_post", 0
    return sae


def scores(module: Any, config: Any, folder: Path) -> dict[str, float]:
    """Of the SAE, by SAEBench."""
    with redirect_stdout(None):
        found, _ = module.run_eval_single_sae(config, some_sae(), None, "cpu", str(folder))
    kept = ("sae_", "tpp_")
    return {k: v for k, v in found.items() if k.startswith(kept) and isinstance(v, float)}


def main() -> bool:
    """Whether an SAE that comes second has the scores that it has as the first."""
    options: Any = {"random_seed": 42, "model_name": "none", "dataset_names": [DATASET]}
    right = True
    module: Any
    for name, module, config in (
        ("sparse probing", probing, SparseProbingEvalConfig(**options, k_values=[1, 5])),
        ("TPP", tpp, ScrAndTppEvalConfig(**options, perform_scr=False, n_values=[5, 20])),
    ):
        module.get_dataset_activations = activations
        with TemporaryDirectory() as folder:
            first, second = (scores(module, config, Path(folder)) for _ in range(2))
        assert first
        for metric in first:
            if first[metric] != second[metric]:
                print(
                    f"{name}: {metric}: first {first[metric]:.4f}, second {second[metric]:.4f}"
                )
        print(f"{name}: {'the same' if first == second else 'differs'}")
        right &= first == second
    return right


if __name__ == "__main__":
    sys.exit(0 if main() else "the score of an SAE depends on its place in the list")
