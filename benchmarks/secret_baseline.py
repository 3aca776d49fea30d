"""False verdicts on real SAEs: 'trained' is secretly a second baseline, many times over.

``python benchmarks/secret_baseline.py`` trains small SAEs on SAELens' synthetic data, one panel
per seed, and asks `sae_baselines.stats.verdicts` about them as if they came from studies of a
few seeds each. It writes results/secret_baseline.{json,svg,png} and prints its tables. Seeds
that are in the ``--rows`` file already are not trained again. One core, a few seconds a seed.
"""

import argparse
import dataclasses
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from scipy.stats import binomtest
from secret_panels import (
    BASE,
    EV,
    EXPLAINED,
    FULL,
    KINDS,
    METRICS,
    NULLS,
    QUICK,
    RATES,
    SUITE,
    Row,
    Settings,
    members,
    train_missing,
)

from sae_baselines.provenance import environment
from sae_baselines.results import Results, SAEKey
from sae_baselines.stats import ALPHA, CANNOT_TELL, Verdict, verdicts, words
from sae_baselines.stats.by_rate import AtRate, Rated, by_rate
from sae_baselines.stats.intervals import paired_t

RESULTS = Path(__file__).parent / "results"
STUDY_SEEDS = (3, 5, 10)
RELABELLINGS = 200
WORDS = ("beats", "falls short", "matches", "inconclusive", "no verdict", CANNOT_TELL)
# Okabe and Ito's colours, told apart by every common kind of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_BELOW: dict[str, Any] = {
    "fontsize": 7,
    "frameon": False,
    "loc": "upper center",
    "bbox_to_anchor": (0.5, -0.13),
    "ncols": 2,
}
DESIGN = (
    "One world (SAELens' SyntheticModel) for all. Per seed: a training stream of its own, "
    "which all members share batch by batch, and two independent initialisation seeds. "
    "Of each kind of baseline one twin has the first and one the second; the second is called "
    "'trained'. Nothing else tells the two apart, so they are exchangeable and every 'beats' "
    "and every 'falls short' is false. Control: the SAE that learns everything, with the first "
    "initialisation, against the frozen decoder with the first. Consecutive seeds are grouped "
    "into disjoint studies. Members are calibrated, exported and loaded as those of any panel."
)
RELABELLED = (
    "Since the twins are exchangeable, which of them is called 'trained', and which seeds meet "
    "in a study, is one draw among many. Twins were relabelled and regrouped at random: rate "
    "is the mean over draws, for these SAEs, and at_least_as_many the share of draws with at "
    "least as many studies with a false word as there were. L0 is not looked at here."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, judge, write, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, help="panels; default 240, or 9 with --quick")
    parser.add_argument("--quick", action="store_true", help="tiny SAEs; no file unless --out")
    parser.add_argument("--out", type=Path, help="default: results/secret_baseline.json")
    parser.add_argument(
        "--rows",
        type=Path,
        help="scores of finished seeds, a line each; default: beside --out, removed at the end",
    )
    args = parser.parse_args(argv)
    settings = QUICK if args.quick else FULL
    n_seeds = args.seeds or (9 if args.quick else 240)
    if n_seeds < min(STUDY_SEEDS):
        parser.error(f"--seeds: {n_seeds} do not make a study; give {min(STUDY_SEEDS)} or more")
    out: Path | None = args.out
    if out is None and not args.quick:
        out = RESULTS / "secret_baseline.json"
    with tempfile.TemporaryDirectory() as scratch:
        beside = Path(scratch) if out is None else out.parent
        rows_file = args.rows or beside / "secret_baseline.rows.jsonl"
        rows = train_missing(settings, n_seeds, rows_file)
        record = judge(rows, settings)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(record, indent=1) + "\n")
            draw(record, rows, out.with_suffix(""))
        if args.rows is None:
            rows_file.unlink()
    print("\n" + tables(record))


# Verdicts


def results(rows: Sequence[Row], roles: Mapping[str, str]) -> pd.DataFrame:
    """A tidy results table, as a study has one.

    Args:
        rows: Of `panel`.
        roles: Member to the name it is given in the table; the one called "trained" is tested.
    """
    tidy = []
    for row in rows:
        for member, name in roles.items():
            scores = row["scores"][member]
            common = {
                "panel": f"seed_{row['seed']}",
                "member": name,
                "constraint": name,
                "architecture": BASE,
                "l0": row["settings"]["l0"],
                "seed": row["seed"],
            }
            l0 = {"suite": "panel", "metric": "l0", "direction": 0, "task": ""}
            tidy.append({**common, **l0, "value": scores["l0"]})
            for metric in (*METRICS, *NULLS):
                direction = int(metric not in NULLS)
                named = {"suite": SUITE, "metric": metric, "direction": direction}
                values = scores[metric]
                if isinstance(values, list):
                    tasks = {f"feature_{i}": value for i, value in enumerate(values)}
                    if metric in NULLS:  # a floor is held against a score as suites give it
                        tasks[""] = float(np.mean(values))
                else:
                    tasks = {"": values}
                tidy += [{**common, **named, "task": t, "value": v} for t, v in tasks.items()]
    return pd.DataFrame(tidy)


