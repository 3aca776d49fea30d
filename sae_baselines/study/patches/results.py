"""The numbers of a vision study as a tidy table, with the columns of every results table."""

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd

from sae_baselines.files import write_atomically
from sae_baselines.results.columns import COLUMNS
from sae_baselines.study.folder import PROVENANCE_FILE, StudyFolder
from sae_baselines.study.plan import MemberKey
from sae_baselines.study.spec import MemberSpec

RESULTS_FILE = "results.csv"
SUITE = "vision"

# Name and direction; only reconstruction has a better and a worse.
_METRICS = {
    "explained_variance": 1,
    "l0": 0,
    "dead": 0,
    "rare": 0,
    "rare_patches": 0,
    "rare_photographs": 0,
    "rare_on_one_photograph": 0,
    "cos_to_start_mean": 0,
}
# Statistics match members by this row, wherever it is from.
_ROWS = [(SUITE, *row) for row in _METRICS.items()] + [("panel", "l0", 0)]
_DECISIVE = ("sae-baselines", "sae-lens", "torch", "transformers")


def write_vision_results(
    folder: StudyFolder,
    members: dict[MemberKey, MemberSpec],
    measurements: dict[MemberKey, dict[str, Any]],
) -> Path:
    """Write ``results.csv``: one row per member and metric; ``n`` counts held-out patches."""
    rows = [
        {
            "panel": key.panel.name,
            "member": key.member,
            "constraint": members[key].constraint,
            "architecture": key.panel.architecture,
            "l0": key.panel.l0,
            "seed": key.panel.seed,
            "suite": suite,
            "metric": metric,
            "direction": direction,
            "task": "",
            "value": float(measured[metric]),
            "n": measured["n_patches"],
            "versions": _versions(folder.member(key)),
        }
        for key, measured in measurements.items()
        for suite, metric, direction in _ROWS
        if measured[metric] is not None
    ]
    table = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    text = io.StringIO()
    table.to_csv(text, index=False, float_format="%.17g", lineterminator="\n")
    path = folder.root / RESULTS_FILE
    write_atomically(path, text.getvalue())
    return path


def _versions(member: Path) -> str:
    record = json.loads((member / PROVENANCE_FILE).read_text(encoding="utf-8"))
    found = record["versions"]
    return "; ".join(f"{name}={found[name]}" for name in _DECISIVE if name in found)
