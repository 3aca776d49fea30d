"""Do the verdicts hold what they promise? A simulation with known effects; no SAE is trained.

``python benchmarks/verdict_calibration.py`` writes results/verdict_calibration.{json,svg,png}
and prints its tables. One core, a few minutes.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from scipy import stats
from scipy.stats import binomtest
from statsmodels.stats.power import TTestPower

from sae_baselines.provenance import environment
from sae_baselines.stats import (
    ALPHA,
    Decision,
    collapsed,
    decide,
    t_interval,
    tasks_interval,
    tost,
    words,
)
from sae_baselines.stats.decision import holm
from sae_baselines.stats.fitness import dominant
from sae_baselines.stats.floors import Floor, Room
from sae_baselines.stats.intervals import paired_t
from sae_baselines.stats.one_value import predicted

RESULTS = Path(__file__).parent / "results"
SEEDS = (2, 3, 4, 5, 7, 10)
N_METRICS = 8
N_BASELINES = 3
N_TASKS = 20
# Panels in one report, each with one baseline.
N_PANELS = 4
# Runs that fail, and what they lose, in standard deviations of a difference.
FAILING, DROP = 0.1, 10.0
# Okabe and Ito's colours, told apart by every common kind of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

NOISE = {
    "normal": "normal",
    "heavy-tailed": "Student t with 3 degrees of freedom",
    "skewed": "lognormal, sigma 1",
    "two modes": "one of two levels, and a normal of 0.3 of their half-distance",
}
MODEL = (
    "score(member, seed, task) = effect(member) + task(task) + run(seed) + member_run(member, "
    "seed) + member_task(member, task) + noise(member, seed, task). task and run are shared by "
    "all members and cancel in pairs; member_run has standard deviation 1 and correlation 0.5 "
    "between metrics; noise has standard deviation 1 per task. All baselines meet the same "
    "trained SAE, so their differences correlate at 0.5. Effects are in standard deviations of "
    "the difference between two members' means over tasks."
)


@dataclass(frozen=True)
class Settings:
    """How much to simulate."""

    repeats: int
    coverage_repeats: int
    seeds: tuple[int, ...]


FULL = Settings(repeats=10_000, coverage_repeats=3000, seeds=SEEDS)
QUICK = Settings(repeats=60, coverage_repeats=40, seeds=(2, 3, 5))


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, write, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="seconds; no file unless --out")
    parser.add_argument("--out", type=Path, help="default: results/verdict_calibration.json")
    args = parser.parse_args(argv)
    settings = QUICK if args.quick else FULL
    out: Path | None = args.out
    if out is None and not args.quick:
        out = RESULTS / "verdict_calibration.json"
    record: dict[str, Any] = {
        "benchmark": "verdict_calibration",
        "environment": environment(),
        "alpha": ALPHA,
        "model": MODEL,
        "member_run_noise": NOISE,
        "settings": {
            "repeats": settings.repeats,
            "coverage_repeats": settings.coverage_repeats,
            "metrics": N_METRICS,
            "baselines": N_BASELINES,
            "tasks": N_TASKS,
            "panels": N_PANELS,
            "failing_runs": FAILING,
            "lost_by_a_failing_run": DROP,
        },
        "rates": "each rate with its 95 % Wilson interval over repeats",
    }
    for name, simulate in (
        ("null", null),
        ("unlike_noise", unlike_noise),
        ("failing_runs", failing_runs),
        ("one_sided", one_sided),
        ("panels", panels),
        ("prediction", prediction),
        ("ties_in_turn", ties_in_turn),
        ("coverage", coverage),
        ("power", power),
        ("equivalence", equivalence),
        ("floors", floors),
    ):
        print(f"{name} ...", flush=True)
        record[name] = simulate(settings)
    record["summary"] = summary(record)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")
        draw(record, out.with_suffix(""))
    print("\n" + tables(record))


# The model


def draws(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Noise of standard deviation 1 and mean 0."""
    if kind == "normal":
        return rng.normal(size=shape)
    if kind == "heavy-tailed":
        return rng.standard_t(3, size=shape) / math.sqrt(3)
    if kind == "skewed":
        return (rng.lognormal(size=shape) - math.exp(0.5)) / math.sqrt((math.e - 1) * math.e)
    if kind == "two modes":
        levels = rng.choice([-1.0, 1.0], size=shape) + 0.3 * rng.normal(size=shape)
        return levels / math.sqrt(1 + 0.3**2)
    raise ValueError(kind)


