"""pip, with and without the settings of the machine."""

import importlib.util
import os
from pathlib import Path

import pytest


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip for this interpreter, out of ensurepip where an environment was made without."""
    if importlib.util.find_spec("pip") is None:
        ensurepip = importlib.util.find_spec("ensurepip")
        folder = Path(ensurepip.origin).parent if ensurepip and ensurepip.origin else Path()
        wheels = sorted(folder.glob("_bundled/pip-*.whl"))
        if not wheels:
            pytest.skip("no pip and no ensurepip")
        monkeypatch.setenv("PYTHONPATH", str(wheels[0]))


@pytest.fixture
def nothing_configured(pip: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
