"""Recovery and EV along training: how counts depend on how long one trains."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from sae_lens.saes.sae import TrainingSAE
from sae_lens.synthetic import SyntheticModel

from sae_baselines.errors import UserError
from sae_baselines.files import reading, write_atomically
from sae_baselines.reconstruction import explained_variance
from sae_baselines.study.plan import MemberKey
from sae_baselines.study.stream import StreamTraining
from sae_baselines.study.synthetic.recovery import best_cosine, recovered_count

# Whose a row is, and of when.
_KEY = ("architecture", "member", "seed", "step")
_NUMBERS = (
    *("seed", "lr", "batch", "step", "samples", "ev", "l0", "recovered", "recovered_share"),
    *("mean_best_cosine", "silent"),
)


class Curve:
    """Takes snapshots between steps and appends them to a CSV.

    Columns: setting, architecture, member, seed, lr, batch, step, samples, ev, l0, recovered,
    recovered_share, mean_best_cosine, silent. EV, L0 and silent (latents that fire on none of
    the samples) are of the SAE in training (TopK family: with its training-time selection) on
    the given held-out samples; the last row of each SAE is the trained one.

    Args:
        path: CSV; rows of a run that is resumed are kept.
        model: Ground truth.
        activations: ``[n, d_in]`` held-out.
        training: For the number of steps.
        n_snapshots: How many, evenly spaced in log steps, the last step among them.
        keys: Member of each SAE by its name.
    """

    def __init__(
        self,
        path: Path,
        model: SyntheticModel,
        activations: torch.Tensor,
        training: StreamTraining,
        n_snapshots: int,
        keys: dict[str, MemberKey],
    ) -> None:
        self.path = path
        self.features = model.feature_dict.feature_vectors.detach()
        self.activations = activations
        self.training = training
        self.keys = keys
        self.own = {(k.panel.architecture, k.member, k.panel.seed) for k in keys.values()}
        self.steps = snapshot_steps(training.steps, n_snapshots)
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            self.rows = read_curve(path, "delete it").to_dict("records")

    @torch.no_grad()
    def watch(self, step: int, saes: dict[str, TrainingSAE[Any]]) -> None:
        """For `train_on_stream`."""
        if step not in self.steps:
            return
        # What a killed run wrote after its last checkpoint is made again.
        # Others of the pass keep theirs: only what was lost of it may be trained.
        self.rows = [r for r in self.rows if r["step"] < step or _owner(r) not in self.own]
        self.rows += [self._row(step, self.keys[name], sae) for name, sae in saes.items()]
        write_atomically(self.path, pd.DataFrame(self.rows).to_csv(index=False))

    def _row(self, step: int, key: MemberKey, sae: TrainingSAE[Any]) -> dict[str, Any]:
        best = best_cosine(sae.W_dec.detach(), self.features)
        ev, l0, alive = explained_variance(sae, self.activations)
        recovered = recovered_count(best)
        return {
            "setting": getattr(key.panel, "setting", ""),
            "architecture": key.panel.architecture,
            "member": key.member,
            "seed": key.panel.seed,
            "lr": self.training.lr,
            "batch": self.training.train_batch_size,
            "step": step,
            "samples": step * self.training.train_batch_size,
            "ev": ev,
            "l0": l0,
            "recovered": recovered,
            "recovered_share": recovered / len(best),
            "mean_best_cosine": float(best.mean()),
            "silent": sae.cfg.d_sae - alive,
        }


def read_curve(path: Path, remedy: str) -> pd.DataFrame:
    """Rows of a CSV of `Curve`.

    Args:
        path: The file.
        remedy: What to do if it is damaged.

    Raises:
        UserError: It cannot be read, does not say whose its rows are, or a number is none.
    """
    with reading(path, remedy):
        table = pd.read_csv(path)
    if absent := [name for name in _KEY if name not in table]:
        raise UserError(f"{path}: has no column {', '.join(absent)}; {remedy}")
    for name in [name for name in _NUMBERS if name in table]:
        cells, to_numeric = table[name], cast(Any, pd.to_numeric)
        numbers = to_numeric(cells, errors="coerce")
        wrong = numbers.isna() & (cells.notna() | (name in _KEY))
        if (wrong := wrong.to_numpy()).any():
            row = int(wrong.argmax())
            raise UserError(
                f"{path}: {name} of row {row + 1} is {cells.iloc[row]!r}, no number; {remedy}"
            )
        table[name] = numbers
    return table


def _owner(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["architecture"], row["member"], row["seed"]


def snapshot_steps(steps: int, n_snapshots: int) -> set[int]:
    """Distinct steps evenly spaced in log between a hundredth of training and its end."""
    if n_snapshots == 0:
        return set()
    if n_snapshots == 1:
        return {steps}
    first = math.log(max(1.0, steps / 100))
    gap = (math.log(steps) - first) / (n_snapshots - 1)
    return {round(math.exp(first + i * gap)) for i in range(n_snapshots)} | {steps}
