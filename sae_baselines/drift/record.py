"""Records of drift: ``drift.json`` holds the facts, ``drift.npz`` the histograms."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_baselines.drift.cosines import EDGES, Drift
from sae_baselines.errors import UserError
from sae_baselines.files import parse_json, reading, write_atomically
from sae_baselines.provenance import environment

DRIFT_FILE = "drift.json"
HISTOGRAM_FILE = "drift.npz"
FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
SIDES = ("decoder", "encoder")
_FORMAT = 1
# Columns of `drift_table`: of a side, and of the SAE.
_SINGLE = ("n", "mean", "sd", "unmoved", "zero_norm", "not_finite")
_OF_SAE = ("measured_on", "start", "architecture", "d_in", "d_sae")


def checked_fractions(fractions: Sequence[float]) -> list[float]:
    """Fractions of training, in order.

    Raises:
        UserError: None, one outside (0, 1], or one twice.
    """
    if not fractions:
        raise UserError("drift: no fractions of training; e.g. [0.05, 0.1, 0.25, 0.5, 1.0]")
    for value in fractions:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= 1:
            raise UserError(
                f"drift: {value!r} is not a fraction of training; use numbers in (0, 1], e.g. "
                "0.05"
            )
    if len(set(fractions)) != len(fractions):
        raise UserError(f"drift: {list(fractions)}: a fraction repeats; give each once")
    return sorted(float(value) for value in fractions)


def step_of(fraction: float, total_steps: int) -> int:
    """The first step after which at least this fraction of the steps is done.

    Exact: 0.1 of 30 steps is step 3, although 0.1 * 30 is above 3 in float64.
    """
    return math.ceil(Fraction(repr(float(fraction))) * total_steps)


@dataclass
class DriftLog:
    """The records of one SAE.

    Attributes:
        folder: Where ``drift.json`` and ``drift.npz`` are.
        header: What does not change: architecture, d_in, d_sae, where the start is from and
            what EV and L0 are measured on.
        records: In the order of training: ``fraction`` (None if unknown), ``step`` (steps
            done, None if unknown), ``total_steps``, ``samples`` seen, ``decoder`` and
            ``encoder`` (`Drift.facts`, or None where there is nothing to compare),
            ``explained_variance`` and ``l0`` (None if not measured), and of our runs
            ``cap_bound_share``, the share of rows that a cap holds (None without one).
        counts: Per record and side, the histogram.
    """

    folder: Path
    header: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    counts: list[dict[str, np.ndarray]] = field(default_factory=list)

    def add(
        self,
        sides: Mapping[str, Drift],
        *,
        fraction: float | None,
        step: int | None,
        total_steps: int | None,
        samples: int | None,
        explained_variance: float | None,
        l0: float | None,
        **more: Any,
    ) -> None:
        """Append one record."""
        if explained_variance is not None and not math.isfinite(explained_variance):
            explained_variance = None  # JSON has no NaN
        self.records.append(
            {
                "fraction": fraction,
                "step": step,
                "total_steps": total_steps,
                "samples": samples,
                **dict.fromkeys(SIDES),
                **{side: drift.facts for side, drift in sides.items()},
                "explained_variance": explained_variance,
                "l0": l0,
                **more,
            }
        )
        self.counts.append({side: drift.counts for side, drift in sides.items()})

    def keep_until(self, step: int) -> None:
        """Forget records of steps after this one, which will be trained again."""
        kept = [i for i, r in enumerate(self.records) if r["step"] <= step]
        self.records = [self.records[i] for i in kept]
        self.counts = [self.counts[i] for i in kept]

    def histogram(self, index: int, side: str) -> np.ndarray | None:
        """``[2000]`` counts of record ``index``; None where there is nothing to compare."""
        return self.counts[index].get(side)

    def write(self) -> None:
        """Write both files, each in full or not at all; the histograms first."""
        arrays: dict[str, np.ndarray] = {"edges": EDGES}
        for side in SIDES:
            rows = [c[side] for c in self.counts if side in c]
            which = [i for i, c in enumerate(self.counts) if side in c]
            arrays[side] = np.array(rows, dtype=np.int64).reshape(-1, len(EDGES) - 1)
            arrays[f"{side}_record"] = np.array(which, dtype=np.int64)
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        write_atomically(self.folder / HISTOGRAM_FILE, content.getvalue())
        data = {"format": _FORMAT, **self.header, "records": self.records}
        text = json.dumps(data, indent=2, allow_nan=False)
        write_atomically(self.folder / DRIFT_FILE, text + "\n")


def header_of(
    name: str, cfg: Mapping[str, Any], start: str, measured_on: str | None, batch: int | None
) -> dict[str, Any]:
    """`DriftLog.header` of an SAE with this config."""
    return {
        "name": name or None,
        "architecture": cfg.get("architecture"),
        "d_in": cfg.get("d_in"),
        "d_sae": cfg.get("d_sae"),
        "start": start,
        "measured_on": measured_on,
        "train_batch_size": batch,
        **environment(),
    }


def read_drift(folder: str | Path) -> DriftLog:
    """Read the records of one SAE.

    Raises:
        UserError: They are not there, damaged, or of another format.
    """
    folder = Path(folder)
    path = folder / DRIFT_FILE
    if not path.is_file():
        raise UserError(f"drift: {folder} has no {DRIFT_FILE}")
    with reading(path, "delete it and track again"):
        data = parse_json(path.read_text(encoding="utf-8"))
        if data.pop("format") != _FORMAT:
            raise UserError(f"{path}: written by another version; track again")
        records = data.pop("records")
        counts: list[dict[str, np.ndarray]] = [{} for _ in records]
        with np.load(folder / HISTOGRAM_FILE, allow_pickle=False) as arrays:
            for side in SIDES:
                which = arrays[f"{side}_record"]
                for index, row in zip(which, arrays[side], strict=True):
                    # One more is what a run killed between the two files leaves.
                    if index < len(records):
                        counts[index][side] = row
    return DriftLog(folder, data, records, counts)


def find_drift(run: str | Path) -> dict[str, DriftLog]:
    """Every SAE with records below a folder, by its place: ``panel/member`` in a study."""
    run = Path(run)
    logs = {}
    for path in sorted(run.rglob(DRIFT_FILE)):
        parts = path.parent.relative_to(run).parts
        if not any(part.startswith(".") for part in parts):
            parts = parts[1:] if parts[:1] == ("panels",) else parts
            logs["/".join(parts) or run.name] = read_drift(path.parent)
    return logs


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
                row: dict[str, Any] = {"sae": name}
                row |= {k: record[k] for k in ("fraction", "step", "total_steps", "samples")}
                row["side"] = side
                row |= {k: facts[k] for k in _SINGLE}
                for spread in ("quantiles", "share_at_least"):
                    column = spread.removesuffix("s")
                    row |= {f"{column}_{k}": v for k, v in (facts[spread] or {}).items()}
                row |= {k: record[k] for k in ("explained_variance", "l0")}
                rows.append(row | {k: log.header.get(k) for k in _OF_SAE})
    return pd.DataFrame(rows)
