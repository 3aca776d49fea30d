"""Many metrics, one chance of 5 % to be wrong."""

from collections.abc import Sequence

import numpy as np


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values (*Scandinavian Journal of Statistics* 6, 1979).

    Sorted ascending, adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)). Rejecting
    where adjusted p <= alpha keeps the chance of even one false rejection at most alpha,
    however the metrics are correlated.

    The tests hold it to ``statsmodels.stats.multitest.multipletests(method="holm")``, which is
    not called because it runs a full garbage collection each time: up to half a second in a
    process that has torch loaded.

    Args:
        p: ``[m]``, m >= 0.

    Returns:
        Adjusted p-values, ``[m]``.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
