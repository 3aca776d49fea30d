"""Baselines for your own architecture: register it with SAELens, then name it once.

    python examples/own_architecture.py

The architecture here is a TopK SAE whose loss also asks latents to be small. What is yours is
the first part; the baselines are one line.
"""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import register_sae_training_class
from sae_lens.saes.topk_sae import TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.synthetic import SyntheticSAERunner, SyntheticSAERunnerConfig

import sae_baselines
from sae_baselines.study.synthetic.generator import paper_config


@dataclass
class SmallTopKConfig(TopKTrainingSAEConfig):
    """TopK with a penalty on the size of active latents."""

    size_coefficient: float = 1e-3

    @classmethod
    def architecture(cls) -> str:
        return "small_topk"

    def get_inference_config_class(self) -> type[TopKSAEConfig]:
        return TopKSAEConfig  # what it is exported as


class SmallTopK(TopKTrainingSAE):
    """Its training SAE; everything else is SAELens'."""

    cfg: SmallTopKConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def calculate_aux_loss(self, *args: Any, **kwargs: Any) -> Any:
        losses = super().calculate_aux_loss(*args, **kwargs)
        size = kwargs["feature_acts"].to_dense().pow(2).sum(-1).mean()
        return {**losses, "size": self.cfg.size_coefficient * size}


register_sae_training_class("small_topk", SmallTopK, SmallTopKConfig)
sae_baselines.register_baselines("small_topk")


def train(architecture: str) -> Any:
    """Train it on data with known features; any SAELens runner takes the name."""
    config = SyntheticSAERunnerConfig.from_dict(
        {
            "synthetic_model": paper_config("constant", n=32, m=128, mean_active=4.0).to_dict(),
            "sae": {"architecture": architecture, "d_in": 32, "d_sae": 128, "k": 4},
            "training_samples": 50_000,
            "batch_size": 256,
            "lr": 3e-3,
            "eval_samples": 10_000,
            "output_path": None,
            "logger": {"log_to_wandb": False},
        }
    )
    return SyntheticSAERunner(config).run()


def main() -> dict[str, float]:
    """Explained variance of the SAE and of its baselines."""
    torch.manual_seed(0)  # SAELens draws first weights from torch's own state
    names = ["small_topk", *(f"{c}_small_topk" for c in CONSTRAINTS)]
    return {name: train(name).final_eval.explained_variance for name in names}


CONSTRAINTS = ("frozen_decoder", "soft_frozen_decoder", "frozen_encoder")

if __name__ == "__main__":
    for name, variance in main().items():
        print(f"{name:32s} explained variance {variance:.3f}")
