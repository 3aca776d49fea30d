"""An SAE as SAELens' own runner trains and exports it, to be checked.

The language model and the text are the demo's; TransformerLens cannot load a local folder by
itself, so both are handed to the runner. Nothing else of this package takes part: the
architecture is SAELens' ``batchtopk``, the loop, the threshold and the export are SAELens'.

Usage: python benchmarks/published/stock_sae.py stock_sae
"""

import argparse
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner

from sae_baselines.paper.demo.specs import demo_spec
from sae_baselines.study.data import load_text
from sae_baselines.study.language_model import load_language_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--tokens", type=int, default=204_800)
    arguments = parser.parse_args()
    demo = demo_spec()
    fields: dict[str, Any] = {
        "sae": {
            "architecture": "batchtopk",
            "d_in": 576,
            "d_sae": 4608,
            "k": 32,
            "normalize_activations": "expected_average_only_in",
        },
        "model_name": demo.model.recorded_name,
        "hook_name": demo.hook_name,
        "dataset_path": "enwik8-articles",
        "is_dataset_tokenized": False,
        "streaming": False,
        "context_size": demo.context_size,
        "prepend_bos": demo.prepend_bos,
        "seqpos_slice": tuple(demo.seqpos_slice),
        "training_tokens": arguments.tokens,
        "train_batch_size_tokens": demo.train_batch_size_tokens,
        "store_batch_size_prompts": demo.store_batch_size_prompts,
        "n_batches_in_buffer": demo.n_batches_in_buffer,
        "n_batches_for_norm_estimate": 4,
        "lr": demo.lr,
        "logger": {"log_to_wandb": False},
        "device": "cpu",
        "output_path": arguments.folder,
        "checkpoint_path": f"{arguments.folder}-checkpoints",
        "seed": 1234,
    }
    runner = LanguageModelSAETrainingRunner(
        LanguageModelSAERunnerConfig.from_dict(fields),
        override_dataset=load_text(demo.dataset),
        override_model=load_language_model(demo.model, demo.hook_name, "cpu"),
    )
    runner.run()


if __name__ == "__main__":
    main()
