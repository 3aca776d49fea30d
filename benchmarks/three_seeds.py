"""What few seeds can be made to say: simulations with known effects; no SAE is trained.

``python benchmarks/three_seeds.py`` writes results/three_seeds.json and prints its tables: the
coverage of the intervals of the best of several, and three candidates for more power than the
t test over seeds has, each with its false words. One core, three minutes.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special, stats
from verdict_calibration import NOISE, draws, rate

from sae_baselines.provenance import environment
from sae_baselines.stats import ALPHA, METHOD, Interval, together
from sae_baselines.stats.decision import holm
from sae_baselines.stats.intervals import paired_t

RESULTS = Path(__file__).parent / "results"
SHARE = 0.8
# As many as the probing tasks of the study in benchmarks/smollm2.
N_TASKS = 14
N_METRICS = 8
_ROTATIONS = 500
_CHUNK = 100
MOST_SEEDS = 12


@dataclass(frozen=True)
class Settings:
    """How much to simulate."""

    repeats: int
    seeds: tuple[int, ...]
    variants: tuple[int, ...]


FULL = Settings(repeats=1000, seeds=(3, 5, 10), variants=(2, 6))
QUICK = Settings(repeats=40, seeds=(3, 5), variants=(2, 4))


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="seconds; no file unless --out")
    parser.add_argument("--out", type=Path, help="default: results/three_seeds.json")
    args = parser.parse_args(argv)
    record = simulated(QUICK if args.quick else FULL)
    out = args.out or (None if args.quick else RESULTS / "three_seeds.json")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")
    print(tables(record))


def simulated(settings: Settings) -> dict[str, Any]:
    """All of it."""
    record: dict[str, Any] = {
        "benchmark": "three_seeds",
        "environment": environment(),
        "alpha": ALPHA,
        "noise": NOISE,
        "settings": {**vars(settings), "tasks": N_TASKS, "metrics": N_METRICS},
        "rates": "each rate with its 95 % Wilson interval over repeats",
    }
    for part in (mixed_model, moderated, rotated, seeds_for_power, best_of_several):
        print(f"{part.__name__} ...", flush=True)
        record[part.__name__] = part(settings)
    record["summary"] = summary(record)
    return record


# The best of several


def best_of_several(settings: Settings) -> list[dict[str, Any]]:
    """How often intervals of k shares hold all at once, and what is said of the best holds.

    Baselines score a share of what the trained SAE does, plus noise that correlates between
    them. Their shares are equal, or each 0.01 below the one before.
    """
    # Noise, correlation, and by how much shares differ.
    cases = [
        *(("normal", correlation, 0.0) for correlation in (0.0, 0.5, 0.9)),
        ("normal", 0.5, 0.01),
        ("heavy-tailed", 0.5, 0.0),
        ("skewed", 0.5, 0.0),
    ]
    out = []
    for k in settings.variants:
        for n in settings.seeds:
            for i, (kind, correlation, step) in enumerate(cases):
                case = {"noise": kind, "variants": k, "seeds": n}
                case |= {"correlation": correlation, "shares_apart": step}
                rng = np.random.default_rng([1, k, n, i])
                out.append({**case, **_covered(rng, settings.repeats, **case)})
    return out


def _covered(
    rng: np.random.Generator,
    repeats: int,
    noise: str,
    variants: int,
    seeds: int,
    correlation: float,
    shares_apart: float,
) -> dict[str, Any]:
    truth = SHARE - shares_apart * np.arange(variants)
    hits = np.zeros((repeats, 3), bool)
    for r in range(repeats):
        trained = 1 + 0.02 * rng.normal(size=seeds)
        shared = math.sqrt(correlation) * draws(rng, noise, (1, seeds))
        own = math.sqrt(1 - correlation) * draws(rng, noise, (variants, seeds))
        scores = truth[:, None] * trained + 0.02 * (shared + own)
        found = together(scores, trained)
        intervals = [Interval(-np.inf, np.inf, 0.95) if i is None else i for i in found]
        low = np.array([i.low for i in intervals])
        high = np.array([i.high for i in intervals])
        held = (low <= truth) & (truth <= high)
        chosen = int(scores.mean(axis=1).argmax())
        hits[r] = held.all(), held[chosen], low.max() <= truth.max() <= high.max()
    return {
        "all_at_once": rate(hits[:, 0]),
        "of_the_chosen": rate(hits[:, 1]),
        "of_the_best": rate(hits[:, 2]),
    }


# Pairing by task as well as by seed


def balanced(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, its variance and degrees of freedom in a balanced model with seeds at random.

    d(seed, task) = mean + task + seed + noise, tasks as they are. The expected mean square of
    seeds is T s_seed^2 + s_noise^2, that of the rest s_noise^2; the variance of the mean is
    that of seeds over n T. Restricted maximum likelihood has its closed form here: where the
    mean square of seeds is the larger, it is taken, with n - 1 degrees of freedom; else
    s_seed^2 is 0 and both are pooled, with T (n - 1). Satterthwaite's and Kenward and Roger's
    degrees of freedom are these, as the variance is a multiple of one mean square.

    Args:
        cells: ``[..., n_seeds, n_tasks]``.
    """
    n, tasks = cells.shape[-2:]
    by_seed = cells.mean(axis=-1)
    mean = by_seed.mean(axis=-1)
    of_seeds = tasks * by_seed.var(axis=-1, ddof=1)
    rest = cells - by_seed[..., None] - cells.mean(axis=-2, keepdims=True)
    rest = rest + mean[..., None, None]
    squares = (rest**2).sum(axis=(-1, -2))
    df = (n - 1) * (tasks - 1)
    pooled = ((n - 1) * of_seeds + squares) / (n - 1 + df)
    alone = of_seeds > squares / df
    variance = np.where(alone, of_seeds, pooled) / (n * tasks)
    return mean, variance, np.where(alone, n - 1, n - 1 + df)


