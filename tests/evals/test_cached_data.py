"""What `datasets` has prepared before is known to be there."""

from pathlib import Path

import datasets.config
import pytest
from datasets import Dataset, load_dataset

from sae_baselines.evals.doctor import dataset_in_cache
from tests.loopback_hub import point_clients_at, serving


def test_a_dataset_that_was_loaded_once_is_found_and_needs_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contract with `datasets`: what it calls its folders, and that it reads them."""
    (tmp_path / "hub/org/SomeText").mkdir(parents=True)
    rows = Dataset.from_dict({"text": ["one", "two"]})
    rows.to_parquet(tmp_path / "hub/org/SomeText/train.parquet")
    with serving(tmp_path / "hub") as endpoint:
        point_clients_at(endpoint, tmp_path / "home", monkeypatch)
        assert not dataset_in_cache("org/SomeText")
        load_dataset("org/SomeText")
    assert dataset_in_cache("org/SomeText")
    assert dataset_in_cache("org/SomeText/default")
    for other in ("org/SomeText/en-fr", "org/Some", "SomeText", "other/SomeText"):
        assert not dataset_in_cache(other)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    streamed = load_dataset("org/SomeText", split="train", streaming=True)
    assert [row["text"] for row in streamed] == ["one", "two"]  # type: ignore[index]
