"""A suite from outside appears wherever suites do: doctor, eval, results, report, verdicts."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sae_baselines.errors import UserError
from sae_baselines.evals import evaluate, register_suite, registry, write_results
from sae_baselines.evals.metrics import HIGHER, Margin, Metric
from sae_baselines.evals.registry import (
    is_null_for,
    is_unchanged,
    margin_for,
    metric_of,
    suite_names,
)
from sae_baselines.evals.suite import Needs, Subject
from sae_baselines.evals.versions import Requirement
from sae_baselines.report.names import title
from sae_baselines.stats import verdicts
from sae_baselines_cli import app
from tests.evals.fake_suite import FakeSuite
from tests.evals.tiny_hub import tiny_sae
from tests.stats.tables import frame, paired, rows


class Mine(FakeSuite):
    """The numbers of the fake suite, under a name and with facts of its own."""

    name = "mine"
    summary = "what matters to me"
    metrics = (
        Metric("score", HIGHER, "My score", Margin(0.5, "Half a point."), "bits", "edits"),
        Metric("aside", depends="latents"),
    )
    needs = Needs(model=False, data=False)
    requirements = (Requirement("no-such-package", ">=1", "it counts with it"),)

    def defaults(self) -> dict[str, Any]:
        return {**super().defaults(), "times": 1}

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        yield from super().problems(subject, options)
        if options["times"] < 1:
            yield f"times: {options['times']} is not positive; give 1 or more"


class Runnable(Mine):
    requirements = ()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_suites", dict(registry._suites))
    monkeypatch.setattr(registry, "_instances", {})


def test_it_is_evaluated_and_its_results_have_its_facts(tmp_path: Path) -> None:
    register_suite("mine", f"{__name__}:Runnable")
    assert suite_names()[-1] == "mine"
    report = evaluate({"a": tiny_sae(), "b": tiny_sae(seed=1)}, ["mine"], tmp_path)
    assert report.done == [("mine", "a"), ("mine", "b")]
    table = write_results(tmp_path)
    assert set(table["suite"]) == {"mine"}
    assert set(table.loc[table["metric"] == "score", "direction"]) == {1}
    assert title("mine", "score") == "My score"
    assert title("mine", "other") == "mine: other"


def test_its_margin_is_that_of_verdicts() -> None:
    values = paired([1.0, 1.1, 0.9, 1.0], [1.1, 0.9, 1.0, 1.0])
    table = frame(rows(values, suite="mine", metric="score"))
    (before,) = verdicts(table)
    assert before.margin is None
    register_suite("mine", Runnable)
    (found,) = verdicts(table)
    assert found.margin == Margin(0.5, "Half a point.")
    assert found.word == "matches"


def test_it_says_which_controls_it_can_see() -> None:
    register_suite("mine", Runnable)
    assert is_null_for("permuted_decoder", "mine", "score")
    assert not is_null_for("permuted_decoder", "mine", "aside")
    assert is_unchanged("permuted_decoder", "mine", "aside")
    assert is_null_for("random:cov", "mine", "aside")


def test_doctor_knows_what_it_needs() -> None:
    register_suite("mine", Mine)
    result = CliRunner().invoke(app, ["doctor", "--suites", "mine"])
    assert result.exit_code == 1
    assert "no-such-package is not installed" in " ".join(result.output.split())
    register_suite("other", f"{__name__}:Other")
    assert CliRunner().invoke(app, ["doctor", "--suites", "other"]).exit_code == 0


class Other(Runnable):
    name = "other"


def test_its_own_option_checks_speak_before_any_work(tmp_path: Path) -> None:
    register_suite("mine", Runnable)
    with pytest.raises(UserError, match="mine: times: 0 is not positive"):
        evaluate({"a": tiny_sae()}, {"mine": {"times": 0}}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "suite", "message"),
    [
        ("core", Mine, "there is a suite 'core' already"),
        ("panel", Mine, "there is a suite 'panel' already"),
        ("a/b", Mine, "is no name"),
        ("mine", "nothing", "is not 'module:Class'"),
    ],
)
def test_a_bad_registration_is_one_line(name: str, suite: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        register_suite(name, suite)


def test_a_class_that_is_not_there_or_has_another_name_is_said() -> None:
    register_suite("gone", "no_such_module:Class")
    with pytest.raises(UserError, match="gone: cannot be loaded"):
        registry.get_suite("gone")
    register_suite("another", Mine)
    with pytest.raises(UserError, match="its class is 'mine'"):
        registry.get_suite("another")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    register_suite("mine", Mine)
    with pytest.raises(UserError, match="did you mean mine"):
        registry.get_suite("mime")


def test_of_a_suite_that_nobody_registered_the_usual_is_assumed() -> None:
    known = metric_of("theirs", "my_explained_variance")
    assert known.margin is not None
    assert known.margin.value == 0.02
    assert known.title == "theirs: my_explained_variance"
    assert metric_of("theirs", "nothing").margin is None


@pytest.mark.parametrize("suite", ["absorption", "ravel", "meta_structure", "scr", "tpp"])
def test_a_metric_that_a_suite_does_not_list_has_the_margin_of_its_others(suite: str) -> None:
    margin = margin_for(suite, "of_another_version")
    assert margin is not None
    assert margin.value == 0.02
    edits = suite in ("ravel", "scr", "tpp")
    assert is_null_for("permuted_decoder", suite, "of_another_version") == edits
