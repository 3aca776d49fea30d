"""From what was typed to what it is: a folder, a repository of the Hub, or a release."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import list_repo_files
from huggingface_hub.errors import HfHubHTTPError
from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from sae_baselines.baselines import load_covariance
from sae_baselines.controls.source import load_sae
from sae_baselines.errors import UserError, nearest
from sae_baselines.hub.errors import reading_errors
from sae_baselines.show.sae import SAEDescription, describe_sae
from sae_baselines.study.folder import STUDY_FILE, StudyFolder

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

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"source": self.of, "saes": self.saes}


@dataclass(frozen=True)
class StudyMembers:
    """Every finished member of a study, by folder; the reference of a check comes last."""

    folder: Path
    members: list[SAEDescription]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        members = [member.to_dict() for member in self.members]
        return {"source": str(self.folder), "members": members}


def show(
    source: str | Path, covariance: Path | None = None
) -> SAEDescription | StudyMembers | Listing:
    """What a source is: an SAE, the members of a study, or the SAEs of a repository or release.

    Args:
        source: SAE folder, study, ``user/repo``, ``user/repo:folder`` or ``release:sae_id``.
        covariance: Covariance that an SAE of scheme ``cov`` started with.

    Raises:
        UserError: There is nothing of that name, with what is near; it cannot be reached, or
            is damaged; no member of the study is finished.
    """
    if covariance is not None and not covariance.is_file():
        raise UserError(f"covariance: there is no file {covariance}")
    if covariance is not None:
        try:
            load_covariance(covariance_path=str(covariance))
        except ValueError as error:
            raise UserError(
                str(error).replace("init_covariance_path", "covariance", 1)
            ) from None
    source, folder = str(source), Path(source)
    if folder.is_dir():
        return _local(folder, covariance)
    if folder.exists():
        raise UserError(f"{source}: is a file; name the folder that it is in")
    name, colon, inside = source.partition(":")
    releases = get_pretrained_saes_directory()
    l0 = None
    if name in releases:
        known = list(releases[name].saes_map)
        l0 = releases[name].expected_l0.get(inside) or None
        problem = (
            f"{name}: has no SAE {inside!r}; {nearest(inside, known)}; sae-baselines show "
            f"{name} lists them"
        )
    elif _REPO.fullmatch(name) and not name.startswith("."):
        known = _in_repository(name, source)
        problem = (
            f"{name}: has no SAE in {inside!r}; {nearest(inside, known)}"
            if known
            else f"{name}: has no folder with an SAE that SAELens saved"
        )
    else:
        raise UserError(_nothing_there(source, name, list(releases)))
    if not colon:
        return Listing(name, known)
    if inside not in known:
        raise UserError(problem)
    return describe_sae(source, _load(source, name), covariance=covariance, l0_stated=l0)


def _local(folder: Path, covariance: Path | None) -> SAEDescription | StudyMembers:
    if (folder / STUDY_FILE).is_file():
        reference = StudyFolder(folder).published
        members = [*sae_folders(folder / "panels"), *sae_folders(reference)]
        if not members:
            raise UserError(
                f"study: {folder} has no finished member; run sae-baselines train ... --resume"
            )
        return StudyMembers(folder, [describe_sae(m, covariance=covariance) for m in members])
    if (folder / SAE_CFG_FILENAME).is_file():
        return describe_sae(folder, covariance=covariance)
    below = sae_folders(folder)
    if not below:
        raise UserError(f"{folder}: is neither an SAE of SAELens (no cfg.json) nor a study")
    raise UserError(
        f"{folder}: is neither an SAE nor a study; SAEs in it: "
        + ", ".join(map(str, below[:3]))
        + (f" and {len(below) - 3} more" if len(below) > 3 else "")
    )


def sae_folders(folder: Path) -> list[Path]:
    """SAELens folders below a folder; nothing in hidden ones, which are unfinished."""
    return sorted(
        weights.parent
        for weights in folder.rglob(SAE_WEIGHTS_FILENAME)
        if (weights.parent / SAE_CFG_FILENAME).is_file()
        and not any(part.startswith(".") for part in weights.relative_to(folder).parts)
    )


def _in_repository(repo: str, source: str) -> list[str]:
    """Folders of a repository that SAELens can load."""
    with reading_errors(repo, _near(source)):
        files = set(list_repo_files(repo))
    folders = {f.rpartition("/")[0] for f in files if f.endswith(f"/{SAE_WEIGHTS_FILENAME}")}
    return sorted(f for f in folders if f"{f}/{SAE_CFG_FILENAME}" in files)


def _load(source: str, repo: str) -> SAE[Any]:
    with reading_errors(repo, _near(source)):
        try:
            return load_sae(source)[0]
        except UserError as error:
            # What the Hub said is clearer than what was made of it.
            if isinstance(error.__cause__, HfHubHTTPError):
                raise error.__cause__ from None
            raise


def _near(source: str) -> str:
    return "" if ":" in source else _near_folders(Path(source))


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
