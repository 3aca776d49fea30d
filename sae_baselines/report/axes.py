"""An axis that shows the members, not only the one that failed."""

import itertools
import math
import statistics
from collections.abc import Sequence

# Rows this many times farther out than the middle row is from the middle hide all others.
_FAR = 20.0
_PAD = 0.06


def limits(
    rows: Sequence[Sequence[float]], always: Sequence[float] = ()
) -> tuple[float, float]:
    """Limits that hold every row, but for rows so far away that they would hide the rest.

    Args:
        rows: Values of each row; not finite ones are left out.
        always: Values that must be visible.

    Returns:
        Lower and upper limit, padded.
    """
    finite = [[v for v in row if math.isfinite(v)] for row in rows]
    kept = [row for row in finite if row]
    if len(kept) > 2:
        middles = [statistics.fmean(row) for row in kept]
        centre = statistics.median(middles)
        scale = statistics.median(abs(m - centre) for m in middles)
        near = [
            row for row, m in zip(kept, middles, strict=True) if abs(m - centre) <= _FAR * scale
        ]
        kept = near if scale > 0 else kept
    values = [*itertools.chain.from_iterable(kept), *always]
    if not values:
        return -1.0, 1.0
    pad = _PAD * ((max(values) - min(values)) or 1.0)
    return min(values) - pad, max(values) + pad


def beyond(values: Sequence[float], bounds: tuple[float, float]) -> int:
    """-1 or 1 where all values lie below or above the axis, else 0."""
    finite = [v for v in values if math.isfinite(v)]
    if finite and max(finite) < bounds[0]:
        return -1
    if finite and min(finite) > bounds[1]:
        return 1
    return 0
