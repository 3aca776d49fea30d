"""Transcoders of the layers of one model, as circuit-tracer reads them.

    python examples/circuit_tracer_files.py FOLDER LAYER_0 LAYER_1 ...
    python examples/circuit_tracer_files.py FOLDER LAYER_0 LAYER_1 ... --affine TEXT

LAYER_i is the export of layer i, from a study of each layer: of one member, one seed and one
width. circuit-tracer wants them from layer 0 on without a gap, at the same two hooks of each
block, as wide at both. With --affine, the set is their null: in each layer the affine map from
input to output alone, by least squares on activations of TEXT (a file or dataset with a column
"text", as a study's), and one latent that never fires. docs/transcoders.md says what to do with
the files.
"""

import argparse
import re
import sys
import tempfile
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
        model: Language model: a name or a folder.
        read: Where they read, within a block.
        written: Where they write.
    """

    saes: list[Any]
    model: str
    read: str
    written: str


def load(exports: list[Path], model: str | None = None) -> Layers:
    """Load a set.

    Args:
        exports: One of each layer, in order; SAELens folders.
        model: The language model; default: by the name that the exports have, which is a
            study's label for it.

    Raises:
        UserError: They are not the layers of one set, or not of the model as it is.
    """
    saes: list[Any] = [SAE.load_from_disk(path) for path in exports]
    hooks, widths, models = set(), set(), set()
    for layer, (path, sae) in enumerate(zip(exports, saes, strict=True)):
        metadata, cfg = sae.cfg.metadata, sae.cfg
        names = [_HOOK.fullmatch(str(n)) for n in (metadata.hook_name, metadata.hook_name_out)]
        if any(name is None or int(name[1]) != layer for name in names):
            raise UserError(
                f"{path}: reads {metadata.hook_name} and writes {metadata.hook_name_out}, "
                f"where hooks of block {layer} are wanted; give one a layer, from 0 on"
            )
        if cfg.d_in != cfg.d_out:
            raise UserError(f"{path}: d_in {cfg.d_in} is not d_out {cfg.d_out}")
        if (metadata.model_from_pretrained_kwargs or {}).get("center_writing_weights"):
            raise UserError(
                f"{path}: was trained on centred weights, and circuit-tracer reads a model as "
                "it is; train with center_writing_weights: false"
            )
        hooks.add(tuple(name[2] for name in names if name is not None))
        widths.add(cfg.d_sae)
        models.add(str(metadata.model_name))
    for what, found in (("hooks", hooks), ("widths", widths), ("models", models)):
        if len(found) > 1:
            raise UserError(f"{what}: {found}, where those of one set are wanted")
    ((read, written),) = hooks
    return Layers(saes, model or models.pop(), read, written)


def write(folder: Path, exports: list[Path], model: str | None = None) -> Path:
    """Write ``layer_<i>.safetensors`` and ``config.yaml``.

    Args:
        folder: Is made.
        exports: As of `load`.
        model: As of `load`.

    Returns:
        The config, which circuit-tracer's ``load_transcoders`` takes.
    """
    _must_be_new(folder)
    layers = load(exports, model)
    sets = []
    for sae in layers.saes:
        tensors = {name: t.detach().float() for name, t in sae.state_dict().items()}
        tensors["W_enc"] = tensors["W_enc"].T
        if "threshold" in tensors:  # without one they are ReLU
            tensors["activation_function.threshold"] = tensors.pop("threshold")
        sets.append(tensors)
    return _save(folder, layers, sets)


def write_affine(
    folder: Path, exports: list[Path], text: str, model: str | None = None
) -> Path:
    """Write the set's null, the affine map of each layer; the rest as `write` does.

    Args:
        folder: Is made.
        exports: As of `load`: the hooks are theirs.
        text: A dataset of documents; some 32,768 tokens are read.
        model: As of `load`.
    """
    _must_be_new(folder)
    layers = load(exports, model)
    language_model: Any = load_language_model(
        ModelSpec(name=layers.model), f"blocks.0.{layers.read}", "cpu"
    )
    contexts = _contexts(language_model, text)
    sets = []
    for layer in range(len(layers.saes)):
        hooks = [f"blocks.{layer}.{name}" for name in (layers.read, layers.written)]
        parts = []
        for batch in contexts.split(8):
            with torch.no_grad():
                _, cache = language_model.run_with_cache(
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
        if "text" not in row:
            raise UserError(f"{text}: columns are {sorted(row)}; one called text is wanted")
        tokens += model.to_tokens(row["text"], prepend_bos=False)[0].tolist()
        if len(tokens) >= _TOKENS:
            break
    if len(tokens) < _CONTEXT:
        raise UserError(f"{text}: {len(tokens)} tokens are too few; give a longer text")
    rows = torch.tensor(tokens[: len(tokens) // _CONTEXT * _CONTEXT]).reshape(-1, _CONTEXT)
    known = model.tokenizer
    special = (known.bos_token_id, known.pad_token_id, known.eos_token_id)
    # The first that is not None, nor 0, which circuit-tracer takes for none.
    before = next(filter(None, (*special, *known.all_special_ids)), None)
    if before is None:
        raise UserError(f"{text}: the model's tokenizer has no special token to begin with")
    rows[:, 0] = before
    return rows


def _must_be_new(folder: Path) -> None:
    if folder.exists():
        raise UserError(f"{folder}: exists already; remove it, or name another folder")


def _save(folder: Path, layers: Layers, sets: list[dict[str, torch.Tensor]]) -> Path:
    """All of a set, or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    names = [f"layer_{i}.safetensors" for i in range(len(sets))]
    config = {
        "model_name": layers.model,
        "model_kind": "transcoder_set",
        "scan": folder.name,
        "feature_input_hook": layers.read,
        "feature_output_hook": layers.written,
        "transcoders": [str(folder / name) for name in names],
    }
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        made = Path(unfinished) / folder.name
        made.mkdir()
        for name, tensors in zip(names, sets, strict=True):
            save_file({key: t.contiguous() for key, t in tensors.items()}, made / name)
        (made / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        made.rename(folder)
    return folder / "config.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("layers", type=Path, nargs="+")
    parser.add_argument("--affine", metavar="TEXT")
    parser.add_argument(
        "--model", help="folder or name, where it is not the one that exports name"
    )
    args = parser.parse_args()
    try:
        if args.affine is None:
            print(write(args.folder, args.layers, args.model))
        else:
            print(write_affine(args.folder, args.layers, args.affine, args.model))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
