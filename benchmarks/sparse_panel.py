"""What the sparse step does to a whole panel on a real model: its time, and its results.

``python benchmarks/sparse_panel.py`` writes results/sparse_panel.json and prints its tables.
The demo's panel is trained with the sparse step off, on for the baselines, and on for every
member; and once more with it off, on activations that are off by at most one rounding of
float32: the differences between those two are what rounding alone does to a run.
"""

import argparse
import dataclasses
import gc
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from panels import add_panel_arguments, one_panel
from render import machine, table
from safetensors.torch import load_file

from sae_baselines.compat.training import TrainingStep, around_each_step
from sae_baselines.provenance import environment
from sae_baselines.study import PanelSpec, train_study
from sae_baselines.study.data import load_text
from sae_baselines.study.folder import PROVENANCE_FILE

RESULTS = Path(__file__).parent / "results"
OFF, OTHER_ROUNDING = "none", "none, input one rounding off"
# Each way of training: the panel's sparse_step, and whether the input is nudged.
WAYS = {
    OFF: (OFF, False),
    "baselines": ("baselines", False),
    "all": ("all", False),
    OTHER_ROUNDING: (OFF, True),
}
TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")
METRICS = ("explained_variance", "l0", "ce_loss_with_sae")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, help="for each member; default: the demo's")
    add_panel_arguments(parser)
    parser.add_argument("--out", type=Path, default=RESULTS / "sparse_panel.json")
    args = parser.parse_args(argv)
    spec = one_panel(parser, args)
    tokens = args.tokens or spec.training_tokens
    record = measure(dataclasses.replace(spec, training_tokens=tokens, n_checkpoints=0))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n")
    print("\n" + panel_tables(record))


def measure(spec: PanelSpec) -> dict[str, Any]:
    """Every way, and each against the dense one."""
    text = load_text(dataclasses.replace(spec.dataset, shuffle_seed=None))
    ways: dict[str, dict[str, Any]] = {}
    weights: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
    for name, (sparse_step, nudged) in WAYS.items():
        this = dataclasses.replace(spec, sparse_step=sparse_step)
        ways[name], weights[name] = train_way(this, text, nudged=nudged)
        print(f"{name}: {ways[name]['training_s']:.1f} s of training", flush=True)
    members = ways[OFF]["members"]
    n_tokens = spec.training_tokens * len(members)
    for way in ways.values():
        way["tokens_per_s"] = n_tokens / way["training_s"]
        way["tokens_per_s_in_steps"] = n_tokens / way["steps_s"]
    return {
        "benchmark": "sparse_panel",
        "environment": environment(),
        "settings": {
            "model": spec.model.recorded_name,
            "hook_name": spec.hook_name,
            "architecture": spec.architectures[0],
            "d_sae": weights[OFF][next(iter(members))]["W_dec"].shape[0],
            "d_in": weights[OFF][next(iter(members))]["W_dec"].shape[1],
            "l0": spec.l0s[0],
            "batch": spec.train_batch_size_tokens,
            "training_tokens": spec.training_tokens,
            "training_s": "pass_seconds of provenance.json: filling the buffer with the "
            "language model's activations, estimating the norm, training",
            "steps_s": "of these, inside SAETrainer.step of all members",
            "differences": "against sparse_step 'none': of the measurements on held-out text "
            "(sparse - dense), and of exported weights, ||a - b|| / ||b||",
        },
        "ways": ways,
        "differences": {
            name: _differences(ways[name], ways[OFF], weights[name], weights[OFF])
            for name in WAYS
            if name != OFF
        },
    }


def train_way(
    spec: PanelSpec, text: Any, *, nudged: bool
) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """Train a panel once: its times and measurements, and the exported weights."""
    gc.collect()
    with tempfile.TemporaryDirectory() as folder, _timed_steps(nudged) as seconds:
        began = time.perf_counter()
        study = train_study(spec, Path(folder) / "study", dataset=text)
        whole = time.perf_counter() - began
        files = sorted(study.folder.glob(f"panels/*/*/{PROVENANCE_FILE}"))
        passed = json.loads(files[0].read_text())["pass_seconds"]
        weights = {
            f.parent.name: load_file(f.parent / "sae_weights.safetensors") for f in files
        }
    members = {
        key.member: {m: values[m] for m in METRICS if m in values}
        for key, values in study.measurements.items()
    }
    way = {"training_s": passed, "steps_s": sum(seconds), "whole_s": whole, "members": members}
    return way, weights


def _differences(
    way: dict[str, Any],
    dense: dict[str, Any],
    weights: dict[str, dict[str, torch.Tensor]],
    dense_weights: dict[str, dict[str, torch.Tensor]],
) -> dict[str, dict[str, float]]:
    out = {}
    for member, values in way["members"].items():
        change = {m: v - dense["members"][member][m] for m, v in values.items()}
        for name in TENSORS:
            a, b = (w[member][name].double() for w in (weights, dense_weights))
            change[name] = float((a - b).norm() / b.norm())
        out[member] = change
    return out


def panel_tables(record: dict[str, Any]) -> str:
    """Times of each way, and what it changed."""
    settings = record["settings"]
    title = (
        f"**Panel of four with the sparse step off and on: {settings['architecture']}, "
        f"{settings['training_tokens']:,} tokens, {settings['model']}, d_in "
        f"{settings['d_in']:,}, d_sae {settings['d_sae']:,} ({machine(record)})**"
    )
    times = [
        [
            f"`sparse_step: {name}`",
            f"{way['training_s']:.0f} s",
            f"{way['tokens_per_s']:,.0f}",
            f"{way['steps_s']:.0f} s",
            f"{way['tokens_per_s_in_steps']:,.0f}",
            f"{way['steps_s'] / record['ways'][OFF]['steps_s']:.2f}",
        ]
        for name, way in record["ways"].items()
        if name != OTHER_ROUNDING
    ]
    head = [
        "",
        "training",
        "SAE tokens/s",
        "of it, SAE steps",
        "tokens/s in steps",
        "steps / off",
    ]
    changes = [
        [
            name,
            member,
            *(f"{change[m]:+.1e}" for m in METRICS),
            *(f"{change[t]:.1e}" for t in TENSORS),
        ]
        for name, members in record["differences"].items()
        for member, change in members.items()
    ]
    names = ["EV", "L0", "CE with SAE", *TENSORS]
    return (
        f"{title}\n\n{table(head, times)}\n\nDifferences from `sparse_step: none`:\n\n"
        f"{table(['', 'member', *names], changes)}\n"
    )


@contextmanager
def _timed_steps(nudged: bool) -> Iterator[list[float]]:
    """Seconds of every training step of every SAE, on input as it is or one rounding off."""
    seconds: list[float] = []
    generator = torch.Generator().manual_seed(0)
    eps = torch.finfo(torch.float32).eps / 2

    def timed(step: TrainingStep, trainer: Any, batch: torch.Tensor) -> Any:
        if nudged:
            noise = 2 * torch.rand(batch.shape, generator=generator) - 1
            batch = batch.float() * (1 + eps * noise.to(batch.device))
        began = time.perf_counter()
        output = step(trainer, batch)
        if batch.is_cuda or trainer.sae.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        return output

    with around_each_step(timed):
        yield seconds


if __name__ == "__main__":
    main()
