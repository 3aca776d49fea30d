"""What evaluating a panel of four costs against evaluating one SAE, and that scores are equal.

For each suite, in one process and in this order: one member alone (empty caches), four members
together (empty caches), and four members through SAEBench as it is (nothing shared but its own
files). The member evaluated alone must score in the panel what it scored alone, bit for bit.

    python benchmarks/eval_cost.py studies/demo --model <folder> --config panel.yaml
"""

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sae_baselines.evals import (
    EvalSpec,
    Target,
    collect,
    evaluate,
    load_eval_spec,
    study_targets,
)
from sae_baselines.evals.study import local_model_of
from sae_baselines.provenance import environment

_AIM = 2.0


def timed(targets: Sequence[Target], spec: EvalSpec, model: Path | None) -> Any:
    """Seconds of an evaluation from nothing, and its table."""
    folder = Path(tempfile.mkdtemp(prefix="eval_cost_"))
    began = time.monotonic()
    report = evaluate(targets, spec, folder, model=model)
    seconds = time.monotonic() - began
    if report.failures:
        raise SystemExit("\n".join(f"{f.suite} {f.name}: {f.reason}" for f in report.failures))
    table = collect(folder)
    shutil.rmtree(folder)
    return seconds, table


def same(one: pd.DataFrame, many: pd.DataFrame, member: str) -> tuple[int, list[str]]:
    """Rows compared, and metrics that differ in any bit."""
    keys = ["metric", "task"]
    left = one[one["member"] == member].set_index(keys)["value"]
    right = many[many["member"] == member].set_index(keys)["value"].reindex(left.index)
    differ = (left != right) & ~(left.isna() & right.isna())
    index: Any = left.index[differ]
    changed: list[Any] = index.tolist()
    return len(left), [f"{metric} {task}".strip() for metric, task in changed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study")
    parser.add_argument("--config", required=True, help="Panel file with a section 'evals'.")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--suites", default="core,sparse_probing_sae_probes")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--out", default="benchmarks/results/eval_cost.json")
    arguments = parser.parse_args()
    spec = load_eval_spec(arguments.config)
    targets = study_targets(arguments.study, seeds=1)
    targets = [t for t in targets if t.facts.panel == targets[0].facts.panel]
    targets = targets[: arguments.members]
    model = arguments.model or local_model_of(arguments.study)
    # The last: whatever comes first must not have helped or hurt it.
    alone = targets[-1]
    found = {}
    for suite in arguments.suites.split(","):
        only = spec.only([suite])
        stock = dataclasses.replace(only, shared=False)
        one, first = timed([alone], only, model)
        four, table = timed(targets, only, model)
        unshared, plain = timed(targets, stock, model)
        rows, differ = same(first, table, alone.facts.member)
        _, differ_stock = same(plain, table, alone.facts.member)
        found[suite] = {
            "members": len(targets),
            "one_seconds": round(one, 1),
            "panel_seconds": round(four, 1),
            "panel_unshared_seconds": round(unshared, 1),
            "panel_per_one": round(four / one, 3),
            "aim": _AIM,
            "rows_compared": rows,
            "rows_that_differ_from_alone": differ,
            "rows_that_differ_from_unshared": differ_stock,
            "options": only.options_of(suite),
        }
        print(json.dumps({suite: found[suite]}, indent=2))
    settings = {
        "hook": targets[0].load().cfg.metadata.hook_name,
        "model": targets[0].load().cfg.metadata.model_name,
        "d_sae": targets[0].load().cfg.d_sae,
        "llm_dtype": spec.llm_dtype,
        "llm_batch_size": spec.llm_batch_size,
    }
    record = {"kind": "eval_cost", "settings": settings, "suites": found, **environment()}
    Path(arguments.out).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
