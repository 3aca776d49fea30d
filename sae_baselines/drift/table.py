"""Drift as a tidy table."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sae_baselines.drift.record import SIDES, DriftLog


def drift_table(logs: Mapping[str, DriftLog]) -> pd.DataFrame:
    """One row per SAE, record and side.

    Args:
        logs: Records by name of the SAE.

    Returns:
        Columns ``sae``, ``fraction``, ``step``, ``total_steps``, ``samples``, ``side``,
        ``n``, ``mean``, ``sd``, ``unmoved``, ``zero_norm``, ``not_finite``,
        ``quantile_<q>``, ``share_at_least_<t>``, ``explained_variance``, ``l0``,
        ``measured_on``, ``start``, ``architecture``, ``d_in``, ``d_sae``.
    """
    rows: list[dict[str, Any]] = []
    for name, log in logs.items():
        for record in log.records:
            for side in SIDES:
                facts = record[side]
                if facts is None:
                    continue
                single = ("n", "mean", "sd", "unmoved", "zero_norm", "not_finite")
                rows.append(
                    {
                        "sae": name,
                        **{k: record[k] for k in ("fraction", "step", "total_steps")},
                        "samples": record["samples"],
                        "side": side,
                        **{k: facts[k] for k in single},
                        **_spread("quantile", facts["quantiles"]),
                        **_spread("share_at_least", facts["share_at_least"]),
                        **{k: record[k] for k in ("explained_variance", "l0")},
                        **{
                            k: log.about.get(k)
                            for k in ("measured_on", "start", "architecture", "d_in", "d_sae")
                        },
                    }
                )
    return pd.DataFrame(rows)


def _spread(name: str, values: Mapping[str, float] | None) -> dict[str, float]:
    return {f"{name}_{key}": value for key, value in (values or {}).items()}
