"""Files of an evaluation that were cut, edited or moved: one line, and what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from sae_baselines.errors import UserError
from sae_baselines.evals.store import EvalStore

FACTS = {
    **{"panel": "p", "member": "trained", "constraint": "trained", "architecture": "topk"},
    **{"l0": None, "seed": 0},
}
RECORD: dict[str, Any] = {
    **{"suite": "core", "name": "a", "facts": FACTS, "settings": "s", "weights": "w"},
    **{"versions": {}, "hardware": {}, "extras": {}, "notes": [], "created": "2026"},
}


@pytest.fixture
def store(tmp_path: Path) -> EvalStore:
    store = EvalStore(tmp_path)
    (tmp_path / "made.json").write_text('{"score": 1}')
    store.keep("core", "a", tmp_path / "made.json", RECORD)
    return store


def test_a_result_that_cannot_be_read_says_why(store: EvalStore):
    found = store.load("core", "a")
    assert found is not None
    assert found.payload == {"score": 1}
    result = store.result_file("core", "a")
    for change, words in (
        (lambda: result.write_text("{}"), "was changed after it was written; delete a.record"),
        (result.unlink, "is missing; delete a.record.json beside it and evaluate again"),
        (result.mkdir, "cannot be read: Is a directory"),
    ):
        change()
        with pytest.raises(UserError, match=words):
            store.load("core", "a")


ODD: dict[str, Any] = {
    **{"versions.torch": 3, "notes.0": 3, "encoded": 3, "encoded.n": "x", "choice": {}},
    **{"choice.primary": 3, "command": 3, "facts.l0": "x", "facts.seed": True},
}


@pytest.mark.parametrize("where", ODD)
def test_what_is_in_a_record_is_what_reads_it_takes(where: str, store: EvalStore):
    path = store.record_file("core", "a")
    record = {k: v for k, v in json.loads(path.read_text()).items() if k != "checksum"}
    record |= {"encoded": {"n": 2, "active": 8}, "choice": {"created": "2026"}, "notes": ["a"]}
    path.write_text(json.dumps({**record, "facts": {**FACTS, "l0": 4}}))
    assert store.load("core", "a") is not None
    *table, name = where.split(".")
    inside = record[table[0]] if table else record
    inside[0 if name == "0" else name] = ODD[where]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"a\.record\.json: (has no )?{where}.*; delete it"):
        store.load("core", "a")


@pytest.mark.parametrize("field", [*RECORD, "facts.seed"])
def test_a_record_without_what_is_read_of_it_is_named(field: str, store: EvalStore):
    path = store.record_file("core", "a")
    record = json.loads(path.read_text())
    del record["checksum"]  # as an older version wrote it
    table = record["facts"] if "." in field else record
    name = field.rpartition(".")[2]
    for odd in (None, True):
        table.pop(name, None)
        if odd is not None:
            table[name] = "x" if name == "seed" else 3
        path.write_text(json.dumps(record))
        with pytest.raises(UserError, match=rf"a\.record\.json: (has no )?{field}.*delete it"):
            store.load("core", "a")


def test_a_record_of_another_and_a_failure_without_reason(store: EvalStore):
    store.fail("core", "a", {"reason": 3})
    with pytest.raises(UserError, match=r"a\.failed\.json: reason: 3 is no text; delete it"):
        store.failures()
    path = store.record_file("core", "b")
    path.write_text(json.dumps(RECORD))
    with pytest.raises(UserError, match=r"b\.record\.json: is the record of core of a"):
        store.records()