def mixed_model(settings: Settings) -> list[dict[str, Any]]:
    """False words and power of a mixed model, beside the t test over seeds' means.

    ``seed_over_noise`` is T s_seed^2 / s_noise^2: 0 where seeds differ by the noise of single
    tasks alone. Effects are in standard deviations of a seed's mean over tasks. "first of 8" is
    the level of Holm's first step among 8 metrics.
    """
    out = []
    for kind in (*list(NOISE)[:3], "unequal tasks"):
        for n in settings.seeds:
            for ratio in (0.0, 0.5, 1.0, 3.0, 10.0):
                rng = np.random.default_rng([2, n, int(10 * ratio), len(kind)])
                shape = (4 * settings.repeats, n, N_TASKS)
                noise = draws(rng, "normal" if kind == "unequal tasks" else kind, shape)
                if kind == "unequal tasks":
                    scale = rng.lognormal(sigma=0.75, size=(shape[0], 1, N_TASKS))
                    noise *= scale / np.sqrt((scale**2).mean(axis=-1, keepdims=True))
                seed = math.sqrt(ratio / N_TASKS) * rng.normal(size=(*shape[:2], 1))
                cells = seed + noise
                sd = math.sqrt((1 + ratio) / N_TASKS)
                mean, variance, df = balanced(cells)
                row: dict[str, Any] = {"noise": kind, "seeds": n, "seed_over_noise": ratio}
                for name, level in (("alone", ALPHA), ("first_of_8", ALPHA / N_METRICS)):
                    for effect in (0, 4):
                        moved = mean + effect * sd
                        p = 2 * stats.t.sf(np.abs(moved) / np.sqrt(variance), df)
                        other = paired_t(cells.mean(axis=-1) + effect * sd)[1]
                        what = "beats_at_4_sd" if effect else "false_word"
                        right = moved > 0 if effect else np.full(len(p), fill_value=True)
                        row[f"{what}_{name}_mixed"] = rate((p <= level) & right)
                        row[f"{what}_{name}_t"] = rate((other <= level) & right)
                out.append(row)
    return out


# Variances borrowed over metrics


def prior(variances: np.ndarray, df: float) -> tuple[np.ndarray, np.ndarray]:
    """d0 and s0^2 of an inverse chi-square prior of variances, by the moments of their logs.

    Smyth, *Stat. Appl. Genet. Mol. Biol.* 3(1), 2004, section 6.2: e = log s^2 - digamma(df/2)
    + log(df/2); trigamma(d0/2) = var(e) - trigamma(df/2); s0^2 = exp(mean(e) + digamma(d0/2) -
    log(d0/2)). Where var(e) is no larger than chance gives, d0 is infinite and s0^2 the mean
    variance, as in limma.

    Args:
        variances: ``[..., n_metrics]``, > 0.
        df: Degrees of freedom of each.

    Returns:
        ``[...]`` each.
    """
    e = np.log(variances) - special.digamma(df / 2) + math.log(df / 2)
    more = e.var(axis=-1, ddof=1) - special.polygamma(1, df / 2)
    some = more > 0
    half = _trigamma_inverse(np.where(some, more, 1.0))
    scale = np.exp(e.mean(axis=-1) + special.digamma(half) - np.log(half))
    d0 = np.where(some, 2 * half, np.inf)
    return d0, np.where(some, scale, variances.mean(axis=-1))


def _trigamma_inverse(x: np.ndarray) -> np.ndarray:
    """Newton's method on 1 / trigamma, which is nearly a line."""
    y = 0.5 + 1 / x
    for _ in range(12):
        t = special.polygamma(1, y)
        y = y + t * (1 - t / x) / special.polygamma(2, y)
    return y


