"""The panels of secret_baseline.py: small SAEs on SAELens' synthetic data, and their scores."""

import contextlib
import dataclasses
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE
from sae_lens.synthetic import (
    SyntheticActivationIterator,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
    compute_classification_metrics,
    feature_uniqueness,
    mean_correlation_coefficient,
)
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from scipy.stats import mannwhitneyu
from tqdm.auto import tqdm

import sae_baselines  # noqa: F401  (registers the architectures)
from sae_baselines.evals import Metric, Suite, register_suite
from sae_baselines.evals.metrics import HIGHER, null_name, with_floors
from sae_baselines.evals.suite import Measured
from sae_baselines.reconstruction import explained_variance
from sae_baselines.study.build import architecture_options
from sae_baselines.study.calibrate import calibrate
from sae_baselines.study.latents import latents_of

BASE = "batchtopk"
KINDS = ("frozen_decoder", "frozen_encoder")
SUITE = "synthetic"
EV, AUC, CORRELATION = "explained_variance", "top_1_auc", "top_1_correlation"
METRICS = (EV, AUC, CORRELATION, "mcc", "f1", "uniqueness")
# Of the metrics that have tasks: the same with a live latent drawn at random.
DRAWN = "random_latent"
NULLS = tuple(null_name(metric, DRAWN) for metric in (AUC, CORRELATION))
# What each latent of an SAE does.
RATES, EXPLAINED = "rates", "explained"

Scores = dict[str, Any]
Row = dict[str, Any]


