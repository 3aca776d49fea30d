"""The words and numbers on the page are the statistics', and nothing more."""

import math

import pandas as pd
import pytest

from sae_baselines.evals.registry import metric_of
from sae_baselines.report import Report, build_report, to_html, to_markdown
from sae_baselines.stats import Verdict, above_nothing, against_random, retained, verdicts
from tests.report.page import Node, cells, markdown_rows, parse
from tests.report.studies import BASELINES, PRIMARY, change, clean, context
from tests.stats.tables import frame as frame_of
from tests.stats.tables import rows

TESTED = {"beats", "matches", "falls short", "inconclusive"}


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report(clean(), context())


@pytest.fixture(scope="module")
def page(report: Report) -> Node:
    return parse(to_html(report))


@pytest.fixture(scope="module")
def expected() -> list[Verdict]:
    return verdicts(clean(), metrics=PRIMARY)


@pytest.fixture(scope="module")
def single() -> Report:
    return build_report(clean(seeds=1), context(seeds=(0,)))


def _key(v: Verdict) -> tuple[str, str]:
    return f"{v.suite}/{v.metric}", v.baseline


def test_the_known_effects_have_their_words(expected: list[Verdict]):
    words = {_key(v): v.word for v in expected}
    assert {words[PRIMARY[0], b] for b in BASELINES} == {"beats"}
    assert words[PRIMARY[1], "soft_frozen_decoder"] == "matches"
    assert words[PRIMARY[1], "frozen_decoder"] == "beats"
    assert words[PRIMARY[2], "soft_frozen_decoder"] == "falls short"


def test_html_table_has_stats_words_and_numbers(page: Node, expected: list[Verdict]):
    shown = cells(page.section("verdicts"))
    assert len(shown) == len(expected) == 9
    for v in expected:
        (row,) = [
            r
            for r in shown
            if f"{v.suite}/{v.metric}" in r["heading"] and r["against"] == v.baseline
        ]
        assert row["verdict"] == v.word
        assert math.isclose(float(row["difference"]), v.mean_difference, abs_tol=6e-4)
        for column, interval in (("t 95%", v.interval), ("over tasks too", v.over_tasks)):
            low, high = map(float, row[column].strip("[]").split(","))
            assert math.isclose(low, interval.low, abs_tol=6e-4)
            assert math.isclose(high, interval.high, abs_tol=6e-4)
        assert math.isclose(float(row["trained"]), v.trained, abs_tol=6e-4)
        assert math.isclose(float(row["baseline"]), v.other, abs_tol=6e-4)
        assert row["seeds"] == "4"
        assert v.margin is not None
        assert row["margin"] == f"±{v.margin.value:g}"
        assert row["note"].casefold().startswith(v.reason.casefold())


def test_markdown_table_has_the_same_words(report: Report, expected: list[Verdict]):
    shown = markdown_rows(to_markdown(report), "against")
    found = {
        (f"{v.suite}/{v.metric}", v.baseline): r["verdict"]
        for r in shown
        for v in expected
        if f"`{v.suite}/{v.metric}`" in r["heading"] and r["against"] == f"`{v.baseline}`"
    }
    assert found == {_key(v): f"**{v.word}**" for v in expected}


def test_headline_says_random_is_beaten_only_where_it_is(page: Node, expected: list[Verdict]):
    shown = cells(page.section("answer"))
    found = {(row["metric"][:-2], row["heading"].split(" ")[3]): row["answer"] for row in shown}
    assert found == {
        ("Explained variance, the paper's definition", "random"): "beats random",
        ("Absorption fraction", "random"): "beats random",
        ("RAVEL disentanglement", "random"): "beats random",
        ("Explained variance, the paper's definition", "nearly"): "beats nearly free",
        ("Absorption fraction", "nearly"): "not shown",
        ("RAVEL disentanglement", "nearly"): "falls short",
    }
    assert [a.beats for a in against_random(expected)].count(True) == 3
    # Only the soft-frozen decoder, which is nearly free, is not beaten on two of them.
    assert [a.beats for a in against_random(expected, "nearly free")].count(True) == 1
    random, nearly_free = (item.text for item in page.section("answer").all("li"))
    assert "beats random on 3 of 3 metrics" in random
    assert (
        "falls short of soft_frozen_decoder on 1 of 3 metrics (RAVEL disentanglement); beats "
        "what is nearly free on 1 of 3 metrics; not shown on 1."
    ) in nearly_free


