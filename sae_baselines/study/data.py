"""Text for a panel: loading it, and keeping some of it out of training."""

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
from datasets.exceptions import DatasetsError
from transformer_lens.hook_points import HookedRootModule

from sae_baselines.errors import UserError, one_line
from sae_baselines.study.spec import DatasetSpec, PanelSpec

AnyDataset = Dataset | IterableDataset

_TOKEN_COLUMNS = ("tokens", "input_ids")
_BUILDERS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".txt": "text",
}
_SHUFFLE_BUFFER = 10_000


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
        UserError: It cannot be found or read, or has no such column.
    """
    if dataset is None:
        dataset = _load(spec)
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        if spec.split not in dataset:
            raise UserError(
                f"dataset.split: {spec.split!r} is unknown; there are {', '.join(dataset)}"
            )
        dataset = dataset[spec.split]
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
        dataset = dataset.filter(_has_text)
    if spec.shuffle_seed is not None:
        dataset = shuffle(dataset, spec.shuffle_seed)
    return dataset


def _has_text(row: dict[str, Any]) -> bool:
    return bool(row["text"])


def shuffle(dataset: AnyDataset, seed: int) -> AnyDataset:
    """Shuffle documents; a streamed dataset within a buffer of 10,000."""
    if isinstance(dataset, IterableDataset):
        return dataset.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
    return dataset.shuffle(seed=seed)


def _load(spec: DatasetSpec) -> Any:
    path = Path(spec.path)
    try:
        if path.is_file():
            builder = _BUILDERS.get(path.suffix)
            if builder is None:
                raise UserError(
                    f"dataset.path: {path.name} is none of {', '.join(_BUILDERS)}; convert it"
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
        return load_dataset(
            spec.path, name=spec.name, split=spec.split, streaming=spec.streaming
        )
    except (OSError, ValueError, DatasetsError) as error:
        if isinstance(error, UserError):
            raise
        reason = one_line(error, 300)
        raise UserError(f"dataset.path: cannot load {spec.path!r}: {reason}") from error


def _columns(dataset: AnyDataset, spec: DatasetSpec) -> list[str]:
    if dataset.column_names is not None:
        return list(dataset.column_names)
    try:
        return list(next(iter(dataset)))
    except StopIteration:
        raise UserError(f"dataset.path: {spec.path!r} is empty") from None


def split_text(dataset: AnyDataset, spec: PanelSpec, model: HookedRootModule) -> SplitText:
    """Hold out the first documents that make up the calibration and evaluation tokens.

    Args:
        dataset: From `load_text`.
        spec: Says how many tokens are held out.
        model: Its tokenizer counts.

    Raises:
        UserError: The dataset is too small to hold out tokens and train on the rest.
    """
    wanted = n_held_out_contexts(spec) * spec.context_size
    tokenizer: Any = getattr(model, "tokenizer", None)
    total = documents = 0
    for row in dataset:
        documents += 1
        total += _n_tokens(row, tokenizer, spec.context_size)
        if total >= wanted:
            break
    if total < wanted:
        raise UserError(
            f"dataset.path: has {total} tokens, fewer than the {wanted} to hold out; use more "
            "text, or lower calibration_tokens and eval_tokens"
        )
    none_left = UserError(
        f"dataset.path: all of its {documents} documents are needed for calibration_tokens "
        "and eval_tokens, none are left to train on; use more text"
    )
    if isinstance(dataset, IterableDataset):
        rest = dataset.skip(documents)
        if next(iter(rest), None) is None:
            raise none_left
        return SplitText(rest, dataset.take(documents), documents)
    if len(dataset) == documents:
        raise none_left
    return SplitText(
        dataset.select(range(documents, len(dataset))),
        dataset.select(range(documents)),
        documents,
    )


def n_held_out_contexts(spec: PanelSpec) -> int:
    """Contexts needed for calibration plus evaluation."""
    usable = spec.training_context_size
    return -(-spec.calibration_tokens // usable) + -(-spec.eval_tokens // usable)


def _n_tokens(row: Any, tokenizer: Any, context_size: int) -> int:
    """Tokens of a document that SAELens will use."""
    for column in _TOKEN_COLUMNS:
        if column in row:
            if len(row[column]) < context_size:
                raise UserError(
                    f"context_size: {context_size} is more than the {len(row[column])} tokens "
                    f"of a row of {column!r}; lower it, or tokenise again"
                )
            return context_size  # SAELens cuts each row to one context
    # A tokenizer may add a token at either end that SAELens leaves out.
    return max(0, len(tokenizer(row["text"])["input_ids"]) - 2)
