"""The table after training."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from sae_baselines.study.measure import L0_TOLERANCE
from sae_baselines.study.plan import MemberKey

_COLUMNS = (
    "member",
    "EV",
    "L0",
    "alive",
    "cos mean",
    "cos min",
    "CE rec.",
)


def rows_by_panel(
    measurements: dict[MemberKey, dict[str, Any]],
    cells: Callable[[dict[str, Any]], Sequence[str]],
) -> dict[str, list[tuple[str, ...]]]:
    """Per panel, one row of text per member: its name, EV and L0, then what ``cells`` gives."""
    panels: dict[str, list[tuple[str, ...]]] = {}
    for key, m in measurements.items():
        mark = "" if m["l0_matches"] else " (!)"
        ev, l0 = f"{m['explained_variance']:.3f}", f"{m['l0']:.1f}{mark}"
        panels.setdefault(key.panel.name, []).append((key.member, ev, l0, *cells(m)))
    return panels


def _cells(m: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{m['alive']}/{m['d_sae']}",
        _number(m["cos_to_start_mean"]),
        _number(m["cos_to_start_min"]),
        _number(m["ce_recovered"]),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def tables(measurements: dict[MemberKey, dict[str, Any]]) -> list[Table]:
    """One rich table per panel."""
    out = []
    for panel, rows in rows_by_panel(measurements, _cells).items():
        table = Table(title=panel, title_justify="left")
        for i, column in enumerate(_COLUMNS):
            table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
        for row in rows:
            table.add_row(*row)
        out.append(table)
    return out


def notes(measurements: dict[MemberKey, dict[str, Any]]) -> list[str]:
    """What a reader of the table must know."""
    first = next(iter(measurements.values()))
    lines = [
        f"Held-out tokens: {first['n_tokens']}. EV = 1 - E|x - x_hat|^2 / E|x - E[x]|^2; L0, "
        "alive latents and EV are of the exported SAE, as stock SAELens loads it; cos is that "
        "of decoder rows with where they started; CE rec. is the share of cross-entropy lost "
        "by zeroing the activations that the reconstruction recovers.",
    ]
    remedy = "train longer, or choose another target"
    return [*lines, *comparability_notes(measurements, remedy)]


def comparability_notes(
    measurements: dict[MemberKey, dict[str, Any]], remedy: str
) -> list[str]:
    """Which members must not be compared, and whether there is more than one seed."""
    lines: list[str] = []
    off = [k for k, m in measurements.items() if not m["l0_matches"]]
    if off:
        named = ", ".join(f"{k.panel.name}/{k.member}" for k in off)
        lines.append(
            f"(!) L0 more than {100 * L0_TOLERANCE:g} % off its target: {named}. "
            f"Members at different L0 must not be compared; {remedy}."
        )
    if len({k.panel.seed for k in measurements}) == 1:
        lines.append("Single seed: numbers, no verdict.")
    return lines