def differences(
    rng: np.random.Generator,
    repeats: int,
    n_baselines: int,
    n_metrics: int,
    n_seeds: int,
    kind: str = "normal",
) -> np.ndarray:
    """Trained minus baselines without any effect, ``[repeats, baselines, metrics, seeds]``.

    Means over tasks, in units of the standard deviation of such a difference. The terms that
    all members share cancel and are not drawn.
    """
    shape = (repeats, 1 + n_baselines, n_metrics, n_seeds)
    common = draws(rng, kind, (repeats, 1 + n_baselines, 1, n_seeds))
    runs = math.sqrt(0.5) * common + math.sqrt(0.5) * draws(rng, kind, shape)
    scores = runs + rng.normal(size=shape) / math.sqrt(N_TASKS)
    return (scores[:, :1] - scores[:, 1:]) / math.sqrt(2 * (1 + 1 / N_TASKS))


@dataclass(frozen=True)
class Judged:
    """Words of many families at once; all arrays ``[repeats, baselines, metrics]``."""

    p: np.ndarray
    ahead: np.ndarray
    beats: np.ndarray
    falls_short: np.ndarray
    within: np.ndarray
    p_equivalence: np.ndarray

    @property
    def raw(self) -> np.ndarray:
        """'Beats' by each test alone."""
        return (self.p <= ALPHA) & self.ahead

    @property
    def random(self) -> np.ndarray:
        """'Beats random' as `against_random` has it, ``[repeats, metrics]``."""
        largest = np.where(self.ahead, self.p, 1.0).max(axis=1)
        return np.array([holm(row) for row in largest]) <= ALPHA


def judge(d: np.ndarray, margin: float | None = None) -> Judged:
    """What `verdicts` says, by the same functions, tests of all repeats in one call."""
    mean, p = paired_t(d)
    equal = np.ones_like(p) if margin is None else tost(d, margin)

    def family(r: int, b: int) -> list[Decision]:
        same = [None] * p.shape[2] if margin is None else list(equal[r, b])
        return words(mean[r, b].tolist(), p[r, b].tolist(), same)

    found = [[family(r, b) for b in range(p.shape[1])] for r in range(p.shape[0])]
    one_by_one = decide(list(d[0, 0]), [margin] * p.shape[2])
    assert [x.word for x in one_by_one] == [x.word for x in found[0][0]]
    word = np.array([[[x.word for x in f] for f in fs] for fs in found])
    within = np.array([[[x.within_margin for x in f] for f in fs] for fs in found])
    return Judged(p, mean > 0, word == "beats", word == "falls short", within, equal)


def rate(hits: Any) -> dict[str, float]:
    """Share of hits and its Wilson interval."""
    hits = np.asarray(hits)
    count, n = int(hits.sum()), hits.size
    interval = binomtest(count, n).proportion_ci(method="wilson")
    return {"rate": count / n, "low": float(interval.low), "high": float(interval.high)}


# What is asked of it


def null(settings: Settings) -> list[dict[str, Any]]:
    """'Trained' is itself a baseline: every 'beats' is false."""
    out = []
    for kind in NOISE:
        for n in settings.seeds:
            rng = np.random.default_rng([1, n, list(NOISE).index(kind)])
            j = judge(differences(rng, settings.repeats, N_BASELINES, N_METRICS, n, kind))
            one = (j.beats[:, 0], j.falls_short[:, 0])
            out.append(
                {
                    "noise": kind,
                    "seeds": n,
                    "beats_one_metric": rate(one[0][:, 0]),
                    "beats_any_metric": rate(one[0].any(axis=1)),
                    "falls_short_any_metric": rate(one[1].any(axis=1)),
                    "beats_or_falls_short_any_metric": rate((one[0] | one[1]).any(axis=1)),
                    "beats_one_metric_tested_alone": rate(j.raw[:, 0, 0]),
                    "beats_any_metric_without_holm": rate(j.raw[:, 0].any(axis=1)),
                    "beats_any_metric_of_any_baseline": rate(j.beats.any(axis=(1, 2))),
                    "beats_random_one_metric_tested_alone": rate(j.raw[:, :, 0].all(axis=1)),
                    "beats_random_any_metric": rate(j.random.any(axis=1)),
                }
            )
    return out


