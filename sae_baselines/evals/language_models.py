"""Where SAEBench's suites get their language model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformer_lens.hook_points import HookedRootModule

from sae_baselines.errors import UserError
from sae_baselines.evals.shared_model import Memory, replaced_loader, share
from sae_baselines.evals.suite import Subject
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.spec import ModelSpec

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class LanguageModels:
    """Answers SAEBench's request for the model of the SAEs, loading it once per suite.

    Args:
        subject: Whose model it is, and from where.
        shared: Load once and share forward passes; else every request loads anew, as SAEBench
            alone would (from a local folder if there is one).
        memory_bytes: Most that shared forward passes may keep.
    """

    def __init__(self, subject: Subject, shared: bool, memory_bytes: int) -> None:
        self.subject = subject
        self.shared = shared
        self.memory_bytes = memory_bytes
        self._loaded: tuple[Any, HookedRootModule] | None = None

    @contextmanager
    def answering(self) -> Iterator[None]:
        """While open, SAEBench's loader is answered from here."""
        if not self.shared and self.subject.local_model is None:
            yield  # stock: nothing is replaced
            return
        with replaced_loader(self._load):
            yield

    def forget(self) -> None:
        """Drop the model and what it remembers."""
        self._loaded = None

    def _load(self, original: Any, model_name: str, **kwargs: Any) -> Any:
        if model_name != self.subject.model_name:
            return original(model_name, **kwargs)
        key = (model_name, repr(sorted(kwargs.items(), key=lambda item: item[0])))
        if self.shared and self._loaded is not None and self._loaded[0] == key:
            return self._loaded[1]
        self._loaded = None
        model = (
            original(model_name, **kwargs)
            if self.subject.local_model is None
            else self._from_folder(self.subject.local_model, kwargs)
        )
        if self.shared:
            model = share(model, self.subject.hook_name, Memory(self.memory_bytes))
            self._loaded = (key, model)
        return model

    def _from_folder(self, folder: Path, kwargs: dict[str, Any]) -> HookedRootModule:
        for option, value in kwargs.items():
            if option not in ("dtype", "device", "center_writing_weights"):
                raise UserError(
                    f"model: the SAEs ask for {option}={value!r}, which a local folder is not "
                    "loaded with; leave --model out to load the Hub's model as they ask"
                )
        dtype = kwargs.get("dtype", torch.float32)
        name: Any = dtype if isinstance(dtype, str) else _DTYPES[dtype]
        centred = bool(kwargs.get("center_writing_weights", False))
        spec = ModelSpec(name=str(folder), dtype=name, center_writing_weights=centred)
        device = str(kwargs.get("device", self.subject.device))
        return load_language_model(spec, self.subject.hook_name, device)
