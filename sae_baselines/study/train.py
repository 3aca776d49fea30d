"""Training a study: every panel's members on one activation stream, then measuring them."""

import gc
import json
import logging
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from sae_lens import SAE, LoggingConfig, MultiSAETrainingRunnerConfig
from sae_lens.constants import SPARSITY_FILENAME
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformer_lens.hook_points import HookedRootModule

from sae_baselines.drift.record import DRIFT_FILE, HISTOGRAM_FILE
from sae_baselines.errors import UserError, one_line
from sae_baselines.provenance import environment
from sae_baselines.study.build import member_configs, prepare_start, set_b_dec
from sae_baselines.study.calibrate import calibrate
from sae_baselines.study.data import AnyDataset, load_text, shuffle
from sae_baselines.study.folder import PROVENANCE_FILE, StudyFolder
from sae_baselines.study.held_out import study_data
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.measure import (
    base_losses,
    measure,
    measure_sae,
    progress,
    write_measurement,
)
from sae_baselines.study.plan import (
    MemberKey,
    Pass,
    members_of,
    panels_of,
    passes_of,
    trained_of,
)
from sae_baselines.study.reference.member import (
    keep_published,
    model_kwargs,
    published_measurement,
)
from sae_baselines.study.runner import PanelRunner, assert_finite, checkpoint_to_resume
from sae_baselines.study.spec import PanelSpec, spec_hash
from sae_baselines.study.stream_members import tracking
from sae_baselines.study.untrained import make_controls

logger = logging.getLogger("sae_baselines")

# Held-out tokens for EV and L0 on the way: a forward pass of about two training batches.
_DRIFT_TOKENS = 2048


@dataclass(frozen=True)
class StudyResult:
    """What `train_study` leaves behind.

    Attributes:
        folder: The study folder.
        measurements: Per member, what `measurement.json` says.
        trained: Members trained (controls: made) by this call; the others were finished
            already.
    """

    folder: Path
    measurements: dict[MemberKey, dict[str, Any]]
    trained: list[MemberKey]

    @property
    def off_target(self) -> list[MemberKey]:
        """Members whose measured L0 is more than 5 % off."""
        return [k for k, m in self.measurements.items() if not m["l0_matches"]]


def train_study(
    spec: PanelSpec,
    out: str | Path,
    *,
    resume: bool = False,
    dataset: Any = None,
    model: HookedRootModule | None = None,
) -> StudyResult:
    """Train, calibrate, export and measure every member of every panel.

    Controls are not trained but made, from each panel's trained member once it is exported.
    A study that is finished is recognised and not repeated.

    Args:
        spec: What to train.
        out: Study folder.
        resume: Continue unfinished work in ``out``.
        dataset: In-memory dataset to use instead of ``spec.dataset.path``.
        model: Loaded model to use instead of ``spec.model.name``.

    Returns:
        Folder and measurements.

    Raises:
        UserError: Bad input, in one line; nothing finished is lost.
        InterruptedTrainingError: SIGINT or SIGTERM; a checkpoint was saved.
    """
    folder = StudyFolder(out)
    everything = [k for p in panels_of(spec) for k in members_of(spec, p)]
    with folder.locked():
        finished = folder.study_file.exists() and all(map(folder.measurement, everything))
        if spec.published is not None:
            finished = finished and published_measurement(folder) is not None
        folder.open(spec, resume=resume or finished)
        trained: list[MemberKey] = []
        if finished:
            logger.info("%s is finished; nothing to do", folder.root)
        else:
            trained = _Study(spec, folder, dataset, model).run()
        measurements = {k: folder.measurement(k) for k in everything}
    return StudyResult(folder.root, {k: m for k, m in measurements.items() if m}, trained)


def resolve_device(device: str) -> str:
    """``auto`` is CUDA if there is any, else the CPU.

    Raises:
        UserError: A device that torch does not know or does not have.
    """
    if device == "auto":
        # Not MPS: measurements sum in float64, which it does not have.
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device: {device!r} cannot be used: {reason}") from error
    return device


