"""What a training step of a transcoder's baselines takes next to the dense step.

``python benchmarks/transcoder_step.py`` writes results/transcoder_step_cpu.json and prints its
table. Members run in turn within one process, so what is told is a share and not a time.
"""

import argparse
import functools
import json
import statistics
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from pairs import interleaved, paired, seconds, synchronizer
from render import machine, table
from sae_lens.registry import get_sae_training_class
from step_members import Shape, Stepper, activations, blocks

from sae_baselines.baselines import SEEDED
from sae_baselines.baselines.transcoder import PairStart
from sae_baselines.provenance import environment
from sae_baselines.study.build import architecture_options

RESULTS = Path(__file__).parent / "results"
DENSE = "trained"
BASELINES = (
    "frozen_decoder",
    "soft_frozen_decoder",
    "frozen_encoder",
    "soft_frozen_encoder",
)
# Of the frozen members: what is frozen has no gradient and no moments.
AIM = 0.35
AIMED = ("frozen_decoder", "frozen_encoder")
SHAPE = Shape("transcoder", 576, 4608, 1024, 32)
QUICK = Shape("quick_sparse", 16, 512, 32, 4, n_batches=2, budget_s=0.02)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="default: results/transcoder_step_cpu.json")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--quick", action="store_true", help="tiny; no file unless --out")
    args = parser.parse_args(argv)
    if args.threads or args.quick:
        torch.set_num_threads(args.threads or 1)
    shape = QUICK if args.quick else SHAPE
    out: Path | None = args.out
    if out is None and not args.quick:
        out = RESULTS / "transcoder_step_cpu.json"
    batches = pairs_of(shape)
    runs = {str(skip): measure(shape, batches, args.repeats, skip) for skip in (True, False)}
    record = {
        "benchmark": "transcoder_step",
        "environment": environment(),
        "shape": {n: getattr(shape, n) for n in ("d_in", "d_sae", "batch", "k")},
        "d_out": shape.d_in,
        "settings": {
            "step": "SAETrainer.step of SAELens: forward, backward, clipping, Adam, counters",
            "dense": "seeded_transcoder_batchtopk with sparse_step=False: what a panel trains",
            "baselines": "with their sparse step, from the same start",
            "data": "inputs as step_time.py's, outputs a ReLU layer of them and a linear map",
            "ratio": "per repeat one block of steps of each member in turn, rotating order; "
            "median over repeats of member / dense",
        },
        "aim": AIM,
        "runs": runs,
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=2) + "\n")
    print(transcoder_table(record))


@torch.no_grad()
def pairs_of(shape: Shape) -> list[torch.Tensor]:
    """Batches of inputs and outputs side by side, ``[batch, 2 d_in]``."""
    generator = torch.Generator().manual_seed(1)
    width = shape.d_in
    into = torch.randn(width, 4 * width, generator=generator) / width**0.5
    out = torch.randn(4 * width, width, generator=generator) / width**0.5
    return [
        torch.cat([x, torch.relu(x @ into) @ out], dim=1) for x in activations(shape, "cpu")
    ]


def measure(
    shape: Shape, batches: list[torch.Tensor], repeats: int, skip: bool
) -> dict[str, Any]:
    """Every member beside the dense one.

    Raises:
        SystemExit: A baseline did not run its steps sparse.
    """
    start = PairStart.of(torch.cat(batches), shape.d_in)
    members = (DENSE, "trained again", *BASELINES)
    steppers = {m: Stepper.of(_member(m, shape, start, skip), shape, batches) for m in members}
    for stepper in steppers.values():
        stepper.steps(2)
    synchronize = synchronizer("cpu")
    step_s = seconds(functools.partial(steppers[DENSE].steps, 1), synchronize)
    block, repeats = blocks(step_s, shape.budget_s, len(members), repeats)
    ms = interleaved(
        {m: functools.partial(s.steps, block) for m, s in steppers.items()},
        repeats,
        synchronize,
    )
    found = {}
    for m, stepper in steppers.items():
        found[m] = {
            "median_ms": statistics.median(ms[m]) / block,
            **paired(ms[m], ms[DENSE]),
            "l0_last": stepper.l0,
        }
        if m in BASELINES and (dense := sum(stepper.sae.sparse_state.dense_steps.values())):
            raise SystemExit(f"{m}: {dense} of its steps were dense; nothing to compare")
    return {"repeats": repeats, "steps_per_block": block, "members": found}


def _member(member: str, shape: Shape, start: PairStart, skip: bool) -> Any:
    dense = member not in BASELINES
    constraint = SEEDED.name if dense else member
    return make("transcoder_batchtopk", constraint, shape, start, skip, sparse=not dense)


def make(
    base: str,
    constraint: str,
    shape: Shape,
    start: PairStart,
    skip: bool,
    *,
    sparse: bool,
    device: str = "cpu",
) -> Any:
    """A transcoder at its start, as wide as it reads.

    Args:
        base: One of `TRANSCODERS`.
        constraint: Its name; that of the unconstrained one is `SEEDED`'s.
        shape: Sizes.
        start: Of the pairs.
        skip: Whether it has one.
        sparse: Whether it takes the sparse step.
        device: Where.
    """
    sae_class, config_class = get_sae_training_class(f"{constraint}_{base}")
    known = {f.name for f in fields(config_class)}
    options: dict[str, Any] = {
        **architecture_options(base, shape.k, shape.d_sae, known),
        "d_in": shape.d_in,
        "d_out": shape.d_in,
        "d_sae": shape.d_sae,
        "device": device,
        "skip": skip,
        "sparse_step": sparse,
        "input_scale": start.input_scale,
        "output_scale": start.output_scale,
    }
    sae: Any = sae_class(config_class(**options))
    sae.set_start(start)
    return sae


def transcoder_table(record: dict[str, Any]) -> str:
    """Shares of the dense step, with quartiles, with a skip and without."""
    shape, runs = record["shape"], record["runs"]
    sizes = ", ".join(f"{name} {value:,}" for name, value in shape.items())
    first = next(iter(runs.values()))
    rows = []
    for member in first["members"]:
        if member == DENSE:
            continue
        cells = []
        for run in runs.values():
            found = run["members"][member]
            low, high = found["ratio_quartiles"]
            cells.append(f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})")
        aim = f"≤ {record['aim']:.2f}" if member in AIMED else ""
        met = all(r["members"][member]["ratio"] <= record["aim"] for r in runs.values())
        rows.append([member, *cells, aim, ("✓" if met else "✗") if aim else ""])
    dense = " and ".join(
        f"{run['members'][DENSE]['median_ms']:.0f} ms" for run in runs.values()
    )
    return "\n".join(
        [
            f"**Step of a BatchTopK transcoder: {sizes}, float32, cpu ({machine(record)})**",
            "",
            table(["over the dense step", "with a skip", "without", "aim", ""], rows),
            "",
            f"The dense step takes {dense}; {first['repeats']} repeats.",
        ]
    )


if __name__ == "__main__":
    main()
