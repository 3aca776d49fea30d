"""The quick front of the command line: the same words as the command line itself, no torch."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from sae_baselines.baselines import CONSTRAINTS, base_architectures, baseline_architectures
from sae_baselines.cli import app
from sae_baselines.controls import control_names
from sae_baselines.evals.registry import suite_names
from sae_baselines.study.presets import preset_names
from sae_baselines.version import __version__
from sae_baselines_command import memory
from sae_baselines_command.known import completing
from sae_baselines_command.memory import recall, remember
from sae_baselines_command.tree import HandOver, build, describe

REMEMBERED = json.loads(json.dumps(describe(app)))
# What must not be imported to answer a question about the commands.
HEAVY = ("torch", "sae_lens", "sae_baselines", "numpy", "transformers")


def commands(tree: dict[str, Any], before: tuple[str, ...] = ()) -> Iterable[tuple[str, ...]]:
    """Every command and group, as it is typed."""
    yield before
    for each in tree["commands"]:
        name = each["command"].get("name") or each["function"].replace("_", "-")
        yield (*before, name)
    for each in tree["groups"]:
        name = each["name"].get("name")
        yield from commands(each["in"], (*before, name) if name else before)


def without_values(tree: Any) -> Any:
    """Without known values: other tests register architectures, in this process alone."""
    if isinstance(tree, dict):
        return {k: without_values(v) for k, v in tree.items() if k != "values"}
    return [without_values(each) for each in tree] if isinstance(tree, list) else tree


EVERY = sorted(set(commands(REMEMBERED)))


def quick(*arguments: str) -> Any:
    return CliRunner().invoke(build(REMEMBERED), list(arguments))


def slow(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_there_are_commands_to_remember():
    assert {("train",), ("show",), ("list",), ("vision", "page"), ("eval",)} <= set(EVERY)


@pytest.mark.parametrize(
    "command", [c for c in EVERY if c != ("saelens",)], ids=lambda c: " ".join(c) or "all"
)
def test_help_is_the_same(command: tuple[str, ...]):
    ours, theirs = quick(*command, "--help"), slow(*command, "--help")
    assert ours.exit_code == theirs.exit_code == 0
    assert ours.output == theirs.output
    assert "Usage" in ours.output


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("evl",), "Did you mean 'eval'?"),
        (("vision", "pge"), "Did you mean 'page'?"),
        (("eval", "--suits", "core"), "--suites"),
        (("show",), "source"),
        (("demo", "--tokens", "0"), "'--tokens'"),
        (("toy", "--lr", "fast"), "'--lr'"),
        (("train", "a.yaml", "b.yaml"), "unexpected extra argument"),
    ],
)
def test_mistakes_are_the_same_and_name_what_is_near(arguments: tuple[str, ...], hint: str):
    ours, theirs = quick(*arguments), slow(*arguments)
    assert ours.exit_code == theirs.exit_code == 2
    assert ours.output == theirs.output
    assert hint in " ".join(ours.output.replace("│", " ").split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "suites"),
        ("eval", "a", "b", "--suites", "core", "--seeds", "2"),
        ("vision", "page", "study", "--blind"),
        ("saelens", "--architecture", "frozen_decoder", "--d_in", "512"),
        ("saelens", "--help"),
        ("-v", "show", "x", "--json"),
        ("--version",),
    ],
)
def test_what_is_sound_is_handed_over(arguments: tuple[str, ...]):
    assert isinstance(quick(*arguments).exception, HandOver)


@pytest.mark.parametrize(
    "hint", [int, Annotated[complex, typer.Option()], Annotated[dict[str, int], typer.Option()]]
)
def test_what_cannot_be_written_down_is_refused(hint: Any):
    strange = typer.Typer()

    def command(value: Any) -> None:
        del value

    command.__annotations__ = {"value": hint}
    strange.command()(command)
    with pytest.raises(TypeError):
        describe(strange)


def test_it_is_forgotten_when_anything_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "package"
    package.mkdir()
    source, number = package / "cli.py", package / "version.py"
    source.write_text("a")
    number.write_text("1")
    monkeypatch.setattr(memory, "_package", lambda: package)
    monkeypatch.setenv("SAE_BASELINES_CACHE", str(tmp_path / "cache"))
    assert recall() is None
    remember({"some": "commands"})
    assert recall() == {"some": "commands"}
    source.write_text("ab")
    assert recall() is None
    remember({"other": "commands"})
    assert recall() == {"other": "commands"}
    times = number.stat()
    number.write_text("2")
    os.utime(number, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert recall() is None
    remember({})
    (file,) = (tmp_path / "cache" / "commands").iterdir()
    file.write_text("{")
    assert recall() is None


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAE_BASELINES_CACHE", str(tmp_path / "file"))
    remember({})
    assert recall() is None


def test_lists_in_one_word_are_completed_at_their_end():
    complete = completing(lambda: ["core", "ravel", "scr"])
    assert complete("") == ["core", "ravel", "scr"]
    assert complete("r") == ["ravel"]
    assert complete("core,") == ["core,ravel", "core,scr"]
    assert complete("core,ravel,s") == ["core,ravel,scr"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose `sae-baselines` is this one, with the commands remembered."""
    folder = tmp_path_factory.mktemp("installed")
    script = folder / "bin" / "sae-baselines"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sae_baselines_command "$@"\n')
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_BASELINES_CACHE", str(folder / "cache"))
        remember(describe(app))
    here = str(Path(__file__).parents[1])
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("COV_")},
        "PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": here,
        "SAE_BASELINES_CACHE": str(folder / "cache"),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }


