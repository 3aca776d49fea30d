"""What a whole check costs: a panel trained, scored and reported, over one stock SAE.

``python benchmarks/whole_check.py`` writes results/whole_check.json and prints its table. Four
ways, each in a process of its own that starts from nothing, in this order:

- one: SAELens' own runner trains one SAE, SAEBench's ``core`` and sae-probes score it;
- panel: ``sae-baselines check`` of a trained SAE and three baselines, one seed, with floors,
  report and gallery of latents;
- three: the same with three seeds, twelve SAEs;
- one again: how much of a ratio is noise of the machine.

Beside seconds of the clock stand those of the processor, which other processes on the machine
hardly change.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from panel_vs_runs import run_of_its_own
from panels import add_panel_arguments, one_panel
from render import machine, table

from sae_baselines.compat import models
from sae_baselines.evals import evaluate, load_eval_spec
from sae_baselines.provenance import environment
from sae_baselines.study import PanelSpec, load_spec, spec_to_yaml
from sae_baselines.study.data import load_text
from sae_baselines.study.engine import resolve_device

RESULTS = Path(__file__).parent / "results"
# Over one SAE.
AIMS = {"panel": 1.2, "three": 2.5}
ONE, AGAIN = "one", "one again"
PROBES = (
    "125_world_country_Italy",
    "130_temp_cat_Frequency",
    "154_athlete_sport_football",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_panel_arguments(parser)
    parser.add_argument("--tokens", type=int, help="trained on by each; default: the demo's")
    parser.add_argument("--probes", default=",".join(PROBES), help="sae-probes' datasets")
    parser.add_argument("--work", type=Path, help="keep what is trained; default: nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / "whole_check.json")
    parser.add_argument("--one", type=Path, nargs=2, metavar=("PANEL", "OUT"), help=_CHILD)
    args = parser.parse_args(argv)
    if args.one is not None:
        one_by_stock(*args.one)
        return
    spec = one_panel(parser, args)
    tokens = args.tokens or spec.training_tokens
    spec = dataclasses.replace(spec, training_tokens=tokens, sparse_step="all")
    with tempfile.TemporaryDirectory() as scratch:
        record = measure(spec, args.probes.split(","), args.work or Path(scratch))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print("\n" + check_table(record))


_CHILD = argparse.SUPPRESS


def measure(spec: PanelSpec, probes: Sequence[str], work: Path) -> dict[str, Any]:
    """Every way in turn."""
    work.mkdir(parents=True, exist_ok=True)
    evals = _evals(spec, probes)
    files = {}
    for name, seeds in (("panel", [0]), ("three", [0, 1, 2])):
        files[name] = work / f"{name}.yaml"
        this = yaml.safe_load(spec_to_yaml(dataclasses.replace(spec, name=name, seeds=seeds)))
        text = yaml.safe_dump({**this, "evals": evals}, sort_keys=False)
        files[name].write_text(text, encoding="utf-8")
    stock = [sys.executable, str(Path(__file__).resolve()), "--one", str(files["panel"])]
    check = [sys.executable, "-m", "sae_baselines_cli", "check"]
    ways = {
        ONE: [*stock, str(work / "one")],
        "panel": [*check, str(files["panel"]), "--out", str(work / "studies" / "panel")],
        "three": [*check, str(files["three"]), "--out", str(work / "studies" / "three")],
        AGAIN: [*stock, str(work / "one_again")],
    }
    found = {name: timed(name, command) for name, command in ways.items()}
    # A path says nothing on another machine.
    dataset = evals["suites"]["core"]["dataset"]
    evals["suites"]["core"]["dataset"] = Path(dataset).name
    ratios = {
        name: {
            clock: 2 * found[name][clock] / (found[ONE][clock] + found[AGAIN][clock])
            for clock in ("wall_s", "cpu_s")
        }
        for name in AIMS
    }
    return {
        "benchmark": "whole_check",
        "environment": environment(),
        "aims": AIMS,
        "settings": {
            "model": spec.model.recorded_name,
            "hook_name": spec.hook_name,
            "architecture": spec.architectures[0],
            "members": [member.name for member in spec.member_specs],
            "training_tokens": spec.training_tokens,
            "sparse_step": spec.sparse_step,
            "evals": evals,
            "one": "SAELens' LanguageModelSAETrainingRunner, then SAEBench's own functions "
            "with nothing shared between suites and no floors",
            "ratio": "over the mean of both runs of one SAE",
            "load_1min_before": os.getloadavg()[0],
        },
        "ways": found,
        "ratios": ratios,
    }


def _evals(spec: PanelSpec, probes: Sequence[str]) -> dict[str, Any]:
    return {
        "suites": {
            "core": {
                "dataset": str(Path(spec.dataset.path).parent),
                "n_eval_reconstruction_batches": 2,
                "n_eval_sparsity_variance_batches": 8,
            },
            "sparse_probing_sae_probes": {"dataset_names": list(probes)},
        },
        "llm_dtype": spec.model.dtype,
        "llm_batch_size": 16,
    }


def timed(name: str, command: Sequence[str]) -> dict[str, float]:
    """Seconds of a command, of the clock and of the processor.

    Raises:
        SystemExit: It failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    print(f"{name}: {wall:.0f} s, {cpu:.0f} s of processor time", flush=True)
    return {"wall_s": wall, "cpu_s": cpu}


