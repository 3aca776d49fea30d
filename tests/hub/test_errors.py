"""What the Hub refuses and what breaks on the way: one line each, no token, nothing lost."""

import contextlib
import hashlib
import logging
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, XetRefreshTokenError

import sae_baselines_cli as cli
from sae_baselines.errors import UserError
from sae_baselines.hub import Publication, publish, upload
from sae_baselines.hub.errors import explained, reading_errors
from sae_baselines.redact import redacted, redacted_logs
from tests.hub.conftest import REPO
from tests.loopback_hub import READER, WRITER, Hub

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


def test_an_address_that_gave_no_answer_is_not_said_to_answer():
    words = "An error happened while trying to locate the file on the Hub" + " and so on" * 20
    with pytest.raises(UserError) as error, reading_errors("release", ""):
        raise LocalEntryNotFoundError(words)
    assert str(error.value) == (
        f"release: is neither here nor cached, and {huggingface_hub.constants.ENDPOINT} does "
        "not answer; check the network, or name a local folder"
    )


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
    _, err = capfd.readouterr()
    assert "what was uploaded stays in the repo; continue with the same command" in err
    assert "Traceback" not in err


SIGNED = "https://cas.example/v1/xorbs/x?X-Amz-Signature=s3cr3t"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTYifQ.c2lnbmF0dXJl"


# What hf_xet 1.8 said of a server that refused.
REFUSED = "Network error: Request error: HTTP status client error"


class XetAuthenticationError(PermissionError):
    """As hf_xet 1.8 has it: an OSError that names no file."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError(
                f"Data processing error: CAS service error : Reqwest\nError: {SIGNED}"
            ),
            "(RuntimeError: Data processing error: CAS service error : Reqwest Error: ",
        ),
        (
            RuntimeError(f"Xet client: token {JWT} expired"),
            "(RuntimeError: Xet client: token <",
        ),
        (XetAuthenticationError("denied"), "(XetAuthenticationError: denied)"),
        (
            XetRefreshTokenError("Failed to refresh"),
            "(XetRefreshTokenError: Failed to refresh)",
        ),
        (RuntimeError("CAS service error: 402 Payment Required"), "no room left on the Hub"),
        (ConnectionError(f"{REFUSED} (402 Payment Required)"), "no room left on the Hub"),
        (ConnectionError(f"{REFUSED} (403 Forbidden)"), "(ConnectionError: Network error: "),
    ],
)
def test_failures_of_the_storage_of_large_files(error: Exception, words: str):
    for raised in (error, chained(error)):
        message = explained(raised, REPO, "main")
        assert message is not None
        assert words in message
        assert "\n" not in message
        assert "s3cr3t" not in message
        assert "eyJ" not in message
        assert ("HF_HUB_DISABLE_XET=1" in message) == ("no room" not in words)


def chained(error: Exception) -> Exception:
    """As a thread pool hands it on."""
    try:
        raise RuntimeError("Error while uploading") from error
    except RuntimeError as raised:
        return raised


def test_what_has_nothing_to_do_with_the_storage_is_not_put_down_to_it():
    for error in (
        RuntimeError("cascade"),
        FileNotFoundError(2, "No such file", "notes/CAS.txt"),
        ZeroDivisionError("division by zero"),
    ):
        assert explained(error, REPO, "main") is None


@pytest.mark.parametrize("verbose", [False, True])
def test_an_unknown_error_within_an_upload_is_one_line_too(
    verbose: bool,
    study: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    before = digests(study)
    real = upload.upload_saes_to_huggingface

    def breaks(saes: dict[str, Path], *arguments: Any, **options: Any) -> None:
        real(dict([next(iter(saes.items()))]), *arguments, **options)
        try:
            raise KeyError(f"{SIGNED} {WRITER}")
        except KeyError:
            raise ZeroDivisionError(f"odd,\n{JWT} at {SIGNED} with {WRITER}")  # noqa: B904

    monkeypatch.setattr(upload, "upload_saes_to_huggingface", breaks)
    arguments = ["publish", str(study), REPO, "--license", "mit"]
    monkeypatch.setattr(sys, "argv", ["sae-baselines", *(["-v"] * verbose), *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    out, err = capfd.readouterr()
    # A terminal's width may break the line.
    said = " ".join(err.split())
    assert (
        f"error: {REPO}: an unexpected error (ZeroDivisionError: odd, <hidden> at "
        "https://cas.example/v1/xorbs/x?<hidden> with <hidden>); nothing here was changed"
    ) in said
    assert ("Traceback" in err) == ("KeyError" in err) == verbose
    for secret in ("s3cr3t", WRITER, "eyJ"):
        assert secret not in out + err
    assert digests(study) == before
    assert len(hub.repos[REPO].branches["main"]) == 2


def test_a_log_record_that_cannot_be_written_ends_nothing(caplog: pytest.LogCaptureFixture):
    log = logging.getLogger("some.library")
    with caplog.at_level(logging.DEBUG), redacted_logs():
        log.info("PUT %s of %s, %d", f"{SIGNED} {WRITER}")
        try:
            raise RuntimeError(f"at {SIGNED}")
        except RuntimeError:
            log.exception("with %s", WRITER)
    first, second = caplog.records
    assert first.getMessage().startswith("'PUT %s of %s, %d'")
    assert "xorbs/x?<hidden>" in first.getMessage()
    assert second.getMessage() == "with <hidden>"
    assert "RuntimeError: at https://cas.example/v1/xorbs/x?<hidden>" in caplog.text
    assert "s3cr3t" not in caplog.text
    assert WRITER not in caplog.text


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
