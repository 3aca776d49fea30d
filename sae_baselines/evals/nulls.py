"""Nulls that are measured while SAEBench scores, on what it works on."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from typing import Any

import torch
from sae_lens import SAE

from sae_baselines.compat.saebench import uncounted
from sae_baselines.errors import one_line
from sae_baselines.evals.measured import Measured
from sae_baselines.evals.metrics import null_name
from sae_baselines.evals.store import FLOORS
from sae_baselines.evals.suite import SAEBenchSuite, SuiteCall, from_seed, means_over_tasks

# What a run leaves of nulls in its working folder, for `Suite.floors`.
FLOORS_FILE = f"{FLOORS}.json"


class Nulls:
    """Nulls of one run, which can neither change nor lose its scores.

    Attributes:
        wanted: Whether the call asks for any.
        rows: Of tasks; aggregates are their means.
        drawn: Of nulls, each of which draws from its own seed.
    """

    def __init__(self, call: SuiteCall) -> None:
        self.wanted = bool(call.options.get(FLOORS, False))
        self.rows: list[Measured] = []
        self.drawn = 0
        self._file = call.work / FLOORS_FILE
        self._seed = call.seed
        self._failed: str | None = None
        self._file.unlink(missing_ok=True)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Random numbers of its own, no part of the suite's L0, and what fails is kept for
        later: the score goes on."""
        self.drawn += 1
        with from_seed(self._seed + self.drawn), uncounted():
            try:
                yield
            except Exception as error:
                self._failed = self._failed or f"{type(error).__name__}: {one_line(error, 300)}"

    def add(self, kind: str, values: dict[str, float], task: str, n: int | None = None) -> None:
        """Rows of one task, by the names of the metrics that they are nulls of."""
        self.rows += [
            Measured(null_name(name, kind), value, task=task, n=n)
            for name, value in values.items()
        ]

    def leave(self, rows: Iterable[Measured] | None = None) -> None:
        """Write them where `NullsInRun.floors` finds them.

        Args:
            rows: All of them; by default those of tasks, after their means.
        """
        if self.wanted:
            # Of some tasks alone means would be of other tasks than the score's.
            found = (
                () if self._failed else means_over_tasks(self.rows) if rows is None else rows
            )
            data = {"failed": self._failed, "rows": [asdict(row) for row in found]}
            self._file.write_text(json.dumps(data), encoding="utf-8")


class NullsInRun(SAEBenchSuite):
    """A suite whose `run` leaves its nulls (`Nulls.leave`); without them it runs again."""

    def floors(self, sae: SAE[Any], call: SuiteCall) -> list[Measured]:
        file = call.work / FLOORS_FILE
        if not file.exists():
            self.run(sae, call)
        left = json.loads(file.read_text(encoding="utf-8"))
        if left["failed"]:
            raise RuntimeError(left["failed"])
        return [Measured(**row) for row in left["rows"]]


def no_loss_of_score() -> AbstractContextManager[None]:
    """Around nulls measured in a run that `Suite.floors` measures where they are missing: what
    fails fails again there, where a note is made of it."""
    return suppress(Exception)


def firing_first(firing: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Latents in the order they were drawn in, but those that never fire after all others.

    An SAE may have fewer that fire than are asked for.

    Args:
        firing: Bool ``[d_sae]``.
        drawn: A permutation of the latents.
    """
    return drawn[torch.argsort(~firing[drawn], stable=True)]


def exchanged(
    given: Iterable[int], seed: int, rates: Mapping[int, float] | None = None
) -> dict[int, int]:
    """Whose description, or latents, each gets: never its own.

    Args:
        given: Latents, say; at least two for anything to exchange.
        seed: Of the order in which they are handed on.
        rates: Of each, how often it fires. Then those nearest to each other in rate exchange,
            two by two, of an odd number the last three.

    Returns:
        Each to another, every one of them used once; empty for fewer than two.
    """
    order = sorted(given)
    if len(order) < 2:
        return {}
    random.Random(seed).shuffle(order)
    if rates is None:
        blocks = [order]
    else:
        order.sort(key=lambda each: rates[each])
        last = len(order) - len(order) % 2
        blocks = [order[i : i + 2] for i in range(0, last, 2)]
        blocks[-1] += order[last:]
    return {
        each: other
        for block in blocks
        for each, other in zip(block, [*block[1:], block[0]], strict=True)
    }
