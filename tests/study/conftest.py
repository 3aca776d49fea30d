"""The tiny model and text, made once."""

from pathlib import Path

import pytest
from datasets import Dataset

from tests.tiny_model import save_tiny_model, tiny_text


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def text() -> Dataset:
    return tiny_text()


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory, text: Dataset) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.parquet"
    text.to_parquet(path)
    return path
