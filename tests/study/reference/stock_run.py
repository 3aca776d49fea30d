"""Stock SAELens alone: trains an SAE on the Hub's model and text, and publishes it.

Usage: python stock_run.py <folder> <user/repo> <folder in the repo>
"""

import sys

from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    upload_saes_to_huggingface,
)

TOKENS = 65_536
LR = 2e-3


def main(folder: str, repo: str, path: str) -> None:
    cfg = LanguageModelSAERunnerConfig.from_dict(
        {
            "sae": {
                "architecture": "batchtopk",
                "d_in": 64,
                "d_sae": 256,
                "k": 8,
                "normalize_activations": "expected_average_only_in",
            },
            "model_name": "pythia-70m-deduped",
            "hook_name": "blocks.0.hook_resid_post",
            "dataset_path": "monology/pile-uncopyrighted",
            "is_dataset_tokenized": False,
            "streaming": True,
            "context_size": 64,
            "training_tokens": TOKENS,
            "train_batch_size_tokens": 256,
            "store_batch_size_prompts": 16,
            "n_batches_in_buffer": 16,
            "n_batches_for_norm_estimate": 4,
            "lr": LR,
            "logger": {"log_to_wandb": False},
            "device": "cpu",
            "output_path": folder,
            "checkpoint_path": f"{folder}-checkpoints",
        }
    )
    LanguageModelSAETrainingRunner(cfg).run()
    upload_saes_to_huggingface(
        {path: folder}, hf_repo_id=repo, show_progress=False, add_default_readme=False
    )
    assert "sae_baselines" not in sys.modules


if __name__ == "__main__":
    main(*sys.argv[1:])
