"""Markdown tables of the CSV files in rows/, as they stand in rows/README.md."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from render import table

from sae_baselines.report.numbers import decimals

Row = Mapping[str, str]
ABSORPTION = "absorption (lower is better)"
MARKS = {"reproduced": "✓", "reversed": "✗", "undecided": "?"}
# Without a decimal point or a spread.
_PLAIN = {"L0": 1, "live": 2}


def member_tables(record: Mapping[str, Any]) -> str:
    """A table per study, L0 and base: members by column, beside the paper's numbers."""
    parts = []
    for (study, l0, base), rows in _by(record["rows"], "study", "l0", "base").items():
        columns = list(dict.fromkeys(row["column"] for row in rows))
        there = [c for c in columns if any(r["paper"] for r in rows if r["column"] == c)]
        lines = []
        for member, cells in _by(rows, "member").items():
            of = {row["column"]: row for row in cells}
            lines.append(
                [
                    f"`{member[0]}`",
                    *(_score(of.get(column)) for column in columns),
                    *(_paper(of.get(column)) for column in there),
                ]
            )
        head = ["member", *columns, *(f"paper: {column}" for column in there)]
        parts += [f"**{study}, {base}, L0 {l0}**", "", table(head, lines), ""]
        parts += _notes(rows)
    return "\n".join(parts) or "Not run yet."


def summary_table(record: Mapping[str, Any]) -> str:
    """How many orderings were reproduced, by study, L0, base and column."""
    groups = _by(record["rows"], "study", "l0", "base", "column")
    lines = []
    for key, rows in groups.items():
        counts = Counter(row["outcome"] for row in rows)
        steady = Counter(row["outcome"] for row in rows if _steady(row))
        whole = sum(steady.values())
        why = Counter(row["why"] for row in rows if row["outcome"] == "undecided")
        lines.append(
            [
                *key,
                *(str(counts[outcome]) for outcome in MARKS),
                "; ".join(f"{n} {what}" for what, n in why.most_common()),
                f"{steady['reproduced']} / {steady['reversed']} of {whole}",
            ]
        )
    head = [
        "study",
        "L0",
        "base",
        "column",
        *MARKS,
        "undecided by",
        "of those in all its models",
    ]
    return table(head, lines) if lines else "Not run yet."


def pair_tables(record: Mapping[str, Any]) -> str:
    """A table per base and column: the paper's orderings, and ours by study and L0."""
    parts = []
    for (base, column), rows in _by(record["rows"], "base", "column").items():
        runs = _by(rows, "study", "l0")
        lines = []
        for (higher, lower), cells in _by(rows, "higher", "lower").items():
            of = {tuple(row[key] for key in ("study", "l0")): row for row in cells}
            first = cells[0]
            lines.append(
                [
                    f"`{higher}` > `{lower}`",
                    f"{float(first['paper']):+.3f} ({first['models']} of 3)",
                    *(_outcome(of[run]) if run in of else "" for run in runs),
                ]
            )
        head = ["ordering", "paper", *(f"{study}, L0 {l0}" for study, l0 in runs)]
        parts += [f"**{base}: {column}**", "", table(head, lines), ""]
    return "\n".join(parts) or "Not run yet."


def token_tables(record: Mapping[str, Any]) -> str:
    """A table per study and L0: how many latents a token has, means over seeds."""
    parts = []
    columns = {
        "CV of L0": ("cv", 2),
        "median": ("median", 0),
        "95 %": ("p95", 0),
        "most": ("most", 0),
        "without a latent": ("none", 3),
        "EV": ("ev", 3),
        "EV, fewest latents": ("ev_fewest", 2),
        "EV, most latents": ("ev_most", 2),
    }
    for (study, l0), rows in _by(record["rows"], "study", "l0").items():
        lines = []
        for (member, base), of in _by(rows, "member", "base").items():
            cells = [
                f"{sum(float(row[name]) for row in of) / len(of):.{digits}f}"
                for name, digits in columns.values()
            ]
            lines.append([f"`{member}`", base, *cells])
        parts += [f"**{study}, L0 {l0}**", "", table(["member", "base", *columns], lines), ""]
    return "\n".join(parts) or "Not run yet."


