"""What is private, or patched, of SAELens' trainers and runners.

tests/compat/test_training.py has a contract per name, whose failure says what moved.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sae_lens import ActivationsStore, MultiSAETrainingRunner, cache_activations_runner
from sae_lens.config import CacheActivationsRunnerConfig
from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME as STORE_STATE
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training import activation_scaler, multi_sae_trainer
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file
from transformer_lens.hook_points import HookedRootModule

from sae_baselines.errors import UserError
from sae_baselines.files import unreadable
from sae_baselines.progress import progress

# Where SAELens clips the norm of gradients, of each SAE by itself.
_CLIPPED_AT = 1.0

TrainingStep = Callable[[SAETrainer[Any, Any], torch.Tensor], Any]


@contextmanager
def around_each_step(
    around: Callable[[TrainingStep, SAETrainer[Any, Any], torch.Tensor], Any],
) -> Iterator[None]:
    """Stand in front of `SAETrainer.step`, which every stock runner goes through.

    Args:
        around: Called with the step, the trainer and its batch; returns what the step does.
    """
    original = SAETrainer.step

    @functools.wraps(original)
    def step(trainer: SAETrainer[Any, Any], batch: torch.Tensor) -> Any:
        return around(original, trainer, batch)

    SAETrainer.step = step  # type: ignore[method-assign]
    try:
        yield
    finally:
        SAETrainer.step = original


@contextmanager
def timing_the_model(
    tell: Callable[[float, int], Any], wait: Callable[[], Any]
) -> Iterator[None]:
    """Time what SAELens' store reads from a language model.

    Args:
        tell: Called with the seconds and the activations of each batch.
        wait: Returns when the device has done what it was asked for.
    """
    original = ActivationsStore.get_multi_hook_activations

    @functools.wraps(original)
    def read(store: ActivationsStore, *args: Any, **options: Any) -> dict[str, torch.Tensor]:
        wait()
        began = time.perf_counter()
        found = original(store, *args, **options)
        wait()
        tell(time.perf_counter() - began, next(iter(found.values())).shape[:-1].numel())
        return found

    ActivationsStore.get_multi_hook_activations = read  # type: ignore[method-assign]
    try:
        yield
    finally:
        ActivationsStore.get_multi_hook_activations = original


@contextmanager
def clipping_at(norm: float | None) -> Iterator[None]:
    """Clip gradients of an SAE at this norm where SAELens' trainers do at 1; None does not."""
    original = torch.nn.utils.clip_grad_norm_

    @functools.wraps(original)
    def clip(parameters: Any, max_norm: float, *args: Any, **options: Any) -> Any:
        del max_norm
        limit = math.inf if norm is None else norm
        return original(parameters, limit, *args, **options)

    if norm == _CLIPPED_AT:
        yield
        return
    torch.nn.utils.clip_grad_norm_ = clip
    try:
        yield
    finally:
        torch.nn.utils.clip_grad_norm_ = original


@contextmanager
def weights_only() -> Iterator[None]:
    """Let `torch.load` read tensors and plain data alone: a pickle could run anything."""
    original = torch.load

    @functools.wraps(original)
    def load(*args: Any, **options: Any) -> Any:
        return original(*args, **{**options, "weights_only": True})

    torch.load = load
    try:
        yield
    finally:
        torch.load = original


def _carefully(load: Callable[[Any, Any], Any]) -> Callable[[Any, Any], None]:
    """A method that loads from a checkpoint, unpickling nothing and naming what is damaged."""

    @functools.wraps(load)
    def careful(self: Any, path: str | Path) -> None:
        try:
            with weights_only():
                load(self, path)
        except UserError:
            raise
        except Exception as error:
            why = unreadable(Path(path), error, f"delete {path} and run with --resume")
            raise UserError(f"out: checkpoint {why}") from error

    return careful


def load_checkpoint(trainer: MultiSAETrainer, folder: Path) -> None:
    """Restore trainer and SAEs.

    Raises:
        UserError: Something in the checkpoint cannot be read.
    """
    _carefully(MultiSAETrainer.load_checkpoint)(trainer, folder)


@contextmanager
def careful_resuming() -> Iterator[None]:
    """The same for what SAELens' runner loads by itself."""
    originals = (MultiSAETrainer.load_checkpoint, ActivationsStore.load_from_checkpoint)

    def load_store(store: ActivationsStore, path: str | Path) -> None:
        # It also reads the data on, whose flaws are not the checkpoint's.
        _carefully(lambda _, folder: load_file(Path(folder) / STORE_STATE))(store, path)
        originals[1](store, path)

    MultiSAETrainer.load_checkpoint = _carefully(originals[0])  # type: ignore[method-assign]
    ActivationsStore.load_from_checkpoint = load_store  # type: ignore[method-assign]
    try:
        yield
    finally:
        MultiSAETrainer.load_checkpoint, ActivationsStore.load_from_checkpoint = originals


