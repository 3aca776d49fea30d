"""Markdown tables of recipes/search.csv, as they stand in recipes/README.md."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

Row = Mapping[str, str]
# Data sets in the order of the README, with what they are.
DATA = {
    "smollm2": "SmolLM2-135M, layer 9: 576 dimensions, d_sae 1,152, L0 32, 400 steps",
    "gemma": "gemma-3-270m, layer 9: 640 dimensions, d_sae 1,280, L0 32, 400 steps",
    "toy": "the paper's constant setting: 100 dimensions, d_sae 3,200, L0 20, 1,200 steps",
    "pca96": "96 principal components of SmolLM2's: d_sae 768, L0 12, 400 steps",
}
MEMBERS = (
    *("trained", "frozen_decoder", "frozen_decoder_cov"),
    *(
        "soft_frozen_decoder",
        "frozen_encoder",
        "frozen_encoder_threshold",
        "frozen_encoder_cov",
    ),
)


def search_tables(record: Mapping[str, Any]) -> str:
    """A table per data set: EV on test, by base and candidate."""
    by_data: dict[str, dict[tuple[str, str], list[Row]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in record["rows"]:
        by_data[row["data"]][row["base"], row["candidate"]].append(row)
    return "\n".join(_table(DATA[name], by_data[name]) for name in DATA if name in by_data)


def variant_tables(record: Mapping[str, Any]) -> str:
    """A table per data set and base of options.csv or silences.csv: EV on test, by option."""
    found: dict[tuple[str, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in record["rows"]:
        option = row.get("clip") or row["change"]
        found[row["data"], row["architecture"]][option].append(row)
    parts = []
    for (data, base), runs in found.items():
        members = [
            m for m in MEMBERS if any(r["member"] == m for r in next(iter(runs.values())))
        ]
        named = "clip_grad_norm" if "clip" in next(iter(runs.values()))[0] else "changed"
        head = [named, *(f"`{m}`" for m in members), "seeds"]
        lines = [f"**{data}, {base}**", "", _line(head), _line(["---"] * len(head))]
        for option, rows in runs.items():
            seeds = len({r["seed"] for r in rows})
            lines.append(_line([option, *(_ev(rows, m) for m in members), str(seeds)]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _table(title: str, runs: Mapping[tuple[str, str], list[Row]]) -> str:
    members = [m for m in MEMBERS if any(r["member"] == m for rs in runs.values() for r in rs)]
    best: dict[str, str] = {}
    for (base, candidate), rows in runs.items():
        dev = _mean(rows, "trained", "ev_dev")
        if base not in best or dev > _mean(runs[base, best[base]], "trained", "ev_dev"):
            best[base] = candidate
    head = [
        "base",
        "recipe",
        *(f"`{m}`" for m in members),
        "live",
        "factor",
        "L0 / target",
        "seeds",
    ]
    lines = [f"**{title}**", "", _line(head), _line(["---"] * len(head))]
    for (base, candidate), rows in runs.items():
        chosen = f"**{candidate}**" if best[base] == candidate else candidate
        lines.append(
            _line(
                [
                    base,
                    chosen,
                    *(_ev(rows, member) for member in members),
                    _range(rows, "alive", ".2f"),
                    _range(rows, "threshold_factor", ".2f"),
                    _range(rows, "l0_in_training", ".2f"),
                    str(len({r["seed"] for r in rows})),
                ]
            )
        )
    return "\n".join([*lines, ""])


def _of(rows: Sequence[Row], member: str, column: str) -> list[float]:
    return [float(r[column]) for r in rows if r["member"] == member]


def _mean(rows: Sequence[Row], member: str, column: str) -> float:
    return mean(_of(rows, member, column))


def _ev(rows: Sequence[Row], member: str) -> str:
    values = _of(rows, member, "ev_test")
    if not values:
        return ""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _range(rows: Sequence[Row], column: str, digits: str) -> str:
    values = sorted(float(r[column]) for r in rows if r[column])
    if not values:
        return ""
    ends = [format(v, digits) for v in (values[0], values[-1])]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
