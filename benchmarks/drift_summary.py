"""Summaries of drift_smollm2 and tau_sweep from finished studies: tables and one figure each.

``python benchmarks/drift_summary.py drift <study> benchmarks/drift_smollm2`` and
``python benchmarks/drift_summary.py tau <study> benchmarks/tau_sweep``.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sae_baselines.drift import drift_table, find_drift
from sae_baselines.provenance import samples_seen
from sae_baselines.report.drift_plots import drift_figure
from sae_baselines.report.style import INK, MUTED, drawing, finish, looks
from sae_baselines.study.folder import MEASUREMENT_FILE, PROVENANCE_FILE

_MEASURED = (
    "explained_variance",
    "l0",
    "alive",
    "ce_recovered",
    "cos_to_start_mean",
    "encoder_cos_to_start_mean",
)
_PROBES = ("sae_top_1_test_accuracy", "sae_top_5_test_accuracy")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the summary of one study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("drift", "tau"))
    parser.add_argument("study", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    logs = find_drift(args.study)
    if not logs:
        parser.error(f"{args.study} has no records of drift")
    drift_table(logs).to_csv(args.out / "drift.csv", index=False)
    members = members_table(args.study)
    members.to_csv(args.out / "members.csv", index=False)
    print(members.to_string(index=False))
    if args.kind == "drift":
        for name, log in logs.items():
            figure = drift_figure(name, log)
            assert figure is not None
            _save(args.out, figure)
    else:
        _save(args.out, tau_figure(members))


def members_table(study: Path) -> pd.DataFrame:
    """One row per member: what it is, its measurement, and probing where it was done."""
    rows: list[dict[str, Any]] = []
    for path in sorted(study.glob(f"panels/*/*/{MEASUREMENT_FILE}")):
        measured = json.loads(path.read_text())
        provenance = json.loads((path.parent / PROVENANCE_FILE).read_text())
        cfg = json.loads((path.parent / "cfg.json").read_text())
        details = cfg["metadata"]["training_architecture_details"]
        rows.append(
            {
                "panel": path.parent.parent.name,
                "member": path.parent.name,
                "tau": details.get("tau"),
                "seed": provenance["init_seed"],
                "tokens": samples_seen(provenance),
                **{name: measured[name] for name in _MEASURED},
            }
        )
    table = pd.DataFrame(rows)
    results = study / "results.csv"
    if results.exists():
        found = pd.read_csv(results)
        found = found[found["metric"].isin(_PROBES) & found["task"].isna()]
        wide = found.pivot_table(index=["panel", "member"], columns="metric", values="value")
        table = table.merge(wide.reset_index(), on=["panel", "member"], how="left")
    return table


def tau_figure(members: pd.DataFrame) -> Any:
    """EV, cross-entropy recovered and probing against the cap, between trained and frozen."""
    metrics = {
        "explained_variance": "explained variance",
        "ce_recovered": "cross-entropy recovered",
        **{
            name: f"probing top-{name.split('_')[2]}"
            for name in _PROBES
            if name in members.columns
        },
    }
    soft = members[members["tau"].notna()].groupby("tau").mean(numeric_only=True)
    look = looks(["trained"])["soft_frozen_decoder"]
    with drawing():
        fig = Figure(figsize=(2.6 * len(metrics), 2.7), layout="constrained")
        for ax, (metric, label) in zip(
            np.atleast_1d(fig.subplots(1, len(metrics))), metrics.items(), strict=True
        ):
            ax.plot(
                soft.index, soft[metric], color=look.colour, marker=look.marker, label="cap tau"
            )
            for member, colour, line in (("trained", INK, "-"), ("frozen_decoder", MUTED, ":")):
                value = float(members[members["member"] == member][metric].mean())
                ax.axhline(value, color=colour, linestyle=line, linewidth=1.2, label=member)
            ax.set_xlabel("tau")
            ax.set_title(label, loc="left")
            ax.grid(axis="y")
        handles, labels = fig.axes[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower left", ncols=3)
        seeds = members["seed"].nunique()
        caption = (
            "The decoder free, in caps of cosine tau around its random start, and frozen; "
            f"{'single seed' if seeds == 1 else f'mean of {seeds} seeds'}."
        )
        return finish(fig, "tau", caption)


def _save(folder: Path, figure: Any) -> None:
    (folder / f"{figure.name}.png").write_bytes(figure.png)
    (folder / f"{figure.name}.svg").write_bytes(figure.svg)


if __name__ == "__main__":
    main()
