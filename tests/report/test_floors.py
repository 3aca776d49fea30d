"""A metric that cannot tell anything, on the first screen, in tables and in caveats."""

import numpy as np
import pandas as pd

from sae_baselines.evals.registry import metric_of
from sae_baselines.report import Report, ReportContext, build_report
from sae_baselines.report.markdown import Figure
from sae_baselines.report.names import title
from sae_baselines.report.write import to_html, to_markdown
from tests.stats.tables import paired, rows
from tests.stats.test_floors import NOISE, NULLS, SCORE, SUITE, table

CONTEXT = ReportContext(study="floors", primary=[f"{SUITE}/{SCORE}"])


def test_a_blind_metric_is_named_first_and_in_every_table() -> None:
    report = build_report(table(0.6 + NOISE, 0.5 - NOISE, 0.6 + NOISE[::-1]), CONTEXT)
    page = to_markdown(report)
    first = page.partition("## Caveats")[0]
    assert "**cannot tell** on 1 of 1 metrics (SAE-probes, top-1 accuracy)" in first
    assert "beats random" not in first
    assert "| **cannot tell** | 0.600 | 0.500 | 0.600 | 0.950 |" in page
    assert "random latents" in page
    assert "- **cannot tell**: the metric says nothing of the trained SAE" in page
    assert 'class="word cannot-tell"' in to_html(report)
    assert not any(c.kind == "floors not measured" for c in report.caveats)


def test_scores_stand_between_floor_and_ceiling_where_both_are_known() -> None:
    found = table(0.8 + NOISE, 0.5 - NOISE, 0.6 + NOISE[::-1])
    page = to_markdown(build_report(found, CONTEXT))
    assert "(score - floor) / (ceiling - floor)" in page
    assert f"{(0.8 - 0.6) / (0.95 - 0.6):.1%} (0.600 to 0.950)" in page
    assert "**beats**" in page


def test_the_floor_is_a_line_in_the_chart_of_members() -> None:
    found = table(0.8 + NOISE, 0.5 - NOISE, 0.6 + NOISE[::-1])

    def chart(of: pd.DataFrame) -> Figure:
        figures = build_report(of, CONTEXT).figures
        return next(f for f in figures if f"{SCORE}-by_member" in f.name)

    beside, without = chart(found), chart(found.loc[~found.metric.isin(NULLS)])
    assert "Dashed: null floor (" in beside.caption
    assert "Dashed" not in without.caption
    # One for each member that has a floor.
    assert beside.inline.count("stroke-dasharray") > without.inline.count("stroke-dasharray")


def test_the_floor_drawn_is_the_one_that_verdicts_use() -> None:
    first, second = NULLS
    found = table(0.8 + NOISE, 0.5 - NOISE, 0.6 + NOISE[::-1])
    turned = found.replace({"metric": {first: second, second: first}})
    low = found.loc[found.metric != first]

    def chart(of: pd.DataFrame) -> Figure:
        report = build_report(of, CONTEXT)
        (floor,) = {v.floor_is for v in report.verdicts}
        (figure,) = [f for f in report.figures if f"{SCORE}-by_member" in f.name]
        assert f"Dashed: null floor ({title(SUITE, floor)})" in figure.caption
        return figure

    # Whichever of the two nulls is the higher one, and not where the lower one is.
    assert chart(found).png == chart(turned).png != chart(low).png


def test_members_with_different_highest_floors_are_named_in_the_caption() -> None:
    first, second = NULLS
    found = table(0.8 + NOISE, 0.5 - NOISE, 0.6 + NOISE[::-1])
    others = []
    for metric, level in ((first, 0.4), (second, 0.45)):
        values = paired([], [level] * 5)
        others += rows(values, metric=metric, suite=SUITE, direction=0)
    figures = build_report(pd.concat([found, pd.DataFrame(others)]), CONTEXT).figures
    (figure,) = [f for f in figures if f"{SCORE}-by_member" in f.name]
    named = "random latents for trained; permuted labels for frozen_decoder"
    assert f"Dashed: the highest null floor of each ({named})" in figure.caption


def test_a_study_without_floors_is_reported_as_before_with_one_caveat() -> None:
    found = table(0.8 + NOISE, 0.5 - NOISE, np.full(5, 0.6))
    report = build_report(found.loc[~found.metric.isin(NULLS)], CONTEXT)
    assert [v.word for v in report.verdicts] == ["beats"]
    (said,) = [c.text for c in report.caveats if c.kind == "floors not measured"]
    assert SUITE in said
    page = to_markdown(report)
    assert "(ceiling - floor)" not in page
    assert "| floor |" not in page


def test_principal_components_stand_beside_scores_and_bound_nothing() -> None:
    found = table(0.8 + NOISE, 0.5 - NOISE, 0.6 + NOISE[::-1])
    pca = rows(
        paired([0.97] * 5, [0.97] * 5),
        metric="pca_top_1_test_accuracy",
        suite=SUITE,
        direction=0,
    )
    without = build_report(found, CONTEXT)
    beside = build_report(pd.concat([found, pd.DataFrame(pca)]), CONTEXT)
    assert "| as many principal components | 0.970 |" in to_markdown(beside)
    assert "as many principal components" not in to_markdown(without)
    assert beside.verdicts == without.verdicts
    assert {v.ceiling for v in beside.verdicts} == {0.95}


def test_embedding_stands_in_its_bounds_and_cannot_tell_at_chance() -> None:
    levels = {
        "embedding_auc": (0.63, 0.55),
        "embedding_auc_null_exchanged": (0.5, 0.5),
        "concepts_auc": (0.73, 0.73),
        "lexical_auc": (0.62, 0.56),
        "token_auc": (0.6, 0.59),
    }
    suite = "interp_embedding"

    def report_of(shift: float) -> Report:
        found = []
        for metric, (trained, other) in levels.items():
            first = trained - (shift if metric == "embedding_auc" else 0)
            noise = NOISE if metric == "embedding_auc" else NOISE[::-1]
            values = paired(list(first + noise), list(other - noise))
            of = metric_of(suite, metric)
            found += rows(values, suite=suite, metric=metric, direction=of.direction)
        for each in (suite, "panel"):
            found += rows(paired([32] * 5, [32] * 5), suite=each, metric="l0", direction=0)
        context = ReportContext(study="embedding", primary=[f"{suite}/embedding_auc"])
        return build_report(pd.DataFrame(found), context)

    page = to_markdown(report_of(0))
    assert "**beats**" in page
    assert "or concepts made by hand" in page
    assert "principal components" not in page
    assert f"{(0.63 - 0.5) / (0.73 - 0.5):.1%} (0.500 to 0.730)" in page
    assert "AUC by words in common, against tokens as frequent |" in page
    assert "| 0.630 | 0.620 | 0.600 |" in page
    assert [v.word for v in report_of(0.13).verdicts] == ["cannot tell"]
