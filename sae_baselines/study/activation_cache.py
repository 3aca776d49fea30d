"""Activations of a study's training text on disk, read by every pass in place of the model.

SAELens' own runner writes them, in SAELens' own format: one row a context, with its token ids.
Its multi-SAE runner cannot read that format. So each batch is looked up by its token ids: a
batch that was written as such is read, any other goes through the model, and either way the
numbers are the same bit for bit.
"""

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformer_lens.hook_points import HookedRootModule

from sae_baselines.compat.training import cache_activations
from sae_baselines.errors import UserError
from sae_baselines.files import (
    checksum_of,
    read_json,
    remove,
    sha256_of,
    size_text,
    write_atomically,
)
from sae_baselines.study.folder import CACHE_RECORD
from sae_baselines.study.reference.member import model_kwargs
from sae_baselines.study.spec import PanelSpec

logger = logging.getLogger("sae_baselines")

Read = Callable[[torch.Tensor], dict[str, torch.Tensor]]

# Of one file, so that no more than this is in memory while it is written.
_BYTES_A_FILE = 2**29


class ActivationCache:
    """What was written once, for every pass of a source.

    Args:
        spec: The study.
        folder: Where it is; need not be there yet.
        d_in: Width of the hook.
    """

    def __init__(self, spec: PanelSpec, folder: Path, d_in: int) -> None:
        self.spec, self.folder, self.d_in = spec, folder, d_in
        self.missed = 0
        self._rows: Any = None
        self._first_row: dict[int, int] = {}

    @property
    def is_whole(self) -> bool:
        """Whether it was written to its end."""
        return (self.folder / CACHE_RECORD).exists()

    @property
    def n_bytes(self) -> int:
        """Disk that it needs."""
        return bytes_needed(self.spec, self.d_in)

    def write(self, model: HookedRootModule, text: Any, device: str) -> None:
        """Run the language model once over what a pass reads.

        Raises:
            UserError: The disk has not so much room.
        """
        remove(self.folder)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder.parent).free
        if self.n_bytes > free:
            raise UserError(
                f"cache_activations: {size_text(self.n_bytes)} are needed in {self.folder}, "
                f"and {size_text(free)} are free; use another disk, or cache_activations: false"
            )
        logger.info("cache_activations: writes %s to %s", size_text(self.n_bytes), self.folder)
        spec = self.spec
        per_batch = spec.store_batch_size_prompts * spec.context_size
        bytes_a_batch = per_batch * _bytes_a_token(spec, self.d_in)
        n_batches = math.ceil(_contexts(spec) / spec.store_batch_size_prompts)
        part = self.folder / "part"
        cache_activations(
            model,
            text,
            part,
            batches=n_batches,
            batches_a_file=max(1, _BYTES_A_FILE // bytes_a_batch),
            hook_name=spec.hook_name,
            d_in=self.d_in,
            dtype=spec.dtype,
            device=device,
            context_size=spec.context_size,
            model_batch_size=spec.store_batch_size_prompts,
            prepend_bos=spec.prepend_bos,
            autocast_lm=spec.autocast_lm,
            streaming=spec.dataset.streaming,
            model_from_pretrained_kwargs=model_kwargs(spec),
        )
        written = self.folder / "rows"
        part.rename(written)
        files = {p.name: sha256_of(p) for p in sorted(written.glob("*.arrow"))}
        record = {"sha256": files, "of": self._identity()}
        write_atomically(self.folder / CACHE_RECORD, json.dumps(record, indent=2))

    def open(self) -> None:
        """Read its index; the files are checked against their hashes.

        Raises:
            UserError: It is of something else, or a file was changed or is gone.
        """
        record = read_json(self.folder / CACHE_RECORD, "delete the folder") or {}
        remedy = f"delete {self.folder}, and it is written again"
        if record.get("of") != self._identity():
            raise UserError(f"cache_activations: {self.folder} is of another study; {remedy}")
        written = self.folder / "rows"
        for name, known in record["sha256"].items():
            file = written / name
            if not file.exists() or sha256_of(file) != known:
                raise UserError(f"cache_activations: {file} is not as it was written; {remedy}")
        self._rows = datasets.load_from_disk(str(written)).with_format("numpy")
        size = self.spec.store_batch_size_prompts
        for row in range(0, len(self._rows) - size + 1, size):
            self._first_row.setdefault(_key(self._ids(row)), row)

    def in_front_of(self, read: Read) -> Read:
        """SAELens' multi-hook reader, which is only asked for what is not here."""

        def wrapped(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
            found = self._found(tokens.cpu().numpy().astype(np.int32))
            if found is None:
                self.missed += 1
                return read(tokens)
            kept = found[:, slice(*self.spec.seqpos_slice)]
            return {self.spec.hook_name: torch.from_numpy(kept).to(tokens.device)}

        return wrapped

    def _found(self, ids: np.ndarray) -> np.ndarray | None:
        """``[batch, context, d_in]`` of this batch, if it is here as it is."""
        row = self._first_row.get(_key(ids))
        if row is None or not np.array_equal(self._ids(row), ids):
            return None
        acts = self._rows[row : row + len(ids)][self.spec.hook_name]
        return np.ascontiguousarray(acts, dtype=self.spec.dtype)

    def _ids(self, row: int) -> np.ndarray:
        """Token ids of the batch that begins there."""
        last = row + self.spec.store_batch_size_prompts
        return np.asarray(self._rows[row:last]["token_ids"], dtype=np.int32)

    def _identity(self) -> str:
        """Of everything that activations depend on but the text, which token ids tell."""
        spec = self.spec
        return checksum_of(
            [
                spec.model.recorded_name,
                spec.model.dtype,
                spec.model.center_writing_weights,
                spec.hook_name,
                spec.autocast_lm,
                spec.store_batch_size_prompts,
                spec.dtype,
            ]
        )


def bytes_needed(spec: PanelSpec, d_in: int) -> int:
    """Disk for the activations that a pass reads."""
    batches = math.ceil(_contexts(spec) / spec.store_batch_size_prompts)
    contexts = batches * spec.store_batch_size_prompts
    return contexts * spec.context_size * (_bytes_a_token(spec, d_in) + 4)


def _contexts(spec: PanelSpec) -> int:
    """Contexts that a pass reads: for norms, to fill the buffer, to train."""
    tokens = (
        spec.training_tokens
        + spec.n_batches_for_norm_estimate * spec.train_batch_size_tokens
        + spec.n_batches_in_buffer * spec.training_context_size
    )
    return math.ceil(tokens / spec.training_context_size)


def _bytes_a_token(spec: PanelSpec, d_in: int) -> int:
    return d_in * getattr(torch, spec.dtype).itemsize


def _key(ids: np.ndarray) -> int:
    return hash(ids.tobytes())
