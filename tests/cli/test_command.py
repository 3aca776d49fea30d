"""Questions about the command line are answered at once: help, mistakes and TAB, no torch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sae_baselines.version import __version__
from sae_baselines_cli import app, known
from sae_baselines_cli.known import completing
from tests import stock_process
from tests.cli.parsing import HandOver, commands, typed

# What must not be imported to answer a question about the commands.
HEAVY = ("torch", "sae_lens", "sae_baselines", "numpy", "transformers")
NO_SHELL = "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"
EVERY = sorted(set(commands()))


def test_there_are_commands():
    assert {("train",), ("show",), ("list",), ("vision", "page"), ("eval",)} <= set(EVERY)


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
    ours = typed(*arguments)
    theirs = CliRunner().invoke(app, list(arguments), prog_name="sae-baselines")
    assert ours.exit_code == theirs.exit_code == 2
    assert ours.output == theirs.output
    # Older versions of Typer say SOURCE.
    assert hint.lower() in " ".join(ours.output.replace("│", " ").lower().split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "suites"),
        ("eval", "a", "b", "--suites", "core", "--seeds", "2"),
        ("vision", "page", "study", "--blind"),
        ("saelens", "--architecture", "frozen_decoder", "--d_in", "512"),
        ("saelens", "--help"),
        ("-v", "show", "x", "--json"),
    ],
)
def test_what_is_sound_is_handed_over(arguments: tuple[str, ...]):
    assert isinstance(typed(*arguments).exception, HandOver)


def test_lists_in_one_word_are_completed_at_their_end():
    complete = completing(["core", "ravel", "scr"])
    assert complete("") == ["core", "ravel", "scr"]
    assert complete("r") == ["ravel"]
    assert complete("core,") == ["core,ravel", "core,scr"]
    assert complete("core,ravel,s") == ["core,ravel,scr"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose `sae-baselines` is this one."""
    folder = tmp_path_factory.mktemp("installed")
    script = folder / "bin" / "sae-baselines"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sae_baselines_cli "$@"\n')
    script.chmod(0o755)
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("COV_")},
        "PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        NO_SHELL: "1",
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


# As a fresh process has them: other tests register architectures, in this one alone.
REGISTRIES = """
import json
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_baselines.baselines import CONSTRAINTS, base_architectures
from sae_baselines.controls import control_names
from sae_baselines.evals.registry import suite_names
from sae_baselines.paper.demo.study import NAMED
from sae_baselines.pipeline import PANEL_SUITE
from sae_baselines.study.presets import preset_names
from sae_baselines.study.reference.recipe import DEFAULT_MEMBERS, DEFAULT_SEEDS
from sae_baselines.study.spec import TRAINED
from sae_baselines.study.synthetic.generator import SETTINGS
from sae_baselines.work.choice import EXECUTORS
print(json.dumps({
    "bases": list(base_architectures()),
    "constraints": list(CONSTRAINTS),
    "controls": list(control_names()),
    "suites": list(suite_names()),
    "panel_suite": PANEL_SUITE,
    "trained": TRAINED,
    "check_members": list(DEFAULT_MEMBERS),
    "check_seeds": DEFAULT_SEEDS,
    "demo_models": list(NAMED),
    "toy_settings": list(SETTINGS),
    "executors": list(EXECUTORS),
    "architectures": sorted(SAE_TRAINING_CLASS_REGISTRY),
    "presets": list(preset_names()),
}))
"""


def test_what_is_written_down_for_help_and_completion_is_what_is_registered():
    found = stock_process.run(REGISTRIES)
    assert found.returncode == 0, found.stderr
    registered = json.loads(found.stdout)
    written = {
        "bases": list(known.BASES),
        "constraints": list(known.CONSTRAINTS),
        "controls": list(known.CONTROLS),
        "suites": list(known.SUITES),
        "panel_suite": known.PANEL_SUITE,
        "trained": known.TRAINED,
        "check_members": list(known.CHECK_MEMBERS),
        "check_seeds": known.CHECK_SEEDS,
        "demo_models": list(known.DEMO_MODELS),
        "toy_settings": list(known.TOY_SETTINGS),
        "executors": list(known.EXECUTORS),
        "architectures": sorted(known.architectures()),
        "presets": known.presets(),
    }
    assert written == registered


