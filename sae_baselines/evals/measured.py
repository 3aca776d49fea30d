"""One number of a suite, before it is known which SAE it belongs to."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

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
        n: Units behind the value, where known.
        n_of: What n counts: tokens, examples, latents, ...
        missing: Why there is no value, where that is known.
    """

    metric: str
    value: float
    direction: Direction = NEITHER
    task: str = ""
    n: int | None = None
    n_of: str = ""
    missing: str = ""


def not_finite(rows: Iterable[Measured]) -> list[str]:
    """Metrics with a direction whose aggregate is not a number: a failed evaluation."""
    return [
        row.metric
        for row in rows
        if row.direction != NEITHER and not row.task and not math.isfinite(row.value)
    ]
