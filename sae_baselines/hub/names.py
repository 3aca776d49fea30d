"""What the Hub calls the language model and the dataset of a study."""

import re

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import (
    validate_repo_id,  # pyright: ignore[reportPrivateImportUsage]
)
from transformer_lens.loading_from_pretrained import get_official_model_name

from sae_baselines.errors import UserError

_FILE = re.compile(r"\.(parquet|jsonl?|csv|tsv|txt|arrow|gz|zst)$", re.IGNORECASE)


def check_repo_id(repo: str) -> None:
    """Raise unless it has the form ``user/repo``.

    Raises:
        UserError: Otherwise.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError:
        wrong = True
    else:
        wrong = repo.count("/") != 1
    if wrong:
        raise UserError(
            f"repo: {repo!r} is not a repo id; use user/repo with letters, digits, - _ . e.g. "
            "alice/pythia-baselines"
        )


def hub_model(name: str, recorded: str) -> str | None:
    """The Hub's id of a language model, or None where it has none that is known.

    Args:
        name: As the spec has it: Hub name, TransformerLens' alias, or local folder.
        recorded: As the SAEs' configs have it; a local folder is recorded by its last part.
    """
    # A local folder without a label may hold anything, whatever it is called.
    if recorded != name and "/" not in recorded:
        return None
    try:
        return get_official_model_name(recorded)
    except ValueError:
        return recorded if _is_id(recorded) else None


def hub_dataset(path: str, recorded: str) -> str | None:
    """The Hub's id of a dataset, or None for a local one.

    Args:
        path: As the spec has it.
        recorded: As the SAEs' configs have it; a local one is recorded by its last part.
    """
    if recorded != path or _FILE.search(path) or not _is_id(path, least=0):
        return None
    return path


def _is_id(name: str, least: int = 1) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return least <= name.count("/") <= 1
