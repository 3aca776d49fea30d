"""How L0 is spread over tokens: one threshold for all of them, or k latents for each?

    python benchmarks/recipes/activations.py --out activations/smollm2 --layer 9
    python benchmarks/rows/tokens.py <study> activations/smollm2/test.npy
    python benchmarks/readme.py                  # the table, into README.md

Writes tokens.csv beside this file: per SAE the mean and spread of the number of latents of a
token, the share of tokens that have none, EV of all tokens and of the quarters with the fewest
and the most latents. The text is none that the SAEs were trained on.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE

from sae_baselines.progress import progress
from sae_baselines.study.folder import StudyFolder, load_study
from sae_baselines.study.plan import members_of, panels_of

HERE = Path(__file__).parent
N_TOKENS = 8192
BATCH = 1024


def spread_of(sae: SAE, x: torch.Tensor) -> dict[str, float]:
    """Of one SAE.

    Args:
        sae: Any SAE of SAELens.
        x: Activations, ``[n, d_in]``, in their own scale.
    """
    n_active, lost = [], []
    with torch.no_grad():
        for batch in x.split(BATCH):
            acts = sae.encode(batch)
            n_active.append((acts > 0).sum(1))
            lost.append((batch - sae.decode(acts)).double().square().sum(1))
    l0, residual = torch.cat(n_active).double(), torch.cat(lost)
    total = (x - x.mean(0)).double().square().sum(1)
    quarters = l0.argsort(stable=True).chunk(4)

    def ev(tokens: torch.Tensor) -> float:
        return float(1 - residual[tokens].sum() / total[tokens].sum())

    return {
        "n_tokens": len(x),
        "mean": float(l0.mean()),
        "cv": float(l0.std() / l0.mean()),
        "median": float(l0.median()),
        "p95": float(l0.quantile(0.95)),
        "most": float(l0.max()),
        "none": float((l0 == 0).double().mean()),
        "ev": ev(torch.arange(len(x))),
        "ev_fewest": ev(quarters[0]),
        "ev_most": ev(quarters[-1]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Every SAE of a study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("activations", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="first so many of the study's")
    parser.add_argument("--out", type=Path, default=HERE / "tokens.csv")
    args = parser.parse_args(argv)
    spec, _ = load_study(args.study)
    folder = StudyFolder(args.study)
    x = torch.tensor(np.load(args.activations, mmap_mode="r")[:N_TOKENS]).float()
    panels = [p for p in panels_of(spec) if p.seed in spec.seeds[: args.seeds]]
    keys = [(panel, key) for panel in panels for key in members_of(spec, panel)]
    rows = []
    for panel, key in progress(keys, desc="SAEs", unit="SAE"):
        sae = SAE.load_from_disk(folder.member(key), device="cpu")
        of = {
            "study": spec.name,
            "base": panel.architecture,
            "l0": f"{panel.l0:g}",
            "member": key.member,
            "seed": panel.seed,
        }
        found = spread_of(sae, x)
        rows.append(of | {name: f"{value:.5g}" for name, value in found.items()})
    others = []
    # A model's bases may be studies of their own.
    measured = {(row["study"], row["base"]) for row in rows}
    if args.out.exists():
        with args.out.open(newline="") as file:
            kept = csv.DictReader(file)
            others = [row for row in kept if (row["study"], row["base"]) not in measured]
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*others, *rows])


if __name__ == "__main__":
    main()
