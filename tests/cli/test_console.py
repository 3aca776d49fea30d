"""What strangers wrote is shown, and neither obeyed by the terminal nor taken for markup."""

import io
import json
import sys
import unicodedata
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from typer.testing import CliRunner

from sae_baselines_cli import app, shared
from tests.controls.test_controls import stock_sae

HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b1mbell\r\x08\u202egnp.exe\u2066[/bold][link=x]end"
DIRECTIONS = {"RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI"}


def obeyed(text: str) -> list[str]:
    """Characters that a terminal acts on; found by their Unicode class, not by a list."""
    return [
        c
        for c in text
        if (unicodedata.category(c) == "Cc" and c not in "\n\t")
        or unicodedata.bidirectional(c) in DIRECTIONS
        or c in "\u061c\u200e\u200f"
    ]


def _as_table(text: str) -> None:
    table = Table("a", "b")
    table.add_row(text, text)
    shared.print_table(table)


@pytest.mark.parametrize("show", [shared.say, _as_table], ids=["line", "table"])
@given(words=st.lists(st.sampled_from([*"ab \x1b\x07\x9b\r\x00\u202e\u2069", "[/x]"])))
def test_no_text_reaches_the_terminal_as_an_order(
    show: Callable[[str], None], words: list[str]
):
    with redirect_stdout(io.StringIO()) as out:
        show("".join(words))
    assert obeyed(out.getvalue()) == []


def test_a_config_and_an_error_with_escapes(tmp_path: Path):
    folder = tmp_path / "sae"
    stock_sae("topk").save_model(folder)
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"] = {**config["metadata"], "hook_name": HOSTILE, "model_name": HOSTILE}
    (folder / "cfg.json").write_text(json.dumps(config))
    for more in ([], ["--json"]):
        ran = CliRunner().invoke(app, ["show", str(folder), *more])
        assert ran.exit_code == 0, ran.output
        assert "title" in ran.output
        assert obeyed(ran.output) == []


def test_an_error_shows_brackets_and_no_escapes(capsys: pytest.CaptureFixture[str]):
    shared.fail(HOSTILE)
    shown = capsys.readouterr().err
    assert "[/bold][link=x]end" in shown
    assert obeyed(shown) == []


def test_what_is_our_own_keeps_its_colour():
    console = type(shared.console)(
        file=io.StringIO(), force_terminal=True, color_system="standard"
    )
    console.print("ours", style="red")
    assert console.file.getvalue() == "\x1b[31mours\x1b[0m\n"  # type: ignore[attr-defined]


def test_closed_streams_and_an_ascii_terminal_can_be_printed_to(
    monkeypatch: pytest.MonkeyPatch,
):
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    for name, stream in (("stdin", None), ("stdout", None), ("stderr", ascii_only)):
        monkeypatch.setattr(sys, name, stream)
    shared.open_streams()
    shared.say("lost")
    shared.fail("na\u00efve \udcff")
    assert sys.stdin.read() == ""
    ascii_only.seek(0)
    assert ascii_only.read() == "error: na?ve ?\n"
    for stream in (sys.stdin, sys.stdout):
        stream.close()
