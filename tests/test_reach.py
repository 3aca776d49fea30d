"""A Hub that says nothing is said at once, and once, wherever it is asked for something."""

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from sae_lens import SAE

from sae_baselines import reach
from sae_baselines.controls.source import load_sae
from sae_baselines.errors import UserError
from sae_baselines.reach import say_if_retried, say_if_silent
from sae_baselines.study import data, language_model
from sae_baselines.study.spec import DatasetSpec, ModelSpec
from sae_baselines_cli.shared import log_to_terminal


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    """What this package says, where nobody listens at the Hub's address."""
    log_to_terminal(verbose=False)
    monkeypatch.setattr(logging.getLogger("sae_baselines"), "propagate", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    return lambda: [r.getMessage() for r in caplog.records if r.name == "sae_baselines"]


def unreached(*_: Any, **__: Any) -> Any:
    raise OSError("unreached")


def a_text() -> None:
    data.load_text(DatasetSpec(path="org/text"))


def a_model() -> None:
    language_model.load_language_model(ModelSpec(name="org/model"), "hook_embed", "cpu")


def an_sae() -> None:
    load_sae("org/repo:folder")


@pytest.mark.parametrize(
    ("load", "name"),
    [(a_text, "org/text"), (a_model, "org/model"), (an_sae, "org/repo:folder")],
)
def test_whatever_is_fetched_says_what_is_tried_and_how_to_go_without(
    load: Callable[[], None], name: str, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "load_dataset", unreached)
    monkeypatch.setattr(language_model, "load_model", unreached)
    monkeypatch.setattr(SAE, "from_pretrained", unreached)
    for _ in range(2):
        with pytest.raises(UserError):
            load()
    (line,) = said()
    assert f"{constants.ENDPOINT} does not answer" in line
    assert f"asked for {name}, again and again" in line
    assert "HF_HUB_OFFLINE=1" in line
    assert "local folder" in line


def test_a_client_that_tries_again_is_said_once_and_not_what_it_asks_for(
    said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that answers may still fail at everything: its clients' logs are silenced."""
    monkeypatch.setattr(reach, "silence", lambda *_: None)
    say_if_silent(["org/model"])
    assert not said()
    clients = logging.getLogger("huggingface_hub.utils._http")
    for n in (1, 2):
        clients.warning("HTTP Error 503 thrown while requesting GET https://x/y?secret=1")
        clients.warning("Retrying in %ss [Retry %d/5].", n, n)
    (line,) = said()
    assert f"{constants.ENDPOINT} fails and is asked again" in line
    assert "secret" not in line
    assert "HF_HUB_OFFLINE=1" in line


def test_nothing_is_said_twice_or_of_what_is_here(said: Any, tmp_path: Path) -> None:
    say_if_silent([str(tmp_path)])
    assert not said()
    say_if_silent(["org/text"])
    say_if_retried("Got disconnected from remote data host. Retrying in 5sec [1/20]")
    assert len(said()) == 1
