"""Two one-sided tests: are two SAEs the same, up to a margin?"""

import numpy as np
from statsmodels.stats.weightstats import DescrStatsW

from sae_baselines.stats.intervals import spread


def tost(differences: np.ndarray, margin: float) -> np.ndarray:
    """p-value of the two one-sided tests (Schuirmann 1987).

    The null hypothesis is |mean difference| >= margin. With t_low = (mean + margin) / se and
    t_high = (mean - margin) / se on n - 1 degrees of freedom, p = max(P(T > t_low), P(T <
    t_high)): `DescrStatsW.ttost_mean` of statsmodels on the paired differences. p <= alpha is
    the same as the (1 - 2 alpha) t interval lying inside (-margin, margin): at alpha = 0.05,
    the 90 % interval.

    Args:
        differences: ``[..., n_seeds]``, n_seeds >= 2.
        margin: delta > 0.

    Returns:
        p, ``[...]``. Without any spread it is 0 inside the margin, else 1.
    """
    some = spread(differences) > 0
    certain = np.where(np.abs(differences.mean(axis=-1)) < margin, 0.0, 1.0)
    n = differences.shape[-1]
    # Rows without spread would divide by 0; any that have some stand in for them.
    columns = np.where(some[..., None], differences, np.arange(n)).reshape(-1, n).T
    p = np.asarray(DescrStatsW(columns).ttost_mean(-margin, margin)[0])
    return np.where(some, p.reshape(some.shape), certain)
