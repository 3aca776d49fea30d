"""What the sparse training step brings: baselines and whole panels next to stock SAELens.

``python benchmarks/sparse_step.py`` writes results/sparse_step_cpu.json and prints its tables.
"""

import argparse
import functools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pairs import added, interleaved, paired, seconds, synchronizer
from render_sparse import step_tables
from step_members import (
    BASELINES,
    BASES,
    BY_THRESHOLD,
    MEMBERS,
    SHAPES,
    SPARSE,
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
from step_parts import (
    PARTS,
    encoder_product,
    operators,
    parts,
    projection_share,
    read_and_write,
)

from sae_baselines.provenance import environment

RESULTS = Path(__file__).parent / "results"
# What each aim is about; the others are measured for information, in half the time.
JUDGED = ("batchtopk", "jumprelu")
ALL_MEMBERS = (*MEMBERS, SPARSE)
TWINS = (*BASELINES, SPARSE)
AIMS = {
    "cpu": {
        "frozen_decoder": 0.25,
        "frozen_encoder": 0.25,
        "soft_frozen_decoder": 0.35,
        "baselines": 0.85,
        "panel": 1.2,
        "jumprelu": 0.5,
        "memory": 0.6,
        "projection": 0.03,
    },
    "cuda": {
        "frozen_decoder": 0.35,
        "frozen_encoder": 0.35,
        "soft_frozen_decoder": 0.45,
        "baselines": 1.0,
        "panel": 1.4,
        "jumprelu": 0.6,
        "memory": 0.6,
        "projection": 0.03,
    },
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="default: medium, or cuda")
    parser.add_argument("--bases", default=",".join((*JUDGED, *_others())))
    parser.add_argument(
        "--out", type=Path, help="default: results/sparse_step_<device>.json, if complete"
    )
    parser.add_argument("--repeats", type=int, help="default: 5 to 25, by time")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--quick", action="store_true", help="tiny, seconds, no file by itself")
    parser.add_argument(
        "--dead", action="store_true", help="half of the latents dead; no file by itself"
    )
    args = parser.parse_args(argv)
    if args.threads or args.quick:  # at a tiny shape threads cost more than they bring
        torch.set_num_threads(args.threads or 1)
    bases = args.bases.split(",")
    for base in bases:
        if base not in BASES:
            parser.error(f"--bases: {base!r} is not one of {', '.join(BASES)}")

    usual = "quick_sparse" if args.quick else "cuda" if args.device == "cuda" else "medium"
    shape = SHAPES[args.shape or usual]
    complete = set(JUDGED) <= set(bases) and shape.name == usual and not args.skip_memory
    out: Path | None = args.out
    if out is None and complete and not args.quick and not args.dead:
        out = RESULTS / f"sparse_step_{args.device}.json"
    record: dict[str, Any] = {
        "benchmark": "sparse_step",
        "environment": environment(),
        "runs": [],
    }
    for autocast in (False, True) if args.device == "cuda" else (False,):
        run = _describe(shape, args.device, autocast, args.dead)
        record["runs"].append(run)
        batches = activations(shape, args.device)
        for base in bases:
            print(f"{shape.name}{' bf16' if autocast else ''}: {base}", flush=True)
            run["bases"][base] = measure(
                base,
                shape,
                batches,
                repeats=args.repeats,
                autocast=autocast,
                with_memory=not args.skip_memory and base in JUDGED,
                dead=args.dead,
            )
            run["aims"] = judge(run)
            if out is not None:  # after every base: what is measured is not lost
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(record, indent=2) + "\n")
    print("\n" + step_tables(record))


def _others() -> list[str]:
    return [base for base in BASES if base not in JUDGED]


