"""Names of before `Results`; what still uses them moves to it."""

from sae_baselines.results.results import KNOWN_MEMBERS, Group, MetricKey, Results, ordered

Tidy = Results
tidy = Results.of

__all__ = ["KNOWN_MEMBERS", "Group", "MetricKey", "Tidy", "ordered", "tidy"]
