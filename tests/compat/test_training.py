"""What this package takes for granted of SAELens' trainers and runners."""

import inspect
from typing import Any

import pytest
import torch
from sae_lens import MultiSAETrainingRunner
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer

from sae_baselines.compat.training import OpenRunner, TrainingStep, around_each_step
from tests.helpers import make_sae, make_trainer


def test_a_step_takes_one_batch() -> None:
    assert list(inspect.signature(SAETrainer.step).parameters) == ["self", "batch"], (
        "SAETrainer.step takes something else: around_each_step stands in front of it"
    )


def test_the_trainer_of_several_saes_goes_through_the_step() -> None:
    assert "trainer.step(" in inspect.getsource(MultiSAETrainer), (
        "MultiSAETrainer does not call SAETrainer.step any more: drift is not recorded in it"
    )


def test_the_trainer_of_one_sae_goes_through_the_step() -> None:
    trained = []

    def around(step: TrainingStep, trainer: Any, batch: torch.Tensor) -> Any:
        trained.append(trainer.sae)
        return step(trainer, batch)

    sae = make_sae("frozen_decoder_topk")
    with around_each_step(around):
        make_trainer(sae, 3).fit()
    assert len(trained) == 3, "SAETrainer.fit does not call SAETrainer.step any more"
    assert all(each is sae for each in trained)


def test_the_step_is_put_back_whatever_happens() -> None:
    original = SAETrainer.step

    def fail() -> None:
        with around_each_step(lambda step, trainer, batch: step(trainer, batch)):
            assert SAETrainer.step is not original
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert SAETrainer.step is original


def test_saelens_has_the_methods_that_are_overridden_with_the_same_arguments() -> None:
    for name in ("_run_with_interruption_handling", "_save_runner_checkpoint_files"):
        theirs = getattr(MultiSAETrainingRunner, name, None)
        assert theirs is not None, f"SAELens moved MultiSAETrainingRunner.{name}"
        ours = getattr(OpenRunner, name)
        assert list(inspect.signature(ours).parameters) == list(
            inspect.signature(theirs).parameters
        )


def test_saelens_calls_them_where_it_did() -> None:
    run = inspect.getsource(MultiSAETrainingRunner.run)
    assert "self._run_with_interruption_handling(trainer)" in run
    assert "save_checkpoint_fn=self._save_runner_checkpoint_files" in run
    fit = inspect.getsource(MultiSAETrainer.fit)
    assert "next(self.data_provider)" in fit
    assert "checkpoint_thresholds" in inspect.getsource(MultiSAETrainer.__init__)
