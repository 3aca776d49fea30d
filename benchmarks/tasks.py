"""What it costs to cut a study into tasks, what a second worker brings, and is `plan` right?

``python benchmarks/tasks.py`` writes results/tasks.json and prints its tables. Three sections
(``--only``), each of which keeps the others of the file:

- overhead: 40 tiny tasks, ten passes and thirty measurements, done in this process with claims,
  markers and hashes, against the same forty pieces of work one after another without any;
- executors: one study, by this process, by one worker, by two, and by submitit's local
  executor: times, and whether every weight and measurement is bit for bit the same;
- plan: seconds that ``plan --probe`` says, against those that the tasks then took.

Times want a machine that does nothing else; what is equal is equal on any.
"""

import argparse
import dataclasses
import gc
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from panels import add_panel_arguments, one_panel
from random_model import random_language_model, random_text
from render import machine, table

from sae_baselines.evals.plan import plan_study
from sae_baselines.provenance import environment
from sae_baselines.study import PanelSpec, spec_from_dict, train_study
from sae_baselines.study.engine import Work, tasks, train_on
from sae_baselines.study.folder import StudyFolder
from sae_baselines.work.claims import DONE, Share
from sae_baselines.work.devices import Devices
from sae_baselines.work.executor import Executor
from sae_baselines.work.slurm import Slurm

RESULTS = Path(__file__).parent / "results"
# At most this share of the work, and this many seconds more than nothing.
AIM = {"share": 0.03, "seconds": 1.0}
PLAN_AIM = 0.3
_REPEATS = 3


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_panel_arguments(parser)
    parser.add_argument("--tokens", type=int, help="of executors and plan; default: the demo's")
    parser.add_argument("--only", default=",".join(SECTIONS), help="comma-separated sections")
    parser.add_argument("--out", type=Path, default=RESULTS / "tasks.json")
    args = parser.parse_args(argv)
    wanted = args.only.split(",")
    for name in wanted:
        if name not in SECTIONS:
            parser.error(f"--only: {name!r} is not one of {', '.join(SECTIONS)}")
    record: dict[str, Any] = {"benchmark": "tasks", "sections": {}}
    if args.out.exists():
        record = json.loads(args.out.read_text(encoding="utf-8"))

    def two_panels() -> PanelSpec:
        spec = one_panel(parser, args)
        tokens = args.tokens or spec.training_tokens
        return dataclasses.replace(
            spec, seeds=[0, 1], max_panels_per_pass=1, training_tokens=tokens, n_checkpoints=0
        )

    for name in wanted:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as scratch:
            found = SECTIONS[name](two_panels, Path(scratch))
        record["sections"][name] = {"environment": environment(), "load_1min": load, **found}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print("\n" + task_tables(record))


def overhead(_: Callable[[], PanelSpec], scratch: Path) -> dict[str, Any]:
    """Forty tiny tasks with and without everything around them, in turn."""
    model = random_language_model(scratch / "model", 64, 2, torch.float32)
    text = random_text(scratch / "text.jsonl", 200_000)
    spec = spec_from_dict(
        {
            "name": "forty-tasks",
            "model": {"name": str(model), "dtype": "float32"},
            "hook_name": "blocks.0.hook_resid_post",
            "dataset": {"path": str(text)},
            "d_sae": 512,
            "l0": 8,
            "seeds": list(range(10)),
            "members": ["trained", "frozen_decoder", "frozen_encoder"],
            "max_panels_per_pass": 1,
            "training_tokens": 20_480,
            "train_batch_size_tokens": 512,
            "context_size": 64,
            "store_batch_size_prompts": 8,
            "n_batches_in_buffer": 16,
            "n_batches_for_norm_estimate": 2,
            "calibration_tokens": 4096,
            "eval_tokens": 4096,
            "ce_tokens": 512,
            "n_checkpoints": 0,
        }
    )
    n = len(tasks(spec))
    ways: dict[str, Callable[[Path], object]] = {
        "loop": lambda out: _in_a_loop(spec, out),
        "tasks": lambda out: train_study(spec, out),
    }
    outside: dict[str, list[float]] = {name: [] for name in ways}
    inside: list[float] = []
    for name, way in ways.items():  # what is imported and compiled once is not counted
        way(scratch / f"first_{name}")
    for repeat in range(_REPEATS):
        for name in list(ways)[:: 1 if repeat % 2 else -1]:
            gc.collect()
            whole, work = _apart(ways[name], scratch / f"{name}_{repeat}")
            outside[name].append(whole - work)
            inside.append(work)
    extra = [a - b for a, b in zip(outside["tasks"], outside["loop"], strict=True)]
    more = statistics.median(extra)
    share = more / (statistics.median(inside) + statistics.median(outside["loop"]))
    return {
        "n_tasks": n,
        "work_s": inside,
        "outside_s": outside,
        "more_s": more,
        "share": share,
        "aim": AIM,
        "met": share <= AIM["share"] and more <= AIM["seconds"],
    }


def _apart(way: Callable[[Path], object], out: Path) -> tuple[float, float]:
    """Processor seconds of all of it, and of the tasks' own work, whose noise is larger than
    what stands around it."""
    do, work = Work.do, 0.0

    def timed(self: Work, task: Any) -> Any:
        nonlocal work
        began = time.process_time()
        try:
            return do(self, task)
        finally:
            work += time.process_time() - began

    Work.do = timed
    try:
        began = time.process_time()
        way(out)
        return time.process_time() - began, work
    finally:
        Work.do = do


