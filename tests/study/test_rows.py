"""Data that cannot be read: the file and the row, streamed or not, and never a traceback."""

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset

from sae_baselines.errors import UserError
from sae_baselines.study.data import load_text, split_text
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.spec import DatasetSpec, spec_from_dict
from tests.tiny_model import tiny_panel

GOOD = "the cat sat on the mat and then it ran under a tree " * 4
LINES = "".join(json.dumps({"text": GOOD}) + "\n" for _ in range(200))


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Any:
    spec = spec_from_dict(tiny_panel(model_folder))
    return load_language_model(spec.model, spec.hook_name, "cpu")


def _refused(model: Any, path: Path, streaming: bool) -> str:
    data = {"path": str(path), "streaming": streaming}
    spec = spec_from_dict({**tiny_panel(Path("m")), "dataset": data})
    with pytest.raises(UserError) as caught:
        list(split_text(load_text(spec.dataset), spec, model).train)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", ("x\n\ncafé " + GOOD).encode("latin-1"), "line 3: is not UTF-8 (byte 0xe9"),
        ("x.txt", GOOD.encode("utf-16"), "line 1: is UTF-16"),
        ("x.txt", GOOD.encode("utf-16-le"), "UTF-16"),
        ("x.jsonl", (LINES + '{"text": "café"}\n').encode("latin-1"), "line 201: is not UTF-8"),
        ("x.jsonl", (LINES + '{"text": "cut').encode(), "line 201: is not JSON"),
        ("x.jsonl", (LINES + "junk\n" + LINES).encode(), "line 201: is not JSON"),
        (
            "x.jsonl",
            (LINES + '{"text": 3}\n').encode(),
            "line 201: text is int and not text",
        ),
        ("x.jsonl", (LINES + '{"text": ["a"]}\n').encode(), "line 201: text is a list"),
        ("x.json", b'[{"text": "a"}, {"text": 3}]', "line 2: of the list: text is int"),
        ("x.jsonl.gz", gzip.compress((LINES * 9).encode())[:-40], "the file is cut short"),
        ("x.csv", ("text\n" + f"{GOOD}\n" * 9 + "a,b\n").encode(), "line 11: has 2 fields"),
        ("x.csv", "text\ncafé\n".encode("latin-1"), "line 2: is not UTF-8"),
        ("x.jsonl", b"", "is empty"),
        ("x.parquet", b"PAR1 and no more", "is cut short or no Parquet file"),
    ],
)
def test_the_file_and_the_row_are_named(
    model: Any, tmp_path: Path, streaming: bool, name: str, content: bytes, message: str
):
    path = tmp_path / name
    path.write_bytes(content)
    said = _refused(model, path, streaming)
    assert message in said
    assert f"dataset.path: {path}" in said or "is empty" in said


ROW = [1, 2, 3, 4] * 10


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("column", "rows", "message"),
    [
        ("text", [1] * 3, "row 1: text is int and not text: 1"),
        ("text", [[GOOD]] * 3, "row 1: text is a list and not text"),
        ("tokens", [ROW] * 90 + [[999] * 40], "row 91: tokens: has the token id 999, and the"),
        ("input_ids", [ROW] * 90 + [[-4] * 40], "row 91: input_ids: has the token id -4"),
        ("tokens", [ROW] * 90 + [None], "row 91: tokens: is None, not a list of token ids"),
        (
            "tokens",
            [ROW] * 90 + [[1, 2]],
            "row 91: tokens: context_size: 32 is more than",
        ),
        ("tokens", [[1.5] * 40] * 3, "tokens: has 1.5, and token ids are whole numbers"),
        ("tokens", [1, 2, 3], "not a list of token ids"),
    ],
)
def test_rows_of_a_parquet_file_are_numbered_as_in_the_file(
    model: Any, tmp_path: Path, streaming: bool, column: str, rows: list[Any], message: str
):
    path = tmp_path / "x.parquet"
    pd.DataFrame({column: rows}).to_parquet(path)
    if streaming and message.startswith("row 1:"):
        message = message.removeprefix("row 1:")
    said = _refused(model, path, streaming)
    assert message in said
    assert str(path) in said


def test_a_bad_file_in_a_folder_is_named(model: Any, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "b.jsonl").write_text(LINES + "junk\n")
    assert f"{tmp_path / 'b.jsonl'}, line 201: is not JSON" in _refused(model, tmp_path, False)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl"])
def test_a_row_without_text_is_left_out_and_said(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / f"x{suffix}"
    content = ('{"text": "a"}\n' * 2 + '{"text": null}\n{"text": "b"}\n').encode()
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    spec = DatasetSpec(path=str(path))
    rows: Any = load_text(spec)
    assert sorted(row["text"] for row in rows) == ["a", "a", "b"]
    assert "row 3 has no text" in caplog.text


def test_token_ids_in_memory_are_held_against_the_model(model: Any, model_folder: Path):
    spec = spec_from_dict(tiny_panel(model_folder))
    data = Dataset.from_dict({"tokens": [ROW] * 90 + [[23] * 40]})
    with pytest.raises(UserError, match="row 91: tokens: has the token id 23, and"):
        split_text(load_text(spec.dataset, data), spec, model)


def test_one_character_of_a_page_makes_no_utf_16():
    # As many a crawled page has.
    data: Any = load_text(DatasetSpec(path="x"), Dataset.from_dict({"text": [f"{GOOD}\0"]}))
    assert list(data) == [{"text": f"{GOOD}\0"}]


@pytest.mark.parametrize("kind", ["torch", "numpy", None])
@pytest.mark.parametrize("streamed", [False, True])
def test_token_ids_may_come_as_tensors(
    kind: str | None, streamed: bool, model: Any, model_folder: Path
):
    data: Any = Dataset.from_dict({"tokens": [ROW] * 90})
    data = (data.to_iterable_dataset() if streamed else data).with_format(kind)
    spec = spec_from_dict(tiny_panel(model_folder))
    train: Any = split_text(load_text(spec.dataset, data), spec, model).train
    assert {tuple(row["tokens"]) for row in train} == {tuple(ROW)}
