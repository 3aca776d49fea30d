"""What every command says when it is asked to stop."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sae_baselines_cli as cli
from sae_baselines.study.runner import InterruptedTrainingError
from sae_baselines_cli.interruptions import Interruptions, what_is_kept

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def not_under_nohup() -> Iterator[None]:
    """Where hangups are ignored, as under nohup, they are left ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def stop(
    arguments: list[str], work: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> int:
    """The exit code of a command whose work is this."""
    monkeypatch.setattr(sys, "argv", ["sae-baselines", *arguments])
    monkeypatch.setattr(cli, "app", work)
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("in_training", [False, True])
@pytest.mark.parametrize("typers", [False, True])
def test_any_signal_anywhere_is_one_line_and_its_exit_code(
    number: signal.Signals,
    in_training: bool,
    typers: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    def work(**_: object) -> None:
        if in_training:
            raise InterruptedTrainingError(number)
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            if typers:
                sys.exit(130)
            raise

    arguments = ["train", "a panel.yaml", "--out", "x"]
    assert stop(arguments, work, monkeypatch) == 128 + number
    (line,) = capfd.readouterr().err.splitlines()
    assert line == (
        f"interrupted ({number.name}): finished members and the last checkpoint are kept; "
        "continue with --resume: sae-baselines train 'a panel.yaml' --out x --resume"
    )


@pytest.mark.parametrize(
    ("typed", "kept", "resume"),
    [
        ("-v demo", "last checkpoint", True),
        ("toy --quick --resume", "last checkpoint", False),
        ("vision train x.yaml", "last checkpoint", True),
        ("vision demo", "last checkpoint", True),
        ("vision page s", "the study is kept", False),
        ("check me.yaml", "last checkpoint", False),
        ("eval s --suites core", "finished scores are kept", False),
        ("report s", "write it again", False),
        ("publish s me/repo", "stays in the repo", False),
        ("drift s", "records are kept", False),
        ("show s", "nothing was changed", False),
    ],
)
def test_each_command_says_what_is_kept_and_how_to_go_on(typed: str, kept: str, resume: bool):
    line = what_is_kept(typed.split(), signal.SIGTERM)
    assert kept in line
    again = f"sae-baselines {typed} --resume" if resume else f"sae-baselines {typed}"
    assert line.endswith(f": {again}")


def test_a_run_under_nohup_stays_so():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruptions() as interruptions:
            os.kill(os.getpid(), signal.SIGHUP)
        assert interruptions.number is None
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_other_exits_are_left_alone(
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    del tmp_path
    assert stop(["show"], lambda **_: sys.exit(code), monkeypatch) == code
    assert capfd.readouterr().err == ""