def test_the_first_screen_has_effects_and_families(report: Report, page: Node):
    """Before any link or fold: both answers, a figure and the sizes, in page and text."""
    (figure,) = page.section("answer").all("figure")
    assert figure.all("figcaption")[0].attributes["id"] == "answer-batchtopk-l0_32-caption"
    drawn = [text.text for text in figure.all("text")]
    for word in ("random", "nearly free", "retained", "frozen_encoder", "soft_frozen_decoder"):
        assert word in drawn
    expected = {(v.suite, v.metric, v.baseline): v for v in report.verdicts}
    shares = {(r.suite, r.metric, r.baseline): r.share for r in retained(clean())}
    shown = cells(page.section("answer"))
    for row, item in zip(shown, report.answers, strict=True):
        key = (item.suite, item.metric, item.closest)
        mean, low, high = (
            float(part.strip("[],")) for part in row["difference, 95%"].split(" ")
        )
        v = expected[key]
        assert (mean, low, high) == pytest.approx(
            (v.mean_difference, v.interval.low, v.interval.high), abs=6e-4
        )
        above = above_nothing(v)
        beyond = "" if above is None else f" ({100 * above:.1f}%)"
        assert row["retained"] == f"{100 * shares[key]:.1f}%{beyond}"
    assert "6 answers in 2 families" in page.section("answer").text
    assert "with 2 it is up to 4.9%" in page.section("answer").text
    main = next(n for n in page.all("main"))
    order = [n.attributes.get("id", n.tag) for n in main.children if isinstance(n, Node)]
    assert order[:3] == ["answer", "nav", "caveats"]
    text = to_markdown(report)
    top = text[: text.index("<details>")]
    assert len(top.splitlines()) < 60
    assert "figures/answer-batchtopk-l0_32.png" in top
    assert top.index("beats random") < top.index("| metric |") < top.index("## Caveats")


def _barred(frame: pd.DataFrame) -> pd.DataFrame:
    for i, member in enumerate(BASELINES):
        for suite in ("core", "absorption", "ravel"):
            frame = change(frame, 20.0 + i, metric="l0", suite=suite, member=member)
    return frame


def test_where_nothing_is_compared_the_first_screen_says_why_and_what_to_do():
    built = build_report(_barred(clean(seeds=1)), context(primary=PRIMARY[:1]))
    section = parse(to_html(built)).section("answer")
    assert not section.all("figure")
    assert not cells(section)  # one reason for all metrics is said once
    random, nearly_free, seed, way = (item.text for item in section.all("li"))
    assert "no verdict against frozen_decoder: L0 differs on the tokens of core" in random
    assert "no verdict against frozen_encoder: L0 differs on the tokens of core" in random
    assert "no verdict against soft_frozen_decoder: L0 differs" in nearly_free
    assert seed.startswith("One training seed")
    assert "primary: [panel/explained_variance, panel/ce_recovered]" in way
    assert "in 0 families" not in section.text
    (caveat,) = [c.text for c in built.caveats if c.kind == "L0 apart"]
    assert caveat.count("L0 differs") == len(BASELINES)
    assert "more than 5% of their mean" in caveat
    assert "single seed" in {c.kind for c in built.caveats}


def test_numbers_of_one_seed_are_shown_with_their_figure():
    built = build_report(clean(seeds=1), context(seeds=(0,)))
    section = parse(to_html(built)).section("answer")
    assert len(section.all("figure")) == 1
    assert "one training seed, so numbers and no verdict against random" in section.text


def test_one_barred_baseline_is_named_with_what_the_others_show():
    frame = change(clean(), 20.0, metric="l0", suite="core", member="frozen_encoder")
    built = build_report(frame, context(primary=PRIMARY[:1]))
    (answer,) = built.against_random
    assert answer.silent == ("frozen_encoder",)
    assert answer.reason.startswith("no verdict against frozen_encoder: L0 differs")
    assert answer.reason.endswith("at most 5% allowed) (and 3 more)")


def test_the_panels_own_numbers_stand_beside_the_answer():
    same = {(m, s): 0.7 for m in ("trained", *BASELINES) for s in range(4)}
    panel = pd.DataFrame(rows(same, suite="panel", metric="explained_variance"))
    frame = pd.concat([clean(), panel], ignore_index=True)
    frame = change(frame, 230, suite="panel", metric="alive", member="trained")
    shown = cells(parse(to_html(build_report(frame, context()))).section("answer"))
    beside = {row["member"]: row for row in shown if "dead latents" in row}
    assert beside["trained"]["dead latents"] == "77.0%"
    assert beside["frozen_encoder"]["explained variance ↑"] == "0.700 ± 0"


