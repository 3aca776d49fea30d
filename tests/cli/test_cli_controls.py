"""Making a control from the command line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sae_lens import SAE
from typer.testing import CliRunner

from sae_baselines.controls import CONTROLS
from sae_baselines_cli import app
from tests.controls.test_controls import stock_sae
from tests.helpers import activations


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    stock_sae("jumprelu").save_model(tmp_path / "sae")
    np.save(tmp_path / "acts.npy", activations(500).numpy())
    return tmp_path / "sae"


def test_a_control_is_written_and_described(source: Path):
    out, acts = source.parent / "null", source.parent / "acts.npy"
    ran = call("control", source, "--kind", "random:cov", "--activations", acts, "--out", out)
    assert ran.exit_code == 0, ran.output
    assert "The null for training as such" in ran.output
    assert "on 500 activations" in ran.output
    ours = SAE.load_from_disk(out).cfg.metadata.sae_baselines
    assert ours["control"] == "random:cov"
    again = call("control", source, "--kind", "permuted_decoder", "--out", out)
    assert "is not an empty folder" in str(again.exception)


def test_kinds_are_listed_and_mistakes_named(source: Path):
    listed = call("control").output
    assert all(name in listed for name in CONTROLS)
    assert "out: name a folder" in str(call("control", source).exception)
    missing = call("control", source, "--out", source.parent / "x", "--activations", "no.npy")
    assert "activations: no such file" in str(missing.exception)
    unknown = call("control", source, "--kind", "randm", "--out", source.parent / "x")
    assert "did you mean random" in str(unknown.exception)
