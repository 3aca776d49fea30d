"""Completing values that are known."""

from collections.abc import Callable, Iterable


def completing(values: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """For Typer's ``autocompletion``: values that begin as the word does.

    In a comma-separated word the last part is completed, with what is not in it yet.

    Args:
        values: Returns all values; called when they are asked for.
    """

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = set(before.split(",")) if comma else set()
        return [
            before + comma + value
            for value in values()
            if value.startswith(last) and value not in given
        ]

    return complete
