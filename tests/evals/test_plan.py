"""What is planned is what is done; a number of panels that was measured gives the same bits."""

import json
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sae_baselines.errors import UserError
from sae_baselines.evals.plan import plan_study
from sae_baselines.evals.store import EvalStore
from sae_baselines.study import engine, train_study
from sae_baselines.study.engine import tasks
from sae_baselines.study.folder import load_study
from sae_baselines.study.probe import Probe, panels_that_fit
from sae_baselines.study.spec import PanelSpec, spec_from_dict
from sae_baselines.work.claims import Share
from sae_baselines_cli import app
from tests.tiny_model import save_tiny_model, tiny_panel, tiny_text


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def words() -> Dataset:
    return tiny_text()


def spec_of(model: Path, **fields: object) -> PanelSpec:
    members = ["trained", "frozen_decoder", "random"]
    panel = tiny_panel(model, members=members, seeds=[0, 1], training_tokens=128 * 20)
    return spec_from_dict({**panel, **fields})


def test_every_task_is_planned_after_what_it_needs_and_is_done_as_planned(
    model: Path, words: Dataset, tmp_path: Path
):
    spec = spec_of(model, max_panels_per_pass=1)
    before = plan_study(spec, ["core", "sparse_probing"], tmp_path)
    names = [task.name for task in before.tasks]
    assert names[: len(tasks(spec))] == [task.name for task in tasks(spec)]
    assert len(names) == len(set(names)) == (2 + 1 + 6) + 2 * 6 + 1  # core has no warm-up
    for i, task in enumerate(before.tasks):
        assert set(task.needs) <= set(names[:i])
    assert [t.seconds for t in before.tasks] == [None] * len(names)
    assert before.tasks[0].activations == spec.training_tokens
    train_study(spec, tmp_path, dataset=words)
    after = plan_study(spec, ["core"], tmp_path)
    assert {task.name for task in after.left} == {n for n in names if n.startswith("eval:core")}
    # A result is one, whoever made it: as `status` says.
    record = EvalStore(tmp_path).record_file("core", after.left[0].name.split(":")[2])
    record.parent.mkdir(parents=True)
    record.touch()
    assert {task.name for task in plan_study(spec, ["core"], tmp_path).left} == {
        task.name for task in after.left[1:]
    }
    # Whatever trained has left its seconds and its size.
    share, took = Share(tmp_path), after.tasks[0]
    last = share.last(took.name)
    assert last is not None
    assert last.end is not None
    assert took.by == "done"
    assert took.seconds is not None
    weights = [p.stat().st_size for p in tmp_path.rglob("sae_weights.safetensors")]
    export = after.tasks[3].memory
    assert export is not None
    assert export == pytest.approx(max(weights), rel=0.05)


def test_auto_is_measured_and_gives_the_bits_of_its_number(
    model: Path, words: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    auto = spec_of(model, max_panels_per_pass="auto", training_tokens=128 * 12)
    with pytest.raises(UserError, match="auto is measured where training begins"):
        plan_study(auto)
    planned = plan_study(auto, probe=True, dataset=words)
    assert isinstance(planned.spec, PanelSpec)
    assert planned.spec.max_panels_per_pass == 2  # of anything so small, all there are
    trained = [task for task in planned.tasks if task.kind in ("train", "measure")]
    assert all(task.by == "probe" and (task.seconds or 0) > 0 for task in trained)
    assert planned.device_hours == sum(task.seconds or 0 for task in trained) / 3600
    monkeypatch.setattr(engine, "free_memory", lambda *_: 1)
    train_study(auto, tmp_path / "auto", dataset=words)
    stored, _ = load_study(tmp_path / "auto")
    assert stored.max_panels_per_pass == 1
    number = spec_of(model, max_panels_per_pass=1, training_tokens=128 * 12)
    train_study(number, tmp_path / "number", dataset=words)
    files = sorted((tmp_path / "number").rglob("*.safetensors"))
    assert len(files) == 12
    for file in files:
        twin = tmp_path / "auto" / file.relative_to(tmp_path / "number")
        assert twin.read_bytes() == file.read_bytes(), file
    # A study that has begun keeps its number, whatever fits now.
    monkeypatch.setattr(engine, "free_memory", lambda *_: 2**60)
    assert not train_study(auto, tmp_path / "auto", dataset=words).trained


@given(
    base=st.integers(0, 10**12),
    each=st.integers(1, 10**11),
    least=st.integers(1, 10**11),
    free=st.integers(0, 10**13),
)
def test_as_many_panels_fit_as_their_memory_says(base: int, each: int, least: int, free: int):
    one, two = Probe(1, 0, base + each), Probe(1, 0, base + 2 * each)
    fit, of_one = panels_that_fit(one, two, least, free), max(each, least)
    assert fit >= 1
    if fit > 1:
        assert base + each + (fit - 1) * of_one <= free
    assert base + each + fit * of_one > free


def test_seconds_are_of_reading_and_of_steps():
    assert Probe(0.5, 0.001, None).seconds(1000, 100) == pytest.approx(1 + 5)


def test_the_command_prints_what_is_planned_and_what_it_does_not_know(
    model: Path, tmp_path: Path
):
    panel = tmp_path / "panel.yaml"
    data = {**tiny_panel(model, seeds=[0, 1]), "evals": {"suites": {"core": {}}}}
    panel.write_text(yaml.safe_dump(data))
    told = tmp_path / "tasks.json"
    arguments = ["plan", str(panel), "--out", str(tmp_path / "none"), "--json", str(told)]
    shown = CliRunner().invoke(app, [*arguments, "--price", "2"])
    assert shown.exit_code == 0, shown.output
    spec = spec_from_dict(tiny_panel(model, seeds=[0, 1]))
    names = [task["name"] for task in json.loads(told.read_text())]
    assert names[: len(tasks(spec))] == [task.name for task in tasks(spec)]
    assert any(name.startswith("eval:core:") for name in names)
    assert "have no estimate" in shown.output
    assert not (tmp_path / "none").exists()
    bad = CliRunner().invoke(app, ["plan", str(panel), "--suites", "nothing"])
    assert isinstance(bad.exception, UserError)
