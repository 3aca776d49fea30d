"""Sparse against dense at the same weights, at every step of the demo's training.

``python benchmarks/sparse_stepwise.py`` writes results/sparse_stepwise.json. Free runs part
once rounding lets them select different latents (sparse_panel.py); here nothing accumulates.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from panels import add_panel_arguments, one_panel
from sae_lens.saes.sae import TrainStepInput

from sae_baselines.compat.training import TrainingStep, around_each_step
from sae_baselines.provenance import environment
from sae_baselines.study import train_study
from sae_baselines.study.data import load_text

RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, help="for each member; default: the demo's")
    add_panel_arguments(parser)
    parser.add_argument("--out", type=Path, default=RESULTS / "sparse_stepwise.json")
    args = parser.parse_args(argv)
    spec = one_panel(parser, args)
    spec = dataclasses.replace(
        spec,
        training_tokens=args.tokens or spec.training_tokens,
        sparse_step="all",
        n_checkpoints=0,
        ce_tokens=0,
    )
    found: dict[str, dict[str, Any]] = {}

    def compared(step: TrainingStep, trainer: Any, batch: torch.Tensor) -> Any:
        name = trainer.sae.cfg.architecture()
        _compare(trainer, trainer.activation_scaler(batch), found.setdefault(name, {}))
        return step(trainer, batch)

    with tempfile.TemporaryDirectory() as folder, around_each_step(compared):
        text = load_text(dataclasses.replace(spec.dataset, shuffle_seed=None))
        train_study(spec, Path(folder) / "study", dataset=text)
    record = {
        "benchmark": "sparse_stepwise",
        "environment": environment(),
        "settings": {
            "model": spec.model.recorded_name,
            "training_tokens": spec.training_tokens,
            "worst_gradient": "largest over steps of ||sparse - dense|| / ||dense||",
        },
        "members": found,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n")
    for name, values in found.items():
        print(name, json.dumps(values))


def _compare(trainer: Any, sae_in: torch.Tensor, found: dict[str, Any]) -> None:
    sae = trainer.sae
    ways = []
    for sparse in (True, False):
        sae.cfg.sparse_step = sparse
        sae.zero_grad()
        output = sae.training_forward_pass(
            TrainStepInput(sae_in, trainer.get_coefficients(), trainer.dead_neurons, 0, False)
        )
        output.loss.backward()
        gradients = {n: p.grad.clone() for n, p in sae.named_parameters()}
        active = output.feature_acts.detach().to_dense() != 0
        ways.append((gradients, output.loss.item(), active, output.feature_acts.is_sparse))
    sae.cfg.sparse_step = True
    sae.zero_grad()
    (ours, loss, active, is_sparse), (theirs, stock_loss, stock_active, _) = ways
    found["steps"] = found.get("steps", 0) + 1
    found["sparse_steps"] = found.get("sparse_steps", 0) + int(is_sparse)
    same = torch.equal(active, stock_active)
    found["same_selection"] = found.get("same_selection", 0) + int(same)
    worst = found.setdefault("worst_gradient", dict.fromkeys(ours, 0.0))
    for name, gradient in theirs.items():
        error = float((ours[name] - gradient).norm() / gradient.norm())
        worst[name] = max(worst[name], error)
    found["worst_loss"] = max(found.get("worst_loss", 0.0), abs(loss / stock_loss - 1))


if __name__ == "__main__":
    main()
