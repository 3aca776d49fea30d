"""Pages that hide which column is which SAE, and how often a reader tells them apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sae_baselines.errors import UserError
from sae_baselines.files import check_shape, checksum_of, read_json
from sae_baselines.stats import Interval
from sae_baselines.stats.intervals import share_interval

T = TypeVar("T")
_KEY = {"page": str, "pairs": {str: {"trained": str, "against": str}}}
_ANSWERS = {"page": str, "answers": {str: str}}


def shuffled(rows: Sequence[Sequence[T]], seed: int) -> tuple[list[str], list[list[T]]]:
    """Letters for columns, and every row in an order of its own."""
    out = []
    for i, row in enumerate(rows):
        order = np.random.default_rng([seed, i]).permutation(len(row))
        out.append([row[j] for j in order])
    return [chr(ord("A") + i) for i in range(len(rows[0]))], out


@dataclass(frozen=True)
class Told:
    """How often the trained SAE was told from another.

    Attributes:
        against: The other, or "" for all together.
        right: Right answers.
        n: Answers.
        interval: Clopper and Pearson's, of the share of right ones.
    """

    against: str
    right: int
    n: int
    interval: Interval


def key_of(pairs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is kept of a page: by pair the ``trained`` letter, and ``against`` which member."""
    return {"page": checksum_of(pairs)[:16], "pairs": pairs}


def score(key: Path, answers: Path) -> tuple[list[Told], int]:
    """Hold answers against a page's key.

    Args:
        key: File of `key_of`.
        answers: File that the page saved.

    Returns:
        Of all pairs, then by member; and how many pairs were left unanswered.

    Raises:
        UserError: A file is missing, is not what it should be, or is of another page; no
            answer.
    """
    made = "write the page again with sae-baselines latents STUDY --blind"
    given = "save the answers from the page again"
    files = []
    for path, shape, remedy in ((key, _KEY, made), (answers, _ANSWERS, given)):
        data = read_json(path, remedy)
        if data is None:
            raise UserError(f"score: there is no file {path}; {remedy}")
        check_shape(path, data, shape, remedy)
        files.append(data)
    known, said = files[0]["pairs"], files[1]["answers"]
    if files[0]["page"] != files[1]["page"] or not set(said) <= set(known):
        raise UserError(f"score: {answers} answers another page than that of {key}; {given}")
    if not said:
        raise UserError(f"score: {answers} answers no pair; {given}")
    right: dict[str, list[bool]] = {"": []}
    for pair, letter in said.items():
        is_right = letter == known[pair]["trained"]
        right[""].append(is_right)
        right.setdefault(known[pair]["against"], []).append(is_right)
    found = [
        Told(against, sum(all_), len(all_), share_interval(sum(all_), len(all_)))
        for against, all_ in right.items()
    ]
    return found, len(known) - len(said)
