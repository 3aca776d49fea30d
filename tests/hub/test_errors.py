"""What the Hub refuses and what breaks on the way: one line each, no token, nothing lost."""

import contextlib
import hashlib
import logging
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from sae_baselines import cli
from sae_baselines.errors import UserError
from sae_baselines.hub import Publication, publish
from sae_baselines.hub.leaks import redacted
from tests.hub.conftest import REPO
from tests.hub.writable_hub import READER, WRITER, Hub

REVOKED = "hf_" + "x" * 34


def digests(root: Path) -> dict[str, str]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stopped(planned: Publication, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        publish(planned, **options)
    message = str(error.value)
    assert "\n" not in message
    # What was chained would be printed with a traceback.
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return message


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (None, "token: there is none; run 'hf auth login'"),
        (REVOKED, "token: the Hub refuses it (Invalid credentials in Authorization header)"),
        (READER, "the token may not write there (You don't have the rights"),
    ],
)
def test_a_token_that_is_missing_refused_or_too_weak(
    token: str | None,
    words: str,
    planned: Publication,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    assert words in stopped(planned)
    assert REPO not in hub.repos
    # A repo that is there, and to which the token may not write.
    hub.make(REPO)
    assert words in stopped(planned)
    assert len(hub.repos[REPO].branches["main"]) == 1


@pytest.mark.parametrize(
    ("method", "path", "answer", "words"),
    [
        ("POST", "/objects/batch", (403, "Private storage limit reached"), "no room left"),
        ("PUT", "/lfs/", (413, "Payload too large"), "no room left"),
        ("POST", "/commit/", (402, "Payment required"), "no room left"),
        ("POST", "/preupload/", (500, "oops"), "the Hub fails with 500 (oops)"),
        ("PUT", "/lfs/", (503, "busy"), "the Hub fails with 503"),
        ("POST", "/commit/", (412, "main is at another commit"), "meanwhile"),
        ("POST", "/commit/", (429, "slow down"), "too many requests"),
        ("POST", "/commit/", (400, "odd"), "the Hub refuses with 400 (odd)"),
        ("POST", "/repos/create", (403, "no rights under alice"), "(no rights under alice)"),
        ("GET", "/tree/", (502, "bad gateway"), "the Hub fails with 502"),
        ("PUT", "/lfs/", "drop", "failed (connection)"),
        ("POST", "/commit/", "drop", "failed (connection)"),
        ("GET", "/whoami", "drop", "failed (connection)"),
    ],
)
def test_each_refusal_is_one_line_that_names_the_remedy(
    method: str, path: str, answer: Any, words: str, planned: Publication, hub: Hub
):
    hub.failures[method, path] = answer
    message = stopped(planned)
    assert words in message
    if answer == "drop" or answer[0] >= 500:
        assert "the same command goes on where it stopped" in message
    if answer == "drop":
        hub.failures.clear()
        assert publish(planned).url.endswith(REPO)


def test_no_network(
    planned: Publication,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
):
    del hub
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the connection to http://127.0.0.1:9 failed" in stopped(planned)


def test_the_card_is_checked_by_the_hub_too(planned: Publication, hub: Hub):
    hub.failures["POST", "/validate-yaml"] = (500, "down")
    assert "the Hub fails with 500" in stopped(planned)


@pytest.mark.parametrize("token", [WRITER, REVOKED])
def test_the_command_fails_in_one_line_and_tells_no_token(
    token: str,
    study: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    before = digests(study)
    monkeypatch.setenv("HF_TOKEN", token)
    # The Hub repeats what it was sent, and the client logs signed addresses.
    hub.failures["PUT", "/lfs/"] = (503, f"busy with {token}")
    monkeypatch.setattr(
        sys, "argv", ["sae-baselines", "publish", str(study), REPO, "--license", "mit"]
    )
    with caplog.at_level(logging.DEBUG), pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    out, err = capfd.readouterr()
    assert [line for line in err.splitlines() if line.startswith("error:")] != []
    assert "Traceback" not in err
    if token == WRITER:
        assert "thrown while requesting PUT" in caplog.text
    for text in (out, err, caplog.text):
        assert token not in text
        assert "s3cr3t" not in text
    assert digests(study) == before


def test_control_c_is_130(
    study: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    del hub

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sae_baselines.hub.upload.upload_saes_to_huggingface", interrupted)
    arguments = ["sae-baselines", "publish", str(study), REPO, "--license", "mit"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 130
    out, err = capfd.readouterr()
    assert "interrupted; the same command goes on where it stopped" in out
    assert "Traceback" not in err


def test_an_error_that_is_not_of_the_hub_keeps_its_traceback(
    planned: Publication, hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    del hub

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("sae_baselines.hub.upload.upload_saes_to_huggingface", broken)
    with pytest.raises(ZeroDivisionError):
        publish(planned)


def test_what_is_hidden(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "not-of-the-usual-form")
    for secret in (WRITER, "not-of-the-usual-form", "ghp_" + "a" * 36, "sk-" + "b" * 40):
        assert secret not in redacted(f"x {secret} y")
    assert "c2VjcmV0cw" not in redacted("authorization: Basic c2VjcmV0cw==")
    assert redacted("PUT https://s3/x?sig=abc, again") == "PUT https://s3/x?<hidden> again"
    assert redacted("disk task-force, hf_hub/0.36") == "disk task-force, hf_hub/0.36"


def test_logs_are_as_before_afterwards(planned: Publication, hub: Hub):
    factory = logging.getLogRecordFactory()
    hub.failures["GET", "/whoami"] = (401, "no")
    with contextlib.suppress(UserError):
        publish(planned)
    assert logging.getLogRecordFactory() is factory