def _describe(shape: Shape, device: str, autocast: bool, dead: bool) -> dict[str, Any]:
    return {
        **conditions(shape, device, autocast=autocast),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "settings": {
            "step": "SAETrainer.step of SAELens: forward, backward, clipping, Adam, counters",
            "stock": "SAELens' class, decoder_init_norm=1.0, same initial weights as the twins",
            "sparse": "the unconstrained twin: stock's SAE with the sparse step",
            "data": "64 Gaussians with decaying spectrum, mean norm sqrt(d_in), pool of "
            f"{shape.n_batches} batches",
            "dead_latents": "every other one in every step, with the recipe's loss"
            if dead
            else "none ever (dead_feature_window 1e9), so no member runs a dead-latent loss",
            "soft_frozen_decoder": "every row starts on the edge of its cap",
            "frozen_encoder": "TopK family: rescale_acts_by_decoder_norm=False (stock: True)",
            "once_sparse": "jumprelu, standard, gated: thresholds (or biases) of all members "
            "start where the L0 is k",
            "ratio": "per repeat one block of steps of each member in turn, rotating order; "
            "median over repeats of member / stock, or of a sum of members / stock",
            "panel": "the three baselines and the sparse member, over one stock member",
            "floor": "one x @ W_enc in the precision of the step into existing memory, plus "
            "p.mul_(1.0) for each trained parameter p; timed in the same repeats. Not a bound "
            "in the strict sense: the sparse step never writes the whole product",
            "peak_memory": "of a step after warm-up, on top of what was in use before: "
            "weights, Adam's moments, gradients, activations, the previous step's output; "
            "cuda: torch's allocator; cpu: resident set of a process of its own",
            "projection": "time between Adam's update and the end of optimizer.step, over the "
            "step; edge: every row starts on the edge of its cap; free: at its centre",
            "parts": PARTS,
        },
        "bases": {},
        "aims": [],
    }


def measure(
    base: str,
    shape: Shape,
    batches: list[torch.Tensor],
    *,
    repeats: int | None,
    autocast: bool,
    with_memory: bool,
    dead: bool = False,
) -> dict[str, Any]:
    """Everything about one base; memory is that of steps without dead latents.

    Raises:
        SystemExit: If a twin did not run its steps sparse.
    """
    device = batches[0].device.type
    synchronize = synchronizer(device)
    threshold = jumprelu_threshold(shape, batches) if base in BY_THRESHOLD else 0.0
    memory: dict[str, float] = {}
    steppers: dict[str, Stepper] = {}
    for m in ALL_MEMBERS:
        build = functools.partial(
            Stepper, base, m, shape, batches, threshold, autocast=autocast, half_dead=dead
        )
        if with_memory and device == "cuda":
            steppers[m], memory[m] = cuda_peak_mib(build)
            continue
        if with_memory:
            memory[m] = cpu_peak_mib(base, m, shape, threshold, autocast=autocast)
        steppers[m] = build()
    for stepper in steppers.values():
        stepper.steps(2)
    first_l0 = {m: s.l0 for m, s in steppers.items()}

    budget_s = shape.budget_s if base in JUDGED else shape.budget_s / 2
    step_s = seconds(functools.partial(steppers[STOCK].steps, 1), synchronize)
    # All members together cost about three of stock's steps.
    block, repeats = blocks(step_s, budget_s, stocks=3, repeats=repeats)
    actions: dict[str, Any] = {
        m: functools.partial(s.steps, block) for m, s in steppers.items()
    }
    actions["product"] = encoder_product(steppers[STOCK], batches[0], autocast)
    for m, stepper in steppers.items():
        actions[f"write {m}"] = read_and_write(stepper)
    ms = interleaved(actions, repeats, synchronize)
    for m in ALL_MEMBERS:
        ms[m] = [t / block for t in ms[m]]

    judged_members = (STOCK, *TWINS) if base in JUDGED else ()
    members = {}
    for m in ALL_MEMBERS:
        floor = added(ms["product"], ms[f"write {m}"])
        members[m] = {
            "ms": ms[m],
            "median_ms": statistics.median(ms[m]),
            **paired(ms[m], ms[STOCK]),
            "floor_ms": floor,
            "over_floor": paired(ms[m], floor)["ratio"],
            "peak_memory_mib": memory.get(m),
            # At a tiny shape the growth can be nothing at all.
            "peak_memory_ratio": memory[m] / memory[STOCK] if memory.get(STOCK) else None,
            "l0_first": first_l0[m],
            "l0_last": steppers[m].l0,
        }
    for m in judged_members:
        members[m]["parts_ms"] = parts(steppers[m], min(repeats, 5))
        members[m]["profile_ms"] = operators(steppers[m], min(repeats, 2))
    for m in TWINS:
        members[m].update(sparse_share(base, m, steppers[m]))
    edge = projection_share(steppers["soft_frozen_decoder"], max(3, repeats))
    del steppers, actions
    free = Stepper(
        base,
        "soft_frozen_decoder",
        shape,
        batches,
        threshold,
        autocast=autocast,
        rows_on_edge=False,
    )
    free.steps(3)
    return {
        **options_record(base, shape, threshold),
        "threshold": threshold,
        "repeats": repeats,
        "steps_per_block": block,
        "product_ms": ms["product"],
        "members": members,
        "sums": {
            "baselines": paired(added(*(ms[m] for m in BASELINES)), ms[STOCK]),
            "panel": paired(added(*(ms[m] for m in TWINS)), ms[STOCK]),
        },
        "projection": {"edge": edge, "free": projection_share(free, max(3, repeats))},
    }


