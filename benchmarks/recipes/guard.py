"""What an L0 in training that is not the L0 of measurement costs: how far is too far?

    python benchmarks/recipes/guard.py pca96 --seeds 3
    python benchmarks/recipes/guard.py smollm2 --seeds 1 --ratios 0.8 0.9 1 1.1 1.25

SAEs are held at ``ratio`` times the target L0 while they train, and brought to the target by
one factor on their thresholds or one shift of their biases, as a study does it. The guard of
verdicts (stats/fitness.py) has its limits from here. Every run is appended to guard.csv, and
not made again.
"""

import argparse
from itertools import product
from pathlib import Path

import torch
from search import MEMBERS, Candidate, append, data_of, known, run

HERE = Path(__file__).parent
BASES = ("jumprelu", "standard", "gated")
RATIOS = (0.5, 0.67, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0)
COLUMNS = (
    *("data", "base", "ratio", "member", "seed", "ev_dev", "ev_test"),
    *("l0_dev", "l0_test", "alive", "threshold_factor", "l0_in_training", "l0_as_trained"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+")
    parser.add_argument("--bases", nargs="+", choices=BASES, default=BASES)
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
            for base, ratio in product(args.bases, args.ratios):
                what = {"data": name, "base": base, "ratio": str(ratio), "seed": str(seed)}
                if names <= known(args.out, what):
                    continue
                at_ratio = Candidate({"l0": ratio * data.l0})
                rows = run(data, base, at_ratio, seed, MEMBERS)
                append(args.out, [{**what, **row} for row in rows], COLUMNS)
                print(*what.values(), flush=True)


if __name__ == "__main__":
    main()
