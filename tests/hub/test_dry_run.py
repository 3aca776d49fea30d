"""The command as typed: the dry run writes nothing, the licence is asked for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from sae_baselines.errors import UserError
from sae_baselines.hub import Publication, publish
from sae_baselines_cli.hub import app
from tests.hub.conftest import REPO
from tests.loopback_hub import Hub


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def state(output: str, path: str) -> str:
    (line,) = [line for line in output.splitlines() if line.startswith(f"│ {path} ")]
    return line.strip("│ ").rpartition("│")[2].strip()


def test_files_sizes_and_card_are_printed_and_nothing_is_written(
    study: Path, planned: Publication, hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_TOKEN")
    ran = call(study, REPO, "--license", "mit", "--dry-run")
    assert ran.exit_code == 0, ran.output
    assert f"{REPO} is not there" in ran.output
    for file in planned.files:
        assert state(ran.output, file.path) == "new"
    weights = next(f for f in planned.files if f.path.endswith("sae_weights.safetensors"))
    assert f"{weights.size / 1000:.1f} kB" in ran.output
    assert f"{len(planned.files)} files, " in ran.output
    assert ran.output.endswith(planned.card_text)
    assert "base_model is left out" in ran.output
    assert {method for method, _ in hub.requests} <= {"GET", "HEAD"}
    assert hub.repos == {}


def test_what_is_there_is_told_from_what_is_new(study: Path, planned: Publication, hub: Hub):
    publish(planned)
    head = hub.repos[REPO].head("main")
    head.files["results.csv"] = b"older"
    del head.files["report.html"]
    hub.requests.clear()
    ran = call(study, REPO, "--license", "mit", "--dry-run", "--revision", "next")
    assert "has no branch next: it would start from main" in ran.output
    assert state(ran.output, "results.csv") == "changed"
    assert state(ran.output, "report.html") == "new"
    assert state(ran.output, "study.yaml") == "unchanged"
    # The card names the branch, as its code has to.
    assert state(ran.output, "README.md") == "changed"
    assert "to upload: 3," in ran.output
    assert hub.writes() == []
    head.files["README.md"] = b"# mine"
    ran = call(study, REPO, "--license", "mit", "--dry-run")
    assert "As it is, publishing would stop" in ran.output


def test_without_a_network_it_says_so_and_prints_all_the_same(
    study: Path, planned: Publication, hub: Hub
):
    hub.failures["GET", "/api/models"] = "drop"
    ran = call(study, REPO, "--license", "mit", "--dry-run")
    assert ran.exit_code == 0
    assert "The repo could not be read, so what is new is not known" in ran.output
    assert ran.output.endswith(planned.card_text)


def test_the_licence_is_never_guessed(study: Path, hub: Hub):
    ran = call(study, REPO)
    assert isinstance(ran.exception, UserError)
    assert "license: say under which" in str(ran.exception)
    assert "--license" in str(ran.exception)
    assert hub.requests == []


def test_on_a_terminal_the_licence_is_asked_for(
    study: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("sae_baselines_cli.shared.sys", terminal)
    ran = CliRunner().invoke(app, [str(study), REPO, "--dry-run"], input="apache-2.0\n")
    assert "Licence of these SAEs (the Hub's id, e.g. mit): " in ran.output
    assert "license: apache-2.0" in ran.output
    assert hub.writes() == []


def test_publish_as_typed_says_what_it_did(study: Path, planned: Publication, hub: Hub):
    ran = call(study, REPO, "--license", "mit", "--private")
    assert ran.exit_code == 0, ran.output
    n = len(planned.files)
    assert f"Uploaded {n} files (6 SAEs), unchanged 0; commit" in ran.output
    assert ran.output.rstrip().endswith(f"/{REPO}")
    assert hub.repos[REPO].private
    ran = call(study, REPO, "--license", "mit", "--private")
    assert f"Nothing to do: all {n} files are there" in ran.output
