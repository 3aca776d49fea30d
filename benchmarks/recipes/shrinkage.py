"""What does a ReLU cost, which takes its threshold off every active value?

    python benchmarks/recipes/shrinkage.py toy pca96 smollm2 gemma --seeds 3

A trained standard SAE, exported at its L0. Its latents stay active where they are; their values
are scaled by the factor that fits best, and then also given their threshold back: the bias that
was taken off, times a second factor. Both are fitted on ``dev`` and judged on ``test``. Every
run is appended to shrinkage.csv and not made again.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from sae_lens import SAE
from search import FAIR, REVIVED, Data, append, calibrated, data_of, known, trained

HERE = Path(__file__).parent
BASE, MEMBER = "standard", "trained"
COLUMNS = (
    *("data", "base", "member", "seed", "ev", "ev_scaled", "ev_given_back"),
    *("scale", "of_threshold", "live", "firing_rate", "kept", "kept_of_normal"),
)


def kept_of_normal(rate: float) -> float:
    """Share of explained variance that a ReLU keeps, of a latent with its threshold back.

    Of a standard normal pre-activation z that fires above t, at ``rate``: the best multiple of
    (z - t)+ explains E[z (z - t)+]^2 / E[(z - t)+^2], and z where it fires E[z^2; z > t].
    """
    normal = NormalDist()
    t = normal.inv_cdf(1 - rate)
    whole = t * normal.pdf(t) + rate
    return rate**2 / ((1 + t**2) * rate - t * normal.pdf(t)) / whole


@torch.no_grad()
def parts(sae: SAE[Any], x: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches: activations without the decoder's bias, what the latents make of them, what
    their thresholds would add, and which latents fire."""
    zero = sae.decode(torch.zeros(1, sae.cfg.d_sae))
    bias: Any = sae.b_enc
    for rows in x.split(2048):
        latents = sae.encode(rows)
        fires = latents > 0
        taken = sae.decode(fires * -bias)
        yield rows - zero, sae.decode(latents) - zero, taken - zero, fires


def fitted(sae: SAE[Any], x: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The best factor of the latents, and the best two of latents and thresholds."""
    gram, right = torch.zeros(2, 2).double(), torch.zeros(2).double()
    for target, *made, _ in parts(sae, x):
        columns = torch.stack([each.flatten() for each in made]).double()
        gram += columns @ columns.T
        right += columns @ target.flatten().double()
    return float(right[0] / gram[0, 0]), torch.linalg.solve(gram, right)


def explained(sae: SAE[Any], x: torch.Tensor, of_latents: float, of_thresholds: float) -> float:
    """EV (the paper's) with these factors."""
    error = sum(
        float((target - of_latents * latents - of_thresholds * taken).double().pow(2).sum())
        for target, latents, taken, _ in parts(sae, x)
    )
    return 1 - error / float((x - x.mean(dim=0)).double().pow(2).sum())


def run(data: Data, seed: int) -> dict[str, Any]:
    """One trained SAE."""
    recipe = FAIR if data.name.startswith("toy") else REVIVED
    with tempfile.TemporaryDirectory() as scratch:
        trainers = trained(
            data,
            BASE,
            [MEMBER],
            seed,
            Path(scratch),
            fields=recipe.study,
            change=lambda _: {},
            around=lambda _spec, _saes: nullcontext(),
        )
        exported, _ = calibrated(trainers[MEMBER].sae, data, Path(scratch) / "sae")
    scale, both = fitted(exported, data.dev)
    of_latents, of_thresholds = both.tolist()
    fires = torch.cat([fires for *_, fires in parts(exported, data.dev)])
    rates = fires.float().mean(dim=0)
    rate = float(rates[rates > 0].mean())
    scaled = explained(exported, data.test, scale, 0)
    back = explained(exported, data.test, of_latents, of_thresholds)
    return {
        "ev": explained(exported, data.test, 1, 0),
        "ev_scaled": scaled,
        "ev_given_back": back,
        "scale": scale,
        "of_threshold": of_thresholds / of_latents,
        "live": float((rates > 0).float().mean()),
        "firing_rate": rate,
        "kept": scaled / back,
        "kept_of_normal": kept_of_normal(rate),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--activations", type=Path, default=Path("activations"))
    parser.add_argument("--out", type=Path, default=HERE / "shrinkage.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(args.seeds):
        for name in args.data:
            what = {"data": name, "base": BASE, "seed": str(seed)}
            if MEMBER in known(args.out, what):
                continue
            row = {**what, "member": MEMBER, **run(data_of(name, args.activations), seed)}
            append(args.out, [row], COLUMNS)
            print(name, seed, f"{row['ev']:.3f} {row['ev_given_back']:.3f}", flush=True)


if __name__ == "__main__":
    main()
