"""The language model of SAEBench's suites: loaded once, and asked nothing twice.

SAEBench scores one SAE after another on the same tokens; see `study.shared_model`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformer_lens.hook_points import HookedRootModule

from sae_baselines.compat.models import growing_masks
from sae_baselines.compat.saebench import answered_loader
from sae_baselines.errors import UserError
from sae_baselines.evals.suite import Subject
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.shared_model import Memory, sharing
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
        self._loaded: tuple[Any, HookedRootModule, Memory] | None = None
        self._open = ExitStack()
        self._reading = False

    @contextmanager
    def answering(self) -> Iterator[None]:
        """While open, SAEBench's loader is answered from here."""
        if not self.shared and not self._ours:
            yield  # stock: nothing is replaced
            return
        with ExitStack() as self._open:
            self._open.enter_context(answered_loader(self._load))
            yield

    def forget(self) -> None:
        """Drop the model and what it remembers."""
        self._loaded = None

    @property
    def _ours(self) -> bool:
        """Whether SAEBench itself could not load this model."""
        return self.subject.local_model is not None or self.subject.drawn is not None

    def _load(self, original: Any, model_name: str, **kwargs: Any) -> Any:
        # A local folder of a model that TransformerLens knows is read under its own name.
        if model_name != self.subject.model_name or self._reading:
            return original(model_name, **kwargs)
        key = (model_name, repr(sorted(kwargs.items(), key=lambda item: item[0])))
        if not self.shared or self._loaded is None or self._loaded[0] != key:
            self._loaded = None
            if self._ours:
                model = self._read(kwargs)
            else:
                with growing_masks():
                    model = original(model_name, **kwargs)
            if not self.shared:
                return model
            self._loaded = (key, model, Memory(self.memory_bytes))
        _, model, memory = self._loaded
        # Within one run it may be asked for twice.
        self._open.enter_context(sharing(model, self.subject.hook_name, memory))
        return model

    def _read(self, kwargs: dict[str, Any]) -> HookedRootModule:
        for option, value in kwargs.items():
            if option not in ("dtype", "device", "center_writing_weights"):
                raise UserError(
                    f"model: the SAEs ask for {option}={value!r}, which a local folder is not "
                    "loaded with; leave --model out to load the Hub's model as they ask"
                )
        dtype = kwargs.get("dtype", torch.float32)
        name: Any = dtype if isinstance(dtype, str) else _DTYPES[dtype]
        centred = bool(kwargs.get("center_writing_weights", False))
        where = str(self.subject.local_model or self.subject.weights_of)
        spec = ModelSpec(name=where, dtype=name, center_writing_weights=centred)
        device = str(kwargs.get("device", self.subject.device))
        self._reading = True
        try:
            return load_language_model(spec, self.subject.hook_name, device, self.subject.drawn)
        finally:
            self._reading = False
