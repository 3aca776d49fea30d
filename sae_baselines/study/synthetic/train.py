"""Training a synthetic study: all members of a setting on one stream, then measuring them."""

import gc
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sae_lens import SAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.sae import TrainingSAEConfig
from sae_lens.synthetic import SyntheticModel

from sae_baselines.files import write_atomically
from sae_baselines.study.build import EncoderStart, Start, member_config, prepare_start
from sae_baselines.study.folder import MEASUREMENT_FILE, StudyFolder
from sae_baselines.study.measure import L0_TOLERANCE, cosines_to_start, progress
from sae_baselines.study.plan import MemberKey, PanelKey
from sae_baselines.study.spec import MemberSpec, spec_hash
from sae_baselines.study.stream import train_on_stream
from sae_baselines.study.stream_members import build_members, export_member, tracking
from sae_baselines.study.synthetic.curve import Curve
from sae_baselines.study.synthetic.measure import FEATURES_FILE, measure_toy
from sae_baselines.study.synthetic.spec import ToySpec
from sae_baselines.study.synthetic.stream import CALIBRATION_STREAM, SyntheticStream
from sae_baselines.study.train import resolve_device
from sae_baselines.study.untrained import make_controls

logger = logging.getLogger("sae_baselines")

# Enough for an EV to 0.005 at every snapshot of every member.
_CURVE_SAMPLES = 2048


@dataclass(frozen=True)
class ToyPanelKey(PanelKey):
    """A panel on one setting's data."""

    setting: str

    @property
    def name(self) -> str:
        return f"{self.setting}_{super().name}"


def toy_panels(spec: ToySpec, setting: str, seed: int) -> list[ToyPanelKey]:
    """The panels that are trained together."""
    return [
        ToyPanelKey(architecture, spec.l0, seed, setting) for architecture in spec.architectures
    ]


def toy_members(spec: ToySpec, setting: str, seed: int) -> dict[MemberKey, MemberSpec]:
    """Their members, in order."""
    return {
        MemberKey(panel, member.name): member
        for panel in toy_panels(spec, setting, seed)
        for member in spec.member_specs
    }


def all_members(spec: ToySpec) -> Iterator[tuple[MemberKey, MemberSpec]]:
    """Every member of the study."""
    for setting in spec.settings:
        for seed in spec.seeds:
            yield from toy_members(spec, setting, seed).items()


def train_toy(spec: ToySpec, out: str | Path, *, resume: bool = False) -> Path:
    """Train, calibrate, export and measure every member.

    Members of a setting and seed advance in lockstep; members of all seeds of a setting see the
    same batches. A study that is finished is recognised and not repeated.

    Args:
        spec: What to train.
        out: Study folder.
        resume: Continue unfinished work in ``out``.

    Returns:
        The study folder.

    Raises:
        UserError: Bad input, in one line; nothing finished is lost.
        InterruptedTrainingError: SIGINT or SIGTERM; a checkpoint was saved.
    """
    folder = StudyFolder(out)
    keys = [key for key, _ in all_members(spec)]
    device = resolve_device(spec.device)
    with folder.locked():
        finished = folder.study_file.exists() and all(map(folder.measurement, keys))
        folder.open(spec, resume=resume or finished)
        if finished:
            logger.info("%s is finished; nothing to do", folder.root)
            return folder.root
        for setting in spec.settings:
            work = _Setting(spec, setting, folder, device)
            for seed in spec.seeds:
                work.train(seed)
                gc.collect()
            work.measure()
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return folder.root


