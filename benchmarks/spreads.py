"""How far differences spread over seeds in the committed studies.

``python benchmarks/spreads.py`` writes sae_baselines/stats/spreads.csv, which ``sae-baselines
power`` plans with. Seconds; nothing is trained.
"""

from pathlib import Path

import pandas as pd
import yaml
from archives import unpacked

from sae_baselines.results import read_table
from sae_baselines.stats.spreads import KNOWN, Spread, spreads_of, write_spreads

BENCHMARKS = Path(__file__).parent
# Archives of studies on text, and folders of synthetic ones with more than one seed.
STUDIES, TOYS = ("smollm2", "published", "rows/smollm2"), ("tree",)


def main() -> None:
    """Write the table."""
    found = spreads()
    write_spreads(found, KNOWN)
    print(f"{len(found)} spreads of {len({s.source for s in found})} studies in {KNOWN}")


def spreads() -> list[Spread]:
    """Of all committed studies."""
    found = []
    for name in STUDIES:
        with unpacked(BENCHMARKS / name / "study.tar.gz") as folder:
            spec = yaml.safe_load((folder / "study.yaml").read_text())["spec"]
            results = read_table(folder / "results.csv")
        found += spreads_of(
            results,
            source=f"benchmarks/{name}",
            model=spec["model"].get("label") or spec["model"]["name"],
            hook=spec["hook_name"],
            tokens=spec["training_tokens"],
        )
    for name in TOYS:
        folder = BENCHMARKS / "toy" / name
        spec = yaml.safe_load((folder / "study.yaml").read_text())["spec"]
        found += spreads_of(
            pd.read_csv(folder / f"results_{name}.csv.gz", keep_default_na=False),
            source=f"benchmarks/toy/{name}",
            model="synthetic",
            hook=name,
            tokens=spec["training_samples"],
        )
    return found


if __name__ == "__main__":
    main()