def unlike_noise(settings: Settings) -> list[dict[str, Any]]:
    """Equal means, but only one of the two has runs that go badly wrong now and then.

    Outside what calibration promises: the members are not exchangeable, the difference is
    skewed, and its mean is carried by rare runs that few seeds do not see.
    """
    out = []
    for n in settings.seeds:
        rng = np.random.default_rng([6, n])
        shape = (10 * settings.repeats, n)
        trained, baseline = rng.normal(size=shape), -draws(rng, "skewed", shape)
        mean, p = paired_t(trained - baseline)
        out.append(
            {
                "seeds": n,
                "beats": rate((p <= ALPHA) & (mean > 0)),
                "falls_short": rate((p <= ALPHA) & (mean < 0)),
            }
        )
    return out


def failing_runs(settings: Settings) -> list[dict[str, Any]]:
    """Equal means, but one member fails in a tenth of its runs, and is better in the others.

    "before" is the t test alone. "after" is what is said now: no word where a collapsed seed is
    named. A false word comes from seeds that show no failure, so that none can be named: what
    detection prevents is a word on runs of two kinds.
    """
    out = []
    sd = math.sqrt(2)
    for n in settings.seeds:
        rng = np.random.default_rng([7, n])
        shape = (settings.repeats, n)
        failed = rng.random(shape) < FAILING
        level = DROP * sd
        trained = np.where(failed, 0.0, level) + rng.normal(size=shape)
        baseline = (1 - FAILING) * level + rng.normal(size=shape)
        mean, p = paired_t(trained - baseline)
        beats, short = (p <= ALPHA) & (mean > 0), (p <= ALPHA) & (mean < 0)
        named = np.array(
            [
                collapsed(dict(enumerate(a)), dict(enumerate(b)))
                for a, b in zip(trained, baseline, strict=True)
            ],
            dtype=object,
        )
        barred = np.array([len(seeds) > 0 for seeds in named])
        some = failed.any(axis=1)
        heavy = np.array([dominant(d) is not None for d in trained - baseline])
        out.append(
            {
                "seeds": n,
                "beats_before": rate(beats),
                "beats_after": rate(beats & ~barred),
                # With the members swapped: the baseline fails now and then.
                "falls_short_before": rate(short),
                "falls_short_after": rate(short & ~barred),
                "a_run_failed": rate(some),
                "failure_named_where_there_is_one": rate(barred[some]),
                "named_where_there_is_none": rate(barred[~some]),
                "beats_after_where_a_run_failed": rate((beats & ~barred)[some]),
                "spread_dominated_by_one_seed": rate(heavy & ~barred),
            }
        )
    return out


def one_sided(settings: Settings) -> list[dict[str, Any]]:
    """No difference in the mean, but differences have a tail to one side: 1 - exponential."""
    out = []
    for n in settings.seeds:
        rng = np.random.default_rng([8, n])
        d = 1 - rng.exponential(size=(settings.repeats, n))
        mean, p = paired_t(d)
        beats, short = (p <= ALPHA) & (mean > 0), (p <= ALPHA) & (mean < 0)
        heavy = np.array([dominant(row) is not None for row in d])
        normal = np.array([dominant(row) is not None for row in rng.normal(size=d.shape)])
        out.append(
            {
                "seeds": n,
                "beats": rate(beats),
                "beats_without_caveat": rate(beats & ~heavy),
                "falls_short": rate(short),
                "spread_dominated_by_one_seed": rate(heavy),
                "the_same_of_normal_differences": rate(normal),
            }
        )
    return out


