"""How recovery depends on how long and how fast one trains: the paper's settings, trained SAEs.

Trains each line of PLAN (a study per setting, resumed where it was stopped), gathers the
snapshots of all of them and draws the map:

    python benchmarks/toy_map.py --work studies/toy-map --also studies/toy-*

Studies in --also join in with their trained SAEs, up to where the learning rate decays.
Writes map.csv and the figure into benchmarks/toy. Only what is in --work by then is drawn;
`--only constant-lr0.001` trains the studies whose name has that in it.
"""

import argparse
from pathlib import Path

import pandas as pd
import yaml

from sae_baselines.paper.toy.plots import training_map
from sae_baselines.paper.toy.results import PAPER_EV, PAPER_RECOVERED
from sae_baselines.study.engine import train_study
from sae_baselines.study.folder import write_atomically
from sae_baselines.study.synthetic.generator import SETTINGS
from sae_baselines.study.synthetic.spec import PAPER_ARCHITECTURES, ToySpec

HERE = Path(__file__).parent / "toy"
MILLION = 1_000_000
# Architectures, learning rate, samples. What moves longest is trained longest.
PLAN: tuple[tuple[tuple[str, ...], float, int], ...] = (
    (("batchtopk", "topk"), 1e-3, 8 * MILLION),
    (PAPER_ARCHITECTURES, 3e-4, MILLION // 2),
    (PAPER_ARCHITECTURES, 3e-3, MILLION // 2),
)


def studies() -> list[ToySpec]:
    """One study per line of the plan and setting."""
    return [
        ToySpec(
            name=f"map-{setting}-lr{lr:g}-{samples / MILLION:g}M-{architectures[0]}",
            settings=[setting],
            architecture=list(architectures),
            members=["trained"],
            lr=lr,
            # Constant to the end: a decay would look like the effect of more samples.
            lr_decay_fraction=0,
            training_samples=samples,
            eval_samples=32_768,
        )
        for architectures, lr, samples in PLAN
        for setting in SETTINGS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the studies")
    parser.add_argument("--only", help="train only studies with this in their name")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="finished studies")
    parser.add_argument("--draw-only", action="store_true", help="train nothing")
    args = parser.parse_args()
    for spec in studies():
        if not args.draw_only and (args.only is None or args.only in spec.name):
            train_study(spec, args.work / spec.name, resume=True)
    gather(args.work, args.also)


def gather(work: Path, also: list[Path]) -> None:
    """Collect the snapshots of all studies and draw them."""
    found = [pd.read_csv(path) for path in sorted(work.glob("*/curves/*.csv"))]
    for folder in also:
        decay = yaml.safe_load((folder / "study.yaml").read_text())["spec"]["lr_decay_fraction"]
        for path in sorted(folder.glob("curves/*.csv")):
            rows = pd.read_csv(path)
            before = rows["step"] <= (1 - decay) * rows["step"].max()
            found.append(rows.loc[before & (rows["member"] == "trained")])
    if not found:
        raise SystemExit(f"--work: {work} holds no snapshots")
    frame = pd.concat(found, ignore_index=True)
    HERE.mkdir(exist_ok=True)
    write_atomically(HERE / "map.csv", frame.to_csv(index=False))
    drawn = training_map(frame, l0=20, paper_recovered=PAPER_RECOVERED, paper_ev=PAPER_EV)
    for path in drawn.save(HERE):
        print(path)


if __name__ == "__main__":
    main()
