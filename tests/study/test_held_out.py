"""What a study says of the activations that it measures on."""

import json
import logging
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from sae_baselines.study import spec_from_dict, train_study
from sae_baselines.study.held_out import say_few, variance_in_few
from tests.tiny_model import tiny_panel


def test_the_share_of_the_furthest_is_that_of_their_energy() -> None:
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    assert 0.001 < variance_in_few(x) < 0.01  # two of two thousand, the furthest
    x[5], x[70] = 1000.0, -1000.0
    rest = [i for i in range(2000) if i not in (5, 70)]
    assert variance_in_few(x) == pytest.approx(
        1 - float((x[rest] - x.mean(0)).square().sum() / (x - x.mean(0)).square().sum()),
        rel=1e-4,
    )
    # Where it is and in which units makes no difference.
    assert variance_in_few(3 * x + 7) == pytest.approx(variance_in_few(x), rel=1e-4)


def test_much_is_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "sae_baselines")
    say_few(0.1)
    assert not caplog.records
    say_few(0.23)
    (said,) = caplog.messages
    assert "0.1% of the held-out activations hold 23% of their variance" in said
    assert "exclude_special_tokens: true" in said


def test_every_member_records_it(model_folder: Path, text: Dataset, tmp_path: Path) -> None:
    panel = tiny_panel(model_folder, members=["trained", "frozen_decoder"])
    spec = spec_from_dict({**panel, "training_tokens": 128 * 5})
    train_study(spec, tmp_path / "out", dataset=text)
    files = list((tmp_path / "out").glob("panels/*/*/provenance.json"))
    found = {json.loads(file.read_text())["variance_in_few"] for file in files}
    assert len(files) == 2
    assert len(found) == 1
    assert 0 < found.pop() < 0.1
