"""What this package takes for granted of SAELens' trainers and runners."""

import inspect
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import ActivationsStore, MultiSAETrainingRunner
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import save_file

from sae_baselines.compat import training
from sae_baselines.compat.training import OpenRunner, TrainingStep, around_each_step
from sae_baselines.errors import UserError
from sae_baselines.progress import progress
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


def _norms_at_the_optimiser(steps: int) -> list[float]:
    """Norms of the gradients that a trainer's optimiser is given."""
    norms: list[float] = []
    trainer = make_trainer(make_sae("seeded_topk"), steps)

    def note(*_: Any) -> None:
        gradients = [p.grad for p in trainer.sae.parameters() if p.grad is not None]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))

    trainer.optimizer.register_step_pre_hook(note)
    trainer.fit()
    return norms


def test_gradients_are_clipped_where_saelens_clips_them() -> None:
    moved = "SAELens clips in another way: clip_grad_norm of a study does nothing, or too much"
    stock = _norms_at_the_optimiser(3)
    assert stock == pytest.approx([1.0] * 3, abs=1e-4), moved
    with training.clipping_at(1.0):
        assert _norms_at_the_optimiser(3) == stock
    with training.clipping_at(0.1):
        assert _norms_at_the_optimiser(3) == pytest.approx([0.1] * 3, abs=1e-5), moved
    with training.clipping_at(None):
        assert min(_norms_at_the_optimiser(3)) > 1.01, moved


@pytest.mark.parametrize("norm", [None, 0.1, 1.0])
def test_clipping_is_put_back_whatever_happens(norm: float | None) -> None:
    original = torch.nn.utils.clip_grad_norm_

    def fail() -> None:
        with training.clipping_at(norm):
            assert (torch.nn.utils.clip_grad_norm_ is original) == (norm == 1.0)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.nn.utils.clip_grad_norm_ is original


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


def test_the_training_bar_moves_each_step_and_says_what_was_seen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(inspect.signature(MultiSAETrainer._update_pbar).parameters)[:3] == [
        "self",
        "step_outputs",
        "pbar",
    ], "MultiSAETrainer calls its bar in another way: progress_each_step stands in for it"
    bars: list[Any] = []

    def noted(*args: Any, **options: Any) -> Any:
        bars.append(progress(*args, **options))
        return bars[-1]

    seen: list[int] = []
    monkeypatch.setattr(training, "progress", noted)
    trainer = make_trainer(make_sae("topk"), 5)

    def batches() -> Any:
        for batch in trainer.data_provider:
            seen.append(bars[0].n)
            yield {"hook": batch}

    together = MultiSAETrainer(trainer.cfg, {"a": trainer.sae}, {"a": "hook"}, batches())
    update = MultiSAETrainer._update_pbar
    with training.progress_each_step():
        together.fit()
    assert seen == [0, 64, 128, 192, 256]
    assert MultiSAETrainer._update_pbar is update
    assert "Training Multi-SAE: 320 of 320" in capsys.readouterr().err


class Malicious:
    """What a pickle may do to who reads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(Malicious.target),)

    target = Path()


@pytest.mark.parametrize("forced", [False, True])
def test_a_checkpoint_cannot_run_code(
    forced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Malicious.target = tmp_path / "run"
    trainer = make_trainer(make_sae("topk"), 2)
    together = MultiSAETrainer(
        trainer.cfg, {"a": trainer.sae}, {"a": "hook"}, ({"hook": b} for b in ())
    )
    together.trainers["a"].save_checkpoint("a", tmp_path)
    training.load_checkpoint(together, tmp_path)
    torch.save({"optimizer": Malicious()}, tmp_path / "a" / "trainer_state.pt")
    if forced:  # by an environment variable that turns torch's own caution off
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UserError, match=r"checkpoint .* is damaged .*delete"):
        training.load_checkpoint(together, tmp_path)
    assert not Malicious.target.exists()


@pytest.mark.parametrize("name", ["trainer_state.pt", "activation_scaler.json", "cfg.json"])
@pytest.mark.parametrize("junk", [False, True])
def test_half_a_file_of_a_checkpoint_is_named(name: str, junk: bool, tmp_path: Path) -> None:
    trainer = make_trainer(make_sae("topk"), 2)
    together = MultiSAETrainer(
        trainer.cfg, {"a": trainer.sae}, {"a": "hook"}, ({"hook": b} for b in ())
    )
    together.trainers["a"].save_checkpoint("a", tmp_path)
    if junk:
        (tmp_path / "._a").write_bytes(b"\0")
        (tmp_path / ".DS_Store").write_bytes(b"\0")
        training.load_checkpoint(together, tmp_path)
    path = tmp_path / "a" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if name == "cfg.json":  # which is not read: the members' configs are the study's
        training.load_checkpoint(together, tmp_path)
        return
    with pytest.raises(
        UserError, match=rf"out: checkpoint .*{tmp_path.name}.* is damaged"
    ) as it:
        training.load_checkpoint(together, tmp_path)
    assert f"delete {tmp_path} and run with --resume" in str(it.value)
    assert "\n" not in str(it.value)


def test_flaws_of_the_data_that_is_read_on_are_not_the_checkpoints(tmp_path: Path) -> None:
    save_file({"n_dataset_processed": torch.tensor(3)}, tmp_path / training.STORE_STATE)
    store: Any = object.__new__(ActivationsStore)
    store.n_dataset_processed = 0
    store.iterable_sequences = map(int, ["not a number"])
    with training.careful_resuming():
        with pytest.raises(ValueError, match="invalid literal"):
            store.load_from_checkpoint(tmp_path)
        (tmp_path / training.STORE_STATE).write_bytes(b"half")
        with pytest.raises(UserError, match=r"out: checkpoint .* is damaged"):
            store.load_from_checkpoint(tmp_path)


def test_a_store_reads_the_hooks_that_it_names_and_mixes_what_it_read() -> None:
    read = inspect.getsource(ActivationsStore.get_multi_hook_activations)
    assert "for h in self._hook_names" in read, (
        "ActivationsStore reads other hooks than _hook_names: side_by_side sets them"
    )
    mixed = inspect.getsource(ActivationsStore.get_multi_hook_data_loader)
    assert "hook_names=list(self._hook_names)" in mixed, (
        "ActivationsStore mixes other hooks than _hook_names: side_by_side puts them back"
    )


def test_saelens_writes_activations_with_a_model_that_is_loaded() -> None:
    source = inspect.getsource(training.cache_activations_runner)
    moved = "CacheActivationsRunner changed: training.cache_activations stands in for this"
    for name in ("self.model: HookedRootModule = load_model(", "in tqdm(range("):
        assert name in source, moved
    assert "token_ids" in source, "SAELens' cache has no token ids: activation_cache needs them"


def test_the_runner_of_several_saes_cannot_read_saelens_cache() -> None:
    source = inspect.getsource(ActivationsStore.from_config_multi_hook)
    assert "cached_activations_path=None" in source, (
        "SAELens' multi-hook store reads cached activations now: activation_cache can go"
    )
