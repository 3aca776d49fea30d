"""Checkpoints that a runner may go on from."""

import json
from pathlib import Path

from sae_baselines.study.runner import complete_checkpoints


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
