"""Markdown table of transcoders/start.csv, as it stands in transcoders/README.md."""

from collections.abc import Mapping
from typing import Any

from render import table

Row = Mapping[str, str]
MODELS = {"smollm2": "SmolLM2-135M", "gemma": "gemma-3-270m"}
MEMBERS = ("trained", "frozen_decoder:cov", "frozen_encoder:cov")


def start_tables(record: Mapping[str, Any]) -> str:
    """A table for each model, with a skip and without: EV (L0, share of live latents)."""
    rows: list[Row] = record["rows"]
    parts = []
    for model, name in MODELS.items():
        for skip in ("True", "False"):
            chosen = [r for r in rows if (r["model"], r["skip"]) == (model, skip)]
            if chosen:
                words = "with a skip" if skip == "True" else "without a skip"
                title = f"{name}, layer {chosen[0]['layer']}"
                affine = f"affine map {float(chosen[0]['ev_affine']):.3f}"
                parts.append(f"**{title}, {words} ({affine})**\n\n{_table(chosen)}")
    return "\n\n".join(parts)


def _table(rows: list[Row]) -> str:
    head = ["first writes", "dead latents", "warm-up", "rate", *(f"`{m}`" for m in MEMBERS)]
    lines = []
    variants: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("share", "aux", "warm_up", "lr"))
        variants.setdefault(key, {})[row["member"]] = row
    for key in sorted(variants, key=_order):
        share, aux, warm_up, rate = key
        said = [
            f"{float(share):g}" if share else "unit columns",
            f"x {float(aux):g}" if aux else "left",
            warm_up,
            f"{float(rate):g}",
        ]
        cells = [_cell(variants[key].get(member)) for member in MEMBERS]
        lines.append([*said, *cells])
    return table(head, lines)


def _order(key: tuple[str, ...]) -> tuple[float, ...]:
    share, aux, warm_up, rate = key
    return (-float(share or 9), -float(aux or 9), float(warm_up), -float(rate))


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{float(row['ev']):.3f} ({float(row['l0']):.1f}, {float(row['live']):.2f})"