def side_by_side(store: ActivationsStore, read: str, write: str) -> None:
    """Let a multi-hook store of one hook give that hook's activations and another's as one.

    What it calls ``read`` is then ``[..., d_in + d_out]``: the token's activations at both.
    """
    original = store.get_multi_hook_activations

    def both(batch_tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        names = store._hook_names
        store._hook_names = [read, write]
        try:
            found = original(batch_tokens)
        finally:
            store._hook_names = names
        return {read: torch.cat([found[read], found[write]], dim=-1)}

    store.get_multi_hook_activations = both


@contextmanager
def progress_each_step() -> Iterator[None]:
    """Let SAELens' training bar move each step, and write lines where it goes to a file."""
    bars: list[Any] = []

    def bar(*args: Any, **options: Any) -> Any:
        # What SAELens counts as "it": tokens, or patches, or samples.
        bars.append(progress(*args, **{"unit": "activation", **options}))
        return bars[-1]

    def update(trainer: MultiSAETrainer, outputs: Any, bar: Any, *_: Any) -> None:
        del outputs
        step = trainer.cfg.train_batch_size_samples
        if bar.n == 0:  # what an earlier run has seen says nothing of the rate
            bar.initial = bar.n = max(0, trainer.n_training_samples - step)
        bar.update(trainer.n_training_samples - bar.n)

    modules: tuple[Any, ...] = (multi_sae_trainer, activation_scaler)
    originals = [module.tqdm for module in modules], MultiSAETrainer._update_pbar
    for module in modules:
        module.tqdm = bar
    MultiSAETrainer._update_pbar = update  # type: ignore[method-assign]
    try:
        yield
    finally:
        MultiSAETrainer._update_pbar = originals[1]
        for module, original in zip(modules, originals[0], strict=True):
            module.tqdm = original
        for made in bars:
            made.close()  # also where training did not come to its end


def cache_activations(
    model: HookedRootModule,
    text: Any,
    folder: Path,
    *,
    batches: int,
    batches_a_file: int,
    context_size: int,
    model_batch_size: int,
    d_in: int,
    dtype: str,
    **options: Any,
) -> None:
    """Write activations in SAELens' format, by SAELens' runner, on a model that is loaded.

    Args:
        model: The language model.
        text: Dataset.
        folder: Must not be there yet, or be empty.
        batches: Of the model, that are written.
        batches_a_file: At most; the last file is as long as the others, SAELens' way.
        context_size: Tokens of a row.
        model_batch_size: Rows of a batch.
        d_in: Width of the hook.
        dtype: Of what is written.
        options: Further fields of its config.
    """
    files = math.ceil(batches / batches_a_file)
    tokens = math.ceil(batches / files) * model_batch_size * context_size
    bytes_a_token = d_in * getattr(torch, dtype).itemsize
    config = CacheActivationsRunnerConfig(
        dataset_path="",
        model_name="",
        training_tokens=files * tokens,
        # It rounds down to whole batches.
        buffer_size_gb=(tokens + 0.5) * bytes_a_token / 1e9,
        new_cached_activations_path=str(folder),
        shuffle=False,
        context_size=context_size,
        model_batch_size=model_batch_size,
        d_in=d_in,
        dtype=dtype,
        **options,
    )
    module: Any = cache_activations_runner
    originals = module.load_model, module.tqdm
    module.load_model = lambda **_: model
    module.tqdm = functools.partial(progress, unit="file")
    try:
        cache_activations_runner.CacheActivationsRunner(config, override_dataset=text).run()
    finally:
        module.load_model, module.tqdm = originals


class OpenRunner(MultiSAETrainingRunner):
    """SAELens' runner, with two places to stand in that SAELens keeps to itself.

    Attributes:
        trainer: Set when training is about to begin.
    """

    trainer: MultiSAETrainer

    def fit(self, trainer: MultiSAETrainer) -> dict[str, TrainingSAE[Any]]:
        """Train; SAELens would answer signals inside a step."""
        return super()._run_with_interruption_handling(trainer)

    def checkpoint_saved(self, folder: Path) -> None:
        """Called when all files of a checkpoint are written."""

    def _run_with_interruption_handling(
        self, trainer: MultiSAETrainer
    ) -> dict[str, TrainingSAE[Any]]:
        self.trainer = trainer
        return self.fit(trainer)

    def _save_runner_checkpoint_files(self, checkpoint_path: Path | None) -> None:
        super()._save_runner_checkpoint_files(checkpoint_path)
        if checkpoint_path is not None:
            self.checkpoint_saved(checkpoint_path)