@pytest.mark.parametrize(
    "command", [c for c in EVERY if c != ("saelens",)], ids=lambda c: " ".join(c) or "all"
)
def test_help_is_the_same(
    installed: dict[str, str], command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    """Of the installed command, and of one whose bodies are gone."""
    monkeypatch.setenv(NO_SHELL, "1")
    ours = typed(*command, "--help")
    assert ours.exit_code == 0
    assert "Usage" in ours.output
    theirs = run(installed, "sae-baselines", *command, "--help", COLUMNS="80")
    assert ours.output.split() == theirs.split()


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["eval", "--help"], ["evl"]])
def test_questions_about_commands_import_nothing_heavy(
    installed: dict[str, str], arguments: list[str]
):
    code = (
        "import sys\n"
        f"sys.argv = ['sae-baselines', *{arguments!r}]\n"
        "from sae_baselines_cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        f"heavy = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "assert not heavy, heavy\n"
    )
    said = run(installed, sys.executable, "-c", code)
    assert arguments != ["--version"] or said == f"{__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (["--help"], {}),
        (["check", "--help"], {}),
        ([], {"_SAE_BASELINES_COMPLETE": "complete_bash", "COMP_CWORD": "1"}),
    ],
)
def test_help_and_completion_take_no_more_than_the_libraries_that_print_them(
    installed: dict[str, str], arguments: list[str], more: dict[str, str]
):
    """A ratio, of the fastest of ten: a slow or busy machine is not the command's fault.

    Three times the import of typer and rich are 0.4 s of a processor where that takes 0.14;
    torch alone would be ten times.
    """
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=False, stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime)\n"
    )
    more = {**more, "COMP_WORDS": "sae-baselines li"} if more else {}
    measure = (sys.executable, "-c", code)
    library = (sys.executable, "-c", "import typer.rich_utils")
    yard = min(float(run(installed, *measure, *library)) for _ in range(5))
    command = (*measure, "sae-baselines", *arguments)
    assert any(float(run(installed, *command, **more)) < 3 * yard for _ in range(10))


def test_a_command_runs_and_imports_what_it_needs(installed: dict[str, str]):
    assert "controls" in run(installed, "sae-baselines", "list", "controls")


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
        "sae-baselines .": {c[0] for c in EVERY if len(c) == 1},
        "sae-baselines li": {"list"},
        "sae-baselines vision .": {c[1] for c in EVERY if c[:1] == ("vision",) and len(c) == 2},
        "sae-baselines eval --su": {"--suites"},
        "sae-baselines eval study --suites .": {*known.SUITES, "all"},
        "sae-baselines eval study --suites core,sc": {"core,scr"},
        "sae-baselines preset pyth": {"pythia-70m"},
        "sae-baselines preset .": set(known.presets()),
        "sae-baselines control sae --kind .": set(known.CONTROLS),
        "sae-baselines list .": {"architectures", "presets", "suites", "controls"},
        "sae-baselines list --constraint .": set(known.CONSTRAINTS),
        "sae-baselines saelens --architecture frozen_enc": {
            n for n in known.architectures() if n.startswith("frozen_enc")
        },
        "sae-baselines toy --architecture .": set(known.BASES),
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
    words: dict[str, Any] = {
        variable: f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "sae-baselines preset p",
    }
    answer = run(installed, "sae-baselines", **words, **action)
    assert "pythia-70m" in answer
    assert "gemma" not in answer
    if path := shutil.which(shell):
        subprocess.run([path, "-n"], input=script, text=True, check=True, timeout=60)