def test_what_a_guess_scores_is_taken_off_where_it_is_known():
    values = {("trained", s): 0.7 + 0.001 * s for s in range(3)}
    values |= {("frozen_decoder", s): 0.6 for s in range(3)}
    accuracy = rows(values, suite="sparse_probing", metric="sae_top_1_test_accuracy")
    (v,) = verdicts(frame_of(accuracy))
    assert above_nothing(v) == pytest.approx(0.1 / 0.201)
    (other,) = verdicts(frame_of(rows(values, suite="core", metric="ce_loss_score")))
    assert above_nothing(other) is None


@pytest.mark.parametrize(
    ("metric", "direction", "trained", "twin", "nothing", "share"),
    [
        # Lower is better: of the .2 that the trained SAE is below its floor the twin has .1.
        ("mean_absorption_fraction_score", -1, 0.05, 0.15, 0.25, 0.5),
        # A floor below a guess: half right is nothing, whatever the floor.
        ("sae_top_1_test_accuracy", 1, 0.7, 0.6, 0.47, 0.5),
        ("sae_top_1_test_accuracy", 1, 0.7, 0.6, 0.55, 1 / 3),
        # Not above its floor by more than seeds differ.
        ("sae_top_1_test_accuracy", 1, 0.6001, 0.62, 0.6, None),
    ],
)
def test_nothing_is_the_better_of_floor_and_guess(
    metric: str,
    direction: int,
    trained: float,
    twin: float,
    nothing: float,
    share: float | None,
):
    suite = "absorption" if direction < 0 else "sparse_probing"
    floor = metric_of(suite, metric).floors[0]
    noise = (-0.001, 0.0, 0.001)
    values = {("trained", s): trained + d for s, d in enumerate(noise)}
    values |= {("frozen_decoder", s): twin + d for s, d in enumerate(noise)}
    floors = dict.fromkeys(values, nothing)
    frame = frame_of(
        rows(values, suite=suite, metric=metric, direction=direction),
        rows(floors, suite=suite, metric=floor, direction=0),
    )
    (v,) = [v for v in verdicts(frame) if v.metric == metric]
    found = above_nothing(v)
    assert found is None if share is None else found == pytest.approx(share)


@pytest.mark.parametrize(
    ("members", "sides"),
    [
        (["soft_frozen_decoder"], "decoder"),
        (["soft_frozen_encoder"], "encoder"),
        (["soft_frozen_decoder", "soft_frozen_encoder"], "decoder or encoder"),
    ],
)
def test_the_side_of_a_soft_frozen_member_is_named(members: list[str], sides: str):
    values = {(m, s): 0.7 + 0.001 * s for m in ("trained", *members) for s in range(3)}
    frame = frame_of(rows(values, suite="panel", metric="explained_variance"))
    report = build_report(frame, context(primary=["panel/explained_variance"]))
    assert f"but {sides} directions must stay near their random start" in to_markdown(report)


@pytest.mark.parametrize(
    ("twin", "share", "shown"), [(0.66, 0.6, "60.0%"), (0.58, -0.2, "worse")]
)
def test_what_a_floor_scores_is_taken_off_where_it_was_measured(
    twin: float, share: float, shown: str
):
    values = {("trained", s): 0.7 + 0.0001 * s for s in range(3)}
    values |= {("frozen_decoder", s): twin + 0.0001 * s for s in range(3)}
    floors = {(member, s): 0.6 + 0.0001 * s for member, s in values}
    frame = frame_of(
        rows(values, suite="panel", metric="explained_variance"),
        rows(floors, suite="panel", metric="explained_variance_null_affine", direction=0),
    )
    (v,) = [v for v in verdicts(frame) if v.metric == "explained_variance"]
    assert above_nothing(v) == pytest.approx(share)
    report = build_report(frame, context(primary=["panel/explained_variance"]))
    (row,) = [r for r in markdown_rows(to_markdown(report), "metric") if r.get("retained")]
    assert row["retained"].endswith(f"% ({shown})")


