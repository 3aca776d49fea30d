"""Every caveat appears when it applies, and only then."""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from sae_baselines.report import Failure, Note, ReportContext, build_report
from sae_baselines.report.caveats import Caveat, caveats, unfit
from sae_baselines.results import Results
from sae_baselines.stats import differences, verdicts
from tests.report.studies import MEMBERS, PRIMARY, VERSIONS, change, clean, context
from tests.stats.tables import frame as frame_of
from tests.stats.tables import rows

Edit = Callable[[pd.DataFrame], pd.DataFrame]


def _found(frame: pd.DataFrame, given: ReportContext) -> list[Caveat]:
    items = verdicts(frame, metrics=PRIMARY[1:], on_missing="exclude")
    return caveats(Results.of(frame), given, items, [])


def _without(**where: Any) -> Edit:
    def edit(frame: pd.DataFrame) -> pd.DataFrame:
        chosen = pd.Series(True, index=frame.index)
        for name, wanted in where.items():
            chosen &= frame[name] == wanted
        return frame.loc[~chosen]

    return edit


def _frac_alive(value: float) -> Edit:
    def edit(frame: pd.DataFrame) -> pd.DataFrame:
        values = {(m, s): value for m in MEMBERS for s in range(4)}
        more = pd.DataFrame(rows(values, metric="frac_alive"))
        more["versions"] = VERSIONS
        return pd.concat([_without(metric="alive")(frame), more])

    return edit


def test_nothing_is_said_of_a_clean_study():
    assert _found(clean(), context()) == []


@pytest.mark.parametrize(
    ("edit", "kind", "says"),
    [
        (
            lambda f: change(f, 0.9, metric="explained_variance", member="trained"),
            "EV disagreement",
            "4 of 16 SAEs",
        ),
        (_without(metric="explained_variance_paper"), "EV unchecked", "16 SAEs"),
        (
            lambda f: change(f, 850, metric="alive", member="frozen_encoder", seed=1),
            "dead latents",
            "`frozen_encoder` of batchtopk at L0 32: 15%",
        ),
        (_frac_alive(0.7), "dead latents", "30%"),
        (
            lambda f: change(f, "torch=2.12.0", column="versions", suite="ravel"),
            "version mix",
            "2.12.0 (ravel)",
        ),
        (_without(constraint="frozen_encoder"), "baselines absent", "`frozen_encoder`"),
        (
            lambda f: change(f, math.nan, metric="explained_variance", member="trained"),
            "not a number",
            "core/explained_variance",
        ),
        (
            _without(suite="ravel", member="trained", seed=0),
            "missing",
            "1 of 16 SAEs: `batchtopk_l0_32_seed_0/trained`",
        ),
        (
            lambda f: change(f, 36, metric="l0", suite="panel"),
            "L0 off target",
            "16 of 16 SAEs",
        ),
        (_without(suite="ravel", metric="l0"), "L0 unchecked", "on the tokens of `ravel` is"),
        (
            lambda f: change(f, 31.0, metric="l0", suite="ravel", member="frozen_encoder"),
            "L0 apart",
            "on the tokens of ravel at seed 0: trained 28.8, frozen_encoder 31 (7.4% apart",
        ),
    ],
)
def test_each_reason_is_found_alone(edit: Edit, kind: str, says: str):
    found = _found(edit(clean()), context())
    assert {c.kind for c in found} == {kind}
    assert says in found[0].text


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"failures": [Failure("mdl", "", "no `loguru`")]}, "failure", "`mdl` gave no result"),
        (
            {"failures": [Failure("tpp", "trained", "out of\nmemory", "p")]},
            "failure",
            "on `p/trained`: `out of memory`",
        ),
        ({"suites": ["core", "scr"]}, "missing", "Suite `scr` has no rows"),
        ({"spec": {"data_order": "shared"}}, "shared data order", "initial weights"),
        ({"versions": {"a": {"x": "1"}, "b": {"x": "2"}}}, "version mix", "1 (a); 2 (b)"),
        (
            {"versions": {"eval": {"numpy": "1.0, 2.0"}}},
            "version mix",
            "`numpy`: 1.0 (eval); 2.0 (eval)",
        ),
        ({"notes": [Note("", "", "one thing.")]}, "note", "one thing."),
    ],
)
def test_each_circumstance_is_told_alone(changes: dict[str, Any], kind: str, says: str):
    found = _found(clean(), context(**changes))
    assert [c.kind for c in found] == [kind]
    assert says in found[0].text


def test_ev_just_inside_the_tolerance_is_no_disagreement():
    frame = clean()
    paper = frame["metric"] == "explained_variance_paper"
    for shift, kinds in ((0.0199, []), (0.0201, ["EV disagreement"])):
        moved = frame.copy()
        moved.loc[paper, "value"] += shift
        assert [c.kind for c in _found(moved, context())] == kinds