def moderated_t(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and two-sided p of limma's moderated t, ``[..., n_metrics]``.

    The variance is (d0 s0^2 + df s^2) / (d0 + df), with d0 + df degrees of freedom, but no more
    than all metrics have together.

    Args:
        d: ``[..., n_metrics, n_seeds]``, in one unit (say, margins).
    """
    metrics, n = d.shape[-2:]
    df = n - 1
    own = d.var(axis=-1, ddof=1)
    d0, scale = (x[..., None] for x in prior(own, df))
    finite = np.where(np.isfinite(d0), d0, 0)
    shrunk = (finite * scale + df * own) / (finite + df)
    variance = np.where(np.isfinite(d0), shrunk, scale)
    mean = d.mean(axis=-1)
    total = np.minimum(d0 + df, metrics * df)
    return mean, 2 * stats.t.sf(np.abs(mean) / np.sqrt(variance / n), total)


def family(
    rng: np.random.Generator,
    repeats: int,
    n: int,
    kind: str,
    correlation: float,
    log_sd: float,
    metrics: int = N_METRICS,
) -> np.ndarray:
    """Differences of two runs without any effect, ``[repeats, metrics, seeds]``.

    Metrics correlate; the standard deviation of each is lognormal with ``log_sd`` over metrics.
    """
    shared = draws(rng, kind, (repeats, 2, 1, n))
    own = draws(rng, kind, (repeats, 2, metrics, n))
    runs = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    scale = np.exp(log_sd * rng.normal(size=(repeats, metrics, 1)))
    return (runs[:, 0] - runs[:, 1]) / math.sqrt(2) * scale


def moderated(settings: Settings) -> list[dict[str, Any]]:
    """False words in a family of metrics, after Bonferroni's step, which is Holm's first."""
    out = []
    for metrics in (3, N_METRICS):
        for n in settings.seeds:
            for kind in list(NOISE)[:3]:
                for correlation in (0.0, 0.5, 0.9):
                    for log_sd in (0.0, 0.5):
                        case = (kind, correlation, log_sd, metrics)
                        key = [3, metrics, n, len(kind), int(10 * correlation)]
                        rng = np.random.default_rng([*key, int(10 * log_sd)])
                        d = family(rng, 4 * settings.repeats, n, *case)
                        row: dict[str, Any] = {
                            "metrics": metrics,
                            "seeds": n,
                            "noise": kind,
                            "correlation": correlation,
                            "log_sd": log_sd,
                        }
                        for name, test in (("t", paired_t), ("moderated", moderated_t)):
                            mean, p = test(d)
                            word = p <= ALPHA / metrics
                            row[f"false_beats_{name}"] = rate((word & (mean > 0)).any(axis=1))
                            row[f"false_word_{name}"] = rate(word.any(axis=1))
                        out.append(row)
    return out


# A correction that knows how metrics correlate


def rotation(rng: np.random.Generator, d: np.ndarray) -> np.ndarray:
    """Step-down adjusted p-values of the t tests of a family, by rotations of its seeds.

    Where differences are normal with mean 0 and any covariance, rotating the seeds (the same
    way for all metrics) leaves their distribution as it is, so that the largest |t| of any set
    of true nulls is one draw among its rotations: exact at any number of seeds (Langsrud,
    *Statistics and Computing* 15, 2005). Steps down as Holm does: by closure (Marcus et al.
    1976), since the largest of fewer metrics is smaller, the chance of any false rejection is
    at most the level whichever nulls are true. t grows with w^2 / (sum of squares), w = the sum
    over seeds / sqrt(n); a rotation puts a random direction in the place of that sum's.

    Args:
        rng: Of the rotations.
        d: ``[repeats, n_metrics, n_seeds]``.
    """
    n = d.shape[-1]
    squares = (d**2).sum(axis=-1)
    observed = d.sum(axis=-1) ** 2 / n / squares
    order = np.argsort(-observed, axis=-1)
    out = np.empty_like(observed)
    for first in range(0, len(d), _CHUNK):
        part = slice(first, first + _CHUNK)
        u = rng.normal(size=(_ROTATIONS, n))
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        turned = np.einsum("mn,rgn->rmg", u, d[part]) ** 2 / squares[part, None]
        turned = np.take_along_axis(turned, order[part, None], axis=-1)
        largest = np.maximum.accumulate(turned[..., ::-1], axis=-1)[..., ::-1]
        at = np.take_along_axis(observed[part], order[part], axis=-1)
        p = (1 + (largest >= at[:, None]).sum(axis=1)) / (1 + _ROTATIONS)
        np.put_along_axis(out[part], order[part], np.maximum.accumulate(p, axis=-1), axis=-1)
    return out


def _holm(rng: np.random.Generator, d: np.ndarray) -> np.ndarray:
    del rng
    return np.array([holm(p) for p in paired_t(d)[1]])


CORRECTIONS: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "holm": _holm,
    "rotation": rotation,
}


def rotated(settings: Settings) -> list[dict[str, Any]]:
    """False words and power after Holm, and after rotations; effects of 4 sd where some."""
    out = []
    for n in settings.seeds[:2]:
        for kind in (*NOISE, "unequal variances"):
            for correlation in (0.0, 0.5, 0.9):
                for effects in (0, N_METRICS // 2, N_METRICS):
                    rng = np.random.default_rng([4, n, len(kind), int(10 * correlation)])
                    unequal = kind == "unequal variances"
                    d = family(
                        rng,
                        settings.repeats // 2,
                        n,
                        "normal" if unequal else kind,
                        correlation,
                        1.0 if unequal else 0.0,
                    )
                    d[:, :effects] += 4.0
                    row: dict[str, Any] = {"seeds": n, "noise": kind}
                    row |= {"correlation": correlation, "metrics_with_an_effect": effects}
                    ahead = d.mean(axis=-1) > 0
                    for name, correct in CORRECTIONS.items():
                        word = correct(rng, d) <= ALPHA
                        false = word[:, effects:]
                        if effects < N_METRICS:
                            row[f"false_word_{name}"] = rate(false.any(axis=1))
                            beats = false & ahead[:, effects:]
                            row[f"false_beats_{name}"] = rate(beats.any(axis=1))
                        if effects:
                            row[f"beats_{name}"] = rate((word & ahead)[:, :effects])
                    out.append(row)
    return out


def seeds_for_power(settings: Settings) -> list[dict[str, Any]]:
    """Least seeds with which each of 8 metrics, all with the effect, is 'beats' in 80 %."""
    out = []
    for effect in (1.5, 2.0, 3.0, 4.0):
        for correlation in (0.0, 0.5, 0.9):
            row: dict[str, Any] = {"effect": effect, "correlation": correlation}
            for name, correct in CORRECTIONS.items():
                row[name] = None
                for n in range(3, MOST_SEEDS + 1):
                    rng = np.random.default_rng([5, n, int(10 * effect), int(10 * correlation)])
                    d = family(rng, settings.repeats // 4, n, "normal", correlation, 0.0)
                    if (correct(rng, d + effect) <= ALPHA).mean() >= METHOD.power:
                        row[name] = n
                        break
            out.append(row)
    return out


# What came of it


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Least and largest rate of each claim."""

    def span(part: str, key: str, **where: Any) -> list[float]:
        found = [
            row[key]["rate"]
            for row in record[part]
            if key in row and all(row[k] == v for k, v in where.items())
        ]
        return [min(found), max(found)]

    return {
        "all_shares_at_once": {
            kind: span("best_of_several", "all_at_once", noise=kind)
            for kind in ("normal", "heavy-tailed", "skewed")
        },
        "share_of_the_chosen": span("best_of_several", "of_the_chosen", noise="normal"),
        "share_of_the_best": span("best_of_several", "of_the_best", noise="normal"),
        **{
            f"false_word_{name}": span("mixed_model", f"false_word_{name}")
            for name in ("alone_t", "alone_mixed", "first_of_8_t", "first_of_8_mixed")
        },
        **{
            f"{word}_of_a_family_{name}": span("moderated", f"{word}_{name}")
            for word in ("false_beats", "false_word")
            for name in ("t", "moderated")
        },
        **{
            f"{word}_after_{name}": span("rotated", f"{word}_{name}")
            for word in ("false_beats", "false_word")
            for name in CORRECTIONS
        },
    }


def tables(record: dict[str, Any]) -> str:
    """Markdown."""

    def table(part: str, keys: Sequence[str], values: Sequence[str]) -> str:
        lines = [
            f"| {' | '.join([*keys, *values])} |",
            "|---" * (len(keys) + len(values)) + "|",
        ]
        for row in record[part]:
            cells = [f"{row[k]}" for k in keys]
            for v in values:
                value = row.get(v)
                rated = isinstance(value, dict)
                cells.append(f"{value['rate']:.1%}" if rated else f"{value or '-'}")
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def named(part: str) -> list[str]:
        keys = dict.fromkeys(k for row in record[part] for k, v in row.items())
        return [k for k in keys if any(isinstance(row.get(k), dict) for row in record[part])]

    found = []
    for part in ("best_of_several", "mixed_model", "moderated", "rotated"):
        rates = named(part)
        keys = [k for k in record[part][0] if k not in rates]
        found.append(f"{part}\n\n{table(part, keys, rates)}")
    found.append(table("seeds_for_power", ("effect", "correlation"), tuple(CORRECTIONS)))
    found.append("\n".join(f"{k}: {v}" for k, v in record["summary"].items()))
    return "\n\n".join(found)


if __name__ == "__main__":
    main()
