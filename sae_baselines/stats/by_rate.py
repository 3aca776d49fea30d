"""Latents by how often they fire: is the trained SAE better on rare ones?

A trained SAE and a twin have latents of different rates, and a latent that fires more often
explains more. So latents are *matched in rate*: rates are cut into bins of a tenth of a decade,
and of a bin in which one SAE has k latents and the other more, k are compared: k times the mean
over the bin, on either side (coarsened exact matching, Iacus, King and Porro, *Political
Analysis* 20, 2012). Nobody's latents are drawn at random, and none counts twice.

Probes choose their latents for a dataset, and datasets are not equally hard. So accuracies are
compared on the datasets for which both SAEs' first latents are of one decade.

Strata are decades of the rate. Each gets a word by the same rules as any metric
(`stats.decision`), with Holm's correction over the strata of a baseline.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from sae_baselines.evals.metrics import TOP_LATENT
from sae_baselines.evals.registry import is_null_for, margin_for
from sae_baselines.results import PANEL_SUITE, Group, MetricKey, Results, SAEKey, row
from sae_baselines.results.table import COMPARED
from sae_baselines.stats.decision import ALPHA, Correct
from sae_baselines.stats.differences import differences
from sae_baselines.stats.floors import cannot_tell, rooms_of
from sae_baselines.stats.match import Match
from sae_baselines.stats.verdict import Verdict, verdicts
from sae_baselines.study.latents import Latents, decades

# The decade of latents that never fired.
NEVER = None
_BINS = 10  # per decade
_BINS_OF_SCORES = 2  # few latents are scored: fine bins would match none of them
_LEAST_TASKS = 5  # of a seed, for a mean accuracy
_VARIANCE = (PANEL_SUITE, "explained_variance")
_AT_RATE = "_at_rate_1e"
K = TypeVar("K")


Chosen = Mapping[str, Mapping[str, Sequence[int]]]


@dataclass(frozen=True, eq=False)
class Rated:
    """Latents of one SAE.

    Attributes:
        rates: Share of held-out activations that each is active on, ``[d_sae]``.
        explained: Share of variance that each explains, ``[d_sae]``.
        cosines: Of each decoder row with its start, ``[d_sae]``; NaN where it is not known.
        chosen: By suite and task, the latents that its probes are on, best first.
        offset: What the mean of the reconstruction loses; see `Latents`.
        recovers: Whether each recovers a feature, where features are known, ``[d_sae]``.
        truth: By metric, what is known of each feature: its rate, the same for every SAE, and
            the SAE's value, both ``[n_features]``.
    """

    rates: np.ndarray
    explained: np.ndarray
    cosines: np.ndarray
    chosen: Chosen = field(default_factory=dict)
    offset: float = float("nan")
    recovers: np.ndarray | None = None
    truth: Mapping[MetricKey, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @classmethod
    def of(cls, latents: Latents, chosen: Chosen | None = None) -> "Rated":
        """From what is stored beside an SAE, and in the records of its evaluations."""
        return cls(
            latents.rates,
            latents.explained,
            latents.cos_to_start,
            chosen or {},
            float(latents.offset),
        )


@dataclass(frozen=True)
class Stratum:
    """Latents of one decade of the rate.

    Attributes:
        n: How many.
        explained: Share of variance that they explain together.
        cosine: Mean cosine of their decoder rows with the start; NaN where it is not known.
        recovers: Share of them that recover a feature; NaN where features are not known.
    """

    n: float
    explained: float
    cosine: float
    recovers: float = float("nan")


@dataclass(frozen=True)
class Choice:
    """Of one decade, what probes chose beside what there was to choose from.

    Attributes:
        live: Share of the latents that fire on held-out text; 0 of those that never do.
        first: Share of the tasks whose first latent is of the decade.
        every: Share of all latents chosen; one that several tasks chose counts for each.
    """

    live: float
    first: float
    every: float


@dataclass(frozen=True)
class AtRate:
    """A comparison within one decade.

    Attributes:
        decade: k of the rates from 10^k to 10^(k + 1).
        n: How many are compared, mean over seeds.
        verdict: Of the stratum.
        n_of: What n counts: latents, datasets on which probes are compared, or features.
    """

    decade: int
    n: float
    verdict: Verdict
    n_of: str = "latents"


def strata(rated: Rated) -> dict[int | None, Stratum]:
    """An SAE's latents by decade, from frequent to rare; `NEVER` last, if there are any."""
    decade = decades(rated.rates)
    known = [int(d) for d in np.unique(decade[~np.isnan(decade)])[::-1]]
    parts: dict[int | None, np.ndarray] = {d: decade == d for d in known}
    if np.isnan(decade).any():
        parts[NEVER] = np.isnan(decade)
    known_of = np.full(len(decade), np.nan) if rated.recovers is None else rated.recovers
    return {
        d: Stratum(
            float(part.sum()),
            float(rated.explained[part].sum()),
            _mean(rated.cosines[part]),
            _mean(known_of[part]),
        )
        for d, part in parts.items()
    }


