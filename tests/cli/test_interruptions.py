"""What every command says when it is asked to stop."""

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from sae_lens import SAE

import sae_baselines_cli as cli
from sae_baselines.study.runner import InterruptedTrainingError, SignalsBetweenSteps
from sae_baselines_cli import shared
from sae_baselines_cli.interruptions import Interruptions, what_is_kept
from tests.helpers import make_sae
from tests.tiny_model import save_tiny_model

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def not_under_nohup() -> Iterator[None]:
    """Hangups under nohup, and interrupts in a shell's background, are left ignored."""
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGHUP, hangup)
    signal.signal(signal.SIGINT, interrupt)


def stop(
    arguments: list[str], work: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> int:
    """The exit code of a command whose work is this."""
    monkeypatch.setattr(cli, "app", work)
    return exit_code(arguments, monkeypatch)


def exit_code(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """That of a command as it is typed."""
    monkeypatch.setattr(sys, "argv", ["sae-baselines", *arguments])
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
        ("-v demo", "last checkpoint, scores", False),
        ("toy --quick --resume", "last checkpoint", False),
        ("vision train x.yaml", "last checkpoint", True),
        ("vision demo", "last checkpoint", True),
        ("vision page s", "the study is kept", False),
        ("check me.yaml", "last checkpoint", False),
        ("eval s --suites core", "finished scores are kept", False),
        ("eval s --force", "makes all of them again, without --force", False),
        ("publish s me/repo --dry-run", "nothing was changed", False),
        ("toy --show", "nothing was changed", False),
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


def killed(number: int) -> Callable[..., Any]:
    """Work that is asked to stop."""

    def work(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), number)
        raise AssertionError("it went on")

    return work


# What each command does, by a name in it.
WORK = {
    "train {file}": "sae_baselines.train",
    "demo --model {model} --dataset {file}": "sae_baselines.check",
    "toy --quick": "sae_baselines.study.engine.train_study",
    "vision train {file}": "sae_baselines.study.spec.load_spec",
    "vision page s": "sae_baselines.paper.vision.page.write_page",
    "check {file}": "sae_baselines.check",
    "eval s --suites core": "sae_baselines.evaluate",
    "doctor": "sae_baselines.pipeline.examine",
    "report s": "sae_baselines.report.report",
    "drift s": "sae_baselines.show.show_drift",
    "show s": "sae_baselines.show.show",
    "publish s me/repo --license mit": "sae_baselines.hub.plan.plan_publication",
    "control s --out x": "sae_baselines.control",
    "saelens --d_in 4": "runpy.run_module",
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("typed", WORK)
def test_every_command_stops_in_one_line_with_its_exit_code(
    typed: str,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    (file := tmp_path / "a.yaml").touch()
    if "{model}" in typed:
        save_tiny_model(tmp_path / "model")
    arguments = typed.format(file=file, model=tmp_path / "model").split()
    monkeypatch.setattr(WORK[typed], killed(number), raising=False)
    assert exit_code(arguments, monkeypatch) == 128 + number
    assert capfd.readouterr().err.splitlines() == [what_is_kept(arguments, number)]


def test_a_control_is_whole_or_not_there(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
):
    make_sae("topk").save_inference_model(tmp_path / "sae")
    out = tmp_path / "made" / "control"
    save = SAE.save_model

    def stopped(self: Any, folder: Any) -> None:
        save(self, folder)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SAE, "save_model", stopped)
    typed = f"control {tmp_path / 'sae'} --kind permuted_decoder --out {out}".split()
    assert exit_code(typed, monkeypatch) == 143
    assert "nothing was changed; start again" in capfd.readouterr().err
    assert list(out.parent.iterdir()) == []
    monkeypatch.undo()
    assert exit_code(typed, monkeypatch) == 0
    assert (out / "cfg.json").exists()


def test_what_libraries_make_of_a_signal_is_an_interruption(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    def crash(**_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as error:
            raise RuntimeError("a worker died") from error

    def prompt(*_: object, **__: object) -> str:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise typer.Abort from None
        return ""

    monkeypatch.setattr(typer, "prompt", prompt)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)

    def asked(**_: object) -> None:
        shared.ask("Licence")

    for work in (crash, asked):
        assert stop(["publish", "s", "me/repo"], work, monkeypatch) == 130
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("interrupted (SIGINT): what was uploaded stays")


def test_saelens_own_handlers_do_not_hide_which_signal_it_was(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    class OfSAELensError(Exception):
        pass

    def runner(*_: object, **__: object) -> None:
        def interrupt(*_: object) -> None:
            raise OfSAELensError

        signal.signal(signal.SIGTERM, interrupt)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runpy, "run_module", runner)
    assert exit_code(["saelens", "--d_in", "4"], monkeypatch) == 143
    (line,) = capfd.readouterr().err.splitlines()
    assert "see its --resume_from_checkpoint" in line


def test_a_signal_in_the_last_step_is_not_lost():
    with Interruptions() as interruptions, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with SignalsBetweenSteps():
            os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")
    assert interruptions.number == signal.SIGTERM


SECOND = """
import os, signal
from sae_baselines_cli.interruptions import Interruptions
with Interruptions(["train", "x"]):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGTERM)
"""


# An exception in the midst of an import is swallowed by some libraries, as it is here.
IMPORTING = """
import sys
from sae_baselines_cli.interruptions import Interruptions
sys.path.insert(0, sys.argv[1])
with Interruptions(["eval", "s"]):
    try:
        import stopped
    except KeyboardInterrupt:
        pass
"""


def test_a_second_signal_stops_at_once_and_says_so():
    ended = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGTERM
    assert ended.stderr.strip() == what_is_kept(["train", "x"], signal.SIGTERM)


def test_a_signal_during_an_import_stops_at_once_and_says_so(tmp_path: Path):
    (tmp_path / "stopped.py").write_text("import signal; signal.raise_signal(signal.SIGTERM)")
    command = [sys.executable, "-c", IMPORTING, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 143
    assert ended.stderr.strip() == what_is_kept(["eval", "s"], signal.SIGTERM)
