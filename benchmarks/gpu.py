"""For the day a GPU is there: is everything right on it, and what does it cost?

    make gpu WHEELS=wheels        # installs what the folder holds, without a network, then
    python benchmarks/gpu.py      # this: under 25 minutes on one H100 or H200

Writes results/gpu.json and its tables after every section; ``--only`` measures some sections
again and keeps the others. A section that fails, or for which no time is left, says so in the
file and does not end the run.

``--device cpu --quick`` runs the same code at tiny sizes, in a minute and a half: that is how
it is tested.
"""

import argparse
import functools
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import peers
import sparse_growth
import sparse_step
import torch
import transcoder_step
from random_model import random_language_model, random_text
from render_gpu import gpu_tables
from sparse_panel import train_way
from step_members import (
    BASELINES,
    BASES,
    SHAPES,
    SPARSE,
    STOCK,
    Shape,
    Stepper,
    activations,
    conditions,
    jumprelu_threshold,
    put_rows_on_edge,
    sizes,
    start_of,
)

from sae_baselines.baselines import SEEDED
from sae_baselines.baselines.transcoder import TRANSCODERS, PairStart
from sae_baselines.errors import one_line
from sae_baselines.paper.demo.specs import middle_hook
from sae_baselines.provenance import environment
from sae_baselines.sparse import kernels
from sae_baselines.study import PanelSpec, spec_from_dict
from sae_baselines.study.data import load_text

RESULTS = Path(__file__).parent / "results"
MEMBERS = (STOCK, *BASELINES, SPARSE)
# ||g - g0|| / ||g0|| of all gradients of a step, in float32 on the device against the CPU.
FLOAT32_AIM = 1e-3
# In bfloat16 autocast: as far from float32 as the CPU's own autocast is, at most twice.
AUTOCAST_AIM = 2.0
CONSTRAINED_STEPS = 20
# Bases without a sparse step, and their members: matching pursuit encodes with its decoder.
_ALWAYS_DENSE = {
    "abstopk": (STOCK, *BASELINES),
    "matching_pursuit": (STOCK, "frozen_decoder", "soft_frozen_decoder"),
}


@dataclass(frozen=True)
class Plan:
    """Sizes of each section.

    Attributes:
        parity: Of the steps compared with the CPU's.
        steps: Of the steps that are timed, with their memory.
        bases: Whose steps are timed.
        d_model: Width of the language model that a panel reads, where none is given.
        layers: Its blocks up to the hook.
        panel: d_sae, k, batch and number of training steps of the panel.
    """

    parity: Shape
    steps: tuple[Shape, ...]
    bases: tuple[str, ...]
    d_model: int
    layers: int
    panel: tuple[int, int, int, int]


PLANS = {
    "full": Plan(
        Shape("parity", 128, 4096, 256, 16, n_batches=2),
        steps=(SHAPES["cuda"], Shape("wide", 2304, 131_072, 4096, 160, n_batches=4)),
        bases=("batchtopk", "jumprelu"),
        # As many weights up to its hook as Gemma-2-2B has up to layer 12.
        d_model=2304,
        layers=13,
        panel=(73_728, 160, 4096, 100),
    ),
    "quick": Plan(
        Shape("quick_parity", 16, 512, 32, 4, n_batches=2),
        steps=(SHAPES["quick_sparse"],),
        bases=("batchtopk",),
        d_model=32,
        layers=2,
        panel=(256, 4, 128, 4),
    ),
}


@dataclass(frozen=True)
class Run:
    """What all sections share."""

    device: str
    quick: bool
    model: str | None
    dataset: str | None

    @property
    def plan(self) -> Plan:
        """Sizes."""
        return PLANS["quick" if self.quick else "full"]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--only", default=",".join(SECTIONS), help="comma-separated sections")
    parser.add_argument("--minutes", type=float, default=25.0, help="for all; default: 25")
    parser.add_argument("--model", help="of the panel: Hub name or folder; default: random")
    parser.add_argument("--dataset", help="of the panel, with --model: Hub name or file")
    parser.add_argument("--out", type=Path, help="default: results/gpu.json")
    parser.add_argument("--quick", action="store_true", help="tiny, no GPU; needs --out")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: torch finds no CUDA device here; --device cpu --quick tries it")
    if args.quick and args.out is None:
        parser.error("--quick: tiny shapes make no result; name a file with --out")
    if args.device == "cpu" and not args.quick:
        parser.error("--device cpu: these sizes are for a GPU; add --quick")
    if (args.model is None) != (args.dataset is None):
        parser.error("--model and --dataset go together")
    wanted = args.only.split(",")
    for name in wanted:
        if name not in SECTIONS:
            parser.error(f"--only: {name!r} is not one of {', '.join(SECTIONS)}")
    if args.quick:
        torch.set_num_threads(1)

    out: Path = args.out or RESULTS / "gpu.json"
    record = _started(out, args.device)
    run = Run(args.device, args.quick, args.model, args.dataset)
    ends = time.monotonic() + 60 * args.minutes
    for name in wanted:
        record["sections"][name] = _section(name, run, ends)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print("\n" + gpu_tables(record))
    failed = [n for n in wanted if "failed" in record["sections"][n]]
    if failed:
        raise SystemExit(f"{', '.join(failed)} failed; {out} says why")


