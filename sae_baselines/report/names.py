"""What metrics are called in headings and axes."""

from sae_baselines.evals.registry import metric_of


def title(suite: str, metric: str) -> str:
    """A short English name; ``suite: metric`` for what is not known."""
    return metric_of(suite, metric).title


def key(suite: str, metric: str) -> str:
    """The name in the results table."""
    return f"{suite}/{metric}"


def better(direction: int) -> str:
    """Which way is good, in words."""
    return {1: "higher is better", -1: "lower is better"}.get(direction, "describes only")


def arrow(direction: int) -> str:
    return {1: "↑", -1: "↓"}.get(direction, "")