class _Study:
    """One call of `train_study`: the model, the text and what is shared by all passes."""

    def __init__(
        self,
        spec: PanelSpec,
        folder: StudyFolder,
        dataset: Any,
        model: HookedRootModule | None,
    ) -> None:
        self.spec = spec
        self.folder = folder
        self.device = resolve_device(spec.device)
        text = load_text(spec.dataset, dataset)  # before the model: it fails sooner
        if model is None:
            model = load_language_model(spec.model, spec.hook_name, self.device)
        self.model = model
        data = study_data(spec, model, text, self.device)
        self.d_in = data.d_in
        _check_l0(spec, self.d_in)
        self.train_text = data.train
        self.n_held_out = data.n_held_out
        self.held_out = data.held_out
        self.start = prepare_start(spec, self.held_out.calibration, folder.root)

    def run(self) -> list[MemberKey]:
        trained: list[MemberKey] = []
        if self.spec.published is not None:
            keep_published(self.spec, self.folder)
        for this_pass in passes_of(self.spec):
            keys = [k for p in this_pass.panels for k in trained_of(self.spec, p)]
            if not all(map(self.folder.is_trained, keys)):
                self._train(this_pass)
                trained.extend(keys)
                # SAELens' runner and trainer refer to each other: without this the SAEs and
                # optimisers of finished passes stay in memory.
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            shutil.rmtree(self.folder.checkpoints / this_pass.name, ignore_errors=True)
        calibration = self.held_out.calibration
        trained += make_controls(
            self.spec, self.folder, calibration, {"held_out_documents": self.n_held_out}
        )
        self._measure_all()
        if self.folder.checkpoints.exists():
            shutil.rmtree(self.folder.checkpoints)
        return trained

    def _train(self, this_pass: Pass) -> None:
        spec = self.spec
        began = time.monotonic()
        checkpoints = self.folder.checkpoints / this_pass.name
        resume_from = checkpoint_to_resume(checkpoints, spec_hash(spec))
        configs = member_configs(spec, this_pass, self.start, self.d_in, self.device)
        text = self.train_text
        if spec.data_order == "per_seed":
            text = shuffle(text, this_pass.data_seed)
        cfg = self._runner_config(configs, this_pass, checkpoints, resume_from)
        # SAELens warns that a dataset in memory cannot be found from its config; ours is in
        # study.yaml.
        saelens_logger = logging.getLogger("sae_lens")
        level = saelens_logger.level
        saelens_logger.setLevel(logging.ERROR)
        try:
            runner = PanelRunner(cfg, override_dataset=text, override_model=self.model)
        finally:
            saelens_logger.setLevel(level)
        runner.prepare(spec.keep_checkpoints, spec_hash(spec))
        set_b_dec(runner.saes, self.start)
        torch.manual_seed(this_pass.data_seed)
        try:
            held_out = self.held_out.evaluation[:_DRIFT_TOKENS]
            with tracking(self._drift, runner.saes, spec.drift, held_out):
                saes = runner.run()
        except (SafetensorError, KeyError, RuntimeError, EOFError) as error:
            if resume_from is None or hasattr(runner, "trainer"):
                raise  # not while the checkpoint was being read
            raise UserError(
                f"out: checkpoint {resume_from} is damaged ({one_line(error, 200)}); delete it "
                "and run with --resume"
            ) from error
        seconds = time.monotonic() - began
        epochs = _epochs(runner.activations_store.n_dataset_processed, text)
        if epochs is not None and epochs > 1:
            logger.warning(
                "the text was read %.1f times over; use more text, or fewer training_tokens",
                epochs,
            )
        for key in configs:
            self._export(key, saes[key.name], runner, resume_from, seconds, epochs)

    def _runner_config(
        self,
        configs: dict[MemberKey, TrainingSAEConfig],
        this_pass: Pass,
        checkpoints: Path,
        resume_from: Path | None,
    ) -> MultiSAETrainingRunnerConfig:
        spec = self.spec
        cfg = MultiSAETrainingRunnerConfig(
            saes={key.name: config for key, config in configs.items()},
            hook_names=spec.hook_name,
            model_name=spec.model.recorded_name,
            model_class_name=spec.model.loader,
            model_from_pretrained_kwargs=model_kwargs(spec),
            dataset_path=Path(spec.dataset.path).name
            if Path(spec.dataset.path).exists()
            else spec.dataset.path,
            context_size=spec.context_size,
            n_batches_in_buffer=spec.n_batches_in_buffer,
            training_tokens=spec.training_tokens,
            store_batch_size_prompts=spec.store_batch_size_prompts,
            seqpos_slice=tuple(spec.seqpos_slice),
            device=self.device,
            seed=this_pass.data_seed,
            dtype=spec.dtype,
            prepend_bos=spec.prepend_bos,
            autocast=spec.autocast,
            autocast_lm=spec.autocast_lm,
            compile_llm=spec.compile_llm,
            train_batch_size_tokens=spec.train_batch_size_tokens,
            adam_beta1=spec.adam_beta1,
            adam_beta2=spec.adam_beta2,
            lr=spec.lr,
            lr_scheduler_name=spec.lr_scheduler_name,
            lr_warm_up_steps=spec.lr_warm_up_steps,
            lr_decay_steps=spec.lr_decay_steps,
            dead_feature_window=spec.dead_feature_window,
            feature_sampling_window=spec.feature_sampling_window,
            logger=LoggingConfig(log_to_wandb=False),
            n_checkpoints=spec.n_checkpoints,
            output_path=None,
            resume_from_checkpoint=str(resume_from) if resume_from else None,
            exclude_special_tokens=spec.exclude_special_tokens,
            n_batches_for_norm_estimate=spec.n_batches_for_norm_estimate,
        )
        cfg.checkpoint_path = str(checkpoints)  # without the random suffix SAELens appends
        return cfg

    @property
    def _drift(self) -> Path:
        """Where drift is recorded until members have folders; kept when a pass is resumed."""
        return self.folder.checkpoints / "drift"

    def _export(
        self,
        key: MemberKey,
        sae: TrainingSAE[Any],
        runner: PanelRunner,
        resumed_from: Path | None,
        seconds: float,
        epochs: float | None,
    ) -> None:
        assert_finite(key.name, sae)
        calibration = calibrate(sae, self.held_out.calibration, key.panel.l0)
        trainer = runner.trainer.trainers[key.name]
        facts = {
            "panel": key.panel.name,
            "member": key.member,
            "architecture": sae.cfg.architecture(),
            "base_architecture": key.panel.architecture,
            "l0_target": key.panel.l0,
            "init_seed": key.panel.seed,
            "data_seed": runner.cfg.seed,
            "data_order": self.spec.data_order,
            "spec_hash": spec_hash(self.spec),
            "tokens_seen": trainer.n_training_samples,
            "training_steps": trainer.n_training_steps,
            "calibration": asdict(calibration),
            "held_out_documents": self.n_held_out,
        }
        sae.cfg.metadata.sae_baselines = facts
        with self.folder.new_member(key) as scratch:
            sae.save_inference_model(scratch)
            sparsity = trainer.log_feature_sparsity.contiguous()
            save_file({"sparsity": sparsity}, scratch / SPARSITY_FILENAME)
            provenance = {
                **facts,
                "resumed_at_tokens": int(resumed_from.name) if resumed_from else None,
                "pass_seconds": round(seconds, 1),
                "steps_since_start": _kinds_of_steps(sae),
                "epochs": epochs,
                **environment(),
            }
            (scratch / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2))
            for name in (DRIFT_FILE, HISTOGRAM_FILE):
                if self.spec.drift and (self._drift / key.name / name).exists():
                    shutil.copy(self._drift / key.name / name, scratch / name)

    def _measure_all(self) -> None:
        spec = self.spec
        missing = [
            (key, member)
            for panel in panels_of(spec)
            for key, member in members_of(spec, panel).items()
            if self.folder.measurement(key) is None
        ]
        published = self.folder.published
        if spec.published is None or published_measurement(self.folder) is not None:
            published = None
        wanted = bool(missing) or published is not None
        losses = base_losses(self.model, spec, self.held_out) if wanted else None
        if published is not None:
            sae = SAE.load_from_disk(published, device=self.device)
            result = measure_sae(sae, spec, spec.l0s[0], self.held_out, self.model, losses)
            write_measurement(published, result)
        for key, member in progress(missing, "Measuring"):
            try:
                result = measure(
                    self.folder.member(key),
                    key,
                    member,
                    spec,
                    self.start,
                    self.held_out,
                    self.model,
                    losses,
                    self.device,
                )
            except SafetensorError as error:
                raise UserError(
                    f"{self.folder.member(key)}: weights are damaged ({one_line(error, 200)}); "
                    "delete the folder and run with --resume"
                ) from error
            write_measurement(self.folder.member(key), result)


def _epochs(documents_read: int, text: AnyDataset) -> float | None:
    """How often the text was read, or None for a stream of unknown length."""
    return None if isinstance(text, IterableDataset) else documents_read / len(text)


def _check_l0(spec: PanelSpec, d_in: int) -> None:
    width = spec.width(d_in)
    for l0 in spec.l0s:
        if l0 >= width:
            raise UserError(f"l0: {l0:g} is not below d_sae={width}; use a smaller target")


def _kinds_of_steps(sae: TrainingSAE[Any]) -> dict[str, Any] | None:
    """How many steps ran on active entries, and why others did not; None without them."""
    state = getattr(sae, "sparse_state", None)
    if state is None or not sae.cfg.sparse_step:
        return None
    return {"sparse": state.sparse_steps, "dense": state.dense_steps}
