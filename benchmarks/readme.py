"""Writes the tables of results/*.json into the READMEs, between markers.

``python benchmarks/readme.py`` writes; with ``--check`` it only says what is out of date.
"""

import argparse
import csv
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster_scale import scale_table
from drift_cost import cost_table
from render import panel_table, step_time_tables
from render_gpu import gpu_tables
from render_recipes import (
    aims_table,
    guard_tables,
    search_tables,
    shrinkage_table,
    variant_tables,
)
from render_rows import (
    absorption_table,
    member_tables,
    pair_tables,
    scores_tables,
    summary_table,
    token_tables,
)
from render_sparse import growth_tables, peer_table, step_aims, step_tables
from render_start import start_tables
from sparse_panel import panel_tables
from tasks import task_tables
from transcoder_step import transcoder_table
from whole_check import check_table

HERE = Path(__file__).parent
Render = Callable[[dict[str, Any]], str]
# README, marker -> results and how they are shown, in order.
BLOCKS: dict[tuple[str, str], list[tuple[str, Render]]] = {
    ("benchmarks/README.md", "step"): [
        ("sparse_step_cpu", step_tables),
        ("peers_cpu", peer_table),
        ("sparse_panel", panel_tables),
    ],
    ("benchmarks/README.md", "dead"): [("sparse_step_dead_cpu", step_aims)],
    ("benchmarks/README.md", "jumprelu"): [("sparse_step_jumprelu_cpu", step_aims)],
    ("benchmarks/README.md", "transcoders"): [("transcoder_step_cpu", transcoder_table)],
    ("benchmarks/README.md", "growth"): [("sparse_growth_cpu", growth_tables)],
    ("benchmarks/README.md", "gpu"): [("gpu", gpu_tables)],
    ("benchmarks/README.md", "scale"): [("cluster_scale", scale_table)],
    ("benchmarks/README.md", "tasks"): [("tasks", task_tables)],
    ("benchmarks/README.md", "panels"): [("panel_vs_runs", panel_table)],
    ("benchmarks/README.md", "whole"): [("whole_check", check_table)],
    ("benchmarks/README.md", "drift"): [("drift_cost_cpu", cost_table)],
    ("benchmarks/README.md", "dense"): [("step_time_cpu", step_time_tables)],
    ("benchmarks/recipes/README.md", "search"): [("../recipes/search.csv", search_tables)],
    ("benchmarks/recipes/README.md", "aims"): [("../recipes/search.csv", aims_table)],
    ("benchmarks/recipes/README.md", "shrinkage"): [
        ("../recipes/shrinkage.csv", shrinkage_table)
    ],
    ("benchmarks/recipes/README.md", "guard"): [("../recipes/guard.csv", guard_tables)],
    ("benchmarks/recipes/README.md", "options"): [("../recipes/options.csv", variant_tables)],
    ("benchmarks/headline/README.md", "headline"): [("../headline/members.csv", scores_tables)],
    ("benchmarks/headline/README.md", "absorption"): [
        ("../headline/members.csv", absorption_table)
    ],
    ("benchmarks/random_transformer/README.md", "random_transformer"): [
        ("../random_transformer/members.csv", scores_tables)
    ],
    ("benchmarks/rows/README.md", "members"): [("../rows/members.csv", member_tables)],
    ("benchmarks/rows/README.md", "orderings"): [("../rows/pairs.csv", summary_table)],
    ("benchmarks/rows/README.md", "pairs"): [("../rows/pairs.csv", pair_tables)],
    ("benchmarks/rows/README.md", "tokens"): [("../rows/tokens.csv", token_tables)],
    ("benchmarks/transcoders/README.md", "transcoders"): [
        ("../transcoders/members.csv", scores_tables)
    ],
    ("benchmarks/transcoders/README.md", "start"): [("../transcoders/start.csv", start_tables)],
    ("benchmarks/recipes/README.md", "silences"): [("../recipes/silences.csv", variant_tables)],
}


def main(argv: Sequence[str] | None = None) -> None:
    """Write or check every block."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if outdated")
    check: bool = parser.parse_args(argv).check
    outdated = []
    for (readme, marker), parts in BLOCKS.items():
        file = HERE.parent / readme
        text = file.read_text(encoding="utf-8")
        tables = [render(_record(name)).strip() for name, render in parts]
        wanted = _with_block(text, marker, "\n\n".join(tables))
        if wanted != text and check:
            outdated.append(f"{readme}: {marker}")
        elif wanted != text:
            file.write_text(wanted, encoding="utf-8")
    if outdated:
        raise SystemExit(f"out of date ({', '.join(outdated)}); python benchmarks/readme.py")


def _record(name: str) -> dict[str, Any]:
    if name.endswith(".csv"):
        with (HERE / "results" / name).open(newline="", encoding="utf-8") as file:
            return {"rows": list(csv.DictReader(file))}
    file = HERE / "results" / f"{name}.json"
    if name == "gpu" and not file.exists():  # the one that not every machine can make
        return {}
    return json.loads(file.read_text(encoding="utf-8"))


def _with_block(text: str, marker: str, block: str) -> str:
    pattern = re.compile(f"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"no markers <!-- {marker} --> ... <!-- /{marker} -->")
    return pattern.sub(lambda found: f"{found[1]}{block}\n{found[2]}", text)


if __name__ == "__main__":
    main()