def studies(rows: Sequence[Row], n: int) -> list[Sequence[Row]]:
    """Disjoint groups of n consecutive seeds; what is left over is not used."""
    return [rows[first : first + n] for first in range(0, len(rows) - n + 1, n)]


def asked(rows: Sequence[Row], roles: Mapping[str, str]) -> list[Verdict]:
    """The verdicts of one study, one family."""
    return verdicts(results(rows, roles))


def rated(rows: Sequence[Row], roles: Mapping[str, str]) -> dict[SAEKey, Rated]:
    """What each latent does, as studies store it beside an SAE."""
    found = {}
    for row in rows:
        for member, name in roles.items():
            rates, explained = (np.array(row["scores"][member][k]) for k in (RATES, EXPLAINED))
            unknown = np.full(len(rates), np.nan)
            found[f"seed_{row['seed']}", name] = Rated(rates, explained, unknown)
    return found


def asked_at_rates(rows: Sequence[Row], roles: Mapping[str, str]) -> list[AtRate]:
    """The verdicts within decades of the firing rate of one study: one family."""
    return by_rate(Results.of(results(rows, roles)), rated(rows, roles))


def secret(kind: str) -> dict[str, str]:
    """Roles that make the second twin of a kind the 'trained' SAE."""
    return {f"{kind}_1": "trained", f"{kind}_0": kind}


CONTROL = {"learned": "trained", "frozen_decoder_0": "frozen_decoder"}


def judge(rows: Sequence[Row], settings: Settings) -> dict[str, Any]:
    """Count the words."""
    cases = [(kinds, n) for kinds in (*((k,) for k in KINDS), KINDS) for n in sizes(rows)]
    return {
        "benchmark": "secret_baseline",
        "environment": environment(),
        "alpha": ALPHA,
        "design": DESIGN,
        "settings": dataclasses.asdict(settings),
        "metrics": list(METRICS),
        "panels": len(rows),
        "median_seconds_per_panel": float(np.median([row["seconds"] for row in rows])),
        "relabelled": RELABELLED,
        "rates": "each with its 95 % Clopper-Pearson interval over studies; the two kinds "
        "share their seeds, so that the intervals of both together may be a little too narrow",
        "members": {name: described(rows, name) for name in members()},
        "null": [null(rows, kinds, n) for kinds, n in cases],
        "strata": [strata(rows, kinds, n) for kinds, n in cases],
        "floors": floors(rows),
        "differences": [spread(rows, kind, metric) for kind in KINDS for metric in METRICS],
        "control": [control(rows, n) for n in sizes(rows)],
    }


def sizes(rows: Sequence[Row]) -> list[int]:
    """Seeds per study that there are enough seeds for."""
    return [n for n in STUDY_SEEDS if n <= len(rows)]


def described(rows: Sequence[Row], member: str) -> dict[str, float]:
    """Mean over seeds of every score."""
    scores = [row["scores"][member] for row in rows]
    return {key: float(np.mean([s[key] for s in scores])) for key in ("l0", *METRICS)}


def null(rows: Sequence[Row], kinds: Sequence[str], n: int) -> dict[str, Any]:
    """Studies of n seeds whose 'trained' is a baseline of these kinds."""
    families = [asked(study, secret(kind)) for kind in kinds for study in studies(rows, n)]
    said = [[v.word for v in family] for family in families]
    return {
        "kind": " and ".join(kinds),
        "seeds": n,
        "false_beats_any_metric": rate(sum("beats" in f for f in said), len(said)),
        "false_falls_short_any_metric": rate(sum("falls short" in f for f in said), len(said)),
        "false_word_any_metric": rate(sum(map(_is_false, said)), len(said)),
        "false_word_any_metric_without_holm": rate(
            sum(any(v.p is not None and v.p <= ALPHA for v in f) for f in families), len(said)
        ),
        "relabelled": relabelled(rows, kinds, n, sum(map(_is_false, said))),
        "words": words_of(families),
    }


