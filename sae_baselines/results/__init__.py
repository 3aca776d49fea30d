"""The tidy results table: one schema, validated and indexed once."""

from sae_baselines.results.results import (
    KNOWN_MEMBERS,
    BySeed,
    Cells,
    Group,
    MetricKey,
    Results,
    mean_of_seed,
    ordered,
)
from sae_baselines.results.table import (
    COLUMNS,
    KEY,
    MEASURED_L0,
    PANEL_SUITE,
    RESULTS_FILE,
    check_table,
    checksum_file,
    load_results,
    read_table,
    row,
    table_of,
    versions_text,
    write_table,
)
from sae_baselines.study.measure import L0_TOLERANCE

__all__ = [
    "COLUMNS",
    "KEY",
    "KNOWN_MEMBERS",
    "L0_TOLERANCE",
    "MEASURED_L0",
    "PANEL_SUITE",
    "RESULTS_FILE",
    "BySeed",
    "Cells",
    "Group",
    "MetricKey",
    "Results",
    "check_table",
    "checksum_file",
    "load_results",
    "mean_of_seed",
    "ordered",
    "read_table",
    "row",
    "table_of",
    "versions_text",
    "write_table",
]
