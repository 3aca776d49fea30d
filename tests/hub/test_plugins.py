"""A downloaded study names modules of its own: none of them runs unless its user says so."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sae_baselines.errors import UserError
from sae_baselines.evals import registry
from sae_baselines.evals.results import checked_results
from sae_baselines.hub import CardOptions, plan_publication
from sae_baselines.pipeline import evaluate
from sae_baselines.report import report
from sae_baselines.show import show
from sae_baselines.study.folder import load_study
from sae_baselines.study.spec import PanelSpec, spec_from_dict
from tests.hub.conftest import REPO

MODULE = "module_of_a_downloaded_study"


@pytest.fixture
def ran(own_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Whether the module that the study names was imported."""
    mark = tmp_path / "ran"
    module = tmp_path / f"{MODULE}.py"
    module.write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    file = own_study / "study.yaml"
    record = yaml.safe_load(file.read_text())
    record["spec"]["plugins"] = [MODULE]
    file.write_text(yaml.safe_dump(record, sort_keys=False))
    return mark.exists


def _evaluate(study: Path, **options: Any) -> None:
    config = study.parent / "quick.yaml"
    config.write_text("evals: {suites: {meta_structure: {train_steps: 20}}}")
    done = evaluate(study, ["meta_structure"], config=config, seeds=1, device="cpu", **options)
    assert done.failures == []


@pytest.mark.parametrize(
    "use",
    [
        report,
        lambda study: show(str(study)),
        load_study,
        lambda study: plan_publication(study, REPO, "main", CardOptions("mit")),
        _evaluate,
    ],
    ids=["report", "show", "load", "publish", "eval"],
)
def test_reading_a_study_imports_nothing_that_it_names(
    use: Callable[[Any], Any], own_study: Path, ran: Callable[[], bool]
):
    use(own_study)
    assert not ran()


def test_its_user_may_ask_for_it(own_study: Path, ran: Callable[[], bool]):
    _evaluate(own_study, allow_plugins=True)
    assert ran()


def test_a_spec_of_ones_own_is_read_with_its_modules(own_study: Path, ran: Callable[[], bool]):
    spec_from_dict(yaml.safe_load((own_study / "study.yaml").read_text())["spec"])
    assert ran()


def test_an_architecture_that_only_its_modules_know_is_read_as_it_is(own_study: Path):
    file = own_study / "study.yaml"
    record = yaml.safe_load(file.read_text())
    record["spec"] |= {"architecture": "theirs", "plugins": ["nowhere_at_all"]}
    file.write_text(yaml.safe_dump(record))
    spec, _ = load_study(own_study)
    assert isinstance(spec, PanelSpec)
    assert spec.architectures == ["theirs"]
    assert {m.name for m in spec.member_specs} == {"trained", "frozen_decoder", "random"}


def test_a_constraint_that_only_a_plugin_knows_is_reported_by_its_name(own_study: Path):
    file = own_study / "study.yaml"
    record = yaml.safe_load(file.read_text())
    members = [
        {"constraint": m} if isinstance(m, str) else m for m in record["spec"]["members"]
    ]
    (one,) = (m for m in members if m["constraint"] == "frozen_decoder")
    one.update(constraint="their_constraint", label="frozen_decoder")
    record["spec"]["members"] = members
    file.write_text(yaml.safe_dump(record, sort_keys=False))
    assert "their_constraint" in [m.constraint for m in load_study(own_study)[0].member_specs]
    show(str(own_study))
    report(own_study)
    with pytest.raises(UserError, match="'their_constraint' is unknown"):
        spec_from_dict(record["spec"])


def test_scores_of_a_suite_that_only_a_plugin_knows_are_named_as_not_checked(
    own_study: Path, monkeypatch: pytest.MonkeyPatch
):
    _evaluate(own_study)
    monkeypatch.delitem(vars(registry)["_suites"], "meta_structure")
    _, checks = checked_results(own_study)
    assert any(name.startswith("meta_structure of ") for name in checks.unverified)
    report(own_study)
