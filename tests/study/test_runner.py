"""Checkpoints that a runner may go on from."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from sae_baselines.errors import UserError
from sae_baselines.study.runner import checkpoint_to_resume, complete_checkpoints


def test_only_complete_checkpoints_count_in_order_of_samples(tmp_path: Path):
    def checkpoint(name: str, *, complete: bool) -> None:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "runner_cfg.json").write_text("{}")
        if complete:
            (folder / "complete.json").write_text(
                json.dumps({"n_training_samples": int(name), "spec_hash": "x"})
            )

    checkpoint("1000", complete=True)
    checkpoint("900", complete=True)
    checkpoint("2000", complete=False)
    (tmp_path / "3000").mkdir()
    (tmp_path / "3000" / "complete.json").write_text("{")
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["900", "1000"]


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"n_training_samples": null}'])
def test_a_marker_that_says_nothing_is_of_no_checkpoint(content: str, tmp_path: Path):
    (tmp_path / "3000").mkdir()
    (tmp_path / "3000" / "runner_cfg.json").write_text("{}")
    (tmp_path / "3000" / "complete.json").write_text(content)
    assert complete_checkpoints(tmp_path) == []


def test_a_checkpoint_that_cannot_be_read_now_is_not_deleted_as_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "pass_0" / "3000"
    folder.mkdir(parents=True)
    (folder / "runner_cfg.json").write_text("{}")
    (folder / "complete.json").write_text('{"n_training_samples": 3000, "spec_hash": "x"}')
    read = Path.read_text

    def refuse(path: Path, *args: Any, **options: Any) -> str:
        if path.name == "complete.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refuse)
        with pytest.raises(UserError, match="the disk or its mount failed"):
            checkpoint_to_resume(tmp_path / "pass_0", "x")
    assert checkpoint_to_resume(tmp_path / "pass_0", "x") == folder