def _in_a_loop(spec: PanelSpec, out: Path) -> None:
    """What the tasks do, and nothing else."""
    folder = StudyFolder(out)
    with folder.locked():
        folder.open(spec, resume=False)
        work = Work(spec, folder, "", {}, Share(out))
        for task in tasks(spec):
            work.do(task)
        work.close()


def executors(spec_of: Callable[[], PanelSpec], scratch: Path) -> dict[str, Any]:
    """One study by each, with one thread a worker."""
    spec = spec_of()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    others: dict[str, Executor] = {
        "one worker": Devices(workers=1),
        "two workers": Devices(workers=2),
        "submitit, two jobs": Slurm(workers=2, engine="local", time=600),
    }
    ways: dict[str, Callable[[Path], object]] = {"here": lambda out: train_study(spec, out)}
    for name, on in others.items():
        ways[name] = lambda out, on=on: train_on(on, spec, out)
    seconds, files = {}, {}
    for number, (name, way) in enumerate(ways.items()):
        out = scratch / str(number)
        began = time.perf_counter()
        way(out)
        seconds[name] = time.perf_counter() - began
        files[name] = _results(out)
        print(f"{name}: {seconds[name]:.0f} s", flush=True)
    torch.set_num_threads(threads)
    same = {name: found == files["here"] for name, found in files.items()}
    return {
        "model": spec.model.recorded_name,
        "training_tokens": spec.training_tokens,
        "seeds": spec.seeds,
        "files": len(files["here"]),
        "seconds": seconds,
        "same_as_here": same,
        "two_over_one": seconds["two workers"] / seconds["one worker"],
    }


def _results(root: Path) -> dict[str, str]:
    """Hashes of every weight and measurement."""
    found = [*root.glob("panels/**/*.safetensors"), *root.glob("panels/**/measurement.json")]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
    }


def plan(spec_of: Callable[[], PanelSpec], scratch: Path) -> dict[str, Any]:
    """What the probe says of each kind of task, and what they took."""
    spec = spec_of()
    said: dict[str, list[float]] = {}
    for task in plan_study(spec, probe=True).tasks:
        if task.seconds is not None:
            said.setdefault(task.kind, []).append(task.seconds)
    train_study(spec, scratch / "study")
    share, took = Share(scratch / "study"), {}
    for task in tasks(spec):
        last = share.last(task.name)
        if last is not None and last.end is not None and last.end["state"] == DONE:
            took.setdefault(task.kind, []).append(float(last.end["seconds"]))
    ratios = {kind: sum(took[kind]) / sum(said[kind]) for kind in said if kind in took}
    whole = sum(map(sum, took.values())) / sum(sum(said[kind]) for kind in took)
    return {
        "model": spec.model.recorded_name,
        "training_tokens": spec.training_tokens,
        "said_s": said,
        "took_s": took,
        "took_over_said": {**ratios, "all": whole},
        "aim": PLAN_AIM,
        "met": abs(whole - 1) <= PLAN_AIM,
    }


def task_tables(record: dict[str, Any]) -> str:
    """One line or table a section."""
    parts, out = record["sections"], []
    if (found := parts.get("overhead")) is not None:
        loop = statistics.median(found["work_s"]) + statistics.median(
            found["outside_s"]["loop"]
        )
        out.append(
            f"**{found['n_tasks']} tiny tasks ({machine(found)})**: {loop:.1f} s of processor "
            f"time without anything around them; claims, markers and hashes add "
            f"{found['more_s']:.2f} s, {found['share']:.1%} (aim: at most "
            f"{found['aim']['share']:.0%} and {found['aim']['seconds']:g} s) "
            f"{'✓' if found['met'] else '✗'}"
        )
    if (found := parts.get("executors")) is not None:
        rows = [
            [name, f"{seconds:.0f} s", "yes" if found["same_as_here"][name] else "NO"]
            for name, seconds in found["seconds"].items()
        ]
        head = ["by", "clock", f"the same {found['files']} files, bit for bit"]
        out.append(
            f"**One study by each executor: {found['model']}, {len(found['seeds'])} seeds, "
            f"{found['training_tokens']:,} tokens ({machine(found)}; load "
            f"{found['load_1min']:.1f} before)**\n\n{table(head, rows)}\n\n"
            f"Two workers over one: {found['two_over_one']:.2f}."
        )
    if (found := parts.get("plan")) is not None:
        rows = [
            [
                kind,
                f"{sum(found['said_s'][kind]):.0f} s",
                f"{sum(took):.0f} s",
                f"{found['took_over_said'][kind]:.2f}",
            ]
            for kind, took in found["took_s"].items()
        ]
        rows.append(["all", "", "", f"{found['took_over_said']['all']:.2f}"])
        head = ["tasks", "`plan --probe` said", "they took", "took / said"]
        out.append(
            f"**`plan` against what was then measured: {found['model']}, "
            f"{found['training_tokens']:,} tokens (aim: within {found['aim']:.0%}) "
            f"{'✓' if found['met'] else '✗'}**\n\n{table(head, rows)}"
        )
    return "\n\n".join(out) + "\n"


SECTIONS: dict[str, Callable[[Callable[[], PanelSpec], Path], dict[str, Any]]] = {
    "overhead": overhead,
    "executors": executors,
    "plan": plan,
}


if __name__ == "__main__":
    main()
