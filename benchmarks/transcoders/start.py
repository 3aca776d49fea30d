"""How small a transcoder's encoder should start, and with which recipe: a search.

python models.py of benchmarks/rows first; then, in this folder:

python start.py smollm2 gemma --seeds 7        # goes on where it was stopped
"""

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml

from sae_baselines.study import build
from sae_baselines.study.engine import train_study
from sae_baselines.study.spec import PanelSpec

HERE = Path(__file__).resolve().parent
# Another layer and another seed than the studies': a start is not judged on what it is chosen on.
LAYERS = {"smollm2": 15, "gemma": 5}
MEMBERS = ["trained", "frozen_decoder:cov", "frozen_encoder", "frozen_encoder:cov"]
# Of the output's variance, what latents write at first; none: encoder columns are as long as
# decoder rows.
SHARES = ["none", "0.1", "0.01", "0.001"]
RECIPES = ["fair", "revived"]


def spec_of(model: str, share: str, recipe: str, seed: int, skip: bool) -> PanelSpec:
    """The study's panel file at another layer, with fewer members and tokens."""
    data: dict[str, Any] = yaml.safe_load((HERE / f"{model}.yaml").read_text(encoding="utf-8"))
    del data["evals"]
    layer = LAYERS[model]
    data |= {
        "name": f"start-{model}",
        "hook_name": f"blocks.{layer}.ln2.hook_normalized",
        "hook_name_out": f"blocks.{layer}.hook_mlp_out",
        "sae": {"skip": skip},
        "members": MEMBERS,
        "seeds": [seed],
        "recipe": recipe,
        "encoder_init": "transposed" if share == "none" else "fitted",
        "training_tokens": 204_800,
        "train_batch_size_tokens": 512,
        "calibration_tokens": 24_192,
        "eval_tokens": 24_192,
        "ce_tokens": 2_016,
        "n_checkpoints": 0,
    }
    return PanelSpec(**data)


def measure(model: str, share: str, recipe: str, seed: int, skip: bool) -> list[dict[str, Any]]:
    """One panel; a row for each member."""
    written = build.FIRST_WRITES if share == "none" else float(share)
    spec = spec_of(model, share, recipe, seed, skip)
    with (
        tempfile.TemporaryDirectory() as scratch,
        mock.patch.object(build, "FIRST_WRITES", written),
    ):
        found = train_study(spec, Path(scratch) / "study").measurements
    return [
        {
            "member": key.member,
            "ev": round(m["explained_variance"], 4),
            "ev_affine": round(m["explained_variance_null_affine"], 4),
            "ce_recovered": round(m["ce_recovered"], 4),
            "ce_recovered_affine": round(m["ce_recovered_null_affine"], 4),
            "l0": round(m["l0"], 2),
            "live": round(m["alive"] / m["d_sae"], 3),
        }
        for key, m in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", choices=list(LAYERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[7])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--shares", nargs="+", choices=SHARES, default=SHARES)
    parser.add_argument("--no-skip", action="store_true", help="transcoders without a skip")
    parser.add_argument("--out", type=Path, default=HERE / "start.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keys, done = ("model", "skip", "recipe", "share", "seed"), set()
    if args.out.exists():
        with args.out.open(newline="") as file:
            done = {tuple(row[k] for k in keys) for row in csv.DictReader(file)}
    for model in args.models:
        for seed in args.seeds:
            for recipe in args.recipes:
                for share in args.shares:
                    values = (model, str(not args.no_skip), recipe, share, str(seed))
                    if values in done:
                        continue
                    case = dict(zip(keys, values, strict=True))
                    found = measure(model, share, recipe, seed, not args.no_skip)
                    _append(args.out, [{**case, **row} for row in found])


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
