"""Markdown tables from results/*.json, as they stand in the README.

``python benchmarks/render.py`` prints every result; with paths, only those.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables of all result files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="default: results/*.json")
    files = parser.parse_args(argv).files or sorted(RESULTS.glob("*.json"))
    render = {"step_time": step_time_tables, "panel_vs_runs": panel_table}
    for file in files:
        record = json.loads(file.read_text(encoding="utf-8"))
        # Others, like verdict_calibration, come with a figure instead of a table.
        name = record.get("benchmark")
        if name in render:
            print(render[name](record))


def step_time_tables(record: dict[str, Any]) -> str:
    """One table of times and one of memory per shape."""
    parts = []
    for run in record["runs"]:
        shape = run["shape"]
        where = machine(record)
        title = (
            f"d_in {shape['d_in']:,}, d_sae {shape['d_sae']:,}, batch {shape['batch']:,}, "
            f"k {shape['k']}, {run['dtype']}"
            f"{' with bfloat16 autocast' if run['autocast'] else ''}, {run['device']} ({where})"
        )
        dead = "" if "none" in run["settings"]["dead_latents"] else ", half of the latents dead"
        parts += [f"**Training step: {title}{dead}**", "", _times(run, record["aims"]), ""]
        if all(b["members"]["stock"]["peak_memory_mib"] for b in run["bases"].values()):
            parts += ["Peak memory of the same step:", "", _memory(run), ""]
    return "\n".join(parts)


def _times(run: dict[str, Any], aims: dict[str, float]) -> str:
    rows = []
    for base, result in run["bases"].items():
        members = result["members"]
        ms = members["stock"]["median_ms"]
        cells = [f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.3g} ms"]
        cells += [_ratio(m) for name, m in members.items() if name != "stock"]
        share = result["projection"]["share_of_step"]
        rows.append([base, *cells, f"{share:.1%}", str(result["repeats"])])
    header = ["base", "stock", "stock again"]
    header += [f"{name} (aim {aim:.2f})" for name, aim in aims.items()]
    return table([*header, "projection in step", "repeats"], rows)


def _ratio(member: dict[str, Any]) -> str:
    low, high = member["ratio_quartiles"]
    mark = {True: " ✓", False: " ✗", None: ""}[member["meets_aim"]]
    return f"{member['ratio']:.2f} ({low:.2f}–{high:.2f}){mark}"  # noqa: RUF001


def _memory(run: dict[str, Any]) -> str:
    rows = []
    names: list[str] = []
    for base, result in run["bases"].items():
        members = result["members"]
        names = [name for name in members if name != "stock"]
        cells = [f"{members['stock']['peak_memory_mib']:,.0f} MiB"]
        cells += [f"{members[name]['peak_memory_ratio']:.2f}" for name in names]
        rows.append([base, *cells])
    return table(["base", "stock", *(n.replace("stock_", "stock ") for n in names)], rows)


def panel_table(record: dict[str, Any]) -> str:
    """One panel against one run per member."""
    runs = record["runs"]
    rows = []
    for i, panel in enumerate(record["panels"], start=1):
        rows.append(
            [
                f"one panel of {len(runs)}, measurement {i}",
                f"{panel['training_s']:.0f} s",
                f"{panel['tokens_per_s']:,.0f}",
                f"{panel['whole_s']:.0f} s",
            ]
        )
    total = record["runs_total"]
    rows.append(
        [
            f"{len(runs)} runs of SAELens' own runner",
            f"{total['training_s']:.0f} s",
            f"{total['tokens_per_s']:,.0f}",
            f"{total['whole_s']:.0f} s",
        ]
    )
    ratios = record["ratios"]
    rows.append(
        [
            f"panel / runs (aim {record['aim']:.2f})",
            _marked(ratios["training"], record["aim"]),
            "",
            _marked(ratios["whole"], record["aim"]),
        ]
    )
    settings = record["settings"]
    title = (
        f"**Panel against runs: {settings['architecture']}, {settings['training_tokens']:,} "
        f"tokens, {settings['model']}, d_in {settings['d_in']:,}, d_sae "
        f"{settings['d_sae']:,}, {settings['device']} ({machine(record)})**"
    )
    head = ["", "training", "SAE tokens/s", "with loading, calibration, measurement"]
    return f"{title}\n\n{table(head, rows)}\n"


def _marked(ratio: float, aim: float) -> str:
    return f"{ratio:.2f} {'✓' if ratio <= aim else '✗'}"


def machine(record: dict[str, Any]) -> str:
    """What it ran on, in a few words."""
    environment = record["environment"]
    hardware = environment["hardware"]
    versions = environment["versions"]
    where = hardware["gpu"] or f"{hardware['torch_threads']} threads, {hardware['machine']}"
    return f"{where}; torch {versions['torch']}, sae-lens {versions['sae-lens']}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
