"""Numbers as a reader wants them."""

import math
from collections.abc import Sequence

import numpy as np

MISSING = "n/a"
_MOST_DECIMALS = 4


def number(value: float | None) -> str:
    """Three decimals for scores, fewer for large values."""
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value)
    if size >= 1000 or (size >= 100 and value == round(value)):
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if 0 < size < 0.001:
        return f"{value:.2g}"
    return f"{value:.3f}"


def decimals(scale: float) -> int:
    """Decimals that show two digits of an uncertainty of this size, between 0 and 4."""
    if not math.isfinite(scale) or scale <= 0:
        return 3
    return min(_MOST_DECIMALS, max(0, 1 - math.floor(math.log10(scale))))


def mean_sd(values: Sequence[float], expected: int | None = None) -> str:
    """``mean ± sd`` over seeds; the mean alone of one; how many, where not as expected."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return MISSING
    mean = float(np.mean(finite))
    if len(finite) == 1:
        text = number(mean)
    else:
        sd = float(np.std(finite, ddof=1))
        if sd <= 1e-12 * abs(mean):
            text = f"{number(mean)} ± 0"
        else:
            places = decimals(sd)
            text = f"{mean:,.{places}f} ± {sd:.{places}f}"
    if expected is not None and len(finite) != expected:
        text += f" (n={len(finite)})"
    return text


def difference(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """A signed difference, as precise as its interval allows."""
    if not math.isfinite(value):
        return MISSING
    return f"{value:+.{_places(low, high)}f}"


def interval(low: float, high: float) -> str:
    """``[low, high]`` with signs."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return MISSING
    places = _places(low, high)
    return f"[{low:+.{places}f}, {high:+.{places}f}]"


def _places(low: float, high: float) -> int:
    return decimals((high - low) / 2)


def percent(value: float | None, signed: bool = False) -> str:
    """A share as per cent, one decimal."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{100 * value:{'+' if signed else ''}.1f}%"


def percent_interval(low: float, high: float, signed: bool = False) -> str:
    """``[low, high]%``."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return MISSING
    sign = "+" if signed else ""
    return f"[{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]%"


def p_value(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.2g}"
