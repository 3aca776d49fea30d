"""Transcoders of the layers of one model, as circuit-tracer reads them.

    python examples/circuit_tracer_files.py FOLDER LAYER_0 LAYER_1 ...
    python examples/circuit_tracer_files.py --affine TEXT FOLDER LAYER_0 LAYER_1 ...

LAYER_i is the export of layer i, from a study of each layer: of one member, one seed and one
width. circuit-tracer wants them from layer 0 on without a gap, at the same two hooks of each
block, as wide at both. With --affine, the set is their null: in each layer the affine map from
input to output alone, by least squares on activations of TEXT (a file or dataset with a column
"text", as a study's), and one latent that never fires. docs/transcoders.md says what to do with
the files.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from sae_lens import SAE
from safetensors.torch import save_file

from sae_baselines.baselines.transcoder import PairStart
from sae_baselines.errors import UserError
from sae_baselines.study.data import load_text
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.spec import DatasetSpec, ModelSpec

_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")
_TOKENS, _CONTEXT = 32_768, 128


@dataclass(frozen=True)
class Layers:
    """The transcoders of one set.

    Attributes:
        saes: In order.
        model: Language model.
        read: Where they read, within a block.
        written: Where they write.
    """

    saes: list[Any]
    model: str
    read: str
    written: str


def load(exports: list[Path]) -> Layers:
    """Load a set.

    Args:
        exports: One of each layer, in order; SAELens folders.

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
    return Layers(saes, models.pop(), read, written)


def write(folder: Path, exports: list[Path]) -> Path:
    """Write ``layer_<i>.safetensors`` and ``config.yaml``.

    Args:
        folder: Is made.
        exports: As of `load`.

    Returns:
        The config, which circuit-tracer's ``load_transcoders`` takes.
    """
    layers = load(exports)
    sets = []
    for sae in layers.saes:
        tensors = {name: t.detach().float() for name, t in sae.state_dict().items()}
        tensors["W_enc"] = tensors["W_enc"].T
        if "threshold" in tensors:  # without one they are ReLU
            tensors["activation_function.threshold"] = tensors.pop("threshold")
        sets.append(tensors)
    return _save(folder, layers, sets)


def write_affine(folder: Path, exports: list[Path], text: str) -> Path:
    """Write the set's null, the affine map of each layer; the rest as `write` does.

    Args:
        folder: Is made.
        exports: As of `load`: the model and hooks are theirs.
        text: A dataset of documents; some 32,768 tokens are read.
    """
    layers = load(exports)
    model: Any = load_language_model(
        ModelSpec(name=layers.model), f"blocks.0.{layers.read}", "cpu"
    )
    contexts = _contexts(model, text)
    sets = []
    for layer in range(len(layers.saes)):
        hooks = [f"blocks.{layer}.{name}" for name in (layers.read, layers.written)]
        parts = []
        for batch in contexts.split(8):
            with torch.no_grad():
                _, cache = model.run_with_cache(
                    batch, names_filter=hooks, stop_at_layer=layer + 1
                )
            # The first position is circuit-tracer's to leave out.
            parts.append(torch.cat([cache[h][:, 1:].flatten(0, 1) for h in hooks], dim=1))
        d_in = layers.saes[layer].cfg.d_in
        start = PairStart.of(torch.cat(parts), d_in)
        silent = {"W_enc": (1, d_in), "b_enc": (1,), "W_dec": (1, d_in)}
        sets.append(
            {
                **{name: torch.zeros(shape) for name, shape in silent.items()},
                "activation_function.threshold": torch.ones(1),
                "W_skip": start.skip.float(),
                "b_dec": start.predict(torch.zeros(1, d_in, dtype=torch.float64))[0].float(),
            }
        )
    return _save(folder, layers, sets)


def _contexts(model: Any, text: str) -> torch.Tensor:
    """``[n, context]`` tokens, each context behind what circuit-tracer puts before a prompt."""
    tokens: list[int] = []
    documents: Any = load_text(DatasetSpec(path=text))
    for row in documents:
        tokens += model.to_tokens(row["text"], prepend_bos=False)[0].tolist()
        if len(tokens) >= _TOKENS:
            break
    if len(tokens) < _CONTEXT:
        raise SystemExit(f"{text}: {len(tokens)} tokens are too few; give a longer text")
    rows = torch.tensor(tokens[: len(tokens) // _CONTEXT * _CONTEXT]).reshape(-1, _CONTEXT)
    special = model.tokenizer
    rows[:, 0] = next(
        filter(None, (special.bos_token_id, special.pad_token_id, special.eos_token_id))
    )
    return rows


def _save(folder: Path, layers: Layers, sets: list[dict[str, torch.Tensor]]) -> Path:
    folder.mkdir(parents=True)
    for layer, tensors in enumerate(sets):
        contiguous = {name: t.contiguous() for name, t in tensors.items()}
        save_file(contiguous, folder / f"layer_{layer}.safetensors")
    config = {
        "model_name": layers.model,
        "model_kind": "transcoder_set",
        "scan": folder.name,
        "feature_input_hook": layers.read,
        "feature_output_hook": layers.written,
        "transcoders": [str(folder / f"layer_{i}.safetensors") for i in range(len(sets))],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / "config.yaml"


def main(given: list[str]) -> Path:
    if given[:1] == ["--affine"] and len(given) > 3:
        return write_affine(Path(given[2]), [Path(path) for path in given[3:]], given[1])
    if len(given) < 2 or given[0].startswith("-"):
        raise SystemExit(__doc__)
    return write(Path(given[0]), [Path(path) for path in given[1:]])


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(str(error))