def panels(settings: Settings) -> list[dict[str, Any]]:
    """Several panels in one report and no effect: a correction for each, or one for all."""
    out = []
    for n in settings.seeds:
        rng = np.random.default_rng([9, n])
        d = differences(rng, N_PANELS * settings.repeats, 1, N_METRICS, n)
        d = d.reshape(settings.repeats, N_PANELS, N_METRICS, n)
        each = judge(d)
        study = judge(d.reshape(settings.repeats, 1, N_PANELS * N_METRICS, n))
        row: dict[str, Any] = {"seeds": n}
        for name, j in (("each_baseline", each), ("study", study)):
            row[f"beats_any_corrected_over_{name}"] = rate(j.beats.any(axis=(1, 2)))
            any_word = (j.beats | j.falls_short).any(axis=(1, 2))
            row[f"any_word_corrected_over_{name}"] = rate(any_word)
        out.append(row)
    return out


def prediction(settings: Settings) -> list[dict[str, Any]]:
    """How often one more run of the same recipe is 'above', p <= 5 %, by the prediction."""
    out = []
    for kind in (*NOISE, "exponential"):
        for n in settings.seeds:
            rng = np.random.default_rng([10, n, len(kind)])
            shape = (10 * settings.repeats, n + 1)
            exponential = kind == "exponential"
            runs = rng.exponential(size=shape) if exponential else draws(rng, kind, shape)
            value, others = runs[:, 0], runs[:, 1:]
            z = (value - others.mean(axis=1)) / others.std(axis=1, ddof=1)
            p = stats.t.sf(z / math.sqrt(1 + 1 / n), n - 1)
            one = predicted(float(value[0]), others[0])
            assert one is not None
            assert math.isclose(one.p, p[0])
            out.append({"noise": kind, "seeds": n, "above": rate(p <= ALPHA)})
    return out


def ties_in_turn(settings: Settings) -> list[dict[str, Any]]:
    """The worst case for 'beats random': on each metric another baseline ties.

    The trained SAE is far ahead of the two others there, so that each metric's claim hangs on
    one test, and these tests lie in different families.
    """
    out = []
    effect = 1000 * (1 - np.eye(N_BASELINES))[:, :, None]
    for n in settings.seeds:
        rng = np.random.default_rng([2, n])
        d = differences(rng, settings.repeats, N_BASELINES, N_BASELINES, n)
        j = judge(d + effect)
        out.append(
            {
                "seeds": n,
                "beats_each_baseline_holm_within_baseline": rate(
                    j.beats.all(axis=1).any(axis=1)
                ),
                "beats_random_as_reported": rate(j.random.any(axis=1)),
            }
        )
    return out


def coverage(settings: Settings) -> list[dict[str, Any]]:
    """How often the 95 % intervals hold the true difference.

    There are two truths: the mean over seeds on the tasks at hand, and on all tasks of the
    kind. They differ where the members have strengths on different tasks (member_task).
    """
    out = []
    for task_sd in (0.0, 1.0, 3.0):
        for n in settings.seeds:
            rng = np.random.default_rng([3, n, int(task_sd)])
            hits: dict[str, list[bool]] = {}
            widths: dict[str, list[float]] = {"t": [], "over_tasks": []}
            for _ in range(settings.coverage_repeats):
                run = rng.normal(size=(2, n, 1))
                task = task_sd * rng.normal(size=(2, 1, N_TASKS))
                cells = run + task + rng.normal(size=(2, n, N_TASKS))
                table = cells[0] - cells[1]
                truth = {"these_tasks": float((task[0] - task[1]).mean()), "any_tasks": 0.0}
                found = {
                    "t": t_interval(table.mean(axis=1)),
                    "over_tasks": tasks_interval(list(table)),
                }
                for name, interval in found.items():
                    widths[name].append(interval.high - interval.low)
                    for which, value in truth.items():
                        hit = interval.low <= value <= interval.high
                        hits.setdefault(f"{name}_{which}", []).append(hit)
            out.append(
                {
                    "member_task_sd": task_sd,
                    "seeds": n,
                    **{name: rate(values) for name, values in hits.items()},
                    "median_width_over_tasks_over_t": float(
                        np.median(np.divide(widths["over_tasks"], widths["t"]))
                    ),
                }
            )
    return out


