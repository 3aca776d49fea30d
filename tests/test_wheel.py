"""The wheel alone, in an empty environment, is the package."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*words: str | Path, cwd: Path) -> str:
    """What a command prints; it must succeed. It knows nothing of this environment."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", out, ROOT, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def installed_by_pip(wheel: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "venv", folder / "env", cwd=folder)
    run(folder / "env/bin/python", "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    return folder / "env" / "bin"


def installed_by_uv(wheel: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "venv", folder / "tool", cwd=folder)
    run(folder / "tool/bin/python", "-m", "pip", "install", "--quiet", "uv", cwd=folder)
    uv = folder / "tool" / "bin" / "uv"
    run(uv, "venv", "--python", sys.executable, folder / "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    run(uv, "pip", "install", "--quiet", "--python", python, wheel, cwd=folder)
    return python.parent


# Minutes, most of them torch.
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("install", [installed_by_pip, installed_by_uv])
def test_the_wheel_alone_imports_and_has_its_commands(
    install: Callable[[Path, Path], Path], wheel: Path, tmp_path: Path
) -> None:
    place = install(wheel, tmp_path)
    told = "import sae_baselines; print(sae_baselines.__file__)"
    where = run(place / "python", "-I", "-c", told, cwd=tmp_path).strip()
    assert Path(where).is_relative_to(tmp_path / "env")
    assert "Usage: sae-baselines" in run(place / "sae-baselines", "--help", cwd=tmp_path)
    assert "frozen_decoder_jumprelu" in run(place / "sae-baselines", "list", cwd=tmp_path)


# As the README says, and a page with numbers at the end; ten minutes, most of them downloads.
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_wheel_alone_runs_the_quick_demo(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    wanted = f"sae-baselines[bench,demo] @ {wheel.as_uri()}"
    run(python, "-m", "pip", "install", "--quiet", wanted, cwd=tmp_path)
    # SAEBench wants it, and one that was built for another torch breaks transformers.
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision", cwd=tmp_path)
    said = run(python.parent / "sae-baselines", "demo", "--quick", cwd=tmp_path)
    assert "open studies/demo-quick/report.html" in said
    page = (tmp_path / "studies" / "demo-quick" / "report.html").read_text(encoding="utf-8")
    assert "frozen_decoder" in page
