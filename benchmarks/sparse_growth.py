"""How the training step grows with d_sae, k and batch, in time and memory, and what fits.

``python benchmarks/sparse_growth.py`` writes results/sparse_growth_cpu.json and its figure.
Sections can be measured one by one (``--only memory``): the file keeps the others.
"""

import argparse
import functools
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from growth_figure import draw
from pairs import interleaved, paired, seconds, synchronizer
from render_sparse import growth_tables
from step_members import BASELINES, SPARSE, STOCK, Shape, Stepper, activations, sizes
from step_memory import (
    available_mib,
    clean_processes,
    cpu_peak_mib,
    cuda_peak_mib,
    peak_mib,
    set_limit,
)

from sae_baselines.provenance import environment

RESULTS = Path(__file__).parent / "results"
BASE = "batchtopk"
MEMBERS = (STOCK, *BASELINES, SPARSE)
_REPEATS = (3, 9)


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        shape: Everything but the axis that grows; its budget_s is for one point.
        d_sae, k, batch: Values on each axis.
        memory: d_sae of the memory curve.
        limit: Shape that should fit where stock does not.
        limits_gib: Limits tried, smallest first.
    """

    shape: Shape
    d_sae: tuple[int, ...]
    k: tuple[int, ...]
    batch: tuple[int, ...]
    memory: tuple[int, ...]
    limit: Shape
    limits_gib: tuple[float, ...]


_WIDE = (2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
PLANS = {
    "cpu": Plan(
        Shape("growth", 256, 8192, 512, 32, n_batches=2, budget_s=6.0),
        d_sae=_WIDE,
        k=(8, 16, 32, 64, 128, 256, 512, 1024),
        batch=(256, 512, 1024, 2048, 4096, 8192),
        memory=_WIDE,
        limit=Shape("limit", 128, 131_072, 4096, 32, n_batches=1),
        limits_gib=(0.5, 1, 2, 4, 8, 16),
    ),
    "cuda": Plan(
        Shape("growth", 768, 32_768, 4096, 64, n_batches=2, budget_s=2.0),
        d_sae=_WIDE,
        k=(8, 16, 32, 64, 128, 256, 512, 1024, 2048),
        batch=(256, 512, 1024, 2048, 4096, 8192),
        memory=_WIDE,
        limit=Shape("limit", 768, 131_072, 4096, 64, n_batches=1),
        limits_gib=(2, 4, 6, 8, 12, 16, 24, 32),
    ),
    "quick": Plan(
        Shape("quick_growth", 16, 512, 32, 4, n_batches=2, budget_s=0.02),
        d_sae=(256, 512),
        k=(4, 64),
        batch=(16, 32),
        memory=(8192, 16_384),
        limit=Shape("quick_limit", 16, 32_768, 512, 4, n_batches=1),
        # The first is less than one matrix of batch by d_sae.
        limits_gib=(0.06, 2),
    ),
}
AXES = ("d_sae", "k", "batch")
SECTIONS = (*AXES, "memory", "limit")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default=",".join(SECTIONS), help="comma-separated sections")
    parser.add_argument("--out", type=Path, help="default: results/sparse_growth_<device>.json")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--quick", action="store_true", help="tiny, seconds; needs --out")
    args = parser.parse_args(argv)
    if args.threads or args.quick:
        torch.set_num_threads(args.threads or 1)
    plan = PLANS["quick" if args.quick else args.device]
    sections = args.only.split(",")
    for section in sections:
        if section not in SECTIONS:
            parser.error(f"--only: {section!r} is not one of {', '.join(SECTIONS)}")
    if args.quick and args.out is None:
        parser.error("--quick: tiny shapes make no result; name a file with --out")
    out: Path = args.out or RESULTS / f"sparse_growth_{args.device}.json"

    record = _started(out, args.device)
    clean_processes("sae_baselines.report.style")  # each imports this file, hence the figure
    for section in sections:
        print(section, flush=True)
        if section in AXES:
            found = grow(plan, section, args.device)
        elif section == "memory":
            found = memory(plan, args.device)
        else:
            found = limit(plan, args.device)
        record["sections"][section] = {"environment": environment(), **found}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=2) + "\n")
    if set(record["sections"]) >= {*AXES, "memory"}:
        draw(record, out.with_suffix(""))
    print("\n" + growth_tables(record))


def _started(out: Path, device: str) -> dict[str, Any]:
    if out.exists():
        record = json.loads(out.read_text(encoding="utf-8"))
        if record.get("benchmark") != "sparse_growth" or record.get("device") != device:
            raise SystemExit(f"{out} is not a result of sparse_growth on {device}")
        return record
    return {
        "benchmark": "sparse_growth",
        "device": device,
        "settings": {
            "step": "as in sparse_step: SAETrainer.step, float32, no dead latents",
            "base": BASE,
            "ratio": "median over repeats of member / stock, one step of each in turn",
            "peak_mib": "of a step after warm-up, on top of what was in use before; cuda: "
            "torch's allocator; cpu: resident set of a process of its own",
            "limit": "a process of its own builds the SAE and takes two steps under a limit; "
            "cpu: RLIMIT_AS, so much address space on top of what Python and torch hold before "
            "(own_mib); cuda: torch's share of the device. peak_mib: resident, all included",
        },
        "sections": {},
    }


def grow(plan: Plan, axis: str, device: str) -> dict[str, Any]:
    """Times over one axis."""
    points = []
    for value in getattr(plan, axis):
        shape = replace(plan.shape, **{axis: value})
        print(f"  {axis} {value:,}", flush=True)
        points.append(_point(shape, device))
    return {"base_shape": sizes(plan.shape), "axis": axis, "points": points}


def _point(shape: Shape, device: str) -> dict[str, Any]:
    batches = activations(shape, device)
    synchronize = synchronizer(device)
    steppers = {m: Stepper(BASE, m, shape, batches, 0.0) for m in MEMBERS}
    actions: dict[str, Callable[[], None]] = {
        m: functools.partial(s.steps, 1) for m, s in steppers.items()
    }
    for action in actions.values():
        action()
    turn_s = sum(seconds(action, synchronize) for action in actions.values())
    repeats = max(_REPEATS[0], min(_REPEATS[1], int(shape.budget_s / turn_s)))
    ms = interleaved(actions, repeats, synchronize)
    return {
        "shape": sizes(shape),
        "repeats": repeats,
        "members": {
            m: {
                "ms": ms[m],
                "median_ms": statistics.median(ms[m]),
                **paired(ms[m], ms[STOCK]),
                "sparse_share": _sparse_share(steppers[m]),
            }
            for m in MEMBERS
        },
    }


def _sparse_share(stepper: Stepper) -> float:
    """Of all steps so far; 0 for stock, which has no sparse step."""
    state = getattr(stepper.sae, "sparse_state", None)
    if state is None:
        return 0.0
    return state.sparse_steps / (state.sparse_steps + sum(state.dense_steps.values()))


def memory(plan: Plan, device: str) -> dict[str, Any]:
    """Peak memory of a step over d_sae."""
    points = []
    for d_sae in plan.memory:
        shape = replace(plan.shape, d_sae=d_sae)
        print(f"  d_sae {d_sae:,}", flush=True)
        peaks = {m: _peak(m, shape, device) for m in MEMBERS}
        points.append({"shape": sizes(shape), "peak_mib": peaks})
    return {"base_shape": sizes(plan.shape), "points": points}


def _peak(member: str, shape: Shape, device: str) -> float:
    if device == "cpu":
        return cpu_peak_mib(BASE, member, shape, 0.0)
    batches = activations(shape, device)
    return cuda_peak_mib(functools.partial(Stepper, BASE, member, shape, batches, 0.0))[1]


def limit(plan: Plan, device: str) -> dict[str, Any]:
    """For each member the limits that are too little, and the first at which it fits."""
    tries: dict[str, list[dict[str, Any]]] = {}
    for member in MEMBERS:
        tries[member] = []
        for gib in plan.limits_gib:
            if gib * 1024 > available_mib() and device == "cpu":
                break  # what would fail there is the machine, not the limit
            print(f"  {member} under {gib:g} GiB", flush=True)
            tries[member].append(_in_child(member, plan.limit, device, gib))
            if tries[member][-1]["fits"]:
                break
    return {
        "shape": sizes(plan.limit),
        "limits_gib": list(plan.limits_gib),
        "members": tries,
    }


def _in_child(member: str, shape: Shape, device: str, gib: float) -> dict[str, Any]:
    context = clean_processes()
    answer, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "stderr"
        limits = (device, gib, torch.get_num_threads(), str(said))
        child = context.Process(target=_under_limit, args=(sender, member, shape, *limits))
        child.start()
        sender.close()
        try:
            found = answer.recv()
        except EOFError:
            # An allocation that fails inside a parallel region ends the process.
            child.join()
            last = (said.read_text(errors="replace").strip().splitlines() or ["nothing said"])[
                -1
            ]
            if not _is_about_memory(last):
                raise SystemExit(f"{member} under {gib:g} GiB ended ({last})") from None
            return {"limit_gib": gib, "fits": False, "error": last[-160:]}
        child.join()
    return {"limit_gib": gib, **found}


def _under_limit(
    sender: Any, member: str, shape: Shape, device: str, gib: float, threads: int, said: str
) -> None:
    """Two steps under a limit; runs in a process of its own."""
    with Path(said).open("w") as file:
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(threads)
    # The thread pools and workspaces of torch are not the SAE's.
    tiny = PLANS["quick"].shape
    Stepper(BASE, member, tiny, activations(tiny, device), 0.0).steps(1)
    found: dict[str, Any] = {"own_mib": set_limit(device, gib)}
    try:
        stepper = Stepper(BASE, member, shape, activations(shape, device), 0.0)
        stepper.steps(2)
        share = _sparse_share(stepper)
        found |= {"fits": True, "peak_mib": peak_mib(device), "sparse_share": share}
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and not _is_about_memory(text):
            raise
        found |= {"fits": False, "error": f"{type(error).__name__}: {text[-160:]}"}
    sender.send(found)


def _is_about_memory(message: str) -> bool:
    return "bad_alloc" in message or "memory" in message.lower()


if __name__ == "__main__":
    main()
