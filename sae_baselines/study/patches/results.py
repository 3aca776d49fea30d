"""The numbers of a vision study as a tidy table, with the columns of every results table."""

import json
from pathlib import Path
from typing import Any

from sae_baselines.results import RESULTS_FILE, row, table_of, versions_text, write_table
from sae_baselines.study.folder import PROVENANCE_FILE, StudyFolder
from sae_baselines.study.plan import MemberKey
from sae_baselines.study.spec import MemberSpec

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
        row(
            {
                "panel": key.panel.name,
                "member": key.member,
                "constraint": members[key].constraint,
                "architecture": key.panel.architecture,
                "l0": key.panel.l0,
                "seed": key.panel.seed,
            },
            (suite, metric),
            float(measured[metric]),
            direction=direction,
            n=measured["n_patches"],
            versions=_versions(folder.member(key)),
        )
        for key, measured in measurements.items()
        for suite, metric, direction in _ROWS
        if measured[metric] is not None
    ]
    path = folder.root / RESULTS_FILE
    write_table(table_of(rows), path)
    return path


def _versions(member: Path) -> str:
    record = json.loads((member / PROVENANCE_FILE).read_text(encoding="utf-8"))
    return versions_text(record["versions"], _DECISIVE)
