"""One number of a suite, before it is known which SAE it belongs to."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal[1, 0, -1]

HIGHER: Direction = 1
LOWER: Direction = -1
# Describes; never compared.
NEITHER: Direction = 0


@dataclass(frozen=True)
class Measured:
    """A value of one metric, on one task or over all.

    Attributes:
        metric: SAEBench's own key where it is SAEBench's number.
        value: The number; NaN where SAEBench says it could not be computed.
        direction: +1 higher is better, -1 lower is better, 0 neither.
        task: Probing dataset, attribute, class, latent; "" for the suite's aggregate.
        n: Units behind the value (tokens, examples, latents), where known.
    """

    metric: str
    value: float
    direction: Direction = NEITHER
    task: str = ""
    n: int | None = None


def from_mapping(
    values: Mapping[str, Any],
    directions: Mapping[str, Direction],
    *,
    task: str = "",
    n: int | None = None,
) -> Iterator[Measured]:
    """Numbers of one of SAEBench's metric dictionaries; None and texts are left out.

    Args:
        values: Metric to number.
        directions: Metrics that have a direction; the others describe.
        task: Task of all of them.
        n: Units behind all of them.
    """
    for metric, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        yield Measured(metric, float(value), directions.get(metric, NEITHER), task, n)


def not_finite(rows: Iterable[Measured]) -> list[str]:
    """Metrics with a direction whose aggregate is not a number: a failed evaluation."""
    return [
        row.metric
        for row in rows
        if row.direction != NEITHER and not row.task and not math.isfinite(row.value)
    ]
