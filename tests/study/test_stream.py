"""Training on activations by number: SAELens trains, batches are shared, resume is exact."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer

from sae_baselines.errors import UserError
from sae_baselines.study.runner import InterruptedTrainingError
from sae_baselines.study.stream import StreamTraining, train_on_stream

D_IN, D_SAE, BATCH = 8, 32, 16
TRAINING = StreamTraining(
    training_samples=BATCH * 30,
    train_batch_size=BATCH,
    lr=1e-2,
    n_batches_for_norm_estimate=3,
    n_checkpoints=4,
)


class Numbers:
    """Batch i is drawn from seed i; remembers what was asked for."""

    def __init__(self, broken: int | None = None) -> None:
        self.asked: list[int] = []
        self.broken = broken

    def batch(self, index: int) -> torch.Tensor:
        self.asked.append(index)
        x = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(index))
        if index == self.broken:
            x[3, 2] = torch.nan
        return x


def _sae(architecture: str = "frozen_decoder", **options: Any) -> TrainingSAE[Any]:
    sae_class, config_class = get_sae_training_class(architecture)
    return sae_class(config_class(**{"d_in": D_IN, "d_sae": D_SAE, "k": 4, **options}))


def _weights(sae: TrainingSAE[Any]) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in sae.state_dict().items()}


def _assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
def test_same_as_saelens_own_trainer(normalize: str) -> None:
    """SAETrainer on the same batches in the same order gives the same bits."""
    ours = {"a": _sae("frozen_encoder", normalize_activations=normalize, init_seed=1)}
    numbers = Numbers()
    train_on_stream(ours, numbers, TRAINING)
    alone = _sae("frozen_encoder", normalize_activations=normalize, init_seed=1)
    stream = (Numbers().batch(i) for i in range(1000))
    SAETrainer(cfg=TRAINING.trainer_config(None), sae=alone, data_provider=stream).fit()
    _assert_equal(_weights(ours["a"]), _weights(alone))
    assert numbers.asked == list(range(TRAINING.steps + (3 if normalize != "none" else 0)))


def test_members_together_are_members_apart() -> None:
    together = {name: _sae(name, init_seed=0) for name in ("frozen_decoder", "frozen_encoder")}
    train_on_stream(together, Numbers(), TRAINING)
    for name, sae in together.items():
        apart = {name: _sae(name, init_seed=0)}
        train_on_stream(apart, Numbers(), TRAINING)
        _assert_equal(_weights(apart[name]), _weights(sae))


class Stop:
    """Sends the process a signal once, before a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, step: int, saes: dict[str, TrainingSAE[Any]]) -> None:
        del saes
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
def test_an_interrupted_run_continues_with_the_next_batch(
    tmp_path: Path, normalize: str
) -> None:
    options: dict[str, Any] = {"normalize_activations": normalize}
    whole = {"a": _sae(**options)}
    seen = Numbers()
    train_on_stream(whole, seen, TRAINING)

    cut = {"a": _sae(**options)}
    with pytest.raises(InterruptedTrainingError):
        train_on_stream(
            cut, Numbers(), TRAINING, checkpoints=tmp_path, run_hash="h", watch=Stop(13)
        )
    resumed, rest = {"a": _sae(**options)}, Numbers()
    train_on_stream(resumed, rest, TRAINING, checkpoints=tmp_path, run_hash="h")
    assert rest.asked == seen.asked[-len(rest.asked) :]
    assert 0 < len(rest.asked) <= TRAINING.steps - 13
    _assert_equal(_weights(resumed["a"]), _weights(whole["a"]))


class KilledError(Exception):
    """The process died: nothing is saved on the way out."""


