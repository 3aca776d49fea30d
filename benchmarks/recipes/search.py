"""Which recipe trains each base as well as BatchTopK, at the same L0 and steps?

    python benchmarks/recipes/search.py pca96 smollm2 gemma toy --seeds 3
    python benchmarks/recipes/search.py smollm2 --bases jumprelu --candidates revived fair first

Every run is appended to search.csv and not made again. A candidate is chosen by ``ev_dev`` and
judged by ``ev_test``: other documents (toy: other samples). smollm2, gemma and pca96 need
activations.py; pca96 is the first 96 principal components of smollm2, gemma_wide is gemma with
twice the latents and twice the L0.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_training_class

sys.path.insert(0, str(Path(__file__).parents[1]))
from searches import add

from sae_baselines.provenance import versions
from sae_baselines.study.build import member_configs, prepare_start, set_b_dec
from sae_baselines.study.calibrate import Calibration, calibrate
from sae_baselines.study.l0_record import L0Record, recorded_l0
from sae_baselines.study.plan import members_of
from sae_baselines.study.spec import PanelSpec, spec_from_dict
from sae_baselines.study.stream import StreamTraining, train_on_stream
from sae_baselines.study.synthetic.generator import Reading  # noqa: F401  (registers it)
from sae_baselines.study.synthetic.spec import ToySpec
from sae_baselines.study.synthetic.stream import SyntheticStream

HERE = Path(__file__).parent
BATCH = 1024
MEMBERS = ("trained", "frozen_decoder", "frozen_decoder:cov")
ALL_MEMBERS = (*MEMBERS, "soft_frozen_decoder", "frozen_encoder", "frozen_encoder:cov")
COLUMNS = (
    *("data", "base", "candidate", "member", "seed", "steps", "ev_dev", "ev_test"),
    *("l0_dev", "l0_test", "alive", "threshold_factor", "l0_in_training", "versions"),
)


@dataclass(frozen=True)
class Candidate:
    """What differs from the recipe `revived`.

    Attributes:
        study: Fields of the study.
        factors: What fields of the SAELens config are multiplied by.
    """

    study: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)


REVIVED = Candidate()
FAIR = Candidate({"recipe": "fair"})
TRANSPOSED, FITTED = (Candidate({"encoder_init": s}) for s in ("transposed", "fitted"))
FAIR_TRANSPOSED = Candidate({"recipe": "fair", "encoder_init": "transposed"})
FAIR_FITTED = Candidate({"recipe": "fair", "encoder_init": "fitted"})
# Of what has a k, and of what is held at its L0.
WITH_K = {
    "revived": REVIVED,
    "revived, transposed": TRANSPOSED,
    "revived, fitted": FITTED,
    "fair": FAIR,
    "fair, fitted": FAIR_FITTED,
}
HELD = {
    "revived": REVIVED,
    "control x 4": Candidate(factors={"l0_control": 4}),
    "fair": FAIR,
    "fair, no control": Candidate({"recipe": "fair"}, {"l0_control": 0.0}),
    "first": Candidate({"recipe": "first"}),
    "saelens": Candidate({"recipe": "saelens"}),
}
L1 = {
    "penalty / 4": Candidate(factors={"l1_coefficient": 0.25}),
    "penalty x 4": Candidate(factors={"l1_coefficient": 4}),
}
FAIR_RATE_DOWN = Candidate({"recipe": "fair", "lr": 5e-4})
CANDIDATES: dict[str, dict[str, Candidate]] = {
    "batchtopk": WITH_K,
    "topk": WITH_K,
    "jumprelu": {
        **HELD,
        **{
            f"return {share:g}": Candidate({"threshold_return": share})
            for share in (0.01, 0.1, 0.3)
        },
        "one threshold": Candidate({"threshold_return": 1.0}),
        "fair, return 0.1": Candidate({"recipe": "fair", "threshold_return": 0.1}),
        # Tried when thresholds went back by 0.01.
        **{
            f"return 0.01, {label}": Candidate({"threshold_return": 0.01, **study}, factors)
            for label, study, factors in (
                ("fitted", FITTED.study, {}),
                ("control x 4", {}, {"l0_control": 4}),
                ("silent x 3", {}, {"pre_act_loss_coefficient": 3}),
                ("silent / 3", {}, {"pre_act_loss_coefficient": 0.3}),
                (
                    "silent / 10, window x 3",
                    {"dead_feature_window": 50},
                    {"pre_act_loss_coefficient": 0.1},
                ),
                ("window / 3", {"dead_feature_window": 5}, {}),
                ("penalty x 10", {}, {"l0_coefficient": 10}),
                ("no penalty", {}, {"l0_coefficient": 0}),
                ("bandwidth x 4", {}, {"jumprelu_bandwidth": 4}),
                ("fair", FAIR.study, {}),
                ("fair, transposed", FAIR_TRANSPOSED.study, {}),
                ("fair, warm-up", {"recipe": "fair", "lr_warm_up_steps": 100}, {}),
                ("fair, rate / 4", FAIR_RATE_DOWN.study, {}),
                ("fair, decay", {"recipe": "fair", "lr_decay_steps": 80}, {}),
            )
        },
    },
    "standard": {
        **HELD,
        **L1,
        "revived, fitted": FITTED,
        "fair, fitted": FAIR_FITTED,
        "fair, no penalty": Candidate({"recipe": "fair"}, {"l1_coefficient": 0}),
        "fair, penalty / 4": Candidate({"recipe": "fair"}, {"l1_coefficient": 0.25}),
        "fair, penalty x 4": Candidate({"recipe": "fair"}, {"l1_coefficient": 4}),
        "fair, control / 4": Candidate({"recipe": "fair"}, {"l0_control": 0.25}),
        "fair, rate / 4": FAIR_RATE_DOWN,
        "fair, rate x 4": Candidate({"recipe": "fair", "lr": 8e-3}),
    },
    "gated": {
        **HELD,
        **L1,
        "revived, fitted": FITTED,
        "fair, transposed": FAIR_TRANSPOSED,
    },
}


@dataclass(frozen=True)
class Data:
    """Activations to train on, and three held-out parts ``[n, d_in]``."""

    name: str
    d_sae: int
    l0: float
    steps: int
    normalization: str
    train: Any
    calibration: torch.Tensor
    dev: torch.Tensor
    test: torch.Tensor

    def batch(self, index: int) -> torch.Tensor:
        return self.train(index)


def data_of(name: str, folder: Path) -> Data:
    """A data set by name.

    Raises:
        FileNotFoundError: activations.py has not been run.
    """
    if name in ("toy", "toy_variable"):
        model = ToySpec().model_of("variable" if name == "toy_variable" else "constant", "cpu")
        stream = SyntheticStream(model, 0, BATCH)
        held_out = SyntheticStream(model, 0, 24 * BATCH, stream=1)
        parts = [held_out.batch(i) for i in range(3)]
        return Data(name, 3200, 20, 1200, "none", stream.batch, *parts)
    source = folder / {"pca96": "smollm2", "gemma_wide": "gemma"}.get(name, name)
    raw = np.load(source / "train.npy", mmap_mode="r")
    basis = _principal(source) if name == "pca96" else None

    def read(rows: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(np.asarray(rows, dtype=np.float32))
        return x if basis is None else (x - basis[0]) @ basis[1]

    def batch(index: int) -> torch.Tensor:
        first = index % (len(raw) // BATCH) * BATCH
        return read(raw[first : first + BATCH])

    calibration, dev = read(np.load(source / "dev.npy")).chunk(2)
    test = read(np.load(source / "test.npy"))
    d_in = dev.shape[1]
    sizes = {"pca96": (768, 12), "gemma_wide": (4 * d_in, 64)}
    width, l0 = sizes.get(name, (2 * d_in, 32))
    scaled = "expected_average_only_in"
    return Data(name, width, l0, 400, scaled, batch, calibration, dev, test)


@cache
def _principal(source: Path) -> tuple[torch.Tensor, torch.Tensor]:
    rows = np.load(source / "train.npy", mmap_mode="r")[:40_000].astype(np.float32)
    x = torch.from_numpy(rows)
    mean = x.mean(dim=0)
    return mean, torch.linalg.eigh((x - mean).T @ (x - mean))[1][:, -96:]


def trained(
    data: Data,
    base: str,
    members: Sequence[Any],
    seed: int,
    folder: Path,
    *,
    fields: Mapping[str, Any],
    change: Callable[[Any], Mapping[str, Any]],
    around: Callable[[PanelSpec, dict[str, Any]], AbstractContextManager[Any]],
) -> dict[str, Any]:
    """Train the members of one panel in lockstep; SAELens' trainer of each.

    Args:
        data: The activations.
        base: Base of the panel.
        members: As in a study's spec.
        seed: Of initial weights.
        folder: For what their start needs.
        fields: Further fields of the study's spec.
        change: Fields of a member's SAELens config that are to be others.
        around: What the training happens in, of the spec and the SAEs.
    """
    spec = spec_from_dict(
        {
            "name": "search",
            "model": {"name": data.name},
            "hook_name": "stored",
            "dataset": {"path": data.name},
            "architecture": base,
            "d_sae": data.d_sae,
            "l0": data.l0,
            "seeds": [seed],
            "members": list(members),
            "training_tokens": data.steps * BATCH,
            "train_batch_size_tokens": BATCH,
            "lr": 2e-3,
            "sparse_step": "all",
            "normalize_activations": data.normalization,
            "n_batches_for_norm_estimate": 4,
            "n_batches_in_buffer": 64,
            **fields,
        },
        "search",
        PanelSpec,
    )
    start = prepare_start(spec, data.calibration, folder)
    (panel,) = spec.panels()
    configs = member_configs(spec, members_of(spec, panel), start, data.dev.shape[1], "cpu")
    saes = {
        key.member: get_sae_training_class(config.architecture())[0](
            replace(config, **change(config))
        )
        for key, config in configs.items()
    }
    set_b_dec(saes, start)
    training = StreamTraining.of(
        spec, "cpu", training_samples=spec.training_tokens, train_batch_size=BATCH
    )
    with around(spec, saes):
        return train_on_stream(saes, data, training).trainers


def run(
    data: Data, base: str, candidate: Candidate, seed: int, members: Sequence[str]
) -> list[dict[str, Any]]:
    """Train the members of one panel and measure their exports."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trainers = trained(
            data,
            base,
            members,
            seed,
            folder,
            fields=candidate.study,
            change=lambda config: {
                name: getattr(config, name) * f for name, f in candidate.factors.items()
            },
            around=lambda _spec, saes: L0Record(folder / "l0", saes),
        )
        return [
            {
                "member": name,
                **measured(one.sae, data, folder / name),
                "l0_in_training": recorded_l0(folder / "l0", name)["end"] / data.l0,
            }
            for name, one in trainers.items()
        ]