def run(environment: dict[str, str], *command: str, **more: str) -> str:
    done = subprocess.run(
        command,
        env={**environment, **more},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["eval", "--help"], ["evl"]])
def test_questions_about_commands_import_nothing_heavy(
    installed: dict[str, str], arguments: list[str]
):
    code = (
        "import sys\n"
        f"sys.argv = ['sae-baselines', *{arguments!r}]\n"
        "from sae_baselines_command import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        f"heavy = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "assert not heavy, heavy\n"
    )
    said = run(installed, sys.executable, "-c", code)
    assert arguments != ["--version"] or said == f"{__version__}\n"


def test_the_first_call_remembers(installed: dict[str, str], tmp_path: Path):
    fresh = {**installed, "SAE_BASELINES_CACHE": str(tmp_path)}
    assert "controls" in run(fresh, "sae-baselines", "list", "controls")
    kept = Path(installed["SAE_BASELINES_CACHE"]) / "commands"
    ((here,), (there,)) = (tmp_path / "commands").iterdir(), kept.iterdir()
    assert here.name == there.name
    assert without_values(json.loads(here.read_text())["commands"]) == without_values(
        REMEMBERED
    )


# In bash itself: what the word before the cursor becomes.
BASH = """
eval "$(sae-baselines --show-completion bash)"
complete -p sae-baselines
while IFS= read -r line; do
    IFS=' ' read -r -a COMP_WORDS <<< "${line%%.}"
    [[ $line == *" ." ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    COMPREPLY=()
    _sae_baselines_completion sae-baselines
    (IFS=' '; echo "${COMPREPLY[*]}")
done
"""


def asked() -> dict[str, set[str]]:
    """Lines, and what they are completed to; a full stop is where a new word begins."""
    return {
        "sae-baselines .": {" ".join(c) for c in EVERY if len(c) == 1} | {"vision"},
        "sae-baselines li": {"list"},
        "sae-baselines vision .": {c[1] for c in EVERY if c[:1] == ("vision",) and len(c) == 2},
        "sae-baselines eval --su": {"--suites"},
        "sae-baselines eval study --suites .": {*suite_names(), "all"},
        "sae-baselines eval study --suites core,sc": {"core,scr"},
        "sae-baselines preset pyth": {"pythia-70m"},
        "sae-baselines preset .": set(preset_names()),
        "sae-baselines control sae --kind .": set(control_names()),
        "sae-baselines list .": {"architectures", "presets", "suites", "controls"},
        "sae-baselines list --constraint .": set(CONSTRAINTS),
        "sae-baselines saelens --architecture frozen_enc": {
            n for n in baseline_architectures() if n.startswith("frozen_enc")
        },
        "sae-baselines toy --architecture .": set(base_architectures()),
    }


def test_completion_in_bash(installed: dict[str, str]):
    bash, wanted = shutil.which("bash"), asked()
    assert bash is not None
    done = subprocess.run(
        [bash, "--norc", "-c", BASH],
        input="".join(f"{line}\n" for line in wanted),
        env=installed,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    registered, *answers = done.stdout.splitlines()
    assert "-F _sae_baselines_completion sae-baselines" in registered
    found = {line: set(answer.split()) for line, answer in zip(wanted, answers, strict=True)}
    assert found == wanted


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_in_other_shells(installed: dict[str, str], shell: str):
    script = run(installed, "sae-baselines", "--show-completion", shell)
    wanted = {"zsh": "#compdef sae-baselines", "fish": "complete --command sae-baselines"}
    assert wanted[shell] in script
    # What that script asks for, in the words in which it asks.
    variable = "_SAE_BASELINES_COMPLETE"
    assert f"{variable}=complete_{shell}" in script
    action = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"} if shell == "fish" else {}
    asked = {variable: f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "sae-baselines preset p"}
    answer = run(installed, "sae-baselines", **asked, **action)
    assert "pythia-70m" in answer
    assert "gemma" not in answer
    if path := shutil.which(shell):
        subprocess.run([path, "-n"], input=script, text=True, check=True, timeout=60)