class _Setting:
    """The ground truth of one setting, its held-out samples and the common start."""

    def __init__(self, spec: ToySpec, setting: str, folder: StudyFolder, device: str) -> None:
        self.spec = spec
        self.setting = setting
        self.folder = folder
        self.device = device
        self.model: SyntheticModel = spec.model_of(setting, device)
        held_out = SyntheticStream(
            self.model, spec.data_seed, spec.calibration_samples, CALIBRATION_STREAM
        )
        self.calibration = held_out.batch(0).cpu()
        start_folder = folder.root / "starts" / setting
        start_folder.mkdir(parents=True, exist_ok=True)
        self.start: Start = prepare_start(spec, self.calibration, start_folder)
        self.model.save(folder.root / "models" / setting)

    def train(self, seed: int) -> None:
        members = {
            key: member
            for key, member in toy_members(self.spec, self.setting, seed).items()
            if not member.is_control
        }
        if not all(map(self.folder.is_trained, members)):
            self._train(members, f"{self.setting}_seed_{seed}")
        make_controls(
            self.spec,
            self.folder,
            self.calibration,
            {"setting": self.setting},
            toy_panels(self.spec, self.setting, seed),
        )

    def _train(self, members: dict[MemberKey, MemberSpec], name: str) -> None:
        spec = self.spec
        logger.info("training %d SAEs: %s", len(members), name)
        began = time.monotonic()
        saes = build_members(self._configs(members), self.start, self.device)
        training = spec.training(self.device)
        held_out = self.calibration[:_CURVE_SAMPLES]
        curve = Curve(
            self.folder.root / "curves" / f"{name}.csv",
            self.model,
            held_out,
            training,
            spec.n_snapshots,
            {key.name: key for key in members},
        )
        checkpoints = self.folder.checkpoints / name
        drift = self.folder.checkpoints / f"drift_{name}"
        with tracking(drift, saes, spec.drift, held_out):
            trainer = train_on_stream(
                saes,
                SyntheticStream(self.model, spec.data_seed, spec.train_batch_size),
                training,
                checkpoints=checkpoints,
                run_hash=spec_hash(spec),
                watch=curve.watch,
            )
        seconds = round(time.monotonic() - began, 1)
        facts = {
            "setting": self.setting,
            "data_seed": spec.data_seed,
            "spec_hash": spec_hash(spec),
        }
        for key in members:
            export_member(
                self.folder,
                key,
                trainer.trainers[key.name],
                self.calibration,
                facts,
                drift if spec.drift else None,
                pass_seconds=seconds,
            )
        shutil.rmtree(checkpoints, ignore_errors=True)
        shutil.rmtree(drift, ignore_errors=True)

    def _configs(
        self, members: dict[MemberKey, MemberSpec]
    ) -> dict[MemberKey, TrainingSAEConfig]:
        starts: dict[tuple[float, int, str], EncoderStart] = {}
        square_norm = float(self.calibration.pow(2).sum(dim=1).mean())
        configs: dict[MemberKey, TrainingSAEConfig] = {}
        for key, member in members.items():
            config = member_config(
                self.spec,
                key,
                member,
                self.start,
                self.calibration.shape[1],
                self.device,
                starts,
            )
            if isinstance(config, JumpReLUTrainingSAEConfig):
                # A panel's coefficient supposes a mean square norm of d_in.
                config = replace(
                    config,
                    l0_coefficient=square_norm / self.spec.l0,
                    jumprelu_bandwidth=self.spec.jumprelu_bandwidth
                    * config.jumprelu_init_threshold,
                )
            configs[key] = config
        return configs

    def measure(self) -> None:
        missing = [
            (key, member)
            for key, member in all_members(self.spec)
            if isinstance(key.panel, ToyPanelKey)
            and key.panel.setting == self.setting
            and self.folder.measurement(key) is None
        ]
        for key, member in progress(missing, f"Measuring ({self.setting})"):
            folder = self.folder.member(key)
            sae = SAE.load_from_disk(folder, device=self.device)
            result = measure_toy(
                sae, self.model, n_samples=self.spec.eval_samples, seed=self.spec.data_seed
            )
            cosines: dict[str, float] = {}
            if not member.is_control:
                decoder, encoder = cosines_to_start(
                    sae, key.panel.seed, member.init_scheme, self.start.covariance_path
                )
                cosines = {
                    "cos_to_start_mean": float(decoder.mean()),
                    "cos_to_start_min": float(decoder.min()),
                    "encoder_cos_to_start_mean": float(encoder.mean()),
                }
            assert result.per_feature is not None
            result.per_feature.save(folder / FEATURES_FILE)
            record = {
                **result.to_dict(),
                "l0_target": key.panel.l0,
                "l0_matches": abs(result.l0 - key.panel.l0) <= L0_TOLERANCE * key.panel.l0,
                **cosines,
            }
            write_atomically(folder / MEASUREMENT_FILE, json.dumps(record, indent=2))
