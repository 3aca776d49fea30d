"""Progress at a terminal and in a file."""

import io
import time

import pytest

from sae_baselines import progress as module
from sae_baselines.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_it_moves_while_a_step_takes_long(
    kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
):
    assert module._EVERY < 2
    monkeypatch.setattr(module, "_EVERY", 0.02)
    out = kind()
    with progress(total=8, desc="Training", unit="batch", file=out) as bar:
        bar.update(4)
        time.sleep(0.2)
        moved = out.getvalue()
    at_terminal = kind is Terminal
    updates = moved.replace("\r", "\n").split("\n")
    assert sum("Training" in line and "4" in line for line in updates) >= 3
    if not at_terminal:
        assert "\r" not in out.getvalue()
        assert "\x1b" not in out.getvalue()
        first, *_, last = out.getvalue().splitlines()
        assert first.startswith("Training: 4 of 8 batch, ")
        assert "/s, " in first
        assert first.endswith(" left")
        # Nothing more comes once it is closed.
        time.sleep(0.1)
        assert out.getvalue().splitlines()[-1] == last


def test_what_is_short_is_one_line():
    out = io.StringIO()
    assert list(progress([1, 2, 3], desc="Measuring", unit="SAE", file=out)) == [1, 2, 3]
    (line,) = out.getvalue().splitlines()
    assert line.startswith("Measuring: 3 of 3 SAE, ")


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_what_is_walked_through_is_counted_on_the_way(
    kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_EVERY", 0.02)
    out = kind()
    for item in progress(range(3), desc="Measuring", unit="SAE", file=out):
        time.sleep(0.15)
        if item == 2:
            break
    moved = out.getvalue()
    for n in range(3):
        assert any(f"{n} of 3" in part or f"{n}/3" in part for part in moved.splitlines()), n


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_what_was_quick_is_counted_while_what_follows_is_slow(
    kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_EVERY", 0.02)
    out, moved = kind(), ""
    for item in progress(range(4), desc="Exporting", unit="SAE", file=out):
        if item == 3:
            time.sleep(0.2)
            moved = out.getvalue()
    assert "3 of 4" in moved or "3/4" in moved