@pytest.mark.parametrize(("given", "says"), [([2, None], "alone (`2:`)"), ([None], "texts")])
def test_two_cross_entropies_that_disagree_are_told(given: list[int | None], says: str):
    level = {(m, s): 0.9 - 0.1 * i for i, m in enumerate(MEMBERS) for s in range(4)}
    theirs = pd.DataFrame(rows(level, metric="ce_loss_score"))
    for shift, n in ((0.0199, 0), (0.0201, 16)):
        ours = {sae: value + shift for sae, value in level.items()}
        own = pd.DataFrame(rows(ours, suite="panel", metric="ce_recovered"))
        frame = pd.concat([clean(), theirs, own]).fillna({"versions": VERSIONS})
        found = caveats(Results.of(frame), context(spec={"seqpos_slice": given}), [], [])
        assert [c.kind for c in found] == ["CE disagreement"] * (n > 0)
        if n:
            assert "for 16 of 16 SAEs" in found[0].text
            assert says in found[0].text
            assert "`frozen_encoder` 0.600 against 0.620" in found[0].text


def test_scores_in_steps_are_told_with_what_they_leave_undecided():
    ev = {("trained", s): 0.5 + 2**-6 * (s % 2) for s in range(4)}
    ev |= {("frozen_decoder", s): 0.5 for s in range(4)}
    found = verdicts(frame_of(rows(ev)))
    all_of_them = caveats(Results.of(frame_of(rows(ev))), context(), found, [])
    (told,) = [c for c in all_of_them if c.kind == "rounding"]
    assert "`core/explained_variance` is made of means" in told.text
    assert "steps of up to 0.0039" in told.text
    assert "no verdict, against `frozen_decoder of batchtopk`" in told.text


def test_ten_per_cent_dead_is_not_more_than_ten():
    assert _found(change(clean(), 900, metric="alive"), context()) == []
    found = _found(change(clean(), 899, metric="alive"), context())
    assert [c.kind for c in found] == ["dead latents"]


def test_l0_apart_gives_its_reason_once_per_baseline():
    frame = change(clean(), 33.5, metric="l0", suite="panel", member="trained")
    frame = change(frame, 31.0, metric="l0", suite="panel", member="frozen_encoder")
    found = _found(frame, context())
    assert [c.kind for c in found] == ["L0 apart"]
    assert "frozen_encoder 31" in found[0].text


def test_a_failed_run_is_named_once_with_its_metric():
    frame = change(clean(), -169.0, metric="explained_variance_paper", member="frozen_encoder")
    items = verdicts(frame, metrics=PRIMARY)
    (found,) = [c for c in caveats(Results.of(frame), context(), items, []) if "fail" in c.kind]
    assert "frozen_encoder failed at seed 0: explained_variance_paper is -169" in found.text


def test_an_unknown_l0_is_said():
    frame = _without(metric="l0", member="trained", seed=2)(clean())
    assert [c.kind for c in _found(frame, context())] == ["L0 unknown"]


@pytest.mark.parametrize(
    ("seeds", "kinds"), [(1, ["single seed"]), (2, ["two seeds"]), (3, [])]
)
def test_few_seeds_are_named(seeds: int, kinds: list[str]):
    assert [c.kind for c in _found(clean(seeds), context())] == kinds


def test_a_failure_is_not_told_again_as_missing():
    frame = _without(suite="ravel", member="trained", seed=0)(clean())
    name = "batchtopk_l0_32_seed_0"
    for failure in (
        Failure("ravel", "trained", "boom", name),
        Failure("ravel", f"{name}.trained", "boom"),
    ):
        assert [c.kind for c in _found(frame, context(failures=[failure]))] == ["failure"]


def _texts(notes: list[Note]) -> list[str]:
    return [c.text for c in _found(clean(), context(notes=notes))]


def test_notes_that_several_saes_share_are_one_line():
    notes = [Note("core", f"p.{m}", "not folded") for m in MEMBERS[:2]]
    notes += [
        Note("core", "p.trained", "one, two: 3"),
        Note("ravel", "p.trained", "not folded"),
    ]
    assert _texts([*notes, notes[0]]) == [
        "`core`, 2 SAEs (`p.trained`, `p.soft_frozen_decoder`): not folded",
        "`core`, `p.trained`: one, two: 3",
        "`ravel`, `p.trained`: not folded",
    ]


