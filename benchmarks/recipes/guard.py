"""What an L0 in training that is not the L0 of measurement costs: how far is too far?

    python benchmarks/recipes/guard.py pca96 --seeds 3
    python benchmarks/recipes/guard.py smollm2 --seeds 1 --ratios 0.8 0.9 1 1.1 1.25

JumpReLU SAEs are held at ``ratio`` times the target L0 while they train, and calibrated to the
target by one factor on their thresholds, as a study does it. The guard of verdicts
(stats/fitness.py) has its limits from here. Every run is appended to guard.csv, not made again.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from search import MEMBERS, Data, append, data_of, known, measured, trained

from sae_baselines.study.l0_record import L0Record, recorded_l0

HERE = Path(__file__).parent
BASE = "jumprelu"
RATIOS = (0.5, 0.67, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0)
COLUMNS = (
    *("data", "base", "ratio", "member", "seed", "ev_dev", "ev_test"),
    *("l0_dev", "l0_test", "alive", "threshold_factor", "l0_in_training"),
)


def run(data: Data, ratio: float, seed: int) -> list[dict[str, object]]:
    """Train the members of one panel at a multiple of the L0 that they are measured at."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trainers = trained(
            data,
            BASE,
            MEMBERS,
            seed,
            folder,
            fields={"l0": ratio * data.l0},
            change=lambda _config: {},
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--activations", type=Path, default=Path("activations"))
    parser.add_argument("--out", type=Path, default=HERE / "guard.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = {m.replace(":", "_") for m in MEMBERS}
    for seed in range(args.seeds):
        for name in args.data:
            data = data_of(name, args.activations)
            for ratio in args.ratios:
                what = {"data": name, "base": BASE, "ratio": str(ratio), "seed": str(seed)}
                if names <= known(args.out, what):
                    continue
                append(args.out, [{**what, **row} for row in run(data, ratio, seed)], COLUMNS)
                print(name, ratio, seed, flush=True)


if __name__ == "__main__":
    main()
