"""What starts the workers of a study, and what they all have to have in common."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from sae_baselines.errors import UserError
from sae_baselines.provenance import git_revision, versions
from sae_baselines.work.claims import TASKS, host


class Executor(Protocol):
    """Starts processes that share a study's tasks; another engine is a class like this."""

    def run(self, work: Callable[[], object], root: Path) -> None:
        """Call ``work`` in each of several processes, and return when all have ended.

        Which tasks a process does, it finds out itself; one that is killed or never starts
        costs nothing but its time. Each must see ``root`` under the same path and have the
        same packages.

        Args:
            work: Picklable, takes nothing, and is the same for all.
            root: Study folder; logs go to `logs_of` it.

        Raises:
            UserError: There is no place to start them.
            StoppedError, KeyboardInterrupt: This process was asked to stop; it has stopped
                them, or says how.
        """
        ...


def logs_of(root: Path) -> Path:
    """Where output of workers goes."""
    return root / TASKS / "logs"


def require_same(root: Path, file: str, expected: Mapping[str, Any]) -> None:
    """Refuse a machine on which the results would not be those of the others.

    Args:
        root: Study folder.
        file: Must be in it.
        expected: `environment` of who started the work.

    Raises:
        UserError: The folder is not seen here, or versions or revision differ.
    """
    if not (root / file).exists():
        raise UserError(
            f"out: {root / file} is not there on {host()}; use a folder on a file system that "
            "all machines share"
        )
    here = {**versions(), "git_revision": git_revision()}
    there = {**expected["versions"], "git_revision": expected["git_revision"]}
    for name in sorted({*here, *there}):
        if here.get(name) != there.get(name):
            raise UserError(
                f"versions: {host()} has {name} {here.get(name)} and not {there.get(name)}, as "
                "the process that started the work; use one environment"
            )
