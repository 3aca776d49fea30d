"""The command line: help, errors in one line, exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sae_baselines.errors import UserError
from sae_baselines.evals import load_eval_spec
from sae_baselines.study.spec import load_spec
from sae_baselines_cli import app
from tests.forked import run_command


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "demo",
        "preset",
        "list",
        "show",
        "eval",
        "doctor",
        "report",
        "check",
        "drift",
        "latents",
    ],
)
def test_help_of_every_command_has_an_example(command: str):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output
    assert "Example" in result.output


def test_a_preset_is_a_panel_file(tmp_path: Path):
    result = run_command("preset", "pythia-70m")
    assert result.returncode == 0
    panel = tmp_path / "panel.yaml"
    panel.write_text(result.stdout)
    assert load_spec(panel).name == "pythia-70m"
    assert list(load_eval_spec(panel).suites) == ["core", "sparse_probing_sae_probes"]


@pytest.mark.parametrize(
    ("content", "message", "anew"),
    [
        # In a new interpreter no library says anything while it is imported.
        pytest.param(
            "architecture: batchtpok", "hook_name: is missing", True, marks=pytest.mark.thorough
        ),
        ("[1, 2", "is not YAML", False),
    ],
)
def test_a_bad_panel_is_one_line_and_exit_code_1(
    tmp_path: Path, content: str, message: str, anew: bool
):
    panel = tmp_path / "panel.yaml"
    panel.write_text(content)
    if anew:
        command = [sys.executable, "-m", "sae_baselines_cli", "train", str(panel)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    else:
        result = run_command("train", panel)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("error: panel.yaml:") or "panel.yaml" in lines[0]
    assert message in lines[0] or "is missing" in lines[0]
    assert not (tmp_path / "studies").exists()


def test_saelens_own_command_line_knows_the_baselines():
    result = run_command("saelens", "--help")
    assert result.returncode == 0
    assert "frozen_decoder_jumprelu" in result.stdout


def test_import_stays_light():
    code = (
        "import sys, sae_baselines\n"
        "heavy = {'sae_bench', 'matplotlib.pyplot', 'typer', 'gguf', 'onnx'}\n"
        "heavy = (heavy | {'sae_baselines.study.patches'}) & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nothing.yaml"), "there is no file nothing.yaml; make one with"),
        (("train", "study"), "study is a study; name the panel file"),
        (("report", "nothing"), "there is no folder nothing"),
    ],
)
def test_what_is_not_there_is_named_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.yaml").write_text("spec: {}")
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 1
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_a_torchvision_of_another_torch_is_named(tmp_path: Path):
    package = tmp_path / "torchvision"
    package.mkdir()
    reason = "operator torchvision::nms does not exist"
    (package / "__init__.py").write_text(f"raise RuntimeError({reason!r})\n")
    metadata = tmp_path / "torchvision-0.28.0.dist-info"
    metadata.mkdir()
    text = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n"
    (metadata / "METADATA").write_text(text)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "sae_baselines_cli", "preset"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "pip uninstall torchvision" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
