"""Explained variance of `core`, beside its definition, on activations with a mean.

Exits with 1 where SAEBench's number is not 1 - E|x - x_hat|^2 / E|x - E[x]|^2.
"""

import sys
from types import SimpleNamespace
from typing import Any

import torch
from sae_bench.evals.core.main import get_sparsity_and_variance_metrics

D, BATCHES, PROMPTS, CONTEXT = 64, 4, 4, 32


class HalfRight:
    """An SAE that gives back x with some noise."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, noise: float) -> None:
        names = {"hook_name": "hook", "hook_head_index": None, "hook_layer": 0}
        self.cfg = SimpleNamespace(**names, d_sae=D)
        self.noise = noise

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def measured(acts: torch.Tensor, noise: float) -> tuple[float, float]:
    """Explained variance of [batch, prompt, token, d] activations: SAEBench's, the true one."""
    sae: Any = HalfRight(noise)
    batches = iter(acts)
    model: Any = SimpleNamespace(
        run_with_cache=lambda *_, **__: (None, {"hook": next(batches)})
    )
    tokens = torch.ones(PROMPTS, CONTEXT, dtype=torch.long)
    store: Any = SimpleNamespace(get_batch_tokens=lambda _: tokens)
    options = dict.fromkeys(("compute_l2_norms", "compute_sparsity_metrics"), False)
    metrics, _ = get_sparsity_and_variance_metrics(
        *(sae, model, store, BATCHES),
        **options,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=False,
        eval_batch_size_prompts=PROMPTS,
        model_kwargs={},
    )
    x = acts.double().reshape(-1, D)
    x_hat = torch.cat([sae.decode(sae.encode(batch)).double() for batch in acts]).reshape(-1, D)
    spread = (x - x.mean(0)).pow(2).sum(-1).mean()
    return metrics["explained_variance"], 1 - float((x - x_hat).pow(2).sum(-1).mean() / spread)


def main() -> bool:
    """Whether all numbers are right."""
    right = True
    for mean, scale, noise in ((0, 1, 0.5), (5, 1, 0.5), (0, 10, 5), (20, 1, 0.5), (5, 1, 1.5)):
        torch.manual_seed(0)
        acts = torch.randn(BATCHES, PROMPTS, CONTEXT, D) * scale + mean * torch.randn(D)
        theirs, true = measured(acts, noise)
        print(f"mean {mean:2d}, scale {scale:2d}: SAEBench {theirs:7.4f}, defined {true:7.4f}")
        right &= abs(theirs - true) < 1e-3
    return right


if __name__ == "__main__":
    sys.exit(0 if main() else "explained variance is not what it is defined as")
