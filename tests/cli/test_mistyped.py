"""What is mistyped is one line that names the option; libraries speak with --verbose."""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from sae_baselines.errors import UserError
from sae_baselines.hub.ids import check_repo_id
from sae_baselines.show import show
from sae_baselines_cli import app, main
from tests.cli.parsing import HandOver, commands, typed


def _said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str
) -> str:
    monkeypatch.setattr("sys.argv", ["sae-baselines", *args])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (1, 2)
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    return " ".join((told.out + told.err).split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "x", "--suites", ""), "names none; name at least one"),
        (("eval", "x", "--suites", " , "), "names none; name at least one"),
        (("check", "x", "--members", ","), "names none; name at least one"),
        (("check", "x", "--suites", ""), "names none; name at least one"),
        (("vision", "page", "x", "--members", ""), "names none; name at least one"),
        (("doctor", "--suites", ""), "names none; name at least one"),
        (("toy", "--lr", "inf"), "lr: inf: Input should be a finite number"),
        (("toy", "--lr", "nan"), "lr: nan"),
        (("toy", "--lr", "0"), "lr: 0"),
        (("toy", "--device", ""), "device: '': is empty"),
        (("toy", "--samples", "9" * 25), "training_samples: 9999999999999999999999999: is too"),
        (("vision", "demo", "--seeds", "9" * 5000), "is not a list of whole numbers"),
        (("saelens", "--d_in", "x"), "d_in"),
        (("saelens", "--architecture", "topk", "--lr", "x"), "lr"),
        (("saelens", "--nosuch", "3"), "unrecognized arguments: --nosuch 3"),
        (("control", "x", "--seed", "9" * 25), "Error"),
        (("check", "x", "--seeds", "9" * 25), "Error"),
        (("check", "x", "--context-size", "9" * 25), "Error"),
        (("toy", "--seeds", "9" * 25), "Error"),
        (("publish", "x", "a/b\nc", "--license", "mit"), "is not a repo id"),
    ],
)
def test_a_mistyped_option_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    said = _said(monkeypatch, capsys, *arguments)
    assert message in said.replace("│ ", "")
    assert not list(tmp_path.iterdir())


def test_a_refused_saelens_command_leaves_argparse_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _said(monkeypatch, capsys, "saelens", "--d_in", "x")
    assert sys.argv == ["sae-baselines", "saelens", "--d_in", "x"]
    with pytest.raises(SystemExit):
        argparse.ArgumentParser().error("of another program")


def _is_whole(option: Any) -> bool:
    """Whether it takes a whole number, in any version of Typer."""
    kind = getattr(option, "type", None)
    if kind is None:
        return option.type_descriptor.annotation is int
    return "INT" in repr(kind).upper()


@pytest.mark.parametrize("value", ["-1", "1.5", "inf", "nan", "x", "", "9" * 5000])
def test_no_whole_number_of_any_command_takes_what_is_none(value: str):
    """Every option of a whole number, whatever the command: a new one is covered."""
    looked_at = 0
    for words in commands():
        command = get_command(app)
        for word in words:
            command = command.commands[word]  # type: ignore[attr-defined]
        for option in command.params:
            if option.param_type_name != "option" or not _is_whole(option):
                continue
            looked_at += 1
            result = typed(*words, option.opts[0], value)
            assert result.exit_code == 2, (words, option.opts, result.exception)
            assert not isinstance(result.exception, HandOver)
    assert looked_at > 8


@pytest.mark.parametrize(
    "repo", ["a/b\n", "a\n/b", "a/bé", "é/b", "a/b c", "a", "a/b/c", "", "/", "a/", "a/\x1b[m"]
)
def test_a_repo_that_the_hub_cannot_have_is_refused(repo: str):
    with pytest.raises(UserError, match="is not a repo id; use user/repo"):
        check_repo_id(repo)


def test_a_covariance_that_is_none_is_refused_for_every_sae(tmp_path: Path):
    for name in ("junk.safetensors", "junk.npy", "junk.txt"):
        file = tmp_path / name
        file.write_bytes(b"junk")
        with pytest.raises(UserError, match=r"^covariance: ") as caught:
            show(str(tmp_path), file)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("verbose", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_what_libraries_print_is_for_verbose(verbose: bool):
    """In a process of its own, as libraries add what they print with when they are imported."""
    code = f"""
from sae_baselines_cli.shared import log_to_terminal
log_to_terminal({verbose})
import logging, datasets, huggingface_hub, transformers
logging.warning("noise of root")
for name in ("huggingface_hub.utils._http", "datasets.builder", "transformers.modeling_utils",
             "urllib3.connectionpool"):
    logging.getLogger(name).warning("noise of %s", name)
logging.getLogger("sae_baselines").warning("ours")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert "ours" in done.stderr
    assert ("noise of" in done.stderr) == verbose
    assert ("noise of huggingface_hub" in done.stderr) == verbose
