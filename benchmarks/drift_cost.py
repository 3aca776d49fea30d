"""What a DriftTracker adds to training: the same steps with and without one.

``python benchmarks/drift_cost.py`` writes results/drift_cost_cpu.json and prints its table.
A run of few steps is measured, with records at five fractions of it; what a record costs
follows, and from that the share in a run of any length.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pairs import interleaved, paired, synchronizer
from render import machine, table
from step_members import (
    SHAPES,
    STOCK,
    STOCK_AGAIN,
    Shape,
    Stepper,
    activations,
    conditions,
    jumprelu_threshold,
)

from sae_baselines.drift import FRACTIONS, DriftTracker
from sae_baselines.provenance import environment

RESULTS = Path(__file__).parent / "results"
TRACKED = "tracked"
BASES = ("batchtopk", "jumprelu")
# The demo's training has 120 steps, the paper's 122,000.
_LENGTHS = (120, 1000, 122_000)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=40, help="in a run; at least 20")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    if args.steps < 20:
        parser.error("--steps: five records need at least 20")
    shape = SHAPES[args.shape]
    record = {
        "benchmark": "drift_cost",
        "environment": environment(),
        "conditions": conditions(shape, args.device, autocast=False),
        "steps": args.steps,
        "repeats": args.repeats,
        "records": len(FRACTIONS),
        "bases": {b: measure(b, shape, args.device, args.steps, args.repeats) for b in BASES},
    }
    out = args.out or RESULTS / f"drift_cost_{args.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")
    print("\n" + cost_table(record))


def measure(base: str, shape: Shape, device: str, steps: int, repeats: int) -> dict[str, Any]:
    """One base's stock SAE: alone, a second copy of it, and tracked."""
    batches = activations(shape, device)
    threshold = jumprelu_threshold(shape, batches)
    steppers = {
        name: Stepper(base, STOCK, shape, batches, threshold)
        for name in (STOCK, STOCK_AGAIN, TRACKED)
    }
    for stepper in steppers.values():
        stepper.steps(3)
    tracked = steppers[TRACKED].trainer
    tracked.cfg.total_training_samples = steps * shape.batch
    with tempfile.TemporaryDirectory() as folder:

        def with_tracker() -> None:
            # A run from its first step, starting file included.
            tracked.n_training_samples = 0
            with DriftTracker(folder) as tracker:
                steppers[TRACKED].steps(steps)
            assert len(tracker.logs[""].records) == len(FRACTIONS)

        ms = interleaved(
            {
                STOCK: lambda: steppers[STOCK].steps(steps),
                STOCK_AGAIN: lambda: steppers[STOCK_AGAIN].steps(steps),
                TRACKED: with_tracker,
            },
            repeats,
            synchronizer(device),
        )
    step = float(torch.tensor(ms[STOCK]).median()) / steps
    added = [t - s for t, s in zip(ms[TRACKED], ms[STOCK], strict=True)]
    per_record = float(torch.tensor(added).median()) / len(FRACTIONS)
    return {
        "step_ms": step,
        "run_ms": ms,
        TRACKED: paired(ms[TRACKED], ms[STOCK]),
        STOCK_AGAIN: paired(ms[STOCK_AGAIN], ms[STOCK]),
        "record_ms": per_record,
        "share_of_run": {str(n): per_record * len(FRACTIONS) / (step * n) for n in _LENGTHS},
    }


def cost_table(record: dict[str, Any]) -> str:
    """Ratio of the measured run, and what five records are in longer ones."""
    shape = record["conditions"]["shape"]
    header = ["", "step", "stock again", "tracked", "a record"]
    header += [f"5 records in {n:,} steps" for n in _LENGTHS]
    rows = []
    for base, found in record["bases"].items():
        rows.append(
            [
                f"`{base}`",
                f"{found['step_ms']:.1f} ms",
                f"{found[STOCK_AGAIN]['ratio']:.3f}",
                f"{found[TRACKED]['ratio']:.3f}",
                f"{found['record_ms']:.0f} ms",
                *(f"{100 * found['share_of_run'][str(n)]:.3g} %" for n in _LENGTHS),
            ]
        )
    title = (
        f"**Drift: {record['steps']} steps with {record['records']} records, over the same "
        f"steps without (d_in {shape['d_in']}, d_sae {shape['d_sae']:,}, batch "
        f"{shape['batch']:,}; {machine(record)})**"
    )
    return f"{title}\n\n{table(header, rows)}"


if __name__ == "__main__":
    main()
