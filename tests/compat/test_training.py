"""What this package takes for granted of SAELens' trainers and runners."""

import inspect
from typing import Any

import pytest
import torch
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer

from sae_baselines.compat.training import TrainingStep, around_each_step
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
