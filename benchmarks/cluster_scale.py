"""What do 8, 64 or 256 devices make of the paper's whole matrix? Simulated from the task graph.

``python benchmarks/cluster_scale.py`` writes results/cluster_scale.json and prints its table in
seconds: nothing is trained. 4 architectures, 5 L0s, 5 seeds, 6 members (5 trained), 3 hooks.

What a pass costs is measured in results/panel_vs_runs.json: reading the text through the
language model once, and a member's steps on it. The unit is one SAE trained alone (both). That
ratio is SmolLM2's on a CPU, with five members taken for equal; on other devices and models give
``--reading``, of `sae-baselines plan --probe`. Measuring and evaluating are not in it.
"""

import argparse
import heapq
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from render import table

from sae_baselines.study.engine import tasks
from sae_baselines.study.plan import trained_of
from sae_baselines.study.spec import PanelSpec, spec_from_dict

RESULTS = Path(__file__).parent / "results"
HOOKS, DEVICES = 3, (8, 64, 256)
PANELS = (1, 2, 5, 10, 20, 50, 100)


def matrix(panels: int) -> PanelSpec:
    """The study of one hook."""
    return spec_from_dict(
        {
            "name": "matrix",
            "model": {"name": "google/gemma-2-2b"},
            "hook_name": "blocks.12.hook_resid_post",
            "dataset": {"path": "text"},
            "architecture": ["batchtopk", "jumprelu", "topk", "standard"],
            "l0": [20, 40, 80, 160, 320],
            "d_sae": 16384,
            "seeds": [0, 1, 2, 3, 4],
            "members": [
                "trained",
                "frozen_decoder",
                "soft_frozen_decoder",
                "frozen_encoder",
                "frozen_decoder:cov",
                "random",
            ],
            "training_tokens": 500_000_000,
            "max_panels_per_pass": panels,
        }
    )


def reading() -> float:
    """Of the cost of an SAE that is trained alone, what is the language model's."""
    told = json.loads((RESULTS / "panel_vs_runs.json").read_text())
    alone = sum(run["training_s"] for run in told["runs"].values())
    together = sum(panel["training_s"] for panel in told["panels"]) / len(told["panels"])
    n = len(told["runs"])
    # together = model + n members, alone = n (model + member)
    return (alone - together) / (n - 1) / (alone / n)


def costs(panels: int, share: float) -> list[float]:
    """Of each pass, in SAEs that are trained alone."""
    spec, found = matrix(panels), []
    named = {one.name: one for one in spec.passes()}
    for task in tasks(spec):
        if task.kind == "train":
            members = sum(len(trained_of(spec, p)) for p in named[task.what].panels)
            found.append(share + members * (1 - share))
    return found * HOOKS


def makespan(work: list[float], devices: int) -> float:
    """Each device takes the next task when it is free, as workers do."""
    free = [0.0] * devices
    for cost in work:
        heapq.heappush(free, heapq.heappop(free) + cost)
    return max(free)


def scale_table(record: Mapping[str, Any]) -> str:
    """A row for each number of panels a pass."""
    lines: dict[int, list[str]] = {}
    for row in record["rows"]:
        panels = row["panels_per_pass"]
        start = [str(panels), str(row["passes"]), f"{row['device_units']:.0f}"]
        cell = f"{row['makespan']:.1f}, {row['utilisation']:.0%}"
        lines.setdefault(panels, start).append(cell)
    devices = dict.fromkeys(row["devices"] for row in record["rows"])
    heads = [f"{n} devices: makespan, in use" for n in devices]
    return table(["panels a pass", "passes", "device time", *heads], list(lines.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--reading", type=float, default=None, help="Share of the model, 0 to 1."
    )
    given = parser.parse_args().reading
    share = reading() if given is None else given
    rows = []
    for panels in PANELS:
        work = costs(panels, share)
        for devices in DEVICES:
            took = makespan(work, devices)
            rows.append(
                {
                    "panels_per_pass": panels,
                    "passes": len(work),
                    "devices": devices,
                    "device_units": round(sum(work), 1),
                    "makespan": round(took, 2),
                    "utilisation": round(sum(work) / took / devices, 3),
                }
            )
    told = {"benchmark": "cluster_scale", "reading": round(share, 3), "rows": rows}
    if given is None:
        (RESULTS / "cluster_scale.json").write_text(json.dumps(told, indent=1) + "\n")
    print(f"the model is {share:.0%} of an SAE that is trained alone, which is the unit\n")
    print(scale_table(told))


if __name__ == "__main__":
    main()
