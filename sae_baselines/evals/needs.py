"""What a suite needs of the machine: the least of it, so that a refusal is never wrong."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformer_lens import loading_from_pretrained

from sae_baselines.evals.suite import Subject

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Published weights have at least two bytes per parameter.
_BYTES_ON_DISK = 2
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([mb])(?![a-z0-9])", re.IGNORECASE)
_UNITS = {"m": 1e6, "b": 1e9}
# Size in a name is rounded, sometimes up.
_NAME_IS_AT_LEAST = 0.8
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LARGEST_HEADER = 100_000_000

Disk = Callable[[Subject, Mapping[str, Any]], float]


@dataclass(frozen=True)
class Needs:
    """Of one suite.

    Attributes:
        model: Whether it runs the language model.
        data: Whether it loads datasets from the Hub (unless they are cached).
        judge: Whether it asks a language model behind an API.
        disk: Least bytes that it writes to the cache of activations; None if few.
        as_sae_says: Whether it loads the model with the options that the SAE's config names;
            the others of SAEBench 0.6 always read it unprocessed.
    """

    model: bool = True
    data: bool = True
    judge: bool = False
    disk: Disk | None = None
    as_sae_says: bool = False

    def reads_what_the_sae_reads(self, subject: Subject) -> bool:
        """Whether the suite gives the SAEs the activations that they were trained on."""
        return not (self.model and subject.centred) or self.as_sae_says


def _probing(subject: Subject, options: Mapping[str, Any]) -> float:
    """Every token of every class of every dataset, in the model's own dtype."""
    per_class = (options["probe_train_set_size"] + options["probe_test_set_size"]) // 2
    # Two classes at least; most datasets have five.
    rows = 2 * len(options["dataset_names"]) * per_class
    return rows * options["context_length"] * subject.d_in * BYTES[subject.llm_dtype]


def _scr_and_tpp(subject: Subject, options: Mapping[str, Any]) -> float:
    per_class = (options["train_set_size"] + options["test_set_size"]) // 2
    rows = 2 * len(options["dataset_names"]) * per_class
    return rows * options["context_length"] * subject.d_in * BYTES[subject.llm_dtype]


NEEDS: dict[str, Needs] = {
    "core": Needs(as_sae_says=True),
    "sparse_probing": Needs(disk=_probing),
    "sparse_probing_sae_probes": Needs(data=False),  # its datasets come with the package
    "ravel": Needs(),
    "autointerp": Needs(judge=True),
    "absorption": Needs(data=False),
    "scr": Needs(disk=_scr_and_tpp),
    "tpp": Needs(disk=_scr_and_tpp),
    "meta_structure": Needs(model=False, data=False),
    "mdl": Needs(),
    "unlearning": Needs(),
}


def hub_name(subject: Subject) -> str:
    """The model's repository: TransformerLens has short names for some."""
    try:
        return loading_from_pretrained.get_official_model_name(subject.model_name)
    except ValueError:
        return subject.model_name


def in_cache(repo: str) -> bool:
    """Whether the Hub's cache has the model's configuration, so that it was loaded before."""
    return "/" in repo and isinstance(try_to_load_from_cache(repo, "config.json"), str)


def model_parameters(subject: Subject) -> float | None:
    """Number of parameters of the language model, as far as it is known without loading it.

    Counted in weight files where there are any, else read from the name ("pythia-70m").
    """
    repo = hub_name(subject)
    if subject.local_model is not None:
        folder: Path | None = subject.local_model
    else:
        config = try_to_load_from_cache(repo, "config.json") if "/" in repo else None
        folder = Path(config).parent if isinstance(config, str) else None
    counted = None if folder is None else _counted(folder)
    if counted is not None:
        return counted
    sizes = _SIZE.findall(repo.rpartition("/")[2])
    if len(sizes) != 1:
        return None
    number, unit = sizes[0]
    return _NAME_IS_AT_LEAST * float(number) * _UNITS[unit.lower()]


def model_on_disk(subject: Subject) -> float:
    """Least bytes that a download of the model takes; 0 if there is none to come."""
    if subject.local_model is not None or in_cache(hub_name(subject)):
        return 0.0
    return _BYTES_ON_DISK * (model_parameters(subject) or 0.0)


def model_in_memory(subject: Subject) -> float | None:
    """Least bytes that the language model takes on its device; None if its size is unknown."""
    parameters = model_parameters(subject)
    return None if parameters is None else parameters * BYTES[subject.llm_dtype]


def sae_in_memory(subject: Subject) -> float:
    """Least bytes of one SAE, which is float32."""
    return 2.0 * subject.d_in * subject.d_sae * 4


def _counted(folder: Path) -> float | None:
    """Parameters in the safetensors files of a folder; None if one is missing or unreadable."""
    try:
        if (folder / _INDEX).exists():
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            files = sorted(set(index["weight_map"].values()))
        else:
            files = [_WEIGHTS]
        return float(sum(_in_header(folder / file) for file in files))
    except (OSError, ValueError, KeyError):
        return None


def _in_header(file: Path) -> int:
    """A safetensors file starts with the length of a JSON header that has all shapes."""
    with file.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        if size > _LARGEST_HEADER:
            raise ValueError(f"{file} is no safetensors file")
        header = json.loads(handle.read(size))
    return sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")
