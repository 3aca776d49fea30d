"""The numbers of a vision study, for the terminal and for the page."""

from typing import Any

from sae_baselines.study.plan import MemberKey
from sae_baselines.study.table import comparability_notes, rows_by_panel

COLUMNS = (
    "member",
    "EV",
    "L0",
    "dead",
    "rare",
    "median patches",
    "median photographs",
    "on one photograph",
)


def rows_of(measurements: dict[MemberKey, dict[str, Any]]) -> dict[str, list[tuple[str, ...]]]:
    """Per panel, one row of text per member, under `COLUMNS`."""
    return rows_by_panel(measurements, _cells)


def _cells(m: dict[str, Any]) -> tuple[str, ...]:
    return (
        _percent(m["dead"] / m["d_sae"]),
        _percent(m["rare"] / m["d_sae"]),
        _number(m["rare_patches"]),
        _number(m["rare_photographs"]),
        _percent(m["rare_on_one_photograph"]),
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def notes(measurements: dict[MemberKey, dict[str, Any]]) -> list[str]:
    """What a reader of the table must know."""
    first = next(iter(measurements.values()))
    lines = [
        f"Measured on {first['n_patches']} patches of {first['n_photographs']} held-out "
        "photographs; no member was trained on any part of them, though thresholds (and an "
        "untrained control's mean and scale) are set on other crops of them. "
        "EV = 1 - E|x - x_hat|^2 / E|x - E[x]|^2; dead: latents that fire on none of these "
        "patches; rare: latents that fire on fewer than 0.1 % of them and at least once, as "
        "shares of all latents. "
        "The last three columns are about rare latents: on how many patches and photographs "
        "the median one fires, and how many of them fire on one photograph only, where four "
        "patches that look alike prove little.",
    ]
    remedy = "use more held-out photographs, or train longer"
    return [*lines, *comparability_notes(measurements, remedy)]
