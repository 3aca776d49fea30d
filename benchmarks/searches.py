"""What searches over recipes share: contexts of text, and rows that are kept as they come."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

CONTEXT = 128


def contexts(
    texts: Iterable[str], tokenizer: Any, bos: bool, longest: int = 4000
) -> Iterator[list[int]]:
    """Token ids of documents joined by a separator, cut into contexts of `CONTEXT` tokens.

    Args:
        texts: Documents.
        tokenizer: Theirs.
        bos: Begin each context with BOS, which is then the separator too.
        longest: Of a document, in tokens; what is beyond is cut off.
    """
    separator = tokenizer.bos_token_id if bos else tokenizer.eos_token_id
    size, waiting = CONTEXT - bos, []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=longest)
        waiting += [*ids["input_ids"], separator]
        while len(waiting) >= size:
            yield [*([tokenizer.bos_token_id] if bos else []), *waiting[:size]]
            waiting = waiting[size:]


def add(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to a table, which is begun with their names."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """`add` rows, and print them."""
    add(path, rows)
    for row in rows:
        print(*row.values(), flush=True)
