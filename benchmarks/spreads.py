"""How far differences spread over seeds in the committed studies.

``python benchmarks/spreads.py`` writes sae_baselines/stats/spreads.csv, which ``sae-baselines
power`` plans with. Seconds; nothing is trained.
"""

import tarfile
import tempfile
from pathlib import Path

import pandas as pd
import yaml

from sae_baselines.results import read_table
from sae_baselines.stats.spreads import KNOWN, Spread, spreads_of, write_spreads

BENCHMARKS = Path(__file__).parent
# Archives of studies on text, and folders of synthetic ones with more than one seed.
STUDIES, TOYS = ("smollm2", "published"), ("tree",)
_FILES = ("study.yaml", "results.csv")


def main() -> None:
    """Write the table."""
    found = spreads()
    write_spreads(found, KNOWN)
    print(f"{len(found)} spreads of {len({s.source for s in found})} studies in {KNOWN}")


def spreads() -> list[Spread]:
    """Of all committed studies."""
    found = []
    for name in STUDIES:
        with (
            tarfile.open(BENCHMARKS / name / "study.tar.gz") as archive,
            tempfile.TemporaryDirectory() as folder,
        ):
            wanted = [m for m in archive.getmembers() if Path(m.name).name in _FILES]
            top = [m for m in wanted if len(Path(m.name).parts) == 1]
            archive.extractall(folder, top, filter="data")
            spec = yaml.safe_load((Path(folder) / _FILES[0]).read_text())["spec"]
            results = read_table(Path(folder) / _FILES[1])
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
