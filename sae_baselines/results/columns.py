"""Columns of every results table (`sae_baselines.evals.results` explains them)."""

COLUMNS = (
    "panel",
    "member",
    "constraint",
    "architecture",
    "l0",
    "seed",
    "suite",
    "metric",
    "direction",
    "task",
    "value",
    "n",
    "versions",
)