def calibrated(sae: Any, data: Data, folder: Path) -> tuple[SAE[Any], Calibration]:
    """The export at its L0, and what that took."""
    done = calibrate(sae, data.calibration, data.l0)
    sae.save_inference_model(folder)
    return SAE.load_from_disk(folder), done


def measured(sae: Any, data: Data, folder: Path) -> dict[str, Any]:
    """EV, L0 and live latents of the calibrated export."""
    exported, done = calibrated(sae, data, folder)
    found: dict[str, Any] = {"threshold_factor": None, "l0_as_trained": None}
    if done.l0_before is not None:
        found["l0_as_trained"] = done.l0_before / data.l0
    if done.method == "threshold_factor":
        found["threshold_factor"] = done.after
    for part in ("dev", "test"):
        x = getattr(data, part)
        errors, active, fired = 0.0, 0, torch.zeros(data.d_sae, dtype=torch.bool)
        for rows in x.split(2048):
            with torch.no_grad():
                acts = exported.encode(rows)
                errors += float((rows - exported.decode(acts)).double().pow(2).sum())
            active += int((acts != 0).sum())
            fired |= (acts != 0).any(dim=0)
        total = float((x - x.mean(dim=0)).double().pow(2).sum())
        found |= {f"ev_{part}": 1 - errors / total, f"l0_{part}": active / len(x)}
        if part == "dev":
            found["alive"] = float(fired.float().mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bases", nargs="+", default=list(CANDIDATES))
    parser.add_argument("--candidates", nargs="+", help="default: all of each base")
    parser.add_argument(
        "--members", nargs="+", choices=ALL_MEMBERS, default=MEMBERS, help="default: three"
    )
    parser.add_argument("--activations", type=Path, default=Path("activations"))
    parser.add_argument("--out", type=Path, default=HERE / "search.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    members = args.members
    names = {m.replace(":", "_") for m in members}
    used = ";".join(f"{n}={v}" for n, v in versions().items() if n in ("sae-lens", "torch"))
    for seed in range(args.seeds):
        for name in args.data:
            data = data_of(name, args.activations)
            for base in args.bases:
                for label, candidate in CANDIDATES[base].items():
                    if args.candidates and label not in args.candidates:
                        continue
                    what = {"data": name, "base": base, "candidate": label, "seed": str(seed)}
                    there = known(args.out, what)
                    if names <= there:
                        continue
                    rows = run(data, base, candidate, seed, members)
                    rows = [r for r in rows if r["member"] not in there]
                    append(
                        args.out,
                        [{**what, "steps": data.steps, "versions": used, **r} for r in rows],
                    )
                    best = ", ".join(f"{r['member']} {r['ev_test']:.3f}" for r in rows)
                    print(f"{name} {base} {label} seed {seed}: {best}", flush=True)


def known(path: Path, what: Mapping[str, str]) -> set[str]:
    """Members of a run that are in the file."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        return {r["member"] for r in rows if all(r[k] == v for k, v in what.items())}


def append(path: Path, rows: list[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> None:
    """Add rows in the table's order; numbers with five digits."""

    def shown(value: Any) -> Any:
        return f"{value:.5g}" if isinstance(value, float) else value

    add(path, [{column: shown(row.get(column)) for column in columns} for row in rows])


if __name__ == "__main__":
    main()