def power(settings: Settings) -> list[dict[str, Any]]:
    """How often a true difference is called 'beats'."""
    out = []
    for effect in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0):
        for n in settings.seeds:
            rng = np.random.default_rng([4, n, int(10 * effect)])
            d = differences(rng, settings.repeats, N_BASELINES, N_METRICS, n)
            all_have = judge(d + effect)
            one_has = d[:, :1].copy()
            one_has[:, :, 0] += effect
            theory = TTestPower().power(effect, n, ALPHA / 2, alternative="larger")
            out.append(
                {
                    "effect": effect,
                    "seeds": n,
                    "one_metric": rate(all_have.raw[:, 0, 0]),
                    "one_metric_by_theory": float(theory),
                    "of_8_metrics_all_with_the_effect": rate(all_have.beats[:, 0, 0]),
                    "of_8_metrics_the_only_one_with_an_effect": rate(
                        judge(one_has).beats[:, 0, 0]
                    ),
                    "beats_random_all_with_the_effect": rate(all_have.random[:, 0]),
                }
            )
    return out


def equivalence(settings: Settings) -> list[dict[str, Any]]:
    """How often 'matches' is said: falsely with the truth on the margin, rightly at 0."""
    out = []
    for ratio in (0.1, 0.25, 0.5, 1.0):  # standard deviation of a difference over the margin
        margin = 1 / ratio
        for n in settings.seeds:
            rng = np.random.default_rng([5, n, int(100 * ratio)])
            d = differences(rng, settings.repeats, 1, N_METRICS, n)
            # "Within the margin" is the claim, whether or not the word is "beats".
            at, zero = judge(d + margin, margin), judge(d, margin)
            out.append(
                {
                    "sd_over_margin": ratio,
                    "seeds": n,
                    "false_at_the_margin_one_metric_alone": rate(
                        at.p_equivalence[:, 0, 0] <= ALPHA
                    ),
                    "false_at_the_margin_of_8": rate(at.within[:, 0, 0]),
                    "false_at_the_margin_any_of_8": rate(at.within[:, 0].any(axis=1)),
                    "right_at_zero_one_metric_alone": rate(
                        zero.p_equivalence[:, 0, 0] <= ALPHA
                    ),
                    "right_at_zero_of_8": rate(zero.within[:, 0, 0]),
                }
            )
    return out


def floors(settings: Settings) -> list[dict[str, Any]]:
    """Words with a floor that the trained SAE is ``signal`` above: none false more often, and
    how often the metric is called blind although it sees.

    Signal is in standard deviations, over seeds, of score - floor. A baseline is the trained
    SAE's equal, or its score is that of the floor.
    """
    out = []
    for kind in NOISE:
        for signal in (0.0, 1.0, 2.0, 4.0):
            for n in settings.seeds:
                rng = np.random.default_rng([11, n, int(signal), list(NOISE).index(kind)])
                shape = (3, settings.repeats, n)
                trained, floor, other = draws(rng, kind, shape) / math.sqrt(2)
                trained = trained + signal
                gaps = trained - floor
                mean, p = paired_t(gaps)
                # One-sided at alpha, which is how Room.unseen reads its interval.
                seen = (mean > 0) & (p / 2 < ALPHA)
                for i in range(20):
                    known = Floor("null", 0.0, gaps[i], "seeds")
                    room = Room("trained", 0.0, 1, (known,))
                    assert (room.unseen(None, ALPHA) is None) == bool(seen[i])
                row: dict[str, Any] = {"noise": kind, "signal": signal, "seeds": n}
                for name, against in (("equal", other + signal), ("at_the_floor", other)):
                    ahead, p = paired_t(trained - against)
                    beats = (p <= ALPHA) & (ahead > 0)
                    row[f"beats_{name}"] = rate(beats & seen)
                    row[f"beats_{name}_without_floor"] = rate(beats)
                out.append({**row, "cannot_tell": rate(~seen)})
    return out