def _started(out: Path, device: str) -> dict[str, Any]:
    if not out.exists():
        return {"benchmark": "gpu", "device": device, "sections": {}}
    record = json.loads(out.read_text(encoding="utf-8"))
    if record.get("benchmark") != "gpu" or record.get("device") != device:
        raise SystemExit(f"{out} is not a result of gpu on {device}")
    return record


def _section(name: str, run: Run, ends: float) -> dict[str, Any]:
    """One section; what goes wrong in it is its result, and the next goes on."""
    measure, minutes = SECTIONS[name]
    left = (ends - time.monotonic()) / 60
    if left < minutes:
        return {"not_run": f"{left:.0f} of the {minutes:g} minutes that it may take were left"}
    print(f"{name} ...", flush=True)
    began = time.monotonic()
    found: dict[str, Any] = {"environment": environment()}
    try:
        found |= measure(run)
    except (Exception, SystemExit) as error:  # of a driver, a kernel, a library: any
        found["failed"] = f"{type(error).__name__}: {one_line(error, 300)}"
        print(f"{name} failed: {found['failed']}", flush=True)
    found["seconds"] = time.monotonic() - began
    gc.collect()
    if run.device == "cuda":
        torch.cuda.empty_cache()
    print(f"{name}: {found['seconds']:.0f} s", flush=True)
    return found


def parity(run: Run) -> dict[str, Any]:
    """Loss and gradients of one step of every SAE, against the CPU's in float32."""
    shape, rows = run.plan.parity, []
    for base, member, begin, cpu in _every_sae(shape):
        there = [batch.to(run.device) for batch in cpu]
        truth = _one_step(begin(cpu, autocast=False))
        noise = _off(_one_step(begin(cpu, autocast=True)), truth)
        for autocast in (False, True):
            off = _off(_one_step(begin(there, autocast=autocast)), truth)
            aim = AUTOCAST_AIM * noise["gradients"] if autocast else FLOAT32_AIM
            rows.append(
                {
                    "base": base,
                    "member": member,
                    "autocast": autocast,
                    **off,
                    "aim": aim,
                    "met": off["gradients"] <= aim,
                    "constraint": _held(member, begin(there, autocast=autocast)),
                }
            )
    return {"shape": sizes(shape), "device": run.device, "rows": rows}


def _every_sae(
    shape: Shape,
) -> Iterator[tuple[str, str, Callable[..., Stepper], list[torch.Tensor]]]:
    """Base, member, what makes its stepper of batches, and batches on the CPU."""
    batches = activations(shape, "cpu")
    threshold = jumprelu_threshold(shape, batches)
    for base in (*BASES, *_ALWAYS_DENSE):
        for member in _ALWAYS_DENSE.get(base, MEMBERS):
            begin = functools.partial(
                Stepper, base, member, shape, threshold=threshold, rows_on_edge=False
            )
            yield base, member, begin, batches
    pairs = transcoder_step.pairs_of(shape)
    start = PairStart.of(torch.cat(pairs), shape.d_in)
    for base in TRANSCODERS:
        for member in (SPARSE, *transcoder_step.BASELINES):
            constraint = SEEDED.name if member == SPARSE else member
            yield (
                base,
                member,
                functools.partial(_transcoder, base, constraint, shape, start),
                pairs,
            )


def _transcoder(
    base: str,
    constraint: str,
    shape: Shape,
    start: PairStart,
    batches: list[torch.Tensor],
    *,
    autocast: bool,
) -> Stepper:
    made = transcoder_step.make(
        base,
        constraint,
        shape,
        start,
        skip=True,
        sparse=True,
        device=batches[0].device.type,
    )
    return Stepper.of(made, shape, batches, autocast)


