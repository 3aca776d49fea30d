"""Activations of a language model on text, trained on by SAELens' own multi-SAE runner."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from sae_lens import SAE, LoggingConfig, MultiSAETrainingRunnerConfig
from transformer_lens.hook_points import HookedRootModule

from sae_baselines.compat.training import careful_resuming
from sae_baselines.study.activation_cache import ActivationCache
from sae_baselines.study.build import set_b_dec
from sae_baselines.study.data import load_text, shuffle
from sae_baselines.study.engine import PassRun, Trained, resolve_device
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.held_out import VARIANCE_IN_FEW, Data, study_data
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.measure import (
    AffineNull,
    BaseLosses,
    Cosines,
    affine_null,
    base_losses,
    measure_sae,
)
from sae_baselines.study.redraw import shuffle_mlp
from sae_baselines.study.reference.member import model_kwargs
from sae_baselines.study.rows import reading
from sae_baselines.study.runner import PanelRunner, checkpoint_to_resume
from sae_baselines.study.shared_model import Memory, sharing
from sae_baselines.study.spec import PanelSpec, spec_hash

logger = logging.getLogger("sae_baselines")

# What a SAELens runner's config and a `PanelSpec` call by the same name.
_SAME_NAMES = (
    "adam_beta1",
    "adam_beta2",
    "autocast",
    "autocast_lm",
    "compile_llm",
    "context_size",
    "dead_feature_window",
    "dtype",
    "exclude_special_tokens",
    "feature_sampling_window",
    "lr",
    "lr_decay_steps",
    "lr_scheduler_name",
    "lr_warm_up_steps",
    "n_batches_for_norm_estimate",
    "n_batches_in_buffer",
    "n_checkpoints",
    "prepend_bos",
    "store_batch_size_prompts",
    "train_batch_size_tokens",
    "training_tokens",
)

# Of `kept_open`: the model and what was read, by study, source and device.
_Key = tuple[str, str, str, str]
_kept: dict[_Key, tuple[HookedRootModule, Data]] | None = None


@contextmanager
def kept_open() -> Iterator[None]:
    """What is opened meanwhile stays in memory, so that model and text are read once.

    Not of random models, of which a study may have many.
    """
    global _kept
    before, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = before


class TextSource:
    """Text through a language model; see `engine.Source`."""

    scratch = ()

    def __init__(
        self,
        spec: PanelSpec,
        folder: StudyFolder,
        name: str = "",
        *,
        dataset: Any = None,
        model: HookedRootModule | None = None,
    ) -> None:
        """Load text and model, and run the model over held-out text.

        The model in memory is the one as it is; random ones are drawn from its files.

        Raises:
            UserError: Text or model cannot be read, or do not fit the spec.
        """
        self.spec = spec
        self.device = self.llm_device = resolve_device(spec.device)
        if spec.llm_device is not None:
            self.llm_device = resolve_device(spec.llm_device, "llm_device")
        self.start_folder = folder.root / "starts" / name if name else folder.root
        self.drawn = spec.random_models.get(name)
        self._memory = Memory()  # of the passes that measure
        key = (spec_hash(spec), name, self.device, self.llm_device)
        own = model is None and dataset is None and self.drawn is None
        if own and _kept is not None and key in _kept:
            self.model, self.data = _kept[key]
        else:
            text = load_text(spec.dataset, dataset)  # before the model: it fails sooner
            if model is None or self.drawn is not None:
                model = self._load(spec)
            self.model = model
            self.data = study_data(spec, model, text, self.device)
            if own and _kept is not None:
                _kept[key] = self.model, self.data
        self.d_in = self.data.d_in
        self.calibration = self.data.held_out.calibration
        self.held_out = self.evaluation = self.data.held_out.evaluation
        self.facts = {
            "held_out_documents": self.data.n_held_out,
            VARIANCE_IN_FEW: self.data.variance_in_few,
        }
        if self.drawn is not None:
            self.facts |= self.drawn.facts
        self._cache = ActivationCache(spec, folder.cache(name), self.d_in)

    def cache_activations(self) -> None:
        self._cache.write(self.model, self.data.train, self.device)

    def _load(self, spec: PanelSpec) -> HookedRootModule:
        drawn = self.drawn
        if drawn is None or not drawn.is_shuffled_mlp:
            return load_language_model(spec.model, spec.hook_name, self.llm_device, drawn)
        model = load_language_model(spec.model, spec.hook_name, self.llm_device)
        block, write = spec.block_of_mlp, spec.hook_written
        assert block is not None
        if write in model.hook_dict:  # else `study_data` says so
            shuffle_mlp(model, spec.hook_name, write, block, drawn.seed)
        return model

    def train(self, run: PassRun) -> Trained:
        spec = self.spec
        run_hash = spec_hash(spec)
        resume_from = checkpoint_to_resume(
            run.checkpoints, run_hash, [key.name for key in run.configs]
        )
        text = self.data.train
        if spec.data_order == "per_seed":
            text = shuffle(text, run.this_pass.data_seed)
        cfg = self._runner_config(run, resume_from)
        # SAELens warns that a dataset in memory cannot be found from its config; ours is in
        # study.yaml.
        saelens_logger = logging.getLogger("sae_lens")
        level = saelens_logger.level
        saelens_logger.setLevel(logging.ERROR)
        try:
            runner = PanelRunner(cfg, override_dataset=text, override_model=self.model)
        finally:
            saelens_logger.setLevel(level)
        # A probe has none, and measures the model too.
        cache = self._opened_cache if self._cache.is_whole else None
        runner.prepare(spec.keep_checkpoints, run_hash, spec.hook_name_out, cache)
        set_b_dec(runner.saes, run.start)
        torch.manual_seed(run.this_pass.data_seed)
        with reading(spec.dataset), run.tracking(runner.saes), careful_resuming():
            runner.run()
        epochs = None  # of a stream of unknown length
        if not isinstance(text, IterableDataset):
            epochs = runner.activations_store.n_dataset_processed / len(text)
            if epochs > 1:
                logger.warning(
                    "the text was read %.1f times over; use more text, or fewer "
                    "training_tokens",
                    epochs,
                )
        return Trained(
            runner.trainer.trainers,
            {"data_order": spec.data_order},
            {
                "resumed_at_samples": int(resume_from.name) if resume_from else None,
                "epochs": epochs,
            },
        )

    def _runner_config(
        self, run: PassRun, resume_from: Path | None
    ) -> MultiSAETrainingRunnerConfig:
        spec, path = self.spec, Path(self.spec.dataset.path)
        same: dict[str, Any] = {name: getattr(spec, name) for name in _SAME_NAMES}
        cfg = MultiSAETrainingRunnerConfig(
            saes={key.name: config for key, config in run.configs.items()},
            hook_names=spec.hook_name,
            model_name=self.drawn.name if self.drawn else spec.model.recorded_name,
            model_class_name=spec.model.loader,
            model_from_pretrained_kwargs=model_kwargs(spec),
            dataset_path=path.name if path.exists() else spec.dataset.path,
            seqpos_slice=tuple(spec.seqpos_slice),
            device=self.device,
            llm_device=self.llm_device,
            seed=run.this_pass.data_seed,
            logger=LoggingConfig(log_to_wandb=False),
            output_path=None,
            resume_from_checkpoint=str(resume_from) if resume_from else None,
            **same,
        )
        cfg.checkpoint_path = str(run.checkpoints)  # without the random suffix of SAELens
        return cfg

    @cached_property
    def _opened_cache(self) -> ActivationCache:
        self._cache.open()
        return self._cache

    @cached_property
    def _losses(self) -> BaseLosses | None:
        if self.drawn is not None:
            return None  # a random model predicts nothing that a reconstruction could recover
        return base_losses(self.model, self.spec, self.data.held_out)

    @cached_property
    def _affine(self) -> AffineNull:
        return affine_null(self.model, self.spec, self.data.held_out, self.d_in, self._losses)

    def measure(
        self, sae: SAE[Any], folder: Path, l0_target: float, cosines: Cosines | None
    ) -> dict[str, Any]:
        del folder
        with sharing(self.model, self.spec.hook_written, self._memory):
            on = (self.spec, l0_target, self.data.held_out, self.model, self._losses, cosines)
            if self.spec.hook_name_out is not None:
                return measure_sae(sae, *on, self._affine).to_dict()
            return measure_sae(sae, *on).to_dict()
