"""Latents by their firing rate in a report."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sae_baselines.report import build_report, to_html, to_markdown, write_report
from sae_baselines.study.latents import Latents
from tests.report.studies import BASELINES, MEMBERS, clean, context


def latents(member: str, seed: int, offset: float = -0.001) -> Latents:
    random = np.random.default_rng([seed, len(member)])
    n = 10_000
    firings = np.floor(10 ** random.uniform(0, 4, 200)).astype(np.int64)
    firings[:7] = 0
    explained = firings / firings.sum() * (0.9 if member == "trained" else 0.5)
    nothing = np.zeros(0)
    return Latents(
        n_tokens=np.array(n),
        firings=firings,
        explained=explained,
        offset=np.array(offset),
        cos_to_start=np.full(200, 0.25),
        rows=np.zeros(1, dtype=np.int64),
        indices=nothing.astype(np.int32),
        values=nothing.astype(np.float32),
    )


def test_a_report_has_them_where_they_are_stored(tmp_path: Path):
    table = clean(seeds=4)
    stored = {
        (panel, member): latents(member, seed)
        for panel, member, seed in table[["panel", "member", "seed"]]
        .drop_duplicates()
        .itertuples(index=False)
    }
    without = build_report(table, context())
    assert "rates" not in [section.id for section in without.sections]
    built = build_report(table, replace(context(), latents=stored))
    (section,) = (s for s in built.sections if s.id == "rates")
    assert "on 0.01 to 0.1 % of tokens" in section.text
    assert "on no token" in section.text
    assert {i.verdict.baseline for i in built.by_rate} == set(BASELINES)
    # The others' verdicts are as they were.
    assert built.verdicts == without.verdicts
    # Of every member, by decade, the strata sum to what all its latents explain.
    shown: dict[str, float] = dict.fromkeys(MEMBERS, 0.0)
    for line in section.text.split("**batchtopk, L0 32: variance")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].strip("`") in shown:
            shown[cells[0].strip("`")] += float(cells[2].rstrip("%"))
    assert shown == pytest.approx({m: 90 if m == "trained" else 50 for m in MEMBERS}, abs=1.5)
    files = {path.name for path in write_report(built, tmp_path)}
    assert {"by_rate.csv", "rates-batchtopk-l0-32.png"} <= files
    assert "Latents by how often they fire" in to_markdown(built)
    assert "rates-batchtopk-l0-32-caption" in to_html(built)


def test_an_older_study_is_told_how_to_get_them():
    built = build_report(clean(), replace(context(), without_latents=3, folder="studies/x"))
    (found,) = (c for c in built.caveats if c.kind == "no rates")
    assert "3 SAEs" in found.text
    assert "`sae-baselines latents studies/x`" in found.text


def test_latents_that_probes_chose_are_shown_beside_those_there_were() -> None:
    table = clean(seeds=2)
    saes = set(table[["panel", "member"]].itertuples(index=False, name=None))
    stored = {key: latents(key[1], int(key[0][-1])) for key in saes}
    picks = {f"dataset_{i}": [i, 0, 7 + i] for i in range(10)}
    chosen = {key: {"sparse_probing_sae_probes": picks} for key in saes}
    context_ = replace(context(), latents=stored, chosen=chosen)
    (text,) = (s.text for s in build_report(table, context_).sections if s.id == "rates")
    assert "| member | of live latents | of first choices | of the first 3 |" in text
    assert "chose for 10 datasets, mean over 2" in text
    # Latents 0 to 6 never fire: seven of ten first choices.
    part = text.partition("latents that probes chose (sparse_probing_sae_probes), on no token")[
        2
    ]
    assert "| 0.0% | 70.0% |" in part.partition("Shares of")[0]