def _one_step(stepper: Stepper) -> dict[str, torch.Tensor]:
    """Loss and gradients of a member's first step, in float64 on the CPU."""
    found: dict[str, torch.Tensor] = {}

    def note(*_: object) -> None:
        for name, p in stepper.sae.named_parameters():
            if p.grad is not None:
                found[name] = p.grad.detach().double().cpu()

    stepper.trainer.optimizer.register_step_pre_hook(note)
    stepper.steps(1)
    assert stepper.output is not None
    return {"loss": stepper.output.loss.detach().double().cpu(), **found}


def _off(ours: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative differences of the loss, and of all gradients as one vector."""
    if ours.keys() != truth.keys():
        raise SystemExit(f"gradients of {sorted(ours)} against {sorted(truth)}")
    names = [name for name in truth if name != "loss"]
    part = sum(float((ours[n] - truth[n]).square().sum()) for n in names) ** 0.5
    whole = sum(float(truth[n].square().sum()) for n in names) ** 0.5
    loss = truth["loss"].abs().clamp_min(1e-30)
    return {
        "loss": float((ours["loss"] - truth["loss"]).abs() / loss),
        "gradients": part / max(whole, 1e-30),
    }


def _held(member: str, stepper: Stepper) -> bool | None:
    """Whether what the member freezes is bit for bit its start after some steps, or within its
    cap."""
    sae = stepper.sae
    if member.startswith("soft_frozen"):
        put_rows_on_edge(sae)
        stepper.steps(CONSTRAINED_STEPS)
        rows, start = sae.held_rows().double(), start_of(sae).double()
        cosines = torch.nn.functional.cosine_similarity(rows, start, dim=1)
        return bool(cosines.min() >= sae.cfg.tau - 1e-6)
    frozen = {"frozen_decoder": "W_dec", "frozen_encoder": "W_enc"}.get(member)
    if frozen is None:
        return None
    start = getattr(sae, frozen).detach().clone()
    stepper.steps(CONSTRAINED_STEPS)
    return torch.equal(getattr(sae, frozen), start)


def triton(run: Run) -> dict[str, Any]:
    """Every kernel against float64, and a step with them over one with torch's operators."""
    if run.device == "cpu":
        return {"checked": None, "why": "Triton's kernels are compiled for CUDA devices alone"}
    shape = run.plan.steps[0]
    device = torch.device(run.device, torch.cuda.current_device())
    wrong = kernels.failure(kernels, device)
    batches = activations(shape, run.device)
    used = kernels.available(batches[0])
    ratios: dict[str, Any] = {}
    for member in (*BASELINES, SPARSE):
        times = {}
        for name, on in (("triton", used), ("torch", False)):
            with mock.patch.object(kernels, "available", lambda _, on=on: on):
                stepper = Stepper("batchtopk", member, shape, batches, 0.0)
                stepper.steps(3)
                torch.cuda.synchronize()
                began = time.perf_counter()
                stepper.steps(10)
                torch.cuda.synchronize()
                times[name] = (time.perf_counter() - began) * 100
        ratios[member] = {**times, "ratio": times["triton"] / times["torch"]}
    return {"checked": wrong is None, "why": wrong, "used": used, "members": ratios}


def steps(run: Run) -> dict[str, Any]:
    """Steps over stock's, with peak memory, in float32 and under autocast."""
    runs = []
    for shape in run.plan.steps:
        batches = activations(shape, run.device)
        for autocast in (False, True) if run.device == "cuda" else (False,):
            found: dict[str, Any] = {
                **conditions(shape, run.device, autocast=autocast),
                "bases": {},
            }
            for base in run.plan.bases:
                print(f"  {shape.name}{' bf16' if autocast else ''}: {base}", flush=True)
                found["bases"][base] = sparse_step.measure(
                    base,
                    shape,
                    batches,
                    repeats=3 if run.quick else None,
                    autocast=autocast,
                    with_memory=run.device == "cuda",
                )
                gc.collect()
            found["aims"] = sparse_step.judge(found)
            runs.append(found)
    return {"runs": runs}


def crossover(run: Run) -> dict[str, Any]:
    """Where the dense step is the faster one, over k and d_sae, at the width of `steps`."""
    plan = sparse_growth.PLANS["quick" if run.quick else "cuda"]
    timed = run.plan.steps[0]
    plan = replace(plan, shape=replace(plan.shape, d_in=timed.d_in, k=timed.k))
    return {axis: sparse_growth.grow(plan, axis, run.device) for axis in ("k", "d_sae")}


def beside(run: Run) -> dict[str, Any]:
    """Beside those other libraries that are installed."""
    shape = run.plan.steps[0]
    batches = activations(shape, run.device)
    there = {
        name: functools.partial(build, shape, batches)
        for name, (module, build) in _PEERS.items()
        if find_spec(module)
    }
    missing = [name for name in _PEERS if name not in there]
    repeats = 3 if run.quick else None
    autocast = run.device == "cuda"
    found = peers.measure(shape, batches, there, repeats, autocast)
    return {**conditions(shape, run.device, autocast=autocast), **found, "missing": missing}


_PEERS: dict[str, tuple[str, Callable[[Shape, list[torch.Tensor]], peers.Peer]]] = {
    peers.DICTIONARY_LEARNING: ("dictionary_learning", peers.dictionary_learning_step),
    peers.SPARSIFY: ("sparsify", peers.sparsify_step),
}


def panel(run: Run) -> dict[str, Any]:
    """Tokens per second of a whole panel of four, and the most memory that it held."""
    with tempfile.TemporaryDirectory() as folder:
        spec = _panel_spec(run, Path(folder))
        text = load_text(replace(spec.dataset, shuffle_seed=None))
        ways = {}
        for sparse in ("none", "baselines", "all"):
            with _peak(run.device) as peak:
                way, _ = train_way(replace(spec, sparse_step=sparse), text, nudged=False)
            tokens = spec.training_tokens * len(way["members"])
            ways[sparse] = {
                "training_s": way["training_s"],
                "steps_s": way["steps_s"],
                "tokens_per_s": tokens / way["training_s"],
                "tokens_per_s_in_steps": tokens / way["steps_s"],
                "peak_mib": peak[0],
            }
    return {
        "settings": {
            "model": run.model
            or f"random weights, {run.plan.layers} blocks of "
            f"{run.plan.d_model:,} dimensions up to the hook",
            "d_sae": spec.d_sae,
            "expansion": spec.expansion,
            "l0": spec.l0s[0],
            "training_tokens": spec.training_tokens,
            "batch": spec.train_batch_size_tokens,
            "autocast": spec.autocast,
        },
        "ways": ways,
    }


def _panel_spec(run: Run, folder: Path) -> PanelSpec:
    d_sae, k, batch, n_steps = run.plan.panel
    held_out = 4 * batch
    spec: dict[str, Any] = {
        "name": "gpu",
        "architecture": "batchtopk",
        "l0": k,
        "device": run.device,
        "autocast": run.device == "cuda",
        "training_tokens": n_steps * batch,
        "train_batch_size_tokens": batch,
        "context_size": 128,
        "store_batch_size_prompts": 16,
        "n_batches_in_buffer": 16,
        "n_batches_for_norm_estimate": 4,
        "calibration_tokens": held_out,
        "eval_tokens": held_out,
        "ce_tokens": 1024,
        "n_checkpoints": 0,
    }
    dtype = torch.bfloat16 if run.device == "cuda" else torch.float32
    model, dataset = run.model, run.dataset
    if model is None:
        n_texts = 2 * (spec["training_tokens"] + 2 * held_out) + 400_000
        layers = run.plan.layers + 1
        width = run.plan.d_model
        model = str(random_language_model(folder / "model", width, layers, dtype))
        dataset = str(random_text(folder / "text.jsonl", n_texts))
        spec["hook_name"] = f"blocks.{run.plan.layers - 1}.hook_resid_post"
        spec["d_sae"] = d_sae
    else:
        spec["hook_name"] = middle_hook(model)
        spec["expansion"] = 32
    spec["model"] = {"name": model, "dtype": str(dtype).removeprefix("torch.")}
    spec["dataset"] = {"path": dataset}
    return spec_from_dict(spec, where="panel")


@contextmanager
def _peak(device: str) -> Iterator[list[float | None]]:
    """The most that torch holds on the device within; None on a CPU."""
    found: list[float | None] = [None]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield found
    if device == "cuda":
        found[0] = torch.cuda.max_memory_allocated() / 2**20


# Each with the minutes that it may take on one H100 or H200 (estimated, never measured).
SECTIONS: dict[str, tuple[Callable[[Run], dict[str, Any]], float]] = {
    "parity": (parity, 3.0),
    "triton": (triton, 1.0),
    "steps": (steps, 9.0),
    "crossover": (crossover, 5.0),
    "panel": (panel, 4.0),
    "beside": (beside, 2.0),
}


if __name__ == "__main__":
    main()
