"""Markdown tables of recipes/search.csv, as they stand in recipes/README.md."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from statistics import mean, stdev
from typing import Any

from sae_baselines.results import L0_TOLERANCE

Row = Mapping[str, str]
ByBase = Mapping[str, list[Row]]
# Data sets in the order of the README, with what they are.
DATA = {
    "smollm2": "SmolLM2-135M, layer 9: 576 dimensions, d_sae 1,152, L0 32, 400 steps",
    "gemma": "gemma-3-270m, layer 9: 640 dimensions, d_sae 1,280, L0 32, 400 steps",
    "gemma_wide": "the same activations, d_sae 2,560, L0 64, 400 steps",
    "toy": "the paper's constant setting: 100 dimensions, d_sae 3,200, L0 20, 1,200 steps",
    "pca96": "96 principal components of SmolLM2's: d_sae 768, L0 12, 400 steps",
}
BASES = ("batchtopk", "topk", "jumprelu", "standard", "gated")
# What studies on such data have by default, where it is not "revived".
DEFAULT = {"toy": "fair"}
# Differences of EV below this are noise.
NOISE = 0.005
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


def aims_table(record: Mapping[str, Any]) -> str:
    """The aims, for the recipe that is the default on each data set."""
    head = ["data", "default", *(text for text, _ in AIMS), "seeds"]
    lines = [_line(head), _line(["---"] * len(head))]
    for data in DATA:
        default = DEFAULT.get(data, "revived")
        mine = [r for r in record["rows"] if (r["data"], r["candidate"]) == (data, default)]
        bases = {base: [r for r in mine if r["base"] == base] for base in BASES}
        if all(bases.values()):
            seeds = min(len({r["seed"] for r in rows}) for rows in bases.values())
            cells = [cell(bases) for _, cell in AIMS]
            lines.append(_line([data, default, *cells, str(seeds)]))
    return "\n".join(lines)


def _behind(base: str, at_most: float) -> Callable[[ByBase], str]:
    def cell(bases: ByBase) -> str:
        behind = _mean(bases["batchtopk"], "trained", "ev_test")
        behind -= _mean(bases[base], "trained", "ev_test")
        return f"{behind:.3f} {'✓' if behind <= at_most else '✗'}"

    return cell


def _worst(bases: ByBase, worth: Callable[[list[Row]], float], least: float) -> str:
    found = {base: worth(rows) for base, rows in bases.items()}
    missed = [base for base, value in found.items() if value < least]
    lowest = f"{min(found.values()):.3f}"
    return f"{lowest} ✗ ({', '.join(missed)})" if missed else f"{lowest} ✓"


def _cov_above_iso(bases: ByBase) -> str:
    def gap(rows: list[Row]) -> float:
        return _mean(rows, "frozen_decoder_cov", "ev_test") - _mean(
            rows, "frozen_decoder", "ev_test"
        )

    return _worst(bases, gap, 0.0)


def _lowest(bases: ByBase) -> str:
    return _worst(bases, lambda rows: min(float(r["ev_test"]) for r in rows), 0.0)


def _factors(bases: ByBase) -> str:
    values = [float(r["threshold_factor"]) for r in bases["jumprelu"] if r["threshold_factor"]]
    met = all(abs(v - 1) <= 0.05 for v in values)
    return f"{_range(bases['jumprelu'], 'threshold_factor', '.2f')} {'✓' if met else '✗'}"


AIMS: tuple[tuple[str, Callable[[ByBase], str]], ...] = (
    ("JumpReLU behind BatchTopK (≤ .01)", _behind("jumprelu", 0.01)),
    ("standard (≤ .05)", _behind("standard", 0.05)),
    ("gated (≤ .05)", _behind("gated", 0.05)),
    ("cov decoder above iso, least", _cov_above_iso),
    ("lowest EV of a member (≥ 0)", _lowest),
    ("factors (.95 to 1.05)", _factors),
)


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


def guard_tables(record: Mapping[str, Any]) -> str:
    """A table per data set and base of guard.csv: EV on test by L0 in training, and what that
    loses."""
    found: dict[tuple[str, str], dict[float, list[Row]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in record["rows"]:
        found[row["data"], row["base"]][float(row["ratio"])].append(row)
    parts = []
    for (data, base), runs in found.items():
        members = [m for m in MEMBERS if any(r["member"] == m for r in runs[1.0])]
        head = ["L0 in training / target", "as trained", "factor"]
        head += [f"`{m}`{more}" for m in members for more in ("", ", lost")]
        lines = [f"**{base}, {DATA[data]}**", "", _line([*head, "seeds"])]
        lines.append(_line(["---"] * (len(head) + 1)))
        for ratio, rows in sorted(runs.items()):
            cells = [f"{ratio:g}"]
            cells += [_range(rows, c, ".2f") for c in ("l0_as_trained", "threshold_factor")]
            for m in members:
                cells += [_ev(rows, m), _lost(rows, runs[1.0], m)]
            lines.append(_line([*cells, str(len({r["seed"] for r in rows}))]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def shrinkage_table(record: Mapping[str, Any]) -> str:
    """A row per data set of shrinkage.csv."""
    head = [
        *("data", "EV", "best scale", "thresholds given back", "times the threshold"),
        *("kept by the ReLU", "were latents normal", "seeds"),
    ]
    columns = ("ev", "ev_scaled", "ev_given_back", "of_threshold", "kept", "kept_of_normal")
    lines = [_line(head), _line(["---"] * len(head))]
    for data in DATA:
        rows = [r for r in record["rows"] if r["data"] == data]
        if rows:
            means = [f"{mean(float(r[c]) for r in rows):.3f}" for c in columns]
            lines.append(_line([data, *means, str(len(rows))]))
    return "\n".join(lines)


def _lost(rows: Sequence[Row], whole: Sequence[Row], member: str) -> str:
    """Mean over the seeds that both have, where both are measured at one L0."""
    at_target = {r["seed"]: r for r in whole if r["member"] == member}
    mine = [r for r in rows if r["member"] == member and r["seed"] in at_target]
    pairs = [(r, at_target[r["seed"]]) for r in mine]
    apart = [abs(float(r["l0_test"]) / float(there["l0_test"]) - 1) for r, there in pairs]
    if not pairs or max(apart) > L0_TOLERANCE:
        return "another L0" if pairs else ""
    return f"{mean(float(there['ev_test']) - float(r['ev_test']) for r, there in pairs):.3f}"


def _table(title: str, runs: Mapping[tuple[str, str], list[Row]]) -> str:
    members = [m for m in MEMBERS if any(r["member"] == m for rs in runs.values() for r in rs)]
    best = _chosen(runs)
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
        chosen = f"**{candidate}**" if best.get(base) == candidate else candidate
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


def _chosen(runs: Mapping[tuple[str, str], list[Row]]) -> dict[str, str]:
    """Base -> the best of several recipes, by the rule that the README states."""
    found = {}
    for base in dict.fromkeys(b for b, _ in runs):
        of_base = {c: rows for (b, c), rows in runs.items() if b == base}
        # Some were run with more members than others; what was run with the trained SAE alone,
        # or without it, is not chosen from.
        of_base = {
            c: rs for c, rs in of_base.items() if {MEMBERS[0]} < {r["member"] for r in rs}
        }
        if len(of_base) < 2:
            continue
        # A mean over three seeds says nothing beside one seed of another.
        seeds = set.intersection(*({r["seed"] for r in rows} for rows in of_base.values()))
        of_base = {c: [r for r in rs if r["seed"] in seeds] for c, rs in of_base.items()}
        members = set.intersection(*({r["member"] for r in rows} for rows in of_base.values()))
        held = {c: rows for c, rows in of_base.items() if _is_held(rows, members)}
        trained = {c: _mean(rows, "trained", "ev_dev") for c, rows in held.items()}
        good = [c for c, ev in trained.items() if ev >= max(trained.values()) - NOISE]
        if good:
            found[base] = max(
                good, key=lambda c: mean(_mean(held[c], m, "ev_dev") for m in sorted(members))
            )
    return found


def _is_held(rows: Sequence[Row], members: Set[str]) -> bool:
    of_members = [r for r in rows if r["member"] in members]
    return all(abs(float(r["l0_in_training"]) - 1) <= 0.1 for r in of_members)


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
