"""The documented way from nothing to a published baseline, as it is written there."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loopback_hub import WRITER, Hub, WritableHandler, point_clients_at, serving

ROOT = Path(__file__).parents[1]
# Stock SAELens, in a process that does not know of this package.
STOCK = """
import sys
from sae_lens import SAE
sae = SAE.from_pretrained("user/repo", "topk/l0_32/seed_0/frozen_decoder")
assert "sae_baselines" not in sys.modules
print(sae.cfg.architecture(), sae.cfg.d_sae)
"""


def commands() -> list[list[str]]:
    """The page's lines, without their comments."""
    page = ROOT / "docs" / "how-to" / "first-baseline.md"
    section = page.read_text(encoding="utf-8").split("## From nothing")[1]
    block = re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[0]
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def run(*words: str) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_from_nothing_to_a_published_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    made, activated, *rest = commands()
    # What the Makefile makes of these two, with one seed and fewer tokens.
    assert (made, activated[0]) == (["make", "demo"], "source")
    assert "$(BIN)/sae-baselines demo $(ARGS)" in (ROOT / "Makefile").read_text()
    sae_baselines = (sys.executable, "-m", "sae_baselines_cli")
    study = Path("studies") / "demo"
    told = run(*sae_baselines, "demo", "--quick", "--tokens", "8192", "--out", str(study))
    assert "kept 0 from before, failed 0" in told
    assert told.endswith(f"open {study / 'report.html'}\n")
    assert (study / "latents.html").is_file()
    (study / "report.html").unlink()

    hub = Hub()
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with serving(tmp_path, WritableHandler, hub=hub) as endpoint:
        point_clients_at(endpoint, tmp_path / "huggingface", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        # Whose token it is.
        monkeypatch.setattr("tests.loopback_hub.OWNER", "user")
        printed = {words[1]: run(*sae_baselines, *words[1:]) for words in rest}
        assert list(printed) == ["show", "eval", "report", "publish"]
        assert len(re.findall(r"│ yes +│", printed["show"])) == 3
        assert "failed 0" in printed["eval"]
        assert "Nothing was uploaded" in printed["publish"]
        assert (tmp_path / "studies" / "demo" / "report.html").is_file()

        publish = [word for word in rest[-1][1:] if word != "--dry-run"]
        assert "(5 SAEs)" in run(*sae_baselines, *publish)
        assert run(sys.executable, "-c", STOCK).split() == ["topk", "2304"]
        one = "user/repo:topk/l0_32/seed_0/frozen_decoder"
        shown = json.loads(run(*sae_baselines, "show", one, "--json"))
        assert shown["claim"]["holds"] is True
        assert shown["trained_as"] == "frozen_decoder_topk"
