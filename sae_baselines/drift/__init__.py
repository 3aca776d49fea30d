"""How far directions move from where they start: lazy training (paper, Appendix D)."""

from sae_baselines.drift.checkpoints import drift_from_checkpoints
from sae_baselines.drift.record import (
    FRACTIONS,
    DriftLog,
    drift_table,
    find_drift,
    read_drift,
)
from sae_baselines.drift.tracker import DriftTracker

__all__ = [
    "FRACTIONS",
    "DriftLog",
    "DriftTracker",
    "drift_from_checkpoints",
    "drift_table",
    "find_drift",
    "read_drift",
]
