"""What metrics are called in headings and axes."""

import re

from sae_baselines.evals.registry import metric_of

# What stays as it is: code, in blocks and within a line.
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
# Not SAEBench, SAELens or SAE-probes.
_SAE = re.compile(r"\b(?:(An?|an?) )?SAE(s?)\b(?!-)")


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


def of_transcoders(text: str) -> str:
    """Words of a report whose SAEs are transcoders: "an SAE" is "a transcoder"."""

    def said(found: re.Match[str]) -> str:
        article = f"{found[1][0]} " if found[1] else ""
        return f"{article}transcoder{found[2]}"

    parts = _CODE.split(text)
    return "".join(part if i % 2 else _SAE.sub(said, part) for i, part in enumerate(parts))
