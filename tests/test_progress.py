"""Progress at a terminal and in a file."""

import io
import re
import time

import pytest

from sae_baselines import progress as module
from sae_baselines.progress import Stage, Whole, progress


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


STAGES = [
    Stage("Held-out activations", 2.0, "reading held-out text", "batches"),
    Stage("Training", 6.0, "training", "tokens"),
    Stage("Measuring", 2.0, "measuring", "SAEs"),
]


def lines(out: io.StringIO) -> list[str]:
    return out.getvalue().replace("\r", "\n").splitlines()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY", 0.02)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_whole_is_one_line_with_time_left_for_the_stage_and_for_itself(
    kind: type[io.StringIO],
):
    out, elsewhere = kind(), io.StringIO()
    with Whole("Demo", STAGES, file=out):
        for _ in progress(range(2), desc="Held-out activations", file=elsewhere):
            time.sleep(0.1)
        with progress(total=6000, desc="Training", file=elsewhere) as bar:
            bar.update(3000)
            time.sleep(0.1)
        list(progress([1], desc="Measuring", file=elsewhere))
    assert elsewhere.getvalue() == ""
    shown = lines(out)
    assert any(
        "reading held-out text: 1 of 2 batches, 00:00 left; the whole " in s for s in shown
    )
    assert any(re.search(r"training: 3,000 of 6,000 tokens, \S+ left;", s) for s in shown)
    assert shown[-1].startswith("Demo: 100 %")
    assert "gone" in shown[-1]
    # A bar of its own again.
    list(progress([1], desc="After", file=elsewhere))
    assert "After" in elsewhere.getvalue()


@pytest.mark.usefixtures("quick")
def test_it_moves_before_and_between_bars():
    out = io.StringIO()
    with Whole("Demo", STAGES, file=out):
        time.sleep(0.1)
        before = len(lines(out))
        list(progress([1], desc="Training", file=out))
        time.sleep(0.1)
        after = len(lines(out))
    assert before >= 2
    assert after >= before + 2
    assert "next: reading held-out text" in lines(out)[0]
    assert "next: measuring" in lines(out)[after - 1]


class Clock:
    """`time`, which goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    monkeypatch.setattr(module, "_EVERY", 3600)
    return made


def left(whole: Whole) -> float:
    """Seconds that it says are left of it."""
    whole.refresh()
    minutes, seconds = re.findall(r"about (\d+):(\d+) left", str(whole._bar))[-1]
    return 60 * int(minutes) + int(seconds)


def test_time_left_of_the_whole_follows_the_pace(clock: Clock):
    stages = [Stage("a", 20, "a"), Stage("b", 60, "b"), Stage("c", 20, "c")]
    with Whole("Demo", stages, file=io.StringIO()) as whole:
        assert left(whole) == 100
        clock.now += 5  # reading a model, which is part of the stage
        assert left(whole) == 95
        for _ in progress(range(4), desc="a"):
            clock.now += 10
        assert left(whole) == 160  # twice as slow: 45 for 20, of which 5 were believed
        with progress(total=6, desc="b") as bar:
            # Its first steps are slow, which is not yet believed.
            clock.now += 60
            bar.update()
            assert left(whole) < 60 * 5 + 40
            clock.now += 20
            bar.update(2)
            # Half of it took 80 seconds; what comes after it is at the pace of all until now.
            assert left(whole) == 80 + 47
        list(progress([1], desc="c"))
        assert left(whole) == 0


def test_what_an_earlier_run_did_says_nothing_of_the_pace(clock: Clock):
    stages = [Stage("a", 100, "a"), Stage("b", 100, "b")]
    with Whole("Demo", stages, file=io.StringIO()) as whole:
        bar = progress(total=100, desc="a")
        bar.initial = bar.n = 90  # as where training is resumed
        clock.now += 10
        bar.update(10)
        bar.close()
        assert left(whole) == 100
    # A stage that is left out is over once a later one begins.
    whole = Whole("Demo", stages, file=io.StringIO())
    with whole, progress(total=2, desc="b") as bar:
        clock.now += 50
        bar.update()
        assert left(whole) == 50


def test_a_whole_that_fails_does_not_say_that_it_is_done():
    out = io.StringIO()
    with pytest.raises(ValueError, match="broken"), Whole("Demo", STAGES, file=out):
        raise ValueError("broken")
    assert "100 %" not in out.getvalue()
    assert not module._wholes
