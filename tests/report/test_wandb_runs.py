"""A study's runs in Weights & Biases, written in its offline mode and read from its files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.errors import UsageError
from wandb.proto import wandb_internal_pb2

import tests.cli.parsing as cli
from sae_baselines.errors import UserError
from sae_baselines.report.wandb_runs import log_to_wandb
from sae_baselines.results import Results
from tests.report.studies import clean

_BLOCK, _HEADER = 32768, 7
_WRITTEN: Any = wandb_internal_pb2


def _records(file: Path) -> Iterator[Any]:
    """Records of a run's file: LevelDB's log format, after seven bytes of wandb's own."""
    data, at, parts = file.read_bytes(), 7, b""
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = _WRITTEN.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def _runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Of each run: its group, job type, name, config and summary."""
    wandb.teardown()  # its service writes on for a moment after a run is finished
    runs: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        run: dict[str, Any] = {"summary": {}}
        for record in _records(file):
            if record.HasField("run") and "id" not in run:
                it = record.run
                config = {u.key: json.loads(u.value_json) for u in it.config.update}
                run |= {"id": it.run_id, "project": it.project, "name": it.display_name}
                run |= {"group": it.run_group, "job": it.job_type, "config": config}
            for update in record.summary.update if record.HasField("summary") else ():
                key = update.key or "/".join(update.nested_key)
                run["summary"][key] = json.loads(update.value_json)
        runs[run["id"]] = run
    return runs


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    wandb.teardown()  # it reads where to write once in a process
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    frame = clean(seeds=1)
    folder = tmp_path / "my-study"
    folder.mkdir()
    Results.of(frame).write(folder / "results.csv")
    yield folder
    wandb.teardown()


def test_runs_of_a_study_are_one_group_with_member_seed_and_constraint(study: Path) -> None:
    frame = Results.read(study).frame
    ids = log_to_wandb(study, "project-of-mine")
    runs = _runs(study.parent)
    assert set(runs) == set(ids)
    assert len(ids) == len(frame[["panel", "member", "seed"]].drop_duplicates())
    assert {run["group"] for run in runs.values()} == {"my-study"}
    assert {run["project"] for run in runs.values()} == {"project-of-mine"}
    for run in runs.values():
        config = run["config"]
        of_it = frame.loc[
            (frame["panel"] == config["panel"]) & (frame["member"] == config["member"])
        ]
        assert run["job"] == config["constraint"] == of_it["constraint"].iloc[0]
        assert config["seed"] == of_it["seed"].iloc[0]
        assert config["l0"] == of_it["l0"].iloc[0]
        row = of_it.loc[of_it["task"] == ""].iloc[0]
        assert run["summary"][f"{row['suite']}/{row['metric']}"] == pytest.approx(row["value"])


def test_an_sae_is_the_same_run_again(study: Path) -> None:
    assert log_to_wandb(study, "p") == log_to_wandb(study, "p")


def test_report_takes_a_project(study: Path) -> None:
    result = cli.typed("report", str(study), "--wandb", "p")
    assert isinstance(result.exception, cli.HandOver)


def test_what_wandb_refuses_is_one_line(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise UsageError("no API key\nat all")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"^wandb: .*no API key.*WANDB_MODE=offline$"):
        log_to_wandb(study, "p")


@pytest.mark.parametrize("project", ["", " "])
def test_a_project_has_a_name(project: str, study: Path) -> None:
    with pytest.raises(UserError, match="project: is empty"):
        log_to_wandb(study, project)