def choices(seeds: Sequence[Rated], suite: str) -> dict[int | None, Choice]:
    """Latents that probes chose, by decade, mean over an SAE's seeds; `NEVER` last.

    Probes that chose among live latents at random would have `Choice.live` in each decade.

    Args:
        seeds: Those of which it is known what the suite's probes chose.
        suite: Name.
    """
    found: dict[int | None, list[np.ndarray]] = {}
    for i, rated in enumerate(seeds):
        every, tasks = decades(rated.rates), rated.chosen[suite].values()
        first = every[[latents[0] for latents in tasks]]
        picked = every[[j for latents in tasks for j in latents]]
        alive = every[~np.isnan(every)]
        parts = (alive, first, picked)
        for decade in np.unique(np.concatenate([alive, picked])):
            known = NEVER if np.isnan(decade) else int(decade)
            rows = found.setdefault(known, [np.zeros(3)] * len(seeds))
            shares = [
                (np.isnan(x) if known is NEVER else x == decade).mean() if len(x) else 0.0
                for x in parts
            ]
            rows[i] = np.array(shares)
    order = sorted(found, key=lambda d: np.inf if d is None else -d)
    return {d: Choice(*(float(x) for x in np.mean(found[d], axis=0))) for d in order}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def matched(
    rates: tuple[np.ndarray, np.ndarray],
    values: tuple[np.ndarray, np.ndarray],
    bins: int = _BINS,
) -> dict[int, tuple[int, float, float]]:
    """Totals of latents of two SAEs that are matched in rate, by decade.

    Args:
        rates: Of each SAE's latents; those that never fire have no partner.
        values: Of the same latents.
        bins: Per decade.

    Returns:
        By decade: latents matched, and of each SAE the total over as many, weighted by bin.
    """
    cells = [_cells(r[r > 0], bins) for r in rates]
    found: dict[int, tuple[int, float, float]] = {}
    for cell in np.intersect1d(cells[0], cells[1]):
        means = [v[r > 0][c == cell] for r, v, c in zip(rates, values, cells, strict=True)]
        n = min(map(len, means))
        before = found.get(int(cell) // bins, (0, 0.0, 0.0))
        totals = [n * float(m.mean()) for m in means]
        found[int(cell) // bins] = (
            before[0] + n,
            before[1] + totals[0],
            before[2] + totals[1],
        )
    return found


def _cells(rates: np.ndarray, bins: int) -> np.ndarray:
    """Bins of positive rates, so many per decade."""
    return np.floor(bins * np.log10(rates) + 1e-9).clip(max=-1).astype(int)


def like_rows(
    rates: Mapping[K, np.ndarray], per_decade: int, seed: int
) -> list[tuple[int, dict[K, int]]]:
    """Rows of latents to look at: in each one of every SAE, that fire about as often.

    Of each decade bins are drawn, a bin as often at most as every SAE has latents in it, and of
    a bin latents; none twice. Bins are a tenth of a decade wide, or the narrowest of a fifth, a
    half and a decade with which there are as many rows as asked for.

    Args:
        rates: By SAE, share of held-out activations that each latent is active on; 0 for one
            that may not be drawn.
        per_decade: Rows of each decade, fewer where the SAEs share fewer.
        seed: Of the draw.

    Returns:
        Decade and latents of each row, from frequent to rare.
    """
    random = np.random.default_rng(seed)
    every = {k: decades(r) for k, r in rates.items()}
    shared = set.intersection(*(set(d[~np.isnan(d)].tolist()) for d in every.values()))
    rows = []
    for decade in sorted(map(int, shared), reverse=True):
        own = {k: np.flatnonzero(d == decade) for k, d in every.items()}
        places: list[int] = []
        pools: dict[int, dict[K, list[int]]] = {}
        for bins in (_BINS, 5, _BINS_OF_SCORES, 1):
            cells = {k: _cells(rates[k][latents], bins) for k, latents in own.items()}
            shared_cells = set.intersection(*(set(c.tolist()) for c in cells.values()))
            pools = {
                cell: {k: own[k][c == cell].tolist() for k, c in cells.items()}
                for cell in sorted(shared_cells)
            }
            places = [
                c for c, pool in pools.items() for _ in range(min(map(len, pool.values())))
            ]
            if len(places) >= per_decade:
                break
        drawn = random.permutation(places)[:per_decade].tolist()
        for cell in sorted(map(int, drawn), reverse=True):
            row = {}
            for k, pool in pools[cell].items():
                row[k] = pool.pop(int(random.integers(len(pool))))
            rows.append((decade, row))
    return rows


def like(rates: np.ndarray, rate: float, seed: int) -> int | None:
    """A latent of the rate that is nearest to this one, drawn of the nearest; None if dead."""
    alive = np.flatnonzero(rates > 0)
    if len(alive) == 0:
        return None
    apart = np.abs(np.log(rates[alive] / rate))
    nearest = alive[apart <= apart.min() + 1e-12]
    return int(np.random.default_rng(seed).choice(nearest))


def by_rate(
    results: Results,
    latents: Mapping[SAEKey, Rated],
    tested: str = "trained",
    correct: Correct = "baseline",
) -> list[AtRate]:
    """Verdicts within decades of the firing rate, on latents that are matched in rate.

    Compared are the share of variance that as many latents of the same rates explain, the
    mean AutoInterp score of the latents that were scored, the accuracy of probes on one
    latent, and where features are known how many of those that fire as often are recovered.

    Args:
        results: The table; its rows of the panel say which SAEs may be compared.
        latents: By panel and member.
        tested: Member to test.
        correct: As of `stats.verdicts`; the family is the strata of one baseline and metric.
    """
    found: list[AtRate] = []
    for group in results.groups:
        if tested not in results.present(group):
            continue
        for baseline in results.compared_with(group, tested):
            pairs = _pairs(results, latents, group, (tested, baseline))
            kinds = (_scored(results, group), _probed(results, pairs), _known(results, pairs))
            for metric in (_VARIANCE, *(m for kind in kinds for m in kind)):
                if pairs and is_null_for(results.constraints[baseline], *_at(metric, -1)):
                    members = (tested, baseline)
                    found += _at_rates(results, group, pairs, metric, members, correct)
    return found


def _at(metric: MetricKey, decade: int) -> MetricKey:
    return metric[0], f"{metric[1]}{_AT_RATE}{decade}"


def _pairs(
    results: Results,
    latents: Mapping[SAEKey, Rated],
    group: Group,
    members: tuple[str, str],
) -> dict[int, tuple[Rated, Rated]]:
    """By seed, of seeds in which both SAEs were measured."""
    found = {}
    for seed in results.seeds(group):
        keys = [(results.panels.get((group, m, seed)), m) for m in members]
        both = [latents.get((panel, m)) for panel, m in keys if panel is not None]
        if len(both) == 2 and both[0] is not None and both[1] is not None:
            found[seed] = (both[0], both[1])
    return found


def _scored(results: Results, group: Group) -> list[MetricKey]:
    """Metrics with a value per latent."""
    return [
        metric
        for metric in results.metrics
        if results.direction(metric)
        and any(t.startswith("latent_") for t in results.tasks(group, metric))
    ]


def _probed(results: Results, pairs: Mapping[int, tuple[Rated, Rated]]) -> list[MetricKey]:
    """Accuracies on one latent, of suites of which it is known which one."""
    suites = {suite for pair in pairs.values() for rated in pair for suite in rated.chosen}
    return [m for m in results.metrics if m[0] in suites and m[1] == TOP_LATENT]


def _known(results: Results, pairs: Mapping[int, tuple[Rated, Rated]]) -> list[MetricKey]:
    """Metrics of features."""
    known = {m for pair in pairs.values() for rated in pair for m in rated.truth}
    return [m for m in results.metrics if m in known]


def _compared(
    results: Results,
    group: Group,
    metric: MetricKey,
    members: tuple[str, str],
    seed: int,
    pair: tuple[Rated, Rated],
) -> dict[int, tuple[int, float, float]]:
    """By decade, how many are compared and each SAE's value."""
    if metric == _VARIANCE:
        first, second = pair
        if not all(np.isfinite(r.explained).all() for r in pair):
            return {}
        return matched((first.rates, second.rates), (first.explained, second.explained))
    if metric[1] == TOP_LATENT:
        return _of_one_decade(results, group, metric, members, seed, pair)
    if metric in pair[0].truth and metric in pair[1].truth:
        (rates, mine), (_, others) = (r.truth[metric] for r in pair)
        return _means(matched((rates, rates), (mine, others)))
    first, second = (_scores(results, group, metric, m, seed) for m in members)
    rates = pair[0].rates[first.index], pair[1].rates[second.index]
    values = first.to_numpy(), second.to_numpy()
    if not all(np.isfinite(v).all() for v in values):
        return {}
    return _means(matched(rates, values, _BINS_OF_SCORES))


def _means(found: dict[int, tuple[int, float, float]]) -> dict[int, tuple[int, float, float]]:
    return {d: (n, a / n, b / n) for d, (n, a, b) in found.items()}


def _of_one_decade(
    results: Results,
    group: Group,
    metric: MetricKey,
    members: tuple[str, str],
    seed: int,
    pair: tuple[Rated, Rated],
) -> dict[int, tuple[int, float, float]]:
    """Mean accuracies on the tasks for which both chose a latent of the decade."""
    scores = [results.of_tasks(metric, group, m, seed) for m in members]
    tops = [
        {task: decades(r.rates[[js[0]]])[0] for task, js in r.chosen.get(metric[0], {}).items()}
        for r in pair
    ]
    tasks: dict[int, list[str]] = defaultdict(list)
    for task in sorted(set(tops[0]) & set(tops[1]) & set(scores[0]) & set(scores[1])):
        if tops[0][task] == tops[1][task]:
            tasks[int(tops[0][task])].append(task)
    found = {}
    for decade, alike in tasks.items():
        if len(alike) >= _LEAST_TASKS:
            first, second = (float(np.mean([of[t] for t in alike])) for of in scores)
            found[decade] = len(alike), first, second
    return found


def _at_rates(
    results: Results,
    group: Group,
    pairs: Mapping[int, tuple[Rated, Rated]],
    metric: MetricKey,
    members: tuple[str, str],
    correct: Correct,
) -> list[AtRate]:
    rows: list[dict[str, Any]] = []
    counts: dict[int, list[int]] = defaultdict(list)
    direction = results.direction(metric)
    for seed, pair in pairs.items():
        found = _compared(results, group, metric, members, seed, pair)
        for decade, (n, *values) in found.items():
            counts[decade].append(n)
            for member, value in zip(members, values, strict=True):
                facts = {
                    "panel": results.panels[group, member, seed],
                    "member": member,
                    "constraint": results.constraints[member],
                    "architecture": group[0],
                    "l0": group[1],
                    "seed": seed,
                }
                rows.append(row(facts, _at(metric, decade), value, direction=direction or 1))
    if not rows:
        return []
    # What bars a comparison (L0 apart, a dead SAE, equal weights) is among the suite's rows.
    frame = results.frame
    kept = frame.loc[
        frame["member"].isin(members)
        & frame["suite"].isin([PANEL_SUITE, metric[0]])
        & (frame["architecture"] == group[0])
        & (frame["l0"] == group[1])
    ]
    columns = list(COMPARED)
    table = Results.of(pd.DataFrame(pd.concat([kept[columns], pd.DataFrame(rows)[columns]])))
    compared = differences(
        table,
        metrics=[f"{metric[0]}/{metric[1]}{_AT_RATE}*"],
        tested=members[0],
        on_missing="exclude",
    )
    if metric != _VARIANCE:
        # A decade has no floor of its own: where the metric tells nothing, its parts do not.
        rooms = rooms_of(Match(results, group, metric, *members), unpaired=True)
        margin = margin_for(*metric)
        blind = cannot_tell(rooms, margin and margin.value, ALPHA)
        compared = [replace(c, blind=blind) for c in compared]
    words = {int(v.metric.rsplit("1e", 1)[1]): v for v in verdicts(compared, correct=correct)}
    return [
        AtRate(
            decade,
            float(np.mean(counts[decade])),
            words[decade],
            _n_of(metric, pairs),
        )
        for decade in sorted(words, reverse=True)
    ]


def _n_of(metric: MetricKey, pairs: Mapping[int, tuple[Rated, Rated]]) -> str:
    if metric[1] == TOP_LATENT:
        return "datasets"
    return (
        "features" if any(metric in rated.truth for rated, _ in pairs.values()) else "latents"
    )


def _scores(
    results: Results, group: Group, metric: MetricKey, member: str, seed: int
) -> pd.Series:
    """Scores of single latents, by their numbers."""
    frame = results.frame
    rows = frame.loc[
        (frame["architecture"] == group[0])
        & (frame["l0"] == group[1])
        & (frame["suite"] == metric[0])
        & (frame["metric"] == metric[1])
        & (frame["member"] == member)
        & (frame["seed"] == seed)
        & frame["task"].str.startswith("latent_")
    ]
    index = rows["task"].str.removeprefix("latent_").astype(int)
    return pd.Series(rows["value"].to_numpy(), index=index.to_numpy())


def mean_strata(seeds: Sequence[Rated]) -> dict[int | None, Stratum]:
    """`strata`, mean over an SAE's seeds; a decade without latents counts as none."""
    every = [strata(rated) for rated in seeds]
    order = {d for found in every for d in found}
    nothing = Stratum(0.0, 0.0, float("nan"))
    out = {}
    for d in sorted(order, key=lambda d: np.inf if d is None else -d):
        parts = [found.get(d, nothing) for found in every]
        there = [p for p in parts if p.n]
        out[d] = Stratum(
            float(np.mean([p.n for p in parts])),
            float(np.mean([p.explained for p in parts])),
            _mean(np.array([p.cosine for p in there])),
            _mean(np.array([p.recovers for p in there])),
        )
    return out