class Synthetic(Suite):
    """What the report knows of these metrics: which is whose floor. Nothing is run by it."""

    name = SUITE
    summary = "small SAEs on synthetic data"
    primary = METRICS
    metrics = (
        *(Metric(name, HIGHER) for name in METRICS if name not in (AUC, CORRELATION)),
        *with_floors(Metric(AUC, HIGHER, "AUC"), {DRAWN: "a latent at random"}),
        *with_floors(Metric(CORRELATION, HIGHER, "Correlation"), {DRAWN: "a latent at random"}),
    )

    def defaults(self) -> dict[str, Any]:
        return {}

    def problems(self, *_: Any, **__: Any) -> Iterable[str]:
        return ()

    def run(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("secret_panels.score does")

    def rows(self, *_: Any, **__: Any) -> list[Measured]:
        return []


register_suite(SUITE, Synthetic)


@dataclass(frozen=True)
class Settings:
    """Sizes; a row file is good for one set of them."""

    d_in: int = 32
    n_features: int = 128
    d_sae: int = 128
    l0: float = 6.0
    steps: int = 160
    batch: int = 256
    lr: float = 3e-3
    held_out: int = 8192
    n_tasks: int = 12


FULL = Settings()
QUICK = Settings(
    d_in=16, n_features=32, d_sae=32, l0=3.0, steps=20, batch=64, held_out=1024, n_tasks=4
)


class World:
    """The synthetic model that all seeds share, and what is held out of it.

    Args:
        settings: Sizes.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.model = SyntheticModel(
            SyntheticModelConfig(
                num_features=settings.n_features,
                hidden_dim=settings.d_in,
                firing_probability=ZipfianFiringProbabilityConfig(),
                std_firing_magnitudes=0.3,
                seed=0,
            )
        )
        torch.manual_seed(0)
        # First half: calibration, and choosing the latent of each task. Second: scores.
        self.features = self.model.activation_generator.sample(settings.held_out)
        with torch.no_grad():
            self.hidden = self.model.feature_dict(self.features)

    @property
    def half(self) -> int:
        return self.settings.held_out // 2

    @cached_property
    def tasks(self) -> list[int]:
        """Ground-truth features to probe for, from the commonest down to 1 in 50."""
        share = (self.features > 0).double().mean(dim=0)
        common = torch.nonzero((share >= 0.02) & (share <= 0.5)).flatten()
        ordered = common[share[common].argsort(descending=True, stable=True)].tolist()
        step = max(1, len(ordered) // self.settings.n_tasks)
        return ordered[::step][: self.settings.n_tasks]

    def stream(self, seed: int) -> Iterator[dict[str, torch.Tensor]]:
        """Training batches, as `MultiSAETrainer` wants them."""
        torch.manual_seed(seed)
        batches = SyntheticActivationIterator(
            self.model.feature_dict, self.model.activation_generator, self.settings.batch
        )
        return ({SUITE: batch} for batch in batches)


def members() -> dict[str, tuple[str, int]]:
    """Architecture and which of the two initialisations, by member."""
    twins = {f"{kind}_{i}": (f"{kind}_{BASE}", i) for kind in KINDS for i in (0, 1)}
    return {"learned": (f"seeded_{BASE}", 0), **twins}


def train_missing(settings: Settings, n_seeds: int, file: Path) -> list[Row]:
    """Scores of all seeds; trains those that are not in the file yet.

    Args:
        settings: Sizes; must be those of the file.
        n_seeds: Seeds 0 to n - 1.
        file: One line per finished seed, appended.
    """
    stamp = dataclasses.asdict(settings)
    done: dict[int, Row] = {}
    if file.exists():
        for line in file.read_text().splitlines():
            # A line that was being written when the run was killed does not parse.
            with contextlib.suppress(json.JSONDecodeError):
                row = json.loads(line)
                if row["settings"] != stamp:
                    sys.exit(f"--rows: {file} was made with other settings; use another file")
                done[row["seed"]] = row
    file.parent.mkdir(parents=True, exist_ok=True)
    todo = [seed for seed in range(n_seeds) if seed not in done]
    world = World(settings)
    with file.open("a") as handle:
        for seed in tqdm(todo, desc="panels", disable=None):
            done[seed] = {"settings": stamp, **panel(world, seed)}
            handle.write("\n" + json.dumps(done[seed]))
            handle.flush()
    return [done[seed] for seed in range(n_seeds)]


def panel(world: World, seed: int) -> Row:
    """Train and score the members of one seed.

    Args:
        world: Where activations come from.
        seed: Decides the stream and both initialisations, and nothing else does.
    """
    began = time.perf_counter()
    data, first, second = (
        int(s.generate_state(1)[0]) for s in np.random.SeedSequence(seed).spawn(3)
    )
    scores = train(world, data, (first, second))
    return {"seed": seed, "seconds": round(time.perf_counter() - began, 2), "scores": scores}


def train(world: World, data_seed: int, init_seeds: tuple[int, int]) -> dict[str, Scores]:
    """Scores of all members.

    Args:
        world: Where activations come from.
        data_seed: Of the stream.
        init_seeds: The two initialisations; exchanging them exchanges the twins.
    """
    settings = world.settings
    saes = {
        name: build(settings, architecture, init_seeds[which])
        for name, (architecture, which) in members().items()
    }
    trainer = MultiSAETrainer(
        SAETrainerConfig(
            total_training_samples=settings.steps * settings.batch,
            train_batch_size_samples=settings.batch,
            lr=settings.lr,
            lr_end=settings.lr / 10,
            device="cpu",
            logger=LoggingConfig(log_to_wandb=False),
        ),
        saes,
        dict.fromkeys(saes, SUITE),
        world.stream(data_seed),
    )
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar per seed
        trained = trainer.fit()
    return {name: score(export(sae, world), world) for name, sae in trained.items()}


def build(settings: Settings, architecture: str, init_seed: int) -> TrainingSAE[Any]:
    """An SAE at its start."""
    sae_class, config_class = get_sae_training_class(architecture)
    known = {f.name for f in dataclasses.fields(config_class)}
    options: dict[str, Any] = {
        "init_seed": init_seed,
        **architecture_options(BASE, settings.l0, settings.d_sae, known),
    }
    return sae_class(config_class(d_in=settings.d_in, d_sae=settings.d_sae, **options))


def export(sae: TrainingSAE[Any], world: World) -> SAE[Any]:
    """Calibrate on held-out activations, save and load: what a panel leaves on disk."""
    calibrate(sae, world.hidden[: world.half], world.settings.l0)
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return SAE.load_from_disk(folder)


@torch.no_grad()
def score(sae: SAE[Any], world: World) -> Scores:
    """L0, the metrics, per task those that have tasks, and per latent what it does."""
    half, truth = world.half, world.model.feature_dict.feature_vectors
    features, hidden = world.features[half:], world.hidden[half:]
    latents = sae.encode(hidden)
    ev, l0, _ = explained_variance(sae, hidden)
    tasks = probe(
        sae.encode(world.hidden[:half]).double().numpy(),
        latents.double().numpy(),
        world.features[:half, world.tasks].double().numpy(),
        features[:, world.tasks].double().numpy(),
    )
    classified = compute_classification_metrics(latents, features, sae.W_dec, truth)
    each = latents_of(sae, hidden)
    return {
        RATES: each.rates.tolist(),
        EXPLAINED: each.explained.tolist(),
        "l0": l0,
        EV: ev,
        "mcc": mean_correlation_coefficient(sae.W_dec, truth),
        "f1": classified.f1_score,
        "uniqueness": feature_uniqueness(sae.W_dec, truth),
        **tasks,
    }


def probe(
    choose_in: np.ndarray, test_in: np.ndarray, choose_for: np.ndarray, test_for: np.ndarray
) -> dict[str, list[float]]:
    """Each task by its one best latent, the one whose mean differs most with the feature, and
    by a live one drawn at random.

    Args:
        choose_in: Latents to choose from, ``[n, d_sae]``.
        test_in: Latents to score, ``[n, d_sae]``.
        choose_for: The tasks' true feature values where latents are chosen, ``[n, tasks]``.
        test_for: The same where they are scored.

    Returns:
        Per task, the AUC of "is the feature there?" and the correlation with its value.
    """
    found: dict[str, list[float]] = {name: [] for name in (AUC, CORRELATION, *NULLS)}
    rng = np.random.default_rng(0)
    live = np.flatnonzero(choose_in.any(axis=0))
    for task in range(choose_for.shape[1]):
        there = choose_for[:, task] > 0
        apart = choose_in[there].mean(axis=0) - choose_in[~there].mean(axis=0)
        chosen = {"": int(np.abs(apart).argmax()), DRAWN: int(rng.choice(live))}
        there = test_for[:, task] > 0
        for kind, latent in chosen.items():
            values = np.sign(apart[latent]) * test_in[:, latent]
            wins = mannwhitneyu(values[there], values[~there]).statistic
            spread = values.std() > 0
            scores = {
                AUC: float(wins / (there.sum() * (~there).sum())),
                CORRELATION: float(np.corrcoef(values, test_for[:, task])[0, 1])
                if spread
                else 0.0,
            }
            for metric, value in scores.items():
                found[null_name(metric, kind) if kind else metric].append(value)
    return found
