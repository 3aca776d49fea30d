"""Results tables with known answers."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

BASELINES = ("frozen_decoder", "soft_frozen_decoder", "frozen_encoder")


def rows(
    values: Mapping[tuple[str, int], float | Mapping[str, float]],
    *,
    metric: str = "explained_variance",
    suite: str = "core",
    direction: Any = 1,
    l0: float = 32,
    architecture: str = "batchtopk",
) -> list[dict[str, Any]]:
    """One row per (member, seed), or per task of each."""
    out = []
    for (member, seed), value in values.items():
        tasks = value if isinstance(value, Mapping) else {"": value}
        for task, number in tasks.items():
            out.append(
                {
                    "panel": f"{architecture}_l0_{l0:g}_seed_{seed}",
                    "member": member,
                    "constraint": member.split(":")[0],
                    "architecture": architecture,
                    "l0": l0,
                    "seed": seed,
                    "suite": suite,
                    "metric": metric,
                    "direction": direction,
                    "task": task,
                    "value": number,
                }
            )
    return out


def frame(
    *parts: Iterable[dict[str, Any]], l0: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """A table of these rows and measured L0 of every member, 32 unless told."""
    found = [row for part in parts for row in part]
    measured = {}
    for row in found:
        value = (l0 or {}).get(row["member"], row["l0"])
        extra = {"suite": "panel", "metric": "l0", "direction": 0, "task": "", "value": value}
        measured[row["panel"], row["member"]] = {**row, **extra}
    return pd.DataFrame([*found, *measured.values()])


def paired(
    trained: Iterable[float], baseline: Iterable[float], name: str = "frozen_decoder"
) -> dict[tuple[str, int], float]:
    """Seeds 0, 1, ... of two members."""
    found = {("trained", seed): value for seed, value in enumerate(trained)}
    found.update({(name, seed): value for seed, value in enumerate(baseline)})
    return found
