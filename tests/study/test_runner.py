"""The private methods of SAELens that the runner overrides are still where they were."""

import inspect
import json
from pathlib import Path

from sae_lens import MultiSAETrainingRunner
from sae_lens.training.multi_sae_trainer import MultiSAETrainer

from sae_baselines.study.runner import PanelRunner, complete_checkpoints


def test_saelens_has_the_methods_that_are_overridden_with_the_same_arguments():
    for name in ("_run_with_interruption_handling", "_save_runner_checkpoint_files"):
        theirs = getattr(MultiSAETrainingRunner, name, None)
        assert theirs is not None, f"SAELens moved MultiSAETrainingRunner.{name}"
        ours = getattr(PanelRunner, name)
        assert list(inspect.signature(ours).parameters) == list(
            inspect.signature(theirs).parameters
        )


def test_saelens_calls_them_where_it_did():
    run = inspect.getsource(MultiSAETrainingRunner.run)
    assert "self._run_with_interruption_handling(trainer)" in run
    assert "save_checkpoint_fn=self._save_runner_checkpoint_files" in run
    fit = inspect.getsource(MultiSAETrainer.fit)
    assert "next(self.data_provider)" in fit
    assert "checkpoint_thresholds" in inspect.getsource(MultiSAETrainer.__init__)


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
