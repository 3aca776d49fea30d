"""Samples of a SAELens synthetic model, whose true features are known."""

from pathlib import Path
from typing import Any

from sae_lens import SAE

from sae_baselines.files import new_folder
from sae_baselines.study.engine import PassRun, Trained, resolve_device
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.measure import Cosines, cosine_facts, l0_matches
from sae_baselines.study.memory import check_memory
from sae_baselines.study.spec import spec_hash
from sae_baselines.study.stream import StreamTraining, train_on_stream
from sae_baselines.study.synthetic.curve import Curve
from sae_baselines.study.synthetic.measure import FEATURES_FILE, measure_toy
from sae_baselines.study.synthetic.spec import ToySpec
from sae_baselines.study.synthetic.stream import (
    CALIBRATION_STREAM,
    HELD_OUT_STREAM,
    SyntheticStream,
)

# Enough for an EV to 0.005 at every snapshot of every member.
_CURVE_SAMPLES = 2048
# What single latents do is measured on this many; how often they fire, on all.
_LATENT_SAMPLES = 20_000


class SyntheticSource:
    """The ground truth of one setting; see `engine.Source`."""

    scratch = ()

    def __init__(self, spec: ToySpec, folder: StudyFolder, name: str) -> None:
        """Make the setting's model and its held-out samples.

        Raises:
            UserError: SAELens cannot make a model of the setting.
        """
        self.spec, self.name, self.folder = spec, name, folder
        self.device = resolve_device(spec.device)
        if name not in spec.models:
            check_memory(spec, spec.n)
        self.model = spec.model_of(name, self.device)
        check_memory(spec, self.model.cfg.hidden_dim)
        held_out = SyntheticStream(
            self.model, spec.data_seed, spec.calibration_samples, CALIBRATION_STREAM
        )
        self.calibration = self.held_out = held_out.batch(0).cpu()
        n = min(spec.eval_samples, _LATENT_SAMPLES)
        self.evaluation = (
            SyntheticStream(self.model, spec.data_seed, n, HELD_OUT_STREAM).batch(0).cpu()
        )
        self.start_folder = folder.root / "starts" / name
        self.facts = {"setting": name}
        with new_folder(folder.root / "models" / name) as scratch:
            self.model.save(scratch)

    def train(self, run: PassRun) -> Trained:
        spec = self.spec
        saes = run.build(self.device)
        training = StreamTraining.of(spec, self.device)
        curve = Curve(
            self.folder.root / "curves" / f"{run.this_pass.name}.csv",
            self.model,
            self.held_out[:_CURVE_SAMPLES],
            training,
            spec.n_snapshots,
            {key.name: key for key in run.configs},
        )
        with run.tracking(saes):
            trainer = train_on_stream(
                saes,
                SyntheticStream(self.model, spec.data_seed, spec.train_batch_size),
                training,
                checkpoints=run.checkpoints,
                run_hash=spec_hash(spec),
                watch=curve.watch,
            )
        return Trained(trainer.trainers)

    def measure(
        self, sae: SAE[Any], folder: Path, l0_target: float, cosines: Cosines | None
    ) -> dict[str, Any]:
        result = measure_toy(
            sae, self.model, n_samples=self.spec.eval_samples, seed=self.spec.data_seed
        )
        assert result.per_feature is not None
        result.per_feature.save(folder / FEATURES_FILE)
        return {
            **result.to_dict(),
            "l0_target": l0_target,
            "l0_matches": l0_matches(result.l0, l0_target),
            **(cosine_facts(cosines) if cosines else {}),
        }
