"""Verdicts of a synthetic study, whose panels are of several settings."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sae_baselines.paper.toy.results import PRIMARY, ToyResults, toy_answers, toy_verdicts
from sae_baselines.report.markdown import render
from sae_baselines.stats import METHOD, Correct, Verdict
from sae_baselines.stats.decision import holm
from sae_baselines.study.synthetic.spec import ToySpec
from tests.stats.tables import frame, paired, rows

SETTINGS = ("constant", "variable")
SPEC = replace(ToySpec(), settings=list(SETTINGS), seeds=[0, 1, 2])
# p = 0.009 of one.
GAP = np.array([0.05, 0.06, 0.07])


def results() -> ToyResults:
    """Three seeds of two settings, with gaps that count among three and not among six."""
    parts = []
    for i, setting in enumerate(SETTINGS):
        metrics = [
            rows(
                paired(0.5 + GAP * (1 + i + j), [0.5] * 3),
                suite=f"toy_{setting}",
                metric=m,
            )
            for j, m in enumerate(PRIMARY)
        ]
        parts.append(frame(*metrics).assign(setting=setting))
    nothing = pd.DataFrame()
    return ToyResults(SPEC, {}, pd.concat(parts), nothing, [], nothing, {}, {})


def words(found: dict[str, list[Verdict]]) -> set[str]:
    return {v.word for vs in found.values() for v in vs}


def test_one_correction_over_all_settings() -> None:
    each, study = toy_verdicts(results()), toy_verdicts(results(), "study")
    assert [list(found) for found in (each, study)] == [list(SETTINGS)] * 2
    for setting in SETTINGS:
        assert {v.suite for v in study[setting]} == {f"toy_{setting}"}
        assert [v.p for v in each[setting]] == [v.p for v in study[setting]]
        assert {v.n_metrics for v in each[setting]} == {3}
        assert {v.n_metrics for v in study[setting]} == {6}
    every = [v for vs in study.values() for v in vs]
    assert [v.p_adjusted for v in every] == pytest.approx(holm([v.p or 0.0 for v in every]))
    assert (words(each), words(study)) == ({"beats"}, {"inconclusive"})
    answers = {
        c: toy_answers(toy_verdicts(results(), c), "random", c) for c in ("baseline", "study")
    }
    assert {a.beats for found in answers["baseline"].values() for a in found} == {True}
    assert {a.beats for found in answers["study"].values() for a in found} == {False}


def test_the_answer_says_how_many_families_there_are() -> None:
    said: tuple[tuple[Correct, str], ...] = (
        (
            "baseline",
            "6 answers in 2 families, one for each setting, architecture and question",
        ),
        ("study", "6 answers in 1 family: Holm's correction runs over all of them"),
    )
    for correct, says in said:
        answers = toy_answers(toy_verdicts(results(), correct), "random", correct)
        facts = {"answers": answers, "single_seed": False, "correct": correct}
        text = render("toy_answer.md.j2", "sae_baselines.paper.toy", **facts)
        assert says in text
        assert METHOD.assumption in text
