"""The members of a study."""

from collections.abc import Iterator
from pathlib import Path

from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME

from sae_baselines.errors import UserError
from sae_baselines.show.sae import AboutSAE, about_sae
from sae_baselines.study.folder import STUDY_FILE, StudyFolder


def is_study(folder: Path) -> bool:
    """Whether a folder is a study's: of text, of images or of synthetic data."""
    return (folder / STUDY_FILE).is_file()


def members_of_study(folder: Path, covariance: Path | None = None) -> Iterator[AboutSAE]:
    """Every finished member, by folder; the published SAE of a check comes last.

    Args:
        folder: A study.
        covariance: As for `about_sae`.

    Raises:
        UserError: None is finished, or one is damaged.
    """
    members = [*sae_folders(folder / "panels"), *sae_folders(StudyFolder(folder).published)]
    if not members:
        raise UserError(
            f"study: {folder} has no finished member; run sae-baselines train ... --resume"
        )
    for member in members:
        yield about_sae(member, covariance=covariance)


def sae_folders(folder: Path) -> list[Path]:
    """SAELens folders below a folder; nothing in hidden ones, which are unfinished."""
    return sorted(
        weights.parent
        for weights in folder.rglob(SAE_WEIGHTS_FILENAME)
        if (weights.parent / SAE_CFG_FILENAME).is_file()
        and not any(part.startswith(".") for part in weights.relative_to(folder).parts)
    )
