"""The language model that suites are given in place of SAEBench's own loading."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformer

from sae_baselines.evals import models
from sae_baselines.evals.models import LanguageModels
from sae_baselines.evals.suite import Subject

GEMMA = "google/gemma-3-270m"


@pytest.mark.parametrize("shared", [True, False])
def test_a_local_model_is_read_under_its_own_name_where_that_is_how_its_shape_is_known(
    shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TransformerLens knows a Gemma by name alone: the name that SAEBench asks for, too."""
    asked: list[tuple[str, list[str]]] = []

    def of_saelens(cls: Any, model_name: str, **kwargs: Any) -> str:
        del cls
        asked.append((model_name, sorted(kwargs)))
        return "the model"

    name = "from_pretrained_no_processing"
    monkeypatch.setattr(HookedTransformer, name, classmethod(of_saelens))

    def read(*_: object) -> Any:
        return HookedTransformer.from_pretrained_no_processing(GEMMA, hf_model="weights")

    monkeypatch.setattr(models, "load_language_model", read)
    subject = Subject(GEMMA, "blocks.1.hook", 4, 8, "cpu", "float32", 1, local_model=tmp_path)
    # What is shared looks into the model, which is none here.
    monkeypatch.setattr(models, "sharing", lambda *_: pytest.MonkeyPatch.context())
    with LanguageModels(subject, shared, 0).answering():
        for _ in range(2):
            found = HookedTransformer.from_pretrained_no_processing(GEMMA, dtype=torch.float32)
            assert found == "the model"
    assert asked == [(GEMMA, ["hf_model"])] * (1 if shared else 2)
