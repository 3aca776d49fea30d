"""A baseline's dense training step next to stock's: how long, and how much memory?

This is the step that a baseline takes by itself where activations are too dense for its sparse
one (sparse_step.py), with ``sparse_step=False``, and on bases without a sparse step.

``python benchmarks/step_time.py`` writes results/step_time_cpu.json and prints its tables.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pairs import interleaved, paired, seconds, synchronizer
from render import step_time_tables
from step_members import (
    BASES,
    BY_THRESHOLD,
    MEMBERS,
    SHAPES,
    STOCK,
    Shape,
    Stepper,
    activations,
    blocks,
    conditions,
    jumprelu_threshold,
    options_record,
)
from step_memory import cpu_peak_mib, cuda_peak_mib

from sae_baselines.provenance import environment

RESULTS = Path(__file__).parent / "results"
AIMS = {"frozen_decoder": 0.85, "soft_frozen_decoder": 1.05, "frozen_encoder": 0.85}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", help="comma-separated; default: small,medium or cuda")
    parser.add_argument("--bases", default=",".join(BASES), help="comma-separated")
    parser.add_argument("--out", type=Path, help="default: results/step_time_<device>.json")
    parser.add_argument("--repeats", type=int, help="default: 5 to 25, by time")
    parser.add_argument("--skip-memory", action="store_true", help="times only")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument(
        "--quick", action="store_true", help="tiny, seconds; no file unless --out"
    )
    parser.add_argument(
        "--dead", action="store_true", help="half of the latents dead (the TopK family only)"
    )
    args = parser.parse_args(argv)
    if args.threads or args.quick:  # at a tiny shape threads cost more than they bring
        torch.set_num_threads(args.threads or 1)

    default = "quick" if args.quick else "cuda" if args.device == "cuda" else "small,medium"
    shapes = [SHAPES[name] for name in (args.shapes or default).split(",")]
    bases = [b for b in args.bases.split(",") if "topk" in b or not args.dead]
    out: Path | None = args.out
    if out is None and not args.quick:
        out = RESULTS / f"step_time_{args.device}{'_dead' if args.dead else ''}.json"
    record: dict[str, Any] = {
        "benchmark": "step_time",
        "environment": environment(),
        "aims": AIMS,
        "runs": [],
    }
    for shape in shapes:
        for autocast in (False, True) if shape.name == "cuda" else (False,):
            run = _describe(shape, args.device, autocast, args.dead)
            record["runs"].append(run)
            batches = activations(shape, args.device)
            for base in bases:
                print(f"{shape.name}{' bf16' if autocast else ''}: {base}", flush=True)
                run["bases"][base] = measure(
                    base,
                    shape,
                    batches,
                    args.repeats,
                    with_memory=not args.skip_memory,
                    autocast=autocast,
                    half_dead=args.dead,
                )
                if out is not None:  # after every base: what is measured is not lost
                    out.parent.mkdir(parents=True, exist_ok=True)
                    out.write_text(json.dumps(record, indent=2) + "\n")
    print("\n" + step_time_tables(record))


def _describe(shape: Shape, device: str, autocast: bool, dead: bool) -> dict[str, Any]:
    return {
        **conditions(shape, device, autocast=autocast),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "settings": {
            "step": "SAETrainer.step of SAELens: forward, backward, clipping, Adam, counters",
            "twins": "sparse_step=False",
            "stock": "SAELens' class, decoder_init_norm=1.0, same initial weights as the twins",
            "data": "64 Gaussians with decaying spectrum, mean norm sqrt(d_in), pool of "
            f"{shape.n_batches} batches",
            "dead_latents": "every other latent counts as dead at every step, for all members"
            if dead
            else "none ever (dead_feature_window 1e9), so no member runs a dead-latent loss",
            "soft_frozen_decoder": "every row starts on the edge of its cap",
            "frozen_encoder": "TopK family: rescale_acts_by_decoder_norm=False (stock: True)",
            "peak_memory": "of a step after warm-up, on top of what was in use before: "
            "weights, Adam's moments, gradients, activations, the previous step's output; "
            "cuda: torch's allocator; cpu: resident set of a process of its own",
            "ratio": "per repeat one block of steps of each member in turn, rotating order; "
            "median over repeats of member / stock",
        },
        "bases": {},
    }


def measure(
    base: str,
    shape: Shape,
    batches: list[torch.Tensor],
    repeats: int | None,
    *,
    with_memory: bool,
    autocast: bool,
    half_dead: bool,
) -> dict[str, Any]:
    """Everything about one base."""
    threshold = jumprelu_threshold(shape, batches) if base in BY_THRESHOLD else 0.0
    options: Any = {"autocast": autocast, "half_dead": half_dead, "dense": True}
    on_cuda = batches[0].is_cuda
    memory: dict[str, float] = {}
    steppers: dict[str, Stepper] = {}
    for m in MEMBERS:
        build = functools.partial(Stepper, base, m, shape, batches, threshold, **options)
        if on_cuda and with_memory:
            steppers[m], memory[m] = cuda_peak_mib(build)
            continue
        if with_memory:
            memory[m] = cpu_peak_mib(base, m, shape, threshold, **options)
        steppers[m] = build()
    synchronize = synchronizer(batches[0].device.type)
    for stepper in steppers.values():
        stepper.steps(2)
    first_l0 = {m: s.l0 for m, s in steppers.items()}
    step_s = seconds(functools.partial(steppers[STOCK].steps, 1), synchronize)
    block, repeats = blocks(step_s, shape.budget_s, len(MEMBERS), repeats)
    ms = _turns(steppers, block, repeats, synchronize)

    members = {}
    for m in MEMBERS:
        ratio = paired(ms[m], ms[STOCK])
        members[m] = {
            "median_ms": statistics.median(ms[m]),
            **ratio,
            "peak_memory_mib": memory.get(m),
            # At a tiny shape the growth can be nothing at all.
            "peak_memory_ratio": memory[m] / memory[STOCK] if memory.get(STOCK) else None,
            "meets_aim": ratio["ratio"] <= AIMS[m] if m in AIMS else None,
            "l0_first": first_l0[m],
            "l0_last": steppers[m].l0,
        }
    return {
        **options_record(base, shape, threshold),
        "repeats": repeats,
        "steps_per_block": block,
        "members": members,
        "projection": _projection(steppers["soft_frozen_decoder"], synchronize),
    }


def _turns(
    steppers: dict[str, Stepper], block: int, repeats: int, synchronize: Callable[[], None]
) -> dict[str, list[float]]:
    """Milliseconds per step, one number per repeat and member."""
    blocks = {m: functools.partial(s.steps, block) for m, s in steppers.items()}
    ms = interleaved(blocks, repeats, synchronize)
    return {m: [t / block for t in times] for m, times in ms.items()}


def _projection(stepper: Stepper, synchronize: Callable[[], None]) -> dict[str, float]:
    """Cost of the projection alone, on weights as the optimiser leaves them."""
    sae = stepper.sae
    project = sae.project
    seen: list[torch.Tensor] = []

    def watched() -> torch.Tensor:
        seen.append(sae.W_dec.detach().clone())
        return project()

    sae.project = watched
    stepper.steps(1)
    del sae.project
    unprojected = seen[0]
    rows = torch.zeros(())

    def once() -> float:
        nonlocal rows
        synchronize()
        began = time.perf_counter()
        rows = project()
        synchronize()
        return (time.perf_counter() - began) * 1e3

    ms, share, moved, ms_without = [], [], [], []
    for _ in range(7):
        step_ms = seconds(functools.partial(stepper.steps, 1), synchronize) * 1e3
        sae.W_dec.data.copy_(unprojected)
        ms.append(once())
        moved.append(int(rows) / sae.cfg.d_sae)
        share.append(ms[-1] / step_ms)
        ms_without.append(once())  # every row is inside now: the check alone
    return {
        "median_ms": statistics.median(ms),
        "share_of_step": statistics.median(share),
        "rows_moved": statistics.median(moved),
        "median_ms_nothing_to_move": statistics.median(ms_without),
    }


if __name__ == "__main__":
    main()
