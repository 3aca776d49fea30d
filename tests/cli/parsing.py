"""The commands as they are typed, without running any."""

from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from sae_baselines_cli import app


class HandOver(Exception):  # noqa: N818
    """The arguments are sound: the command itself would run now."""


def commands(command: Any = None, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group, as it is typed."""
    yield before
    for name, inside in getattr(command or get_command(app), "commands", {}).items():
        yield from commands(inside, (*before, name))


def typed(*words: str) -> Result:
    """What typing this gives; a sound command raises `HandOver` instead of doing anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", lambda app: _idle(get_command(app)))
        return CliRunner().invoke(app, list(words), prog_name="sae-baselines")


def _idle(command: Any) -> Any:
    inside = getattr(command, "commands", {})
    command.callback = None if inside else _hand_over
    for each in inside.values():
        _idle(each)
    return command


def _hand_over(*_: Any, **__: Any) -> None:
    raise HandOver
