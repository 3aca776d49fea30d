"""Markdown of gpu.py's result."""

from collections.abc import Callable
from typing import Any

from render import machine, table
from render_sparse import growth_tables, peer_table, step_tables

NOT_YET = (
    "Not run yet: no GPU was at hand. Not known without one: every number of this section, "
    "whether the Triton kernels compile for a given card, and how much of a step's time its "
    "kernel launches take. The kernels' arithmetic is tested in Triton's interpreter.\n"
)
_TITLES = {
    "parity": "One step of every SAE against the CPU's in float32",
    "triton": "Triton's kernels against torch's operators",
    "steps": "Steps",
    "crossover": "Where the dense step is the faster one",
    "panel": "A whole panel of four",
    "beside": "Other libraries",
}
# Of a twin's step over stock's: from here on the dense step is the faster one.
_LEVEL = 1.0


def gpu_tables(record: dict[str, Any]) -> str:
    """Every section that was measured; of the others, why not."""
    if not record:
        return NOT_YET
    out = []
    for name, section in record["sections"].items():
        why = section.get("failed") or section.get("not_run")
        if why:
            out += [f"**{_TITLES[name]}**: not measured ({why})", ""]
        else:
            out += [_SECTIONS[name](section), ""]
    return "\n".join(out).rstrip() + "\n"


def _parity(section: dict[str, Any]) -> str:
    """The worst member of each base and precision."""
    rows = []
    for base in dict.fromkeys(row["base"] for row in section["rows"]):
        for autocast in (False, True):
            those = [
                row
                for row in section["rows"]
                if row["base"] == base and row["autocast"] == autocast
            ]
            worst = max(those, key=lambda row: row["gradients"] / max(row["aim"], 1e-30))
            held = [row["constraint"] for row in those if row["constraint"] is not None]
            rows.append(
                [
                    base,
                    "bfloat16 autocast" if autocast else "float32",
                    f"{max(row['loss'] for row in those):.1e}",
                    f"{worst['gradients']:.1e} ({worst['member']})",
                    f"≤ {worst['aim']:.1e}",
                    "✓" if all(row["met"] for row in those) else "✗",
                    "✓" if all(held) else "✗",
                ]
            )
    head = ["base", "precision", "loss, at most", "gradients, worst member", "aim", "", "held"]
    return (
        f"{_title('parity', section)}\n\n{table(head, rows)}\n\n"
        "*held*: after 20 steps what a baseline freezes is its start bit for bit, and every "
        "row of a soft-frozen decoder is in its cap. The aim under autocast is twice what the "
        "CPU's own autocast differs by.\n"
    )


def _triton(section: dict[str, Any]) -> str:
    if section["checked"] is None:
        return f"{_title('triton', section)}: not measured ({section['why']})\n"
    said = "all agree with float64" if section["checked"] else section["why"]
    rows = [
        [name, f"{times['torch']:.1f} ms", f"{times['triton']:.1f} ms", f"{times['ratio']:.2f}"]
        for name, times in section["members"].items()
    ]
    head = ["member", "torch", "triton", "triton / torch"]
    return f"{_title('triton', section)}: {said}\n\n{table(head, rows)}\n"


def _steps(section: dict[str, Any]) -> str:
    tables = step_tables(section)
    peaks = [
        [
            f"{run['shape']['d_sae']:,}",
            run["autocast"] or "float32",
            base,
            *(_mib(member["peak_memory_mib"]) for member in result["members"].values()),
        ]
        for run in section["runs"]
        for base, result in run["bases"].items()
    ]
    first = next(iter(section["runs"][0]["bases"].values()))
    head = ["d_sae", "precision", "base", *first["members"]]
    return f"{tables}\n**Peak memory of a step, MiB**\n\n{table(head, peaks)}\n"


def _crossover(section: dict[str, Any]) -> str:
    axes = ("k", "d_sae")
    environment = {"environment": section["environment"]}
    growth = growth_tables({"sections": {a: {**section[a], **environment} for a in axes}})
    members = [m for m in section["k"]["points"][0]["members"] if m != "stock"]
    rows = [[m, *(_crossing(section[axis], m) for axis in axes)] for m in members]
    head = ["member", "over k", "over d_sae"]
    return f"{growth}\n{_title('crossover', section)}\n\n{table(head, rows)}\n"


def _crossing(grown: dict[str, Any], member: str) -> str:
    """In words: at which measured values a member's step costs as much as stock's."""
    axis = grown["axis"]
    slower = [
        point["shape"][axis]
        for point in grown["points"]
        if point["members"][member]["ratio"] >= _LEVEL
        or point["members"][member]["sparse_share"] < 1
    ]
    if not slower:
        return "nowhere measured"
    return f"at {axis} {', '.join(f'{value:,}' for value in slower)}"


def _panel(section: dict[str, Any]) -> str:
    rows = [
        [
            f"`sparse_step: {name}`",
            f"{way['training_s']:.0f} s",
            f"{way['tokens_per_s']:,.0f}",
            f"{way['tokens_per_s_in_steps']:,.0f}",
            _mib(way["peak_mib"]),
        ]
        for name, way in section["ways"].items()
    ]
    settings = section["settings"]
    width = (
        f"d_sae {settings['d_sae']:,}"
        if settings["d_sae"]
        else f"d_sae {settings['expansion']:g} x d_in"
    )
    what = (
        f"{settings['model']}; {width}, L0 {settings['l0']:g}, batch {settings['batch']:,}, "
        f"{settings['training_tokens']:,} tokens"
        f"{', bfloat16 autocast' if settings['autocast'] else ''}"
    )
    head = ["", "training", "SAE tokens/s", "tokens/s in steps", "peak memory, MiB"]
    return f"{_title('panel', section)}\n\n{what}\n\n{table(head, rows)}\n"


def _beside(section: dict[str, Any]) -> str:
    missing = section["missing"]
    note = f"\nNot installed here: {', '.join(missing)}.\n" if missing else ""
    return peer_table(section) + note


def _title(name: str, section: dict[str, Any]) -> str:
    return f"**{_TITLES[name]} ({machine(section)})**"


def _mib(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


_SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "parity": _parity,
    "triton": _triton,
    "steps": _steps,
    "crossover": _crossover,
    "panel": _panel,
    "beside": _beside,
}
