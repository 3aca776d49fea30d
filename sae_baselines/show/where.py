"""From what was typed to the SAE: a folder, a repository of the Hub, or a release."""

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import list_repo_files
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from sae_baselines.controls.source import load_sae
from sae_baselines.errors import UserError, nearest, one_line
from sae_baselines.show.study import is_study, sae_folders

_REPO = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Listing:
    """SAEs that can be named, of a repository or a release.

    Attributes:
        of: The repository or release.
        saes: What to write behind ``of:``, for each.
    """

    of: str
    saes: list[str]


@dataclass(frozen=True)
class Published:
    """An SAE that was downloaded.

    Attributes:
        sae: On the CPU.
        l0_stated: Mean number of active latents that SAELens' directory states, if it does.
    """

    sae: SAE[Any]
    l0_stated: float | None


def find(source: str) -> Path | Published | Listing:
    """What a source names: a local folder (SAE or study), a published SAE, or a list of them.

    Raises:
        UserError: Nothing, or it cannot be reached; with what is near.
    """
    folder = Path(source)
    if folder.is_dir():
        return _local(folder)
    if folder.exists():
        raise UserError(f"{source}: is a file; name the folder that it is in")
    name, colon, inside = source.partition(":")
    releases = get_pretrained_saes_directory()
    if name in releases:
        known = releases[name].saes_map
        if not colon:
            return Listing(name, list(known))
        if inside not in known:
            raise UserError(
                f"{name}: has no SAE {inside!r}; {nearest(inside, list(known))}; sae-baselines "
                f"show {name} lists them"
            )
        stated = releases[name].expected_l0.get(inside)
        return Published(_load(source, name), stated or None)
    if not _REPO.fullmatch(name) or name.startswith("."):
        raise UserError(_nothing_there(source, name, list(releases)))
    found = _in_repository(name, source)
    if not colon:
        return Listing(name, found)
    if inside not in found:
        raise UserError(
            f"{name}: has no SAE in {inside!r}; {nearest(inside, found)}"
            if found
            else f"{name}: has no folder with an SAE that SAELens saved"
        )
    return Published(_load(source, name), None)


def _local(folder: Path) -> Path:
    if is_study(folder) or (folder / SAE_CFG_FILENAME).is_file():
        return folder
    below = sae_folders(folder)
    if not below:
        raise UserError(f"{folder}: is neither an SAE of SAELens (no cfg.json) nor a study")
    raise UserError(
        f"{folder}: is neither an SAE nor a study; SAEs in it: "
        + ", ".join(map(str, below[:3]))
        + (f" and {len(below) - 3} more" if len(below) > 3 else "")
    )


def _in_repository(repo: str, source: str) -> list[str]:
    """Folders of a repository that SAELens can load."""
    with _hub_errors(repo, source):
        files = set(list_repo_files(repo))
    folders = {f.rpartition("/")[0] for f in files if f.endswith(f"/{SAE_WEIGHTS_FILENAME}")}
    return sorted(f for f in folders if f"{f}/{SAE_CFG_FILENAME}" in files)


def _load(source: str, repo: str) -> SAE[Any]:
    with _hub_errors(repo, source):
        try:
            return load_sae(source)[0]
        except UserError as error:
            # What the Hub said is clearer than what was made of it.
            if isinstance(error.__cause__, HfHubHTTPError):
                raise error.__cause__ from None
            raise


@contextmanager
def _hub_errors(repo: str, source: str) -> Iterator[None]:
    """What the Hub's client raises, as one line with the remedy."""
    near = "" if ":" in source else _near_folders(Path(source))
    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            f"{repo}: is gated; accept its terms on its page and log in with hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{repo}: is neither a folder here nor a repository of the Hub that you may see; "
            + (near or "a private one needs hf auth login")
        ) from error
    except HFValidationError as error:
        raise UserError(f"{repo}: is neither a folder here nor a name of the Hub") from error
    except OfflineModeIsEnabled as error:
        raise UserError(
            f"{repo}: is not a folder here, and HF_HUB_OFFLINE keeps it from the Hub; "
            + (near or "unset it, or name a local folder")
        ) from error
    except HfHubHTTPError as error:
        raise UserError(f"{repo}: the Hub answers {one_line(error, 200)}") from error
    except UserError:
        raise
    except Exception as error:  # of whichever library carries the connection
        if not _is_connection(error):
            raise
        raise UserError(
            f"{repo}: is not a folder here, and the Hub cannot be reached "
            f"({type(error).__name__}); {near or 'check the network, or name a local folder'}"
        ) from error


def _is_connection(error: Exception) -> bool:
    """huggingface_hub changed from requests to httpx; both name their errors alike."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"ConnectionError", "TransportError", "Timeout", "RequestException"})


def _nothing_there(source: str, name: str, releases: list[str]) -> str:
    near = _near_folders(Path(source))
    if not near and "/" not in name:
        close = difflib.get_close_matches(name, releases, n=3, cutoff=0.6)
        near = f"did you mean {' or '.join(close)}?" if close else ""
    return f"{source}: there is no such folder; " + (
        near or "give a SAELens folder, a study, user/repo, user/repo:folder or release:sae_id"
    )


def _near_folders(path: Path) -> str:
    """``did you mean studies/demo?``: what is beside the path, by name."""
    beside = [p for p in path.parent.glob("*") if p.is_dir()] if path.parent.is_dir() else []
    names = difflib.get_close_matches(path.name, [p.name for p in beside], n=3, cutoff=0.6)
    return f"did you mean {' or '.join(str(path.parent / n) for n in names)}?" if names else ""
