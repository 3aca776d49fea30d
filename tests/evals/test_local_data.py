"""Local datasets: what SAEBench is shown, and what makes two of them different."""

from pathlib import Path

import pytest
from datasets import load_dataset

from sae_baselines.evals.store import fingerprints, linked

NAMES = ("dataset",)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "one.jsonl").write_text('{"text": "one"}\n')
    (folder / "two.jsonl").write_text('{"text": "two"}\n')
    return folder


def texts(name: str) -> list[str]:
    return sorted(row["text"] for row in load_dataset(name, split="train"))  # type: ignore[index]


def test_a_folder_is_shown_whole(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    options = linked({"dataset": str(data), "n": 1}, NAMES, work)
    monkeypatch.chdir(work)
    assert options == {"dataset": "data_texts", "n": 1}
    assert texts(options["dataset"]) == ["one", "two"]


def test_a_file_is_shown_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its neighbours must not be read as well."""
    work = tmp_path / "work"
    work.mkdir()
    options = linked({"dataset": str(data / "two.jsonl")}, NAMES, work)
    # Twice, as after an interruption.
    options = linked({"dataset": str(data / "two.jsonl")}, NAMES, work)
    monkeypatch.chdir(work)
    assert texts(options["dataset"]) == ["two"]


def test_a_name_of_the_hub_is_left_alone(tmp_path: Path) -> None:
    given = {"dataset": "Skylion007/openwebtext", "other": None}
    assert linked(given, ("dataset", "other"), tmp_path) == given
    assert fingerprints(given, ("dataset", "other")) == {}


def test_fingerprint_is_of_the_content(data: Path, tmp_path: Path) -> None:
    first = fingerprints({"dataset": str(data)}, NAMES)
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for file in data.iterdir():
        (copy / file.name).write_text(file.read_text())
    assert fingerprints({"dataset": str(copy)}, NAMES) == first
    (copy / "one.jsonl").write_text('{"text": "another"}\n')
    assert fingerprints({"dataset": str(copy)}, NAMES) != first
