"""Transcoders of the layers of one model, as circuit-tracer reads them.

    python examples/circuit_tracer_files.py FOLDER LAYER_0 LAYER_1 ...

LAYER_i is the export of layer i, from a study of each layer: of one member, one seed and one
width. circuit-tracer wants them from layer 0 on without a gap, at the same two hooks of each
block, as wide at both. docs/transcoders.md says what to do with the files.
"""

import re
import sys
from pathlib import Path
from typing import Any

import yaml
from sae_lens import SAE
from safetensors.torch import save_file

_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")


def write(folder: Path, exports: list[Path]) -> Path:
    """Write ``layer_<i>.safetensors`` and ``config.yaml``.

    Args:
        folder: Is made.
        exports: One of each layer, in order; SAELens folders.

    Returns:
        The config, which circuit-tracer's ``load_transcoders`` takes.

    Raises:
        SystemExit: They are not the layers of one set.
    """
    saes: list[Any] = [SAE.load_from_disk(path) for path in exports]
    hooks, widths, models = set(), set(), set()
    for layer, (path, sae) in enumerate(zip(exports, saes, strict=True)):
        metadata, cfg = sae.cfg.metadata, sae.cfg
        names = [_HOOK.fullmatch(str(n)) for n in (metadata.hook_name, metadata.hook_name_out)]
        if any(name is None or int(name[1]) != layer for name in names):
            raise SystemExit(
                f"{path}: reads {metadata.hook_name} and writes {metadata.hook_name_out}, "
                f"where hooks of block {layer} are wanted; give one a layer, from 0 on"
            )
        if cfg.d_in != cfg.d_out:
            raise SystemExit(f"{path}: d_in {cfg.d_in} is not d_out {cfg.d_out}")
        hooks.add(tuple(name[2] for name in names if name is not None))
        widths.add(cfg.d_sae)
        models.add(str(metadata.model_name))
    for what, found in (("hooks", hooks), ("widths", widths), ("models", models)):
        if len(found) > 1:
            raise SystemExit(f"{what}: {found}, where those of one set are wanted")
    ((read, written),) = hooks
    folder.mkdir(parents=True)
    for layer, sae in enumerate(saes):
        tensors = {name: t.detach().float() for name, t in sae.state_dict().items()}
        tensors["W_enc"] = tensors["W_enc"].T
        if "threshold" in tensors:  # without one they are ReLU
            tensors["activation_function.threshold"] = tensors.pop("threshold")
        contiguous = {name: t.contiguous() for name, t in tensors.items()}
        save_file(contiguous, folder / f"layer_{layer}.safetensors")
    config = {
        "model_name": models.pop(),
        "model_kind": "transcoder_set",
        "scan": folder.name,
        "feature_input_hook": read,
        "feature_output_hook": written,
        "transcoders": [str(folder / f"layer_{i}.safetensors") for i in range(len(saes))],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / "config.yaml"


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    print(write(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]]))
