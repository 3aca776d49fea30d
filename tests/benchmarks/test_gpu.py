"""benchmarks/gpu.py at tiny sizes on the CPU: its logic, not its numbers."""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_baselines.baselines import seeded_start

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SECTIONS = ("parity", "triton", "steps", "crossover", "panel", "beside")


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    """The benchmark as a module."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.setattr(seeded_start, "start_directions", seeded_start.start_directions)
        yield importlib.import_module("gpu")
    torch.set_num_threads(threads)


@pytest.fixture
def run(gpu: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs it; returns what the file says."""
    out = tmp_path / "gpu.json"

    def go(*arguments: str) -> dict[str, Any]:
        gpu.main(["--device", "cpu", "--quick", "--out", str(out), *arguments])
        return json.loads(out.read_text())

    return go


@pytest.mark.thorough
def test_every_section_is_measured_and_rendered(
    run: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    record = run()
    assert tuple(record["sections"]) == SECTIONS
    assert not any("failed" in s or "not_run" in s for s in record["sections"].values())
    rows = record["sections"]["parity"]["rows"]
    assert len(rows) == (6 * 5 + 4 + 3 + 4 * 5) * 2
    # The CPU against itself: no difference in float32, a real one under autocast.
    for row in rows:
        assert row["met"]
        assert row["constraint"] is not False
        assert (row["gradients"] > 1e-4) == row["autocast"]
    frozen = {row["member"] for row in rows if row["constraint"]}
    assert frozen == {
        "frozen_decoder",
        "soft_frozen_decoder",
        "frozen_encoder",
        "soft_frozen_encoder",
    }
    ways = record["sections"]["panel"]["ways"]
    assert list(ways) == ["none", "baselines", "all"]
    assert all(way["tokens_per_s_in_steps"] > way["tokens_per_s"] > 0 for way in ways.values())
    printed = capsys.readouterr().out
    for said in ("One step of every SAE", "Where the dense step", "A whole panel of four"):
        assert said in printed


def test_a_decoder_that_moves_and_wrong_gradients_are_seen(
    gpu: Any, run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loose(gpu.Stepper):
        def steps(self, n: int) -> None:
            super().steps(n)
            self.sae.W_dec.data[0] *= -1 + 1e-3

    monkeypatch.setattr(gpu, "BASES", ("batchtopk",))
    monkeypatch.setattr(gpu, "Stepper", Loose)
    rows = run("--only", "parity")["sections"]["parity"]["rows"]
    held = {row["member"]: row["constraint"] for row in rows}
    assert held == {
        "stock": None,
        "frozen_decoder": False,
        "soft_frozen_decoder": False,
        "frozen_encoder": True,
        "sparse": None,
        # Of transcoders, whose encoder stays in its cap.
        "soft_frozen_encoder": True,
    }
    truth = {"loss": torch.ones(1), "W_dec": torch.ones(4)}
    off = gpu._off({"loss": torch.ones(1), "W_dec": 1.5 * torch.ones(4)}, truth)
    assert off == {"loss": 0.0, "gradients": pytest.approx(0.5)}
    with pytest.raises(SystemExit, match="gradients of"):
        gpu._off({"loss": torch.ones(1)}, truth)


def test_a_section_that_fails_leaves_the_others_and_is_said(
    gpu: Any,
    run: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def broken(_: Any) -> dict[str, Any]:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setitem(gpu.SECTIONS, "crossover", (broken, 1.0))
    with pytest.raises(SystemExit, match="crossover failed"):
        run("--only", "crossover,triton")
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["sections"]["crossover"]["failed"] == "RuntimeError: out of memory"
    assert "why" in record["sections"]["triton"]
    assert "not measured (RuntimeError: out of memory)" in capsys.readouterr().out
    # Measured again, the other section stays; without time it says so.
    again = run("--only", "crossover", "--minutes", "0.5")["sections"]
    assert "not_run" in again["crossover"]
    assert again["triton"] == record["sections"]["triton"]


def test_without_a_result_the_readme_says_what_is_not_known() -> None:
    text = (BENCHMARKS / "README.md").read_text()
    if not (BENCHMARKS / "results" / "gpu.json").exists():
        assert "Not run yet: no GPU was at hand." in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cpu"], "these sizes are for a GPU; add --quick"),
        (["--device", "cpu", "--quick"], "name a file with --out"),
        (["--device", "cpu", "--quick", "--out", "x", "--only", "speed"], "'speed' is not one"),
        (["--device", "cpu", "--quick", "--out", "x", "--model", "m"], "go together"),
    ],
)
def test_bad_arguments_are_one_line(
    gpu: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit):
        gpu.main(arguments)
    assert said in capsys.readouterr().err.splitlines()[-1]
