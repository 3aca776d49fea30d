"""Patches for other packages apply to what is installed, and do what their pages say."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

UPSTREAM = Path(__file__).parents[2] / "docs" / "upstream"
RUN: dict[str, Any] = runpy.run_path(str(UPSTREAM / "run.py"))
NAMES: list[str] = RUN["names"]()


@pytest.mark.parametrize("name", NAMES)
def test_a_patch_applies_without_fuzz_to_what_is_installed(name: str, tmp_path: Path) -> None:
    copy = RUN["copied"](name, tmp_path)
    before = {file: file.read_bytes() for file in copy.rglob("*.py")}
    try:
        RUN["patched"](name, tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.fail(f"{name}.patch: the installed {copy.name} moved: {error.stderr}")
    changed = {file for file, text in before.items() if file.read_bytes() != text}
    text = (UPSTREAM / f"{name}.patch").read_text()
    named = re.findall(r"^\+\+\+ b/(\S+)$", text, re.MULTILINE)
    assert {file.relative_to(tmp_path).as_posix() for file in changed} == set(named)
    for file in changed:
        ast.parse(file.read_text())


def test_a_patch_that_does_not_fit_is_noticed(tmp_path: Path) -> None:
    name = NAMES[0]
    copy = RUN["copied"](name, tmp_path)
    RUN["patched"](name, tmp_path)
    assert copy.is_dir()
    with pytest.raises(subprocess.CalledProcessError):
        RUN["patched"](name, tmp_path)  # what it takes away is gone


@pytest.mark.parametrize("name", NAMES)
def test_a_patch_has_a_script_and_the_text_of_a_pull_request(name: str) -> None:
    index = (UPSTREAM / "README.md").read_text()
    for suffix in (".patch", ".py", ".md"):
        assert (UPSTREAM / f"{name}{suffix}").is_file()
        assert f"({name}{suffix})" in index
    page = (UPSTREAM / f"{name}.md").read_text()
    assert re.match(r"# \w.*\n\n\[Patch\]", page)


def test_nothing_else_is_there() -> None:
    stems = {file.stem for file in UPSTREAM.iterdir() if file.is_file()}
    assert stems == {*NAMES, "README", "run"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_script_fails_as_installed_and_passes_with_its_patch(name: str) -> None:
    ran = subprocess.run(
        [sys.executable, str(UPSTREAM / "run.py"), name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
