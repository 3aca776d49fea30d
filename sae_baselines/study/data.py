"""Text for a panel: loading it, and keeping some of it out of training."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    IterableDatasetDict,
    load_dataset,
)
from transformer_lens.hook_points import HookedRootModule

from sae_baselines.compat.token_rows import why_no_tensors
from sae_baselines.errors import UserError
from sae_baselines.reach import say_if_silent
from sae_baselines.study.language_model import n_vocab_of
from sae_baselines.study.rows import (
    BUILDERS,
    ending,
    first_bad_row,
    flaw_of_text,
    flaw_of_tokens,
    reading,
)
from sae_baselines.study.spec import DatasetSpec, PanelSpec

logger = logging.getLogger("sae_baselines")

AnyDataset = Dataset | IterableDataset

_TOKEN_COLUMNS = ("tokens", "input_ids")
# Of a streamed row of token ids, which is shuffled before the model that knows them is there.
_NUMBER = "number_of_row"
_SHUFFLE_BUFFER = 10_000
# Share of documents that may be held out beyond those that it takes.
_MOST_HELD_OUT = 0.1
# Passes over the text that are worth a word: a few are common.
_REPEATS = 10


@dataclass(frozen=True)
class SplitText:
    """Documents for training, and the ones before them that training never sees.

    Attributes:
        train: Documents to train on.
        held_out: Documents for calibration and evaluation.
        n_held_out: How many documents are held out.
    """

    train: AnyDataset
    held_out: AnyDataset
    n_held_out: int


def load_text(spec: DatasetSpec, dataset: Any = None) -> AnyDataset:
    """Load, check and shuffle the text.

    Args:
        spec: Where it is.
        dataset: Use this instead of ``spec.path`` (in-memory data).

    Returns:
        A dataset with a ``text``, ``tokens`` or ``input_ids`` column.

    Raises:
        UserError: It cannot be found or read, or has no such column; names the file and row.
    """
    with reading(spec):
        return _load_text(spec, _load(spec) if dataset is None else dataset)


def _load_text(spec: DatasetSpec, dataset: Any) -> AnyDataset:
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        if spec.split not in dataset:
            raise UserError(
                f"dataset.split: {spec.split!r} is unknown; there are {', '.join(dataset)}"
            )
        dataset = dataset[spec.split]
    dataset = dataset.with_format(None)  # rows are text or lists here, not tensors
    columns = _columns(dataset, spec)
    if not set(columns) & set(_TOKEN_COLUMNS):
        if spec.text_column not in columns:
            raise UserError(
                f"dataset.text_column: {spec.text_column!r} is not a column of {spec.path}; it "
                f"has {', '.join(columns)}"
            )
        if spec.text_column != "text":
            dataset = dataset.select_columns([spec.text_column])
            dataset = dataset.rename_column(spec.text_column, "text")
        dataset = dataset.filter(_text_check(spec), with_indices=True)
    elif (why := why_no_tensors()) is not None:
        raise UserError(
            f"dataset.path: {spec.path} has tokens, which cannot be read as tensors ({why}); "
            "pip uninstall torchvision, which nothing here needs, or give text"
        )
    elif isinstance(dataset, IterableDataset):
        dataset = dataset.map(lambda row, i: {**row, _NUMBER: i + 1}, with_indices=True)
    if spec.shuffle_seed is not None:
        dataset = shuffle(dataset, spec.shuffle_seed)
    return dataset


def _text_check(spec: DatasetSpec) -> Any:
    """Whether a row has text; one that has something else stops it."""
    said: list[int] = []

    def has_text(row: dict[str, Any], i: int) -> bool:
        text = row.get("text")
        if flaw := flaw_of_text(text, spec.text_column):
            raise UserError(f"dataset.path: {spec.path}, row {i + 1}: {flaw}")
        if not text and not said:
            said.append(i)
            logger.warning(
                "dataset.path: %s, row %d has no text; such rows are left out", spec.path, i + 1
            )
        return bool(text)

    return has_text


def shuffle(dataset: AnyDataset, seed: int) -> AnyDataset:
    """Shuffle documents; a streamed dataset within a buffer of 10,000."""
    if isinstance(dataset, IterableDataset):
        return dataset.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
    return dataset.shuffle(seed=seed)


def _load(spec: DatasetSpec) -> Any:
    path = Path(spec.path)
    with reading(spec, Exception):  # `datasets` wraps some errors and lets others through
        if path.is_file():
            builder = BUILDERS.get(ending(path))
            if builder is None:
                raise UserError(
                    f"dataset.path: {path.name} is none of {', '.join(BUILDERS)}; convert it"
                )
            options: dict[str, Any] = {}
            if builder == "text":
                options["sample_by"] = "paragraph"
            return load_dataset(
                builder,
                data_files=str(path),
                split=spec.split,
                streaming=spec.streaming,
                **options,
            )
        say_if_silent([spec.path])
        return load_dataset(
            spec.path, name=spec.name, split=spec.split, streaming=spec.streaming
        )


def _columns(dataset: AnyDataset, spec: DatasetSpec) -> list[str]:
    if dataset.column_names is not None:
        return list(dataset.column_names)
    try:
        return list(next(iter(dataset)))
    except StopIteration:
        raise UserError(f"dataset.path: {spec.path!r} is empty") from None


def split_text(dataset: AnyDataset, spec: PanelSpec, model: HookedRootModule) -> SplitText:
    """Hold out the first documents that make up the calibration and evaluation tokens.

    With ``held_out_spread`` more of them are held out, to draw these tokens from: as many as
    there are to spare, and no fewer than it takes.

    Args:
        dataset: From `load_text`.
        spec: Says how many tokens are held out.
        model: Its tokenizer counts.

    Raises:
        UserError: The dataset is too small to hold out tokens and train on the rest.
    """
    with reading(spec.dataset):
        dataset = _known_tokens(dataset, spec, n_vocab_of(model))
        return _split_text(dataset, spec, model)


def _known_tokens(dataset: AnyDataset, spec: PanelSpec, n_vocab: int | None) -> AnyDataset:
    """The same, once every row of token ids is one that the model can read."""
    column = next((c for c in _TOKEN_COLUMNS if c in _columns(dataset, spec.dataset)), None)
    if column is None:
        return dataset

    def refuse(number: int, flaw: str) -> UserError:
        return UserError(f"dataset.path: {spec.dataset.path}, row {number}: {column}: {flaw}")

    if isinstance(dataset, IterableDataset):

        def known(row: dict[str, Any], i: int) -> bool:
            if flaw := flaw_of_tokens(row[column], n_vocab, spec.context_size):
                raise refuse(row.get(_NUMBER, i + 1), flaw)
            return True

        return dataset.filter(known, with_indices=True)
    tables = dataset.with_format("arrow").iter(batch_size=10_000)
    if first_bad_row(tables, column, n_vocab, spec.context_size) is not None:
        # The table below is as it was loaded, however rows are shuffled since.
        bad = first_bad_row([dataset.data.table], column, n_vocab, spec.context_size)
        if bad is not None:
            raise refuse(bad[0] + 1, bad[1])
    return dataset


def _split_text(dataset: AnyDataset, spec: PanelSpec, model: HookedRootModule) -> SplitText:
    wanted = n_held_out_contexts(spec) * spec.context_size
    tokenizer: Any = getattr(model, "tokenizer", None)
    streamed = isinstance(dataset, IterableDataset)
    most = math.inf if streamed else len(dataset) * _MOST_HELD_OUT
    total = documents = enough = 0
    for row in dataset:
        documents += 1
        total += _n_tokens(row, tokenizer, spec.context_size)
        if not enough and total >= wanted:
            enough = documents
        if enough and (total >= wanted * spec.held_out_spread or documents >= most):
            break
    else:
        documents = enough or documents  # a stream with none to spare
    if total < wanted:
        raise UserError(
            f"dataset.path: has {total} tokens, fewer than the {wanted} to hold out; use more "
            "text, or lower calibration_tokens and eval_tokens"
        )
    none_left = UserError(
        f"dataset.path: all of its {documents} documents are needed for calibration_tokens "
        "and eval_tokens, none are left to train on; use more text"
    )
    if streamed:
        rest = dataset.skip(documents)
        if documents > enough and next(iter(rest), None) is None:
            documents, rest = enough, dataset.skip(enough)
        if next(iter(rest), None) is None:
            raise none_left
        return SplitText(rest, dataset.take(documents), documents)
    if len(dataset) == documents:
        raise none_left
    _say_repeats(spec, len(dataset) - documents, total / documents)
    return SplitText(
        dataset.select(range(documents, len(dataset))),
        dataset.select(range(documents)),
        documents,
    )


def _say_repeats(spec: PanelSpec, documents: int, each: float) -> None:
    """SAELens begins again at the end of the text, as often as it takes."""
    # An estimate: documents to train on are as long as those held out.
    times = spec.training_tokens / (documents * each)
    if times > _REPEATS:
        logger.warning(
            "training_tokens: %s are about %s times what dataset.path has (%s documents of "
            "about %s tokens): the same text is read again and again; use fewer, or more text",
            *(f"{n:,.0f}" for n in (spec.training_tokens, times, documents, each)),
        )


def n_held_out_contexts(spec: PanelSpec) -> int:
    """Contexts needed for calibration plus evaluation."""
    usable = spec.training_context_size
    return -(-spec.calibration_tokens // usable) + -(-spec.eval_tokens // usable)


def _n_tokens(row: Any, tokenizer: Any, context_size: int) -> int:
    """Tokens of a document that SAELens will use."""
    for column in _TOKEN_COLUMNS:
        if column in row:
            return context_size  # SAELens cuts each row to one context
    # A tokenizer may add a token at either end that SAELens leaves out.
    return max(0, len(tokenizer(row["text"])["input_ids"]) - 2)
