"""What is wrong with a data set, by file and row: read again only once reading has failed."""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError
from pandas.errors import ParserError

from sae_baselines.errors import UserError, one_line
from sae_baselines.study.spec import DatasetSpec
from sae_baselines.study.values import shown

# Names of what `datasets` reads files of an ending with.
BUILDERS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".txt": "text",
}
_CUT = (EOFError, zlib.error, gzip.BadGzipFile)
# What comes of unreadable data, and of nothing else that happens while SAEs train.
_OF_DATA = (UnicodeError, pa.ArrowException, DatasetsError, ParserError, *_CUT)

AnyRows = Any  # a Dataset or IterableDataset; they share what is used here


def ending(path: Path) -> str:
    """What says the kind of a file, behind ``.gz`` too."""
    return (Path(path.stem) if path.suffix == ".gz" else path).suffix


@contextmanager
def reading(spec: DatasetSpec, *also: type[Exception]) -> Iterator[None]:
    """Say what is wrong with the data where reading it fails.

    Args:
        spec: Where it is.
        also: Further errors that are of the data here.

    Raises:
        UserError: One line that names the file and the row.
    """
    try:
        yield
    except UserError:
        raise
    except (*_OF_DATA, *also) as error:
        path = Path(spec.path)
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in inside:
            known = file.is_file() and ending(file) in BUILDERS
            if known and (flaw := flaw_of_data(file, spec.text_column)):
                raise UserError(f"dataset.path: {file}, {flaw}") from error
        causes = [error.__cause__] if error.__cause__ is not None else []
        reason = "; ".join(one_line(e, 300) for e in (error, *causes))
        raise UserError(f"dataset.path: cannot load {spec.path!r}: {reason}") from error


def flaw_of_data(path: Path, column: str) -> str | None:
    """The first row of a file that cannot be read, and why; None if all can."""
    try:
        if not path.stat().st_size:
            return "is empty"
        if ending(path) == ".parquet":
            return _flaw_of_parquet(path, column)
        numbers = _Lines(path)
        check = {".jsonl": _flaw_of_json, ".json": _flaw_of_json, ".csv": _flaw_of_csv}
        return check.get(ending(path), _flaw_of_lines)(numbers, column)
    except OSError as error:
        return f"cannot be read: {one_line(error, 200)}"


class _BadLine(Exception):  # noqa: N818  (it never leaves)
    pass