def one_by_stock(panel: Path, out: Path) -> None:
    """The trained member alone, by SAELens' runner and SAEBench."""
    # Its models are loaded as TransformerLens does, with masks of the longest context.
    models.MASKED_AT_FIRST = sys.maxsize
    spec, evals = load_spec(panel), load_eval_spec(panel)
    text = load_text(dataclasses.replace(spec.dataset, shuffle_seed=None))
    device = resolve_device(spec.device)
    run_of_its_own(spec, spec.member_specs[0], text, device, str(out / "sae"))
    suites = {name: {**options, "floors": False} for name, options in evals.suites.items()}
    evals = dataclasses.replace(evals, shared=False, suites=suites)
    model = Path(spec.model.name)
    report = evaluate(
        {"stock": out / "sae"}, evals, out / "evals", model=model if model.is_dir() else None
    )
    if report.failures:
        raise SystemExit("\n".join(f"{f.suite}: {f.reason}" for f in report.failures))


def check_table(record: dict[str, Any]) -> str:
    """Seconds and ratios."""
    names = {
        ONE: "one SAE, stock SAELens and SAEBench",
        "panel": "panel of four, one seed",
        "three": "three seeds, twelve SAEs",
        AGAIN: "one SAE again",
    }
    rows = []
    for name, way in record["ways"].items():
        ratio = record["ratios"].get(name)
        cells = ["", "", ""]
        if ratio is not None:
            aim = record["aims"][name]
            met = "✓" if ratio["wall_s"] <= aim else "✗"
            cells = [f"{ratio['wall_s']:.2f}", f"{ratio['cpu_s']:.2f}", f"≤ {aim} {met}"]
        rows.append([names[name], f"{way['wall_s']:.0f} s", f"{way['cpu_s']:.0f} s", *cells])
    settings = record["settings"]
    title = (
        f"**A whole check: {settings['architecture']}, {settings['training_tokens']:,} tokens, "
        f"{settings['model']}, core and {_probes(settings)} probing datasets "
        f"({machine(record)}; load {settings['load_1min_before']:.1f} before)**"
    )
    head = ["", "clock", "processor", "over one", "the same, processor", "aim (clock)"]
    return f"{title}\n\n{table(head, rows)}\n"


def _probes(settings: dict[str, Any]) -> int:
    return len(settings["evals"]["suites"]["sparse_probing_sae_probes"]["dataset_names"])


if __name__ == "__main__":
    main()