@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
@pytest.mark.parametrize("step", [7, 13, 29])
def test_a_killed_run_continues_from_its_last_checkpoint(
    tmp_path: Path, normalize: str, step: int
) -> None:
    """SAELens counts a step after its checkpoint; no batch may come twice or be left out."""
    options: dict[str, Any] = {"normalize_activations": normalize}
    whole, seen = {"a": _sae(**options)}, Numbers()
    train_on_stream(whole, seen, TRAINING)

    def kill(at: int, saes: dict[str, TrainingSAE[Any]]) -> None:
        assert list(saes) == ["a"]
        if at == step:
            raise KilledError

    with pytest.raises(KilledError):
        train_on_stream(
            {"a": _sae(**options)},
            Numbers(),
            TRAINING,
            checkpoints=tmp_path,
            run_hash="h",
            watch=kill,
        )
    resumed, rest, steps = {"a": _sae(**options)}, Numbers(), []
    trainer = train_on_stream(
        resumed,
        rest,
        TRAINING,
        checkpoints=tmp_path,
        run_hash="h",
        watch=lambda at, _: steps.append(at),
    )
    assert len(rest.asked) < len(seen.asked)
    assert rest.asked == seen.asked[-len(rest.asked) :]
    assert trainer.n_training_steps == TRAINING.steps
    assert steps[-1] == TRAINING.steps
    assert all(t.n_training_steps == TRAINING.steps for t in trainer.trainers.values())
    _assert_equal(_weights(resumed["a"]), _weights(whole["a"]))


def test_checkpoints_are_pruned_and_marked(tmp_path: Path) -> None:
    train_on_stream({"a": _sae()}, Numbers(), TRAINING, checkpoints=tmp_path, run_hash="h")
    (left,) = [p for p in tmp_path.iterdir() if p.is_dir()]
    record = json.loads((left / "complete.json").read_text())
    assert record == {"n_training_samples": int(left.name), "spec_hash": "h"}
    assert (left / "a" / "cfg.json").exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    train_on_stream({"a": _sae()}, Numbers(), TRAINING, checkpoints=tmp_path, run_hash="one")
    with pytest.raises(UserError, match="another spec"):
        train_on_stream(
            {"a": _sae()}, Numbers(), TRAINING, checkpoints=tmp_path, run_hash="two"
        )


def test_a_checkpoint_cut_short_is_not_used(tmp_path: Path) -> None:
    train_on_stream({"a": _sae()}, Numbers(), TRAINING, checkpoints=tmp_path, run_hash="h")
    (left,) = [p for p in tmp_path.iterdir() if p.is_dir()]
    (left / "complete.json").unlink()
    numbers = Numbers()
    train_on_stream({"a": _sae()}, numbers, TRAINING, checkpoints=tmp_path, run_hash="h")
    assert numbers.asked[0] == 0


def test_a_batch_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(UserError, match="batch 5 contains NaN"):
        train_on_stream({"a": _sae()}, Numbers(broken=5), TRAINING)


def test_diverged_weights_are_not_checkpointed(tmp_path: Path) -> None:
    sae = _sae()

    def poison(step: int, saes: dict[str, TrainingSAE[Any]]) -> None:
        if step == 2:
            saes["a"].b_dec.data[0] = torch.nan

    with pytest.raises(UserError, match=r"lr: a diverged"):
        train_on_stream(
            {"a": sae}, Numbers(), TRAINING, checkpoints=tmp_path, run_hash="h", watch=poison
        )
    assert not list(tmp_path.glob("*/complete.json"))


def test_the_watch_sees_every_step_and_the_end() -> None:
    steps: list[int] = []

    def watch(step: int, saes: dict[str, TrainingSAE[Any]]) -> None:
        assert list(saes) == ["a"]
        steps.append(step)

    train_on_stream({"a": _sae()}, Numbers(), TRAINING, watch=watch)
    assert steps == list(range(TRAINING.steps + 1))


def test_a_last_batch_in_part_is_a_whole_step() -> None:
    training = replace(TRAINING, training_samples=BATCH * 2 + 1, n_checkpoints=0)
    trainer = train_on_stream({"a": _sae()}, Numbers(), training)
    assert trainer.n_training_steps == training.steps == 3
