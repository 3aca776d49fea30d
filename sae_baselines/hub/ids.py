"""What the Hub calls things: repos, models, datasets, licences."""

import re

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import (
    validate_repo_id,  # pyright: ignore[reportPrivateImportUsage]
)
from transformer_lens.loading_from_pretrained import get_official_model_name

from sae_baselines.errors import UserError, did_you_mean

OTHER = "other"
# https://huggingface.co/docs/hub/repositories-licenses
_IDS = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m
    bigscience-bloom-rail-1.0 bigcode-openrail-m openrail++ afl-3.0 artistic-2.0 bsl-1.0 bsd
    bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0
    cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc
    h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
    deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2
    llama3.3 llama4 grok2-community gemma unknown other
"""
HUB_LICENSES = tuple(_IDS.split())
_LINK = re.compile(r"https?://[!-~]+\.[!-~]+|LICEN[CS]E(\.(md|txt))?")
_FILE = re.compile(r"\.(parquet|jsonl?|csv|tsv|txt|arrow|gz|zst)$", re.IGNORECASE)


def check_repo_id(repo: str) -> None:
    """Raise unless it has the form ``user/repo``.

    Raises:
        UserError: Otherwise.
    """
    if not _is_id(repo):
        raise UserError(
            f"repo: {repo!r} is not a repo id; use user/repo with letters, digits, - _ . e.g. "
            "alice/pythia-baselines"
        )


def check_revision(revision: str) -> None:
    """Raise unless it can be the name of a branch, as git has them.

    Raises:
        UserError: Otherwise.
    """
    part = r"(?!.*\.lock(/|\Z))[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*"
    if len(revision) > 200 or not re.fullmatch(rf"{part}(/{part})*", revision):
        raise UserError(
            f"revision: {revision[:80]!r} is no name of a branch; use letters, digits, - _ . / "
            "e.g. main"
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
    # The Hub's own check lets accents and a newline at the end through.
    plain = re.fullmatch(r"[A-Za-z0-9._/-]+", name) is not None
    return plain and least <= name.count("/") <= 1


def check_license(license: str, name: str | None, link: str | None) -> None:
    """Raise unless the Hub takes this licence.

    Args:
        license: The Hub's id.
        name: Of a licence that has no id there.
        link: Where that one can be read: an address, or a file in the repo.

    Raises:
        UserError: An unknown id; "other" without name and link; a name or link with an id.
    """
    if license not in HUB_LICENSES:
        hint = did_you_mean(license, list(HUB_LICENSES[:12]))
        near = did_you_mean(license, list(HUB_LICENSES))
        hint = near if near.startswith("did you mean") else f"{hint}, ..."
        raise UserError(
            f"license: {license!r} is no id of the Hub; {hint} Or 'other', with --license-name "
            "and --license-link"
        )
    if license == OTHER:
        if not (name and link):
            raise UserError("license: 'other' needs --license-name and --license-link")
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
            raise UserError(
                f"license-name: {name!r}: use lower case letters, digits and . - _, e.g. "
                "my-license-1.0"
            )
        if not _LINK.fullmatch(link):
            raise UserError(
                f"license-link: {link!r} is no address; use https://..., or LICENSE for the "
                "file of that name in the repo"
            )
    elif name or link:
        raise UserError(
            f"license-name, license-link: belong to --license other, not to {license!r}"
        )
