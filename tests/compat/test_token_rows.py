"""What this package takes for granted of how `datasets` gives tensors."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import datasets
import pytest

from sae_baselines.compat.token_rows import why_no_tensors
from sae_baselines.errors import UserError
from sae_baselines.study.data import load_text
from sae_baselines.study.spec import DatasetSpec


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has no VideoReader any more."""
    for name in ("torchvision", "torchvision.io"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("datasets.config.TORCHVISION_AVAILABLE", True)


def test_here_tokens_can_be_read() -> None:
    assert why_no_tensors() is None


@pytest.mark.skipif(datasets.__version__ >= "4", reason="asks torchvision no more")
@pytest.mark.usefixtures("torchvision")
def test_a_new_torchvision_is_named() -> None:
    assert "VideoReader" in str(why_no_tensors())
    tokens = datasets.Dataset.from_dict({"tokens": [[3, 4]]})
    with pytest.raises(UserError, match=r"VideoReader.*; pip uninstall torchvision"):
        load_text(DatasetSpec(path="in memory"), tokens)
    text = datasets.Dataset.from_dict({"text": ["a word"]})
    assert next(iter(load_text(DatasetSpec(path="in memory"), text)))["text"] == "a word"
