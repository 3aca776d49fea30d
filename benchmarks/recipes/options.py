"""What options of a study do: what a frozen encoder learns, where gradients are clipped.

python benchmarks/recipes/options.py smollm2 pca96
"""

from typing import Any

from search import Data
from variants import Row, measure_all, run

THRESHOLD = {"constraint": "frozen_encoder", "learned": "threshold"}
MEMBERS: list[Any] = ["trained", "frozen_decoder", "soft_frozen_decoder", "frozen_encoder"]
CLIPS = ("1", "none", "10")


def measure(data: Data, architecture: str, clip: str, seed: int) -> list[Row]:
    members = [*MEMBERS, THRESHOLD] if clip == "1" else MEMBERS
    fields = {"clip_grad_norm": None if clip == "none" else float(clip)}
    return run(data, architecture, members, seed, fields=fields)


if __name__ == "__main__":
    measure_all(__doc__, "options.csv", "clip", CLIPS, measure)