def sparse_share(base: str, member: str, stepper: Stepper) -> dict[str, Any]:
    """How many of a twin's steps ran sparse.

    Raises:
        SystemExit: If not all did: a time of dense steps is not what is measured here.
    """
    state = stepper.sae.sparse_state
    dense = sum(state.dense_steps.values())
    if dense or not state.sparse_steps:
        why = ", ".join(f"{reason}: {n}" for reason, n in state.dense_steps.items())
        raise SystemExit(
            f"{base}, {member}: {dense} of {dense + state.sparse_steps} steps did not run "
            f"sparse ({why or 'no step was counted'}); nothing to compare"
        )
    return {"sparse_steps": state.sparse_steps, "dense_steps": dense, "sparse_share": 1.0}


def judge(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The aims about the bases measured so far, and whether they are met."""
    aims, found = AIMS[run["device"]], []

    def add(what: str, value: float | None, aim: float) -> None:
        if value is not None:
            found.append({"what": what, "value": value, "aim": aim, "met": value <= aim})

    if "batchtopk" in run["bases"]:
        main_base = run["bases"]["batchtopk"]
        members, sums = main_base["members"], main_base["sums"]
        for m in ("frozen_decoder", "frozen_encoder", "soft_frozen_decoder"):
            add(f"{m} / stock batchtopk", members[m]["ratio"], aims[m])
        add("three baselines / stock", sums["baselines"]["ratio"], aims["baselines"])
        add("panel of four, sparse trained / stock", sums["panel"]["ratio"], aims["panel"])
    if "jumprelu" in run["bases"]:
        members = run["bases"]["jumprelu"]["members"]
        for m in BASELINES:
            add(f"{m}_jumprelu / stock jumprelu", members[m]["ratio"], aims["jumprelu"])
    if "batchtopk" in run["bases"]:
        main_base = run["bases"]["batchtopk"]
        for m in ("frozen_decoder", "frozen_encoder"):
            peak = main_base["members"][m]["peak_memory_ratio"]
            add(f"peak memory, {m} / stock", peak, aims["memory"])
        for where, what in (("edge", "every row on the edge"), ("free", "rows free")):
            share = main_base["projection"][where]["share_of_step"]
            add(f"projection in the soft-frozen step, {what}", share, aims["projection"])
    return found


if __name__ == "__main__":
    main()
