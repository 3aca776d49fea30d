"""Markdown tables of the sparse step's results: sparse_step, sparse_growth and peers.

``python benchmarks/render_sparse.py`` prints every such result; with paths, only those.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from render import machine, table

RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables of all result files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="default: results/*.json")
    files = parser.parse_args(argv).files or sorted(RESULTS.glob("*.json"))
    render = {"sparse_step": step_tables, "sparse_growth": growth_tables, "peers": peer_table}
    for file in files:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record.get("benchmark") in render:
            print(render[record["benchmark"]](record))


def step_tables(record: dict[str, Any]) -> str:
    """Aims, times and the parts of a step, per precision."""
    out = []
    for run in record["runs"]:
        out += [f"**Sparse step: {_shape(run)} ({machine(record)})**", "", _aims(run), ""]
        out += ["Time of a step over that of stock's, and over its floor:", "", _times(run), ""]
        for base, result in run["bases"].items():
            if "parts_ms" in result["members"]["stock"]:
                out += [f"Milliseconds of a {base} step:", "", _parts(result), ""]
    return "\n".join(out)


def step_aims(record: dict[str, Any]) -> str:
    """Aims alone."""
    out = []
    for run in record["runs"]:
        out += [f"**Sparse step: {_shape(run)} ({machine(record)})**", "", _aims(run), ""]
    return "\n".join(out)


def _shape(run: dict[str, Any]) -> str:
    shape = run["shape"]
    precision = f"{run['dtype']}{' with bfloat16 autocast' if run['autocast'] else ''}"
    return (
        f"d_in {shape['d_in']:,}, d_sae {shape['d_sae']:,}, batch {shape['batch']:,}, "
        f"k {shape['k']}, {precision}, {run['device']}"
    )


def _aims(run: dict[str, Any]) -> str:
    rows = []
    for aim in run["aims"]:
        percent = aim["aim"] < 0.1
        value, bound = (f"{aim[key]:{'.1%' if percent else '.2f'}}" for key in ("value", "aim"))
        rows.append([aim["what"], value, f"≤ {bound}", "✓" if aim["met"] else "✗"])
    return table(["", "measured", "aim", ""], rows)


def _times(run: dict[str, Any]) -> str:
    rows, names = [], []
    for base, result in run["bases"].items():
        members = result["members"]
        names = [m for m in members if m != "stock"]
        cells = [base, f"{_ms(members['stock']['median_ms'])} ms"]
        for m in names:
            floor = f"; {members[m]['over_floor']:.1f}" if m != "stock_again" else ""
            cells.append(f"{members[m]['ratio']:.2f}{floor}")
        sums = result["sums"]
        cells += [f"{sums[key]['ratio']:.2f}" for key in ("baselines", "panel")]
        rows.append([*cells, str(result["repeats"])])
    header = ["base", "stock", *(m.replace("stock_", "stock ") for m in names)]
    return table([*header, "three baselines", "panel of four", "repeats"], rows)


def _parts(result: dict[str, Any]) -> str:
    members = {n: m["parts_ms"] for n, m in result["members"].items() if "parts_ms" in m}
    names = list(next(iter(members.values())))
    rows = [[part, *(_ms(m[part]) for m in members.values())] for part in names]
    rows.append(["together", *(_ms(sum(m.values())) for m in members.values())])
    return table(["", *members], rows)


def growth_tables(record: dict[str, Any]) -> str:
    """One table per thing that grows, and what fits under a limit."""
    titles = {"d_sae": "d_sae", "k": "k", "batch": "batch"}
    out = []
    for axis, title in titles.items():
        section = record["sections"].get(axis)
        if section is not None:
            where = f"{_fixed(section, axis)}, {machine(section)}"
            out += [f"**Step over {title} ({where})**", "", _growth(section, axis), ""]
    memory = record["sections"].get("memory")
    if memory is not None:
        out += [
            f"**Peak memory of a step ({_fixed(memory, 'd_sae')})**",
            "",
            _peaks(memory),
            "",
        ]
    limit = record["sections"].get("limit")
    if limit is not None:
        shape = limit["shape"]
        title = ", ".join(f"{name} {value:,}" for name, value in shape.items())
        out += [f"**What fits ({title})**", "", _limits(limit), ""]
    return "\n".join(out)


def _fixed(section: dict[str, Any], axis: str) -> str:
    kept = {k: v for k, v in section["base_shape"].items() if k != axis}
    return ", ".join(f"{name} {value:,}" for name, value in kept.items())


def _growth(section: dict[str, Any], axis: str) -> str:
    rows = []
    names = [m for m in section["points"][0]["members"] if m != "stock"]
    for point in section["points"]:
        members = point["members"]
        cells = [f"{point['shape'][axis]:,}", f"{_ms(members['stock']['median_ms'])} ms"]
        for m in names:
            dense = "" if members[m]["sparse_share"] > 0 else " (dense)"
            cells.append(f"{members[m]['ratio']:.2f}{dense}")
        rows.append(cells)
    return table([axis, "stock", *names], rows)


def _peaks(section: dict[str, Any]) -> str:
    names = list(section["points"][0]["peak_mib"])
    rows = [
        [f"{p['shape']['d_sae']:,}", *(f"{p['peak_mib'][m]:,.0f} MiB" for m in names)]
        for p in section["points"]
    ]
    return table(["d_sae", *names], rows)


def _limits(section: dict[str, Any]) -> str:
    limits = section["limits_gib"]
    rows = []
    for member, tries in section["members"].items():
        by_limit = {t["limit_gib"]: t for t in tries}
        rows.append([member, *(_try(by_limit.get(limit)) for limit in limits)])
    return table(["", *(f"{limit:g} GiB" for limit in limits)], rows)


def _try(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"peak {found['peak_mib']:,.0f} MiB" if found["fits"] else "out of memory"


def peer_table(record: dict[str, Any]) -> str:
    """One row per library."""
    rows = []
    for name, member in record["members"].items():
        low, high = member["ratio_quartiles"]
        ratio = f"{member['ratio']:.2f} ({low:.2f}–{high:.2f})"  # noqa: RUF001
        rows.append([name, member["library"], f"{_ms(member['median_ms'])} ms", ratio])
    title = f"**Beside other libraries: {_shape(record)} ({machine(record)})**"
    head = ["", "library", "step", "/ stock batchtopk of SAELens"]
    return f"{title}\n\n{table(head, rows)}\n"


def _ms(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


if __name__ == "__main__":
    main()