def strata(rows: Sequence[Row], kinds: Sequence[str], n: int) -> dict[str, Any]:
    """Of the same studies, false words within decades of the firing rate."""
    families = [
        [at.verdict for at in asked_at_rates(study, secret(kind))]
        for kind in kinds
        for study in studies(rows, n)
    ]
    said = [[v.word for v in family] for family in families]
    return {
        "kind": " and ".join(kinds),
        "seeds": n,
        "decades": float(np.mean([len(f) for f in said])),
        "false_beats_any_decade": rate(sum("beats" in f for f in said), len(said)),
        "false_word_any_decade": rate(sum(map(_is_false, said)), len(said)),
        "words": words_of(families),
    }


def floors(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Mean of every floor, by member."""
    return {
        name: {
            null: float(np.mean([row["scores"][name][null] for row in rows])) for null in NULLS
        }
        for name in members()
    }


def _is_false(family: Sequence[str]) -> bool:
    return "beats" in family or "falls short" in family


def relabelled(
    rows: Sequence[Row], kinds: Sequence[str], n: int, observed: int
) -> dict[str, float]:
    """The rate of false words over random labels and groups; see `RELABELLED`."""
    rng = np.random.default_rng(n)
    apart = [np.array([difference(rows, k, metric) for metric in METRICS]) for k in kinds]
    counts, studied = np.zeros(RELABELLINGS), len(rows) // n * len(kinds)
    for i in range(RELABELLINGS):
        # The same for all kinds, whose twins share their seeds.
        signs, order = rng.choice([-1.0, 1.0], len(rows)), rng.permutation(len(rows))
        for d in apart:
            grouped = (d * signs)[:, order][:, : len(rows) // n * n].reshape(len(d), -1, n)
            counts[i] += sum(map(_has_false_word, grouped.transpose(1, 0, 2)))
    return {
        "rate": float(counts.mean() / studied),
        "monte_carlo_error": float(counts.std(ddof=1) / studied / np.sqrt(RELABELLINGS)),
        "at_least_as_many": float((counts >= observed).mean()),
    }


def _has_false_word(d: np.ndarray) -> bool:
    """Whether a study, ``[metrics, seeds]``, gives one."""
    mean, p = paired_t(d)
    # As `verdicts`: the same to the last digit in all seeds is no replication.
    p = np.where(np.ptp(d, axis=1) == 0, 1.0, p)
    if p.min() > ALPHA:
        return False  # Holm only makes p larger
    return _is_false([x.word for x in words(mean.tolist(), p.tolist(), [None] * len(d))])


def difference(rows: Sequence[Row], kind: str, metric: str) -> np.ndarray:
    """Second twin minus first, by seed, ``[n_seeds]``; mean over tasks."""
    twins = [[row["scores"][f"{kind}_{i}"][metric] for row in rows] for i in (1, 0)]
    one, other = (np.array([np.mean(value) for value in twin]) for twin in twins)
    return one - other


def control(rows: Sequence[Row], n: int) -> dict[str, Any]:
    """Studies of n seeds whose 'trained' has learned everything."""
    families = [asked(study, CONTROL) for study in studies(rows, n)]
    by_metric = {
        metric: Counter(v.word for f in families for v in f if v.metric == metric)
        for metric in METRICS
    }
    return {
        "seeds": n,
        "beats": {m: rate(by_metric[m]["beats"], len(families)) for m in METRICS},
        "falls_short": {m: rate(by_metric[m]["falls short"], len(families)) for m in METRICS},
        "words": words_of(families),
    }


def words_of(families: Sequence[Sequence[Verdict]]) -> dict[str, int]:
    """How often each word was said, over all metrics and studies."""
    found = Counter(v.word for family in families for v in family)
    return {word: found[word] for word in WORDS}


def spread(rows: Sequence[Row], kind: str, metric: str) -> dict[str, Any]:
    """The differences between the twins themselves, over all seeds."""
    d = difference(rows, kind, metric)
    ahead, decided = int((d > 0).sum()), int((d != 0).sum())
    return {
        "kind": kind,
        "metric": metric,
        "mean": float(d.mean()),
        "standard_error": float(d.std(ddof=1) / np.sqrt(len(d))),
        "sd": float(d.std(ddof=1)),
        "trained_ahead": rate(ahead, decided),
    }


def rate(hits: int, n: int) -> dict[str, Any]:
    """Hits of n and their share with its interval."""
    interval = binomtest(hits, n).proportion_ci(method="exact")
    return {
        "hits": hits,
        "of": n,
        "rate": hits / n,
        "low": float(interval.low),
        "high": float(interval.high),
    }


# What came of it


def tables(record: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"{record['panels']} panels, {record['median_seconds_per_panel']:.1f} s each",
        "",
        "| 'trained' is secretly | seeds | studies | false 'beats' | false 'falls short' "
        "| either | either, labels at random | without Holm |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in record["null"]:
        cells = [
            share(row[f"false_{key}"])
            for key in (
                "beats_any_metric",
                "falls_short_any_metric",
                "word_any_metric",
                "word_any_metric_without_holm",
            )
        ]
        cells.insert(3, f"{row['relabelled']['rate']:.1%}")
        n = row["false_word_any_metric"]["of"]
        lines.append(f"| {row['kind']} | {row['seeds']} | {n} | {' | '.join(cells)} |")
    lines += [
        "",
        "| by decade of the firing rate | seeds | studies | decades | false 'beats' | either |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in record["strata"]:
        beats, either = (row[f"false_{key}_any_decade"] for key in ("beats", "word"))
        cells = f"{beats['of']} | {row['decades']:.1f} | {share(beats)} | {share(either)}"
        lines.append(f"| {row['kind']} | {row['seeds']} | {cells} |")
    lines += [
        "",
        f"| control: 'beats' with | {' | '.join(METRICS)} |",
        "|---|" + "--:|" * len(METRICS),
    ]
    for row in record["control"]:
        cells = " | ".join(
            f"{row['beats'][m]['hits']} / {row['beats'][m]['of']}" for m in METRICS
        )
        lines.append(f"| {row['seeds']} seeds | {cells} |")
    lines += ["", f"| mean | L0 | {' | '.join(METRICS)} |", "|---|--:|" + "--:|" * len(METRICS)]
    for name, mean in record["members"].items():
        cells = " | ".join(f"{mean[m]:.3f}" for m in METRICS)
        lines.append(f"| {name} | {mean['l0']:.2f} | {cells} |")
    return "\n".join(lines)


def share(found: Mapping[str, Any]) -> str:
    """A rate with its interval."""
    return f"{found['rate']:.1%} ({found['low']:.1%} to {found['high']:.1%})"


def draw(record: Mapping[str, Any], rows: Sequence[Row], stem: Path) -> None:
    """False words by size of study, and the differences they are made of."""
    matplotlib.use("Agg")
    plt.rcParams.update({"svg.hashsalt": "secret_baseline", "font.size": 9})
    figure, (false, apart) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    _false_words(false, record)
    _differences(apart, rows)
    for axis in (false, apart):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(stem.with_suffix(".png"), dpi=150, metadata={"Software": None})
    plt.close(figure)


def _false_words(axis: Any, record: Mapping[str, Any]) -> None:
    kinds = list(dict.fromkeys(row["kind"] for row in record["null"]))
    series = [
        *((kind, "false_word_any_metric", "o", kind) for kind in kinds),
        (kinds[-1], "false_beats_any_metric", "^", "'beats' alone, both kinds"),
        (kinds[-1], "false_word_any_metric_without_holm", "X", "without Holm, both kinds"),
    ]
    for i, (kind, key, marker, label) in enumerate(series):
        found = [row for row in record["null"] if row["kind"] == kind]
        x = np.arange(len(found)) + 0.12 * (i - (len(series) - 1) / 2)
        y = np.array([row[key]["rate"] for row in found])
        low, high = (np.array([row[key][end] for row in found]) for end in ("low", "high"))
        axis.errorbar(
            x,
            y,
            yerr=np.stack([y - low, high - y]),
            fmt=marker,
            ms=5,
            lw=1.2,
            color=COLOURS[i],
            label=label,
        )
    both = [row["relabelled"]["rate"] for row in record["null"] if row["kind"] == kinds[-1]]
    ends = [np.arange(len(both)) + side for side in (-0.35, 0.35)]
    axis.hlines(both, *ends, color="k", lw=1.2, label="labels at random, both kinds")
    axis.axhline(record["alpha"], color="0.4", lw=1, ls="--")
    n_seeds = [row["seeds"] for row in record["control"]]
    axis.set_xticks(range(len(n_seeds)), [f"{n} seeds" for n in n_seeds])
    axis.set(
        title="a  'trained' is secretly a baseline: false words in a study",
        ylabel="share of studies with any",
        ylim=(-0.01, None),
    )
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axis.legend(**_BELOW)


def _differences(axis: Any, rows: Sequence[Row]) -> None:
    """Explained variance: twins of a kind differ about 0, the learned SAE does not."""
    pairs = [
        *((f"{kind}_1", f"{kind}_0", f"secret {kind}") for kind in KINDS),
        ("learned", "frozen_decoder_0", "learned SAE against frozen_decoder"),
    ]
    for i, (one, other, label) in enumerate(pairs):
        d = [row["scores"][one][EV] - row["scores"][other][EV] for row in rows]
        axis.hist(d, bins=25, color=COLOURS[i], alpha=0.6, label=label)
    axis.axvline(0, color="0.4", lw=1, ls="--")
    axis.set(
        title="b  Explained variance: 'trained' minus baseline",
        xlabel="difference, one seed",
        ylabel="seeds",
    )
    axis.legend(**_BELOW)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
