"""Coverage of the interval of a mean over pairs of seeds (`stats.u_statistic`).

What a pair of seeds gives is a_i + a_j + e_ij, mean 0: `share` is how much of a pair's variance
comes from its two seeds; 0 is pairs that are independent though they share seeds, 1 is pairs
that differ by their seeds alone. `random directions` are real dictionaries: the mean cosine of
the best match of 60 random directions in 8 dimensions, whose expectation is known.

    python benchmarks/pairs_of_seeds.py --out benchmarks/results/pairs_of_seeds.json
"""

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from sae_baselines.drift.sphere import expected_best_cosine
from sae_baselines.stats.u_statistic import half_widths

SEEDS = (3, 5, 10)
SHARES = (0.0, 0.5, 1.0)
NOISE = ("normal", "skewed", "heavy")
D_IN, D_SAE = 8, 60


def noise(random: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    """Mean 0, variance 1."""
    if kind == "skewed":
        return random.exponential(size=shape) - 1
    if kind == "heavy":
        return random.standard_t(5, shape) / np.sqrt(5 / 3)
    return random.standard_normal(shape)


def coverage(n: int, values: np.ndarray, truth: float) -> dict[str, float]:
    """Of the interval, and of one that takes pairs for independent.

    Args:
        n: Seeds.
        values: ``[trials, n_pairs]``.
        truth: Expectation of each.
    """
    half = half_widths(list(combinations(range(n), 2)), values)
    off = np.abs(values.mean(axis=1) - truth)
    naive = 1.96 * values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
    return {
        "coverage": float((off <= half).mean()),
        "coverage_if_pairs_were_independent": float((off <= naive).mean()),
        "mean_width": float(2 * half.mean()),
    }


def of_directions(random: np.random.Generator, n: int, trials: int) -> np.ndarray:
    """Mean best cosine of each pair of random dictionaries, ``[trials, n_pairs]``."""
    rows = random.standard_normal((trials, n, D_SAE, D_IN)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=3, keepdims=True)
    found = []
    for i, j in combinations(range(n), 2):
        cosines = rows[:, i] @ rows[:, j].transpose(0, 2, 1)
        found.append((cosines.max(1).mean(1) + cosines.max(2).mean(1)) / 2)
    return np.stack(found, axis=1).astype(float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    trials, random = options.trials, np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for n in SEEDS:
        pairs = np.array(list(combinations(range(n), 2)))
        for kind in NOISE:
            for share in SHARES:
                of_seed = noise(random, kind, (trials, n)) * np.sqrt(share / 2)
                of_pair = noise(random, kind, (trials, len(pairs))) * np.sqrt(1 - share)
                values = of_seed[:, pairs].sum(axis=2) + of_pair
                found = coverage(n, values, 0.0)
                rows.append({"seeds": n, "noise": kind, "share": share, **found})
        values = of_directions(random, n, trials // 20)
        found = coverage(n, values, expected_best_cosine(D_IN, D_SAE))
        rows.append({"seeds": n, "noise": "random directions", "share": None, **found})
    said = {"trials": trials, "of_random_directions": trials // 20, "nominal": 0.95}
    options.out.write_text(json.dumps({**said, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
