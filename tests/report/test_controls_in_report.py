"""Controls on the page: named as such, explained, and out of the headline where they belong."""

from typing import Any

import pandas as pd
import pytest

from sae_baselines.report import Report, build_report, to_html, to_markdown
from sae_baselines.report.style import looks
from tests.report.page import Node, cells, parse
from tests.report.studies import PRIMARY, change, clean, context
from tests.stats.tables import rows

CONTROLS = ("permuted_decoder", "random:cov")
PROBING = ("sparse_probing", "sae_top_1_test_accuracy")
_PRIMARY = (*PRIMARY, "/".join(PROBING))


def with_controls(controls: tuple[str, ...] = CONTROLS, **clean_options: Any) -> pd.DataFrame:
    """The clean study with controls and probing."""
    base = clean(**clean_options)
    found: list[Any] = []
    probing: dict[str, Any] = {"suite": PROBING[0], "metric": PROBING[1]}
    members = list(dict.fromkeys(base["member"]))
    for i, member in enumerate(members):
        level = 0.8 - 0.03 * i
        scores = {(member, s): level + 0.001 * ((s * 7 + i * 3) % 5) for s in range(4)}
        found += rows(scores, **probing)
    for constraint in controls:
        like: pd.DataFrame = base.loc[base["member"] == "trained"].copy()
        like["member"] = constraint.replace(":", "_")
        like["constraint"] = constraint
        scored = like["direction"] == 1
        # Not the same in every seed.
        like.loc[scored, "value"] -= 0.5 + 0.001 * like.loc[scored, "seed"] ** 2
        like.loc[like["direction"] == -1, "value"] += 0.2 + 0.001 * like["seed"] ** 2
        found += like.to_dict("records")
        own = [r for r in found if r["member"] == "trained" and r["suite"] == PROBING[0]]
        drop = 0.0 if constraint.startswith("permuted") else 0.2
        found += [
            {**r, "member": constraint.replace(":", "_"), "constraint": constraint}
            | {"value": r["value"] - drop * (1 + 0.01 * r["seed"])}
            for r in own
        ]
    frame = pd.concat([base, pd.DataFrame(found)], ignore_index=True)
    frame["n"] = 100
    frame["versions"] = base["versions"].iloc[0]
    return frame


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report(with_controls(), context(primary=_PRIMARY))


@pytest.fixture(scope="module")
def page(report: Report) -> Node:
    return parse(to_html(report))


def test_controls_are_named_as_such_and_explained(report: Report, page: Node):
    assert "and controls (`permuted_decoder`, `random_cov`)" in report.lede
    told = page.section("controls").text
    assert "The null for writing in the model's own space" in told
    assert "ravel/disentanglement_score" in told
    assert "by construction: sparse_probing/sae_top_1_test_accuracy" in told
    assert "is no random SAE" in told
    assert "is among the random SAEs to beat" in told
    against = {r["against"] for r in cells(page.section("verdicts"))}
    assert {"permuted_decoder (control)", "random_cov (control)", "frozen_decoder"} <= against
    assert "Permuted controls decide nothing there" in to_markdown(report)


def test_a_permuted_decoder_is_no_baseline_on_probing_nor_in_the_headline(report: Report):
    compared = {(v.suite, v.baseline) for v in report.verdicts}
    assert ("sparse_probing", "random_cov") in compared
    assert ("sparse_probing", "permuted_decoder") not in compared
    assert ("ravel", "permuted_decoder") in compared
    assert ("absorption", "permuted_decoder") not in compared
    for item in report.against_random:
        assert "permuted_decoder" not in item.baselines
        assert "random_cov" in item.baselines
    (probing,) = [a for a in report.against_random if a.suite == "sparse_probing"]
    assert probing.beats
    assert not any(r.best for r in report.retained if r.baseline in CONTROLS)


def test_controls_that_tie_as_they_must_are_no_reason_for_caution(report: Report):
    assert "control differs" not in {c.kind for c in report.caveats}
    broken = change(with_controls(), 0.5, member="permuted_decoder", suite=PROBING[0], seed=1)
    (found,) = [
        c
        for c in build_report(broken, context(primary=_PRIMARY)).caveats
        if c.kind == "control differs"
    ]
    assert "permuted_decoder" in found.text
    assert "sparse_probing/sae_top_1_test_accuracy" in found.text


def test_a_study_of_permuted_controls_alone_says_nothing_of_random():
    frame = with_controls(("permuted_decoder",))
    frame = frame.loc[frame["member"].isin(["trained", "permuted_decoder"])]
    built = build_report(frame, context(primary=_PRIMARY))
    assert built.against_random == ()
    assert {v.suite for v in built.verdicts} == {"core", "ravel"}
    assert "no random baseline is here" in to_markdown(built)
    probing_only = build_report(frame, context(primary=("/".join(PROBING),)))
    assert "a null for none of the metrics" in to_markdown(probing_only)


def test_controls_are_drawn_grey_and_dotted_and_leave_the_others_looks():
    plain = looks(["trained", "frozen_decoder", "mine"])
    drawn = looks(["trained", "frozen_decoder", "mine", "random", "null"], {"random", "null"})
    assert {m: drawn[m] for m in plain} == plain
    assert {drawn[m].line for m in ("random", "null")} == {":"}
    assert len({drawn[m].marker for m in ("random", "null")}) == 2
    l0s = (16.0, 32.0)
    frame = with_controls(("random",), l0s=l0s)
    swept = build_report(frame, context(primary=PRIMARY[:1], l0s=l0s))
    assert "baselines dashed, controls dotted." in swept.figures[0].caption