def test_one_correction_over_the_study_is_one_family():
    one = build_report(clean(l0s=(16, 32)), context(correct="study"))
    told = parse(to_html(one)).section("answer").text
    assert "12 answers in 1 family: Holm's correction runs over all" in told
    four = parse(to_html(build_report(clean(l0s=(16, 32)), context()))).section("answer").text
    assert "12 answers in 4 families" in four
    assert "with 4 it is up to 9.6%" in four


def test_caveats_are_counted_where_the_answer_is():
    report = build_report(clean(seeds=2), context())
    section = parse(to_html(report)).section("answer")
    grave = [c for c in report.caveats if c.kind != "note"]
    (link,) = section.all("a")
    assert link.attributes["href"] == "#caveats"
    assert link.text.startswith(f"{len(grave)} caveat")


def test_words_used_are_explained_and_no_others(page: Node):
    explained = [item.all("strong")[0].text for item in page.section("verdicts").all("li")]
    assert explained == ["beats", "falls short", "matches"]


def test_forest_figures_carry_the_words(report: Report, expected: list[Verdict]):
    by_name = {f.name: f for f in report.figures if "-differences-" in f.name}
    assert len(by_name) == len(PRIMARY)
    for metric in PRIMARY:
        figure = by_name[metric.replace("/", "-") + "-differences-batchtopk"]
        texts = [t.text for t in parse(figure.inline).all("text")]
        assert [t for t in texts if t in TESTED] == [
            v.word
            for b in BASELINES
            for v in expected
            if (f"{v.suite}/{v.metric}", v.baseline) == (metric, b)
        ]


def test_lower_is_better_is_labelled_and_turned(report: Report, page: Node):
    name = "absorption-mean_absorption_fraction_score"
    rows = [r for r in cells(page.section("verdicts")) if "Absorption" in r["heading"]]
    assert all("↓ (lower is better)" in row["heading"] for row in rows)
    worse = next(r for r in rows if r["against"] == "frozen_decoder")
    # Trained 0.10, baseline 0.30: better, so positive.
    assert float(worse["difference"]) == pytest.approx(0.2, abs=1e-3)
    forest = next(f for f in report.figures if f.name == f"{name}-differences-batchtopk")
    assert "baseline - trained" in parse(forest.inline).text
    assert "trained - baseline" not in parse(forest.inline).text
    scores = next(f for f in report.figures if f.name.startswith(f"{name}-by_member"))
    assert "lower is better ↓" in parse(scores.inline).text
    assert "lower is better" in scores.caption


def test_retained_share_stands_beside_the_papers(page: Node):
    shown = [r for r in cells(page.section("retained")) if "explained_variance" in r["heading"]]
    expected = {r.baseline: r for r in retained(clean(), metrics=[PRIMARY[0]])}
    for row in shown:
        name = row["against"] if "against" in row else row["baseline"].split(" ")[0]
        assert row["change"] == f"{100 * expected[name].change:+.1f}%"
        assert ("best frozen" in row["baseline"]) == expected[name].best
    best = next(r for r in shown if "best frozen" in r["baseline"])
    # The paper, BatchTopK: soft-frozen .785, trained .852.
    assert best["paper's change"] == "-7.9%"
    assert "0.785 against 0.852" in best["note"]
    assert "Gemma-2-2B, layer 12" in page.section("retained").text


def test_single_seed_gives_numbers_and_no_verdict(single: Report):
    page = parse(to_html(single))
    shown = cells(page.section("verdicts"))
    assert {row["verdict"] for row in shown} == {"single seed"}
    assert {row["t 95%"] for row in shown} == {"n/a"}
    assert {row["difference"] for row in shown} != {"n/a"}
    badges = {n.text for n in page.all("span", "word")}
    assert badges == {"single seed", "no verdict"}
    for figure in single.figures:
        assert not TESTED & {t.text for t in parse(figure.inline).all("text")}
    md = to_markdown(single)
    assert not any(f"**{word}**" in md for word in (*TESTED, "beats random"))
    assert "single seed" in [c.kind for c in single.caveats]


def test_margins_given_are_used_and_shown():
    margins = {"core/*": 0.5, "unlearning/*": 0.1}
    report = build_report(clean(), context(margins=margins, primary=PRIMARY[:1]))
    assert {v.margin.value for v in report.verdicts if v.margin} == {0.5}
    assert {r["margin"] for r in cells(parse(to_html(report)).section("verdicts"))} == {"±0.5"}
    assert [c.kind for c in report.caveats] == ["unused margin"]