# What came of it


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """The worst figure of each claim, and whether it holds within the noise of simulation."""

    def worst(rows: list[dict[str, Any]], key: str) -> dict[str, Any]:
        row = max(rows, key=lambda r: r[key]["rate"])
        where = {k: row[k] for k in ("noise", "seeds", "sd_over_margin") if k in row}
        return {
            **row[key],
            **where,
            "consistent_with_at_most_5_percent": bool(row[key]["low"] <= ALPHA),
        }

    covered, failing = record["coverage"], record["failing_runs"]
    return {
        **{
            f"false_{key}": worst(record["null"], key)
            for key in (
                "beats_one_metric",
                "beats_any_metric",
                "beats_or_falls_short_any_metric",
                "beats_random_any_metric",
                "beats_any_metric_without_holm",
            )
        },
        "false_beats_random_when_baselines_tie_in_turn": worst(
            record["ties_in_turn"], "beats_random_as_reported"
        ),
        "same_with_holm_only_within_baseline": worst(
            record["ties_in_turn"], "beats_each_baseline_holm_within_baseline"
        ),
        "unlike_noise_false_beats": worst(record["unlike_noise"], "beats"),
        "unlike_noise_false_falls_short": worst(record["unlike_noise"], "falls_short"),
        "false_matches_any_of_8": worst(record["equivalence"], "false_at_the_margin_any_of_8"),
        "t_coverage_these_tasks": _range(covered, "t_these_tasks"),
        "over_tasks_coverage_any_tasks": _range(covered, "over_tasks_any_tasks"),
        "over_tasks_coverage_these_tasks": _range(covered, "over_tasks_these_tasks"),
        "false_beats_with_failing_runs_before": _by_seeds(failing, "beats_before"),
        "false_beats_with_failing_runs_after": _by_seeds(failing, "beats_after"),
        "failing_run_named": _by_seeds(failing, "failure_named_where_there_is_one"),
        "false_beats_one_sided": _by_seeds(record["one_sided"], "beats"),
        "false_beats_one_sided_without_caveat": _by_seeds(
            record["one_sided"], "beats_without_caveat"
        ),
        "false_word_of_4_panels": _range(
            record["panels"], "any_word_corrected_over_each_baseline"
        ),
        "false_word_of_4_panels_corrected_over_the_study": worst(
            record["panels"], "any_word_corrected_over_study"
        ),
        "false_beats_with_a_floor": worst(record["floors"], "beats_equal"),
        "cannot_tell_without_signal": _range(_at(record["floors"], 0.0), "cannot_tell"),
        **{
            f"cannot_tell_at_{signal:g}_sd": _by_seeds(
                _of(_at(record["floors"], signal), "normal"), "cannot_tell"
            )
            for signal in (1.0, 2.0, 4.0)
        },
        "prediction_of_normal_scores": _range(_of(record["prediction"], "normal"), "above"),
        "prediction_of_scores_with_a_long_tail": _range(
            _of(record["prediction"], "exponential", "skewed"), "above"
        ),
    }


