"""docs/architecture.md speaks of files and rooms that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_files_that_are_named_are_there() -> None:
    named = set(re.findall(r"`([\w./-]+(?:\.py|\.css|\.j2|\.toml|/))`", PAGE))
    missing = [
        name
        for name in named
        if not (ROOT / name).exists() and not (ROOT / "sae_baselines" / name).exists()
    ]
    assert len(named) > 20
    assert not missing


def test_every_room_has_its_paragraph() -> None:
    rooms = {path.parent.name for path in (ROOT / "sae_baselines").glob("*/__init__.py")}
    assert rooms
    for room in rooms:
        assert f"- **{room}**" in PAGE, f"{room} is not on the page"