class _Lines:
    """Lines of a text file in UTF-8; the number of the last one."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, 0

    def __iter__(self) -> Iterator[str]:
        opened: Callable[..., Any] = gzip.open if self.path.suffix == ".gz" else open
        with opened(self.path, "rb") as file:
            while True:
                self.number += 1
                try:
                    line = file.readline()
                except _CUT as error:
                    raise _BadLine("the file is cut short (gzip)") from error
                if not line:
                    return
                if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line:
                    raise _BadLine("is UTF-16 or binary; save the file as UTF-8")
                try:
                    yield line.decode("utf-8-sig" if self.number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    byte = line[error.start]
                    raise _BadLine(
                        f"is not UTF-8 (byte 0x{byte:02x}: Latin-1?); save the file as UTF-8"
                    ) from error


def _flaw_of_lines(
    lines: _Lines, column: str, parse: Callable[[_Lines], None] | None = None
) -> str | None:
    del column
    try:
        if parse is not None:
            parse(lines)
        for _ in lines if parse is None else ():
            pass  # they need not fit into memory
    except _BadLine as error:
        return f"line {lines.number}: {error}"
    return None


def _flaw_of_csv(lines: _Lines, column: str) -> str | None:
    def parse(lines: _Lines) -> None:
        rows = csv.reader(lines)
        try:
            head = next(rows, [])
            for row in rows:
                if row and len(row) > len(head):
                    raise _BadLine(f"has {len(row)} fields, and the head {len(head)}")
        except csv.Error as error:
            raise _BadLine(one_line(error, 120)) from error

    return _flaw_of_lines(lines, column, parse)


def _flaw_of_json(lines: _Lines, column: str) -> str | None:
    def parse(lines: _Lines) -> None:
        rest = iter(lines)
        for line in rest:
            if not line.strip():
                continue
            if line.lstrip()[0] == "[":
                for i, row in enumerate(json.loads(line + "".join(rest))):
                    value = row.get(column) if isinstance(row, dict) else row
                    if flaw := flaw_of_text(value, column):
                        lines.number = i + 1
                        raise _BadLine(f"of the list: {flaw}")
                return
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _BadLine(
                    f"is not JSON ({one_line(error, 120)}): {line[:40]!r}"
                ) from error
            if not isinstance(row, dict):
                raise _BadLine(f"is no mapping of columns: {line[:40]!r}")
            if flaw := flaw_of_text(row.get(column), column):
                raise _BadLine(flaw)

    try:
        return _flaw_of_lines(lines, column, parse)
    except ValueError as error:
        return f"is not JSON: {one_line(error, 120)}"


def _flaw_of_parquet(path: Path, column: str) -> str | None:
    try:
        with pq.ParquetFile(path) as file:
            row = 0
            for batch in file.iter_batches(batch_size=100):
                for values in (batch.column(column),) if column in batch.schema.names else ():
                    for i, value in enumerate(values):
                        try:
                            flaw = flaw_of_text(value.as_py(), column)
                        except UnicodeDecodeError:
                            flaw = f"{column} is not UTF-8"
                        if flaw:
                            return f"row {row + i + 1}: {flaw}"
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        return f"is cut short or no Parquet file ({one_line(error, 120)})"
    return None


def flaw_of_text(value: Any, column: str) -> str | None:
    """Why a value is no text; None if it is, or is nothing, which is left out."""
    if value is None:
        return None
    if not isinstance(value, str):
        kind = "a list" if isinstance(value, list) else type(value).__name__
        return f"{column} is {kind} and not text: {shown(value, 40)}"
    # One of them is in many a crawled page; in UTF-16 it is every other character.
    if value.count("\0") * 4 > len(value):
        return f"{column} has a NUL character (UTF-16?); save the file as UTF-8"
    return None


def flaw_of_tokens(values: Any, n_vocab: int | None, context_size: int) -> str | None:
    """Why a row is none of token ids that a model can read a context of; None if it is."""
    if not isinstance(values, list):
        return f"is {shown(values, 40)}, not a list of token ids"
    wrong = [v for v in values if not isinstance(v, int) or isinstance(v, bool)]
    if wrong:
        return f"has {shown(wrong[0], 40)}, and token ids are whole numbers"
    most = 2**31 if n_vocab is None else n_vocab
    if values and (min(values) < 0 or max(values) >= most):
        odd = min(values) if min(values) < 0 else max(values)
        return f"has the token id {odd}, and the model knows 0 to {most - 1}"
    if len(values) < context_size:
        return (
            f"context_size: {context_size} is more than the {len(values)} tokens; lower it, or "
            "tokenise again"
        )
    return None


def first_bad_row(
    tables: Iterable[pa.Table], column: str, n_vocab: int | None, context_size: int
) -> tuple[int, str] | None:
    """Number (from 0) and flaw of the first row of token ids with one."""
    before = 0
    for table in tables:
        for chunk in table.column(column).chunks:
            if _may_be_bad(chunk, n_vocab, context_size):
                for i, value in enumerate(chunk):
                    if flaw := flaw_of_tokens(value.as_py(), n_vocab, context_size):
                        return before + i, flaw
            before += len(chunk)
    return None


def _may_be_bad(chunk: pa.Array, n_vocab: int | None, context_size: int) -> bool:
    """Whether rows have to be looked at one by one; quick, for millions of rows."""
    nested = pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type)
    if not nested or not pa.types.is_integer(chunk.type.value_type) or chunk.null_count:
        return True
    flat = chunk.flatten()
    if flat.null_count or not len(flat):
        return True
    compute: Any = pc  # its functions are made as it is imported
    span = compute.min_max(flat).as_py()
    shortest = compute.min(compute.list_value_length(chunk)).as_py()
    most = 2**31 if n_vocab is None else n_vocab
    return span["min"] < 0 or span["max"] >= most or shortest < context_size