def test_a_note_of_many_saes_says_how_many_and_of_what():
    def notes(members: tuple[str, ...]) -> list[Note]:
        panels = [f"batchtopk_l0_32_seed_{seed}" for seed in range(4)]
        return [Note("core", f"{p}.{m}", "x") for p in panels for m in members]

    assert _texts(notes(MEMBERS)) == ["`core`, all 16 SAEs: x"]
    assert _texts(notes(MEMBERS[:2])) == [
        "`core`, 8 of 16 SAEs (members `trained`, `soft_frozen_decoder`): x"
    ]
    assert _texts(notes(("another", *MEMBERS))) == ["`core`, 20 SAEs: x"]


def test_a_note_does_not_name_its_suite_twice():
    assert _texts([Note("mdl", "", "mdl: bits are estimates")]) == ["`mdl`: bits are estimates"]
    assert _texts([Note("core", "", "mdl: odd")]) == ["`core`: mdl: odd"]


def test_why_there_is_no_word_is_kind_and_reason() -> None:
    """A member may be called as it likes: no text is taken apart."""
    odd = "a; b failed at seed 9: L0 differs"
    values = {("trained", s): 0.8 + 0.001 * s for s in range(4)} | {("trained", 1): 0.05}
    values |= {(odd, s): 0.6 - 0.001 * s for s in range(4)}
    table = frame_of(rows(values)).replace({"constraint": {odd: "frozen_decoder"}})
    (found,) = verdicts(table)
    assert [bar.kind for bar in found.bars] == ["collapsed seed"]
    assert found.bars[0].reason == found.reason
    said = caveats(Results.of(table), context(), [found], unfit(differences(table)))
    kinds = {c.kind for c in said}
    assert "no verdict" in kinds
    assert not {"failed run", "L0 apart"} & kinds


def test_an_l0_that_a_suite_did_not_measure_is_said():
    gone = _without(metric="l0", suite="ravel", member="frozen_encoder", seed=2)
    (found,) = _found(gone(clean()), context())
    assert found.kind == "L0 unmeasured"
    assert "no measured L0 of frozen_encoder on the tokens of ravel at seed 2" in found.text


def test_a_baseline_that_one_panel_lacks_is_said_of_it():
    frame = clean().assign(architecture="topk", panel="topk_" + clean()["panel"])
    both = pd.concat([clean(), _without(member="frozen_encoder")(frame)])
    (found,) = _found(both, context())
    assert found.kind == "baselines absent"
    assert "has no `frozen_encoder` in topk, L0 32" in found.text


def test_two_seeds_say_what_they_cannot_show():
    (found,) = _found(clean(2), context())
    assert "a run that failed cannot be told from one that did not" in found.text
    assert "78% open" in found.text
    assert "Somewhere" not in found.text


def test_two_of_three_seeds_say_which_baseline_has_no_more():
    frame = change(clean(3), 20.0, metric="l0", suite="ravel", member="frozen_encoder", seed=0)
    found = next(c for c in _found(frame, context()) if c.kind == "two seeds")
    assert found.text.startswith(
        "Somewhere `frozen_encoder` can be compared on two seeds only."
    )


def test_a_metric_that_is_good_for_nothing_is_named():
    frame = _frac_alive(0.99)(clean())
    asked = context(primary=["core/frac_alive"], evals={"suites": {"core": {}}})
    (found,) = [c for c in build_report(frame, asked).caveats if c.kind == "for nothing"]
    assert "`core/frac_alive`" in found.text
    assert not [c for c in build_report(clean(), context()).caveats if c.kind == "for nothing"]


@pytest.mark.parametrize(("share", "said"), [(0.23, True), (0.1, False), (None, False)])
def test_variance_that_few_activations_hold_is_told(share: float | None, said: bool):
    found = caveats(Results.of(clean()), context(variance_in_few=share), [], [])
    texts = [c.text for c in found if c.kind == "few activations"]
    assert bool(texts) == said
    if said:
        assert "0.1 % of the held-out activations hold 23 % of their variance" in texts[0]


def test_error_of_a_handful_of_tokens_is_told():
    def measured(name: str, value: float) -> pd.DataFrame:
        more = rows(
            {("frozen_encoder", s): value for s in range(4)}, suite="panel", metric=name
        )
        return pd.DataFrame(more).assign(versions=VERSIONS)

    parts = [clean(), measured("ev_median_token", 0.5), measured("error_in_few", 0.2)]
    assert not [c for c in _found(pd.concat(parts), context()) if c.kind == "error in few"]
    frame = change(pd.concat(parts), 0.9996, metric="error_in_few", seed=2)
    (found,) = [c for c in _found(frame, context()) if c.kind == "error in few"]
    assert "0.1 % of the held-out tokens for 1 SAE" in found.text
    assert "`frozen_encoder` of batchtopk at L0 32: 100.0%, with EV" in found.text
    assert "and 0.500 of the median token" in found.text