def _by_seeds(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
    return {str(row["seeds"]): row[key]["rate"] for row in rows}


def _of(rows: list[dict[str, Any]], *noise: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["noise"] in noise]


def _at(rows: list[dict[str, Any]], signal: float) -> list[dict[str, Any]]:
    return [row for row in rows if row["signal"] == signal]


def _range(rows: list[dict[str, Any]], key: str) -> list[float]:
    rates = [row[key]["rate"] for row in rows]
    return [min(rates), max(rates)]


def tables(record: dict[str, Any]) -> str:
    """Markdown."""
    n_seeds = sorted({row["seeds"] for row in record["null"]})
    head = "| | " + " | ".join(f"{n} seeds" for n in n_seeds) + " |\n"
    head += "|---|" + "--:|" * len(n_seeds) + "\n"

    def lines(rows: list[dict[str, Any]], wanted: list[tuple[str, str, dict[str, Any]]]) -> str:
        out = head
        for label, key, where in wanted:
            found = [r for r in rows if all(r[k] == v for k, v in where.items())]
            cells = " | ".join(f"{r[key]['rate']:.1%}" for r in found)
            out += f"| {label} | {cells} |\n"
        return out

    normal = {"noise": "normal"}
    false = lines(
        record["null"],
        [
            ("'beats', a metric", "beats_one_metric", normal),
            ("'beats', any of 8 metrics", "beats_any_metric", normal),
            ("the same without Holm", "beats_any_metric_without_holm", normal),
            ("'beats' or 'falls short', any", "beats_or_falls_short_any_metric", normal),
            ("'beats random' (3 baselines), any", "beats_random_any_metric", normal),
            *(
                (f"'beats', any, {kind} runs", "beats_any_metric", {"noise": kind})
                for kind in list(NOISE)[1:]
            ),
        ],
    )
    ties = lines(
        record["ties_in_turn"],
        [
            ("'beats random', as reported", "beats_random_as_reported", {}),
            (
                "'beats' each baseline, Holm within baseline",
                "beats_each_baseline_holm_within_baseline",
                {},
            ),
        ],
    )
    unlike = lines(
        record["unlike_noise"],
        [("'beats', a metric", "beats", {}), ("'falls short', a metric", "falls_short", {})],
    )
    covered = lines(
        record["coverage"],
        [
            (f"{name}, {text}, task effects {sd:g}", f"{key}_{which}", {"member_task_sd": sd})
            for sd in (0.0, 1.0, 3.0)
            for name, key in (("t", "t"), ("over tasks", "over_tasks"))
            for text, which in (("these tasks", "these_tasks"), ("any tasks", "any_tasks"))
        ],
    )
    blind = lines(
        record["floors"],
        [
            (f"'cannot tell', score {signal:g} sd above its floor", "cannot_tell", where)
            for signal in (0.0, 1.0, 2.0, 4.0)
            for where in ({"noise": "normal", "signal": signal},)
        ]
        + [
            (f"false 'beats', score {signal:g} sd above its floor", "beats_equal", where)
            for signal in (0.0, 4.0)
            for where in ({"noise": "normal", "signal": signal},)
        ],
    )
    failing = lines(
        record["failing_runs"],
        [
            (text, key, {})
            for text, key in (
                ("false 'beats', before", "beats_before"),
                ("false 'beats', after", "beats_after"),
                ("a run failed", "a_run_failed"),
                ("then it is named", "failure_named_where_there_is_one"),
                ("named where none failed", "named_where_there_is_none"),
            )
        ],
    )
    tail = lines(
        record["one_sided"],
        [
            (text, key, {})
            for text, key in (
                ("false 'beats'", "beats"),
                ("false 'beats' without a caveat", "beats_without_caveat"),
                ("false 'falls short'", "falls_short"),
                ("spread dominated by one seed", "spread_dominated_by_one_seed"),
                ("the same, normal differences", "the_same_of_normal_differences"),
            )
        ],
    )
    several = lines(
        record["panels"],
        [
            (f"{text}, {over}", f"{key}_corrected_over_{name}", {})
            for text, key in (("'beats'", "beats_any"), ("any word", "any_word"))
            for over, name in (("each by itself", "each_baseline"), ("study", "study"))
        ],
    )
    placed = lines(
        record["prediction"],
        [(f"{kind} scores", "above", {"noise": kind}) for kind in (*NOISE, "exponential")],
    )
    found = lines(
        record["power"],
        [
            (f"effect {e:g} sd, {text}", key, {"effect": e})
            for e in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
            for text, key in (
                ("one metric", "one_metric"),
                ("8 metrics", "of_8_metrics_all_with_the_effect"),
                ("only one of 8", "of_8_metrics_the_only_one_with_an_effect"),
                ("'beats random'", "beats_random_all_with_the_effect"),
            )
        ],
    )
    equal = lines(
        record["equivalence"],
        [
            (f"sd {r:g} of margin, {text}", key, {"sd_over_margin": r})
            for r in (0.1, 0.25, 0.5, 1.0)
            for text, key in (
                ("false, any of 8", "false_at_the_margin_any_of_8"),
                ("false, one metric alone", "false_at_the_margin_one_metric_alone"),
                ("right, one metric alone", "right_at_zero_one_metric_alone"),
                ("right, of 8", "right_at_zero_of_8"),
            )
        ],
    )
    return (
        f"False words when 'trained' is itself a baseline\n\n{false}\n"
        f"False 'beats random' when another baseline ties on each metric\n\n{ties}\n"
        f"False words where only the baseline has runs that go wrong\n\n{unlike}\n"
        f"With a floor\n\n{blind}\n"
        f"Where trained fails in {FAILING:.0%} of its runs, with equal means\n\n{failing}\n"
        f"Where differences have a tail to one side, mean 0\n\n{tail}\n"
        f"Any false word of {N_PANELS} panels\n\n{several}\n"
        f"One more run of a recipe, prediction p <= {ALPHA:.0%}\n\n{placed}\n"
        f"Coverage of the 95 % intervals\n\n{covered}\n"
        f"Power of 'beats'\n\n{found}\n"
        f"'matches': false with the truth on the margin, right with no difference\n\n{equal}"
    )


def draw(record: dict[str, Any], stem: Path) -> None:
    """Four panels, as SVG and PNG."""
    matplotlib.use("Agg")
    plt.rcParams.update({"svg.hashsalt": "verdict_calibration", "font.size": 9})
    figure, axes = plt.subplots(2, 2, figsize=(10, 9), layout="constrained")

    null_axes: Axes = axes[0, 0]
    for i, kind in enumerate(NOISE):
        rows = [r for r in record["null"] if r["noise"] == kind]
        _line(null_axes, rows, "beats_any_metric", i, f"any of 8 metrics, {kind} runs")
    normal = [r for r in record["null"] if r["noise"] == "normal"]
    _line(null_axes, normal, "beats_random_any_metric", 4, "'beats random', normal runs")
    _line(null_axes, normal, "beats_any_metric_without_holm", 6, "without Holm", style=":")
    null_axes.axhline(ALPHA, color="0.4", lw=1, ls="--")
    null_axes.set(title="a  False 'beats': trained is itself a baseline", ylim=(0, None))

    cover: Axes = axes[0, 1]
    for i, sd in enumerate((0.0, 3.0)):
        rows = [r for r in record["coverage"] if r["member_task_sd"] == sd]
        effects = "strong task effects" if sd else "no task effects"
        _line(cover, rows, "t_these_tasks", i, f"t, these tasks, {effects}")
        _line(cover, rows, "over_tasks_these_tasks", i + 2, f"over tasks, these, {effects}")
        if sd:
            _line(cover, rows, "t_any_tasks", 4, f"t, any tasks, {effects}", style=":")
            text = f"over tasks, any, {effects}"
            _line(cover, rows, "over_tasks_any_tasks", 5, text, style=":")
    cover.axhline(0.95, color="0.4", lw=1, ls="--")
    cover.set(title="b  Coverage of the 95 % intervals", ylim=(None, 1.005))

    powers: Axes = axes[1, 0]
    for i, effect in enumerate((1.0, 2.0, 4.0, 8.0, 16.0)):
        rows = [r for r in record["power"] if r["effect"] == effect]
        text = f"{effect:g} sd"
        _line(powers, rows, "of_8_metrics_all_with_the_effect", i, f"{text}, of 8 metrics")
        _line(powers, rows, "one_metric", i, f"{text}, one metric", style=":")
    powers.axhline(0.8, color="0.4", lw=1, ls="--")
    powers.set(title="c  Power: a true difference is called 'beats'", ylim=(0, 1.02))

    same: Axes = axes[1, 1]
    for i, ratio in enumerate((0.1, 0.25, 0.5)):
        rows = [r for r in record["equivalence"] if r["sd_over_margin"] == ratio]
        text = f"sd {ratio:g} of the margin"
        _line(same, rows, "right_at_zero_of_8", i, f"right, no difference, {text}")
        _line(same, rows, "false_at_the_margin_any_of_8", i, f"false, any of 8, {text}", ":")
    same.axhline(ALPHA, color="0.4", lw=1, ls="--")
    same.set(title="d  'matches'", ylim=(0, 1.02))

    for axis in axes.flat:
        axis.set(xlabel="seeds", ylabel="share of simulations")
        axis.set_xticks([row["seeds"] for row in normal])
        axis.spines[["top", "right"]].set_visible(False)
        axis.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 1):g}%")
        axis.legend(
            fontsize=7,
            frameon=False,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.13),
            ncols=2,
        )
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(stem.with_suffix(".png"), dpi=150, metadata={"Software": None})
    plt.close(figure)


def _line(
    axes: Axes, rows: list[dict[str, Any]], key: str, i: int, label: str, style: str = "-"
) -> None:
    x = [row["seeds"] for row in rows]
    y = [row[key]["rate"] for row in rows]
    axes.plot(x, y, style, color=COLOURS[i], marker=MARKERS[i], ms=4, lw=1.3, label=label)
    low, high = ([row[key][end] for row in rows] for end in ("low", "high"))
    axes.fill_between(x, low, high, color=COLOURS[i], alpha=0.15, lw=0)


if __name__ == "__main__":
    main()