def _by(rows: Sequence[Row], *keys: str) -> dict[tuple[str, ...], list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def _steady(row: Row) -> bool:
    return row["models"] == "3"


def _score(row: Row | None) -> str:
    if row is None:
        return ""
    mean, mark = float(row["mean"]), " †" if row["barred"] else ""
    if row["column"] in _PLAIN:
        return f"{mean:.{_PLAIN[row['column']]}f}{mark}"
    sd = float(row["sd"])
    return f"{mean:.3f}{f' ± {sd:.3f}' if math.isfinite(sd) else ''}{mark}"


def _paper(row: Row | None) -> str:
    return f"{float(row['paper']):.3f}" if row is not None and row["paper"] else ""


def _outcome(row: Row) -> str:
    mark = MARKS[row["outcome"]]
    why = f" {row['why']}" if row["why"] else ""
    difference, low, high = (float(row[key]) for key in ("difference", "low", "high"))
    # Without a test it is a number that must not order anything.
    if not row["p"]:
        return f"{mark}{why}"
    return f"{mark}{why} {difference:+.{decimals((high - low) / 2)}f}"


def _notes(rows: Sequence[Row]) -> list[str]:
    """Why members may not be compared: of each the first reason."""
    reasons: dict[str, str] = {}
    for row in rows:
        if row["barred"]:
            reasons.setdefault(row["member"], row["barred"])
    return [line for reason in reasons.values() for line in (f"† {reason}.", "")]


def scores_tables(record: Mapping[str, Any]) -> str:
    """A table per study, base and L0: members by column with words; floors and ceilings.

    Absorption has a table of its own: each member's null is another."""
    parts = []
    shown = [row for row in record["rows"] if row["column"] != ABSORPTION]
    for (study, base, l0), rows in _by(shown, "study", "base", "l0").items():
        by_column = {column: cells for (column,), cells in _by(rows, "column").items()}
        lines = []
        for (member,), cells in _by(rows, "member").items():
            of = {row["column"]: row for row in cells}
            lines.append([f"`{member}`", *(_with_word(of.get(column)) for column in by_column)])
        for end, said in (("floor", "*floor*"), ("ceiling", "*ceiling*")):
            ends = [_range(cells, end) for cells in by_column.values()]
            if any(ends):
                lines.append([said, *ends])
        head = ["member", *by_column]
        parts += [f"**{study}, {base}, L0 {l0}**", "", table(head, lines), ""]
    return "\n".join(parts) or "Not run yet."


def absorption_table(record: Mapping[str, Any]) -> str:
    """A table per study, base and L0: absorption beside each member's own null."""
    parts = []
    rows = [row for row in record["rows"] if row["column"] == ABSORPTION]
    for (study, base, l0), members in _by(rows, "study", "base", "l0").items():
        lines = [
            [
                f"`{row['member']}`",
                f"{float(row['mean']):.3f} ± {float(row['sd']):.3f}",
                f"{float(row['floor']):.3f}",
                f"{1 - float(row['mean']) / float(row['floor']):.0%}".replace("%", " %"),
                row["seeds"],
            ]
            for row in members
        ]
        head = ["member", ABSORPTION, "its null", "below its null by", "seeds"]
        parts += [f"**{study}, {base}, L0 {l0}**", "", table(head, lines), ""]
    return "\n".join(parts) or "Not run yet."


def _range(rows: Sequence[Row], name: str) -> str:
    """From the lowest to the highest of the members'."""
    values = sorted(float(row[name]) for row in rows if row[name])
    if not values:
        return ""
    ends = dict.fromkeys(f"{value:.3f}" for value in (values[0], values[-1]))
    return " to ".join(ends)


def _with_word(row: Row | None) -> str:
    if row is None:
        return ""
    digits = 1 if row["column"].startswith("L0") else 3
    spread = f" ± {float(row['sd']):.3f}" if row["sd"] and digits > 1 else ""
    word = f", {row['word']}" if row["word"] else ""
    return f"{float(row['mean']):.{digits}f}{spread}{word}"
