"""What floors cost: CPU time of a suite with them over that without, in one process.

One SAE is evaluated as a panel of four, that is four times under four names. `panel` is the
ratio from empty caches, with the language model's activations and probes, which the four share,
and the probes on principal components. `further` is the ratio where all of that is there, which
is what floors add to SAEs of a model and hook that was evaluated before; runs take turns.

    python benchmarks/floors_cost.py <folder of an SAE> --model <folder> --config panel.yaml
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from sae_lens import SAE

from sae_baselines.evals import EvalSpec, collect, evaluate, load_eval_spec
from sae_baselines.evals.registry import get_suite
from sae_baselines.provenance import environment

_AIM = 1.3


def seconds(saes: dict[str, Path], spec: EvalSpec, folder: str, model: Path | None) -> float:
    """CPU time of this process for an evaluation, whatever is there of it."""
    began = time.process_time()
    report = evaluate(saes, spec, folder, model=model, force=True)
    took = time.process_time() - began
    wrong = [text for *_, text in report.notes if "floors were not measured" in text]
    if report.failures or wrong:
        raise SystemExit(f"{report.failures} {wrong}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sae", type=Path)
    parser.add_argument("--config", required=True, help="File with a section 'evals'.")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--suites", default="sparse_probing_sae_probes")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", default="benchmarks/results/floors_cost.json")
    arguments = parser.parse_args()
    spec = load_eval_spec(arguments.config)
    saes = {f"copy_{i}": arguments.sae for i in range(arguments.members)}
    found = {}
    for name in arguments.suites.split(","):
        # SAEBench's imports are nobody's cost.
        get_suite(name).complete({})
        options = dict(spec.only([name]).suites[name])
        specs = {
            floors: dataclasses.replace(spec, suites={name: {**options, "floors": floors}})
            for floors in (False, True)
        }
        cold, warm, tables = {}, {False: [], True: []}, {}
        for floors in (False, True):
            with tempfile.TemporaryDirectory(prefix="floors_cost_") as folder:
                cold[floors] = seconds(saes, specs[floors], folder, arguments.model)
                tables[floors] = collect(folder).set_index(["member", "metric", "task"])
                if not floors:
                    continue
                for _ in range(arguments.repeats):
                    for each in (False, True):
                        took = seconds(saes, specs[each], folder, arguments.model)
                        warm[each].append(took)
        scores = tables[False]["value"]
        differ = scores.compare(tables[True]["value"].reindex(scores.index))
        found[name] = {
            "panel_seconds": [round(cold[floors], 1) for floors in (False, True)],
            "further_seconds": [
                [round(t, 2) for t in warm[floors]] for floors in (False, True)
            ],
            "panel": round(cold[True] / cold[False], 3),
            "further": round(statistics.mean(warm[True]) / statistics.mean(warm[False]), 3),
            "aim": _AIM,
            "scores_compared": len(scores),
            "scores_that_differ": len(differ),
            "rows_more": len(tables[True]) - len(scores),
            "options": spec.options_of(name),
        }
        print(json.dumps({name: found[name]}, indent=2))
    cfg = SAE.load_from_disk(arguments.sae).cfg
    settings = {
        "members": arguments.members,
        "model": cfg.metadata.model_name,
        "hook": cfg.metadata.hook_name,
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "torch_threads": torch.get_num_threads(),
    }
    record = {"kind": "floors_cost", "settings": settings, "suites": found, **environment()}
    Path(arguments.out).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
