"""A glance at results on a terminal."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.table import Table


def primary_table(results: pd.DataFrame, primary: Sequence[str]) -> list[Table]:
    """Mean and standard deviation over seeds of the primary metrics, one table per group.

    Args:
        results: Tidy rows.
        primary: ``suite/metric``.
    """
    rows = results[(results["task"] == "") & results["value"].notna()].copy()
    rows["key"] = rows["suite"] + "/" + rows["metric"]
    shown = [key for key in primary if key in set(rows["key"])]
    found = []
    for key, group in rows.groupby(["architecture", "l0"], dropna=False):
        architecture, l0 = tuple(key)  # pyright: ignore[reportArgumentType]
        table = Table(title=f"{architecture}, L0 {l0:g}", title_justify="left")
        table.add_column("member", no_wrap=True)
        for key in shown:
            table.add_column(key.replace("/", "\n", 1), justify="right", overflow="fold")
        for member in dict.fromkeys(group["member"]):
            cells = [
                _cell(group.loc[(group["member"] == member) & (group["key"] == key), "value"])
                for key in shown
            ]
            table.add_row(str(member), *cells)
        found.append(table)
    return found


def _cell(values: Any) -> str:
    if values.empty:
        return "-"
    mean = f"{values.mean():.4f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std():.4f} ({len(values)})"
