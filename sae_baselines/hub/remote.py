"""What a repo holds already, and what publishing would change in it."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from sae_baselines.hub.card import CARD_FILE, Manifest, manifest_of
from sae_baselines.hub.errors import hub_errors
from sae_baselines.hub.plan import FIGURES, MEMBER_FILES, PlannedFile, Publication

MAIN = "main"


@dataclass(frozen=True)
class RemoteRepo:
    """A repo's files at a branch.

    Attributes:
        exists: Whether there is a repo at all (that the token may see).
        branch_exists: Whether the branch is there; a new one starts from main.
        private: Whether it is private.
        sha: Commit of the branch, "" without one.
        files: Path to the names that the Hub knows the content by: SHA-256 of a large file,
            git's SHA-1 of a small one.
        manifest: What an earlier publish put there; None where the card is not of this tool.
        foreign_card: Whether there is a card that this tool did not make.
        edited_card: Whether there is one that it made and somebody edited.
    """

    exists: bool
    branch_exists: bool
    private: bool
    sha: str
    files: Mapping[str, str]
    manifest: Manifest | None
    foreign_card: bool
    edited_card: bool

    def has(self, file: PlannedFile) -> bool:
        """Whether the repo holds this content at this path."""
        known = self.files.get(file.path)
        if known is None:
            return False
        return known == (file.sha256 if len(known) == 64 else file.git_sha1)


NO_REPO = RemoteRepo(False, False, False, "", {}, None, False, False)


@dataclass(frozen=True)
class Changes:
    """What publishing does.

    Attributes:
        new: Files that the repo does not have.
        changed: Files that it has with other content.
        unchanged: Files that it has.
        gone: Paths that an earlier publish put there and that are not published any more.
    """

    new: tuple[PlannedFile, ...]
    changed: tuple[PlannedFile, ...]
    unchanged: tuple[PlannedFile, ...]
    gone: tuple[str, ...]

    @property
    def upload(self) -> list[PlannedFile]:
        return [*self.new, *self.changed]

    @property
    def nothing(self) -> bool:
        return not self.upload and not self.gone


def read_remote(api: HfApi, repo: str, revision: str) -> RemoteRepo:
    """List a repo; only reads.

    Raises:
        UserError: The Hub could not be read.
    """
    with hub_errors(repo, revision):
        try:
            info = api.repo_info(repo)
        except RepositoryNotFoundError:
            # Also what a stranger is told of a private repo; making it will say so.
            return NO_REPO
        branch_exists = True
        try:
            found = list(api.list_repo_tree(repo, recursive=True, revision=revision))
        except RevisionNotFoundError:
            branch_exists, revision = False, MAIN
            found = list(api.list_repo_tree(repo, recursive=True, revision=MAIN))
        files = {
            each.path: each.lfs.sha256 if each.lfs else each.blob_id
            for each in found
            if isinstance(each, RepoFile)
        }
        card = _card(api, repo, revision) if CARD_FILE in files else ""
        sha = api.repo_info(repo, revision=revision).sha or ""
    manifest = manifest_of(card)
    return RemoteRepo(
        exists=True,
        branch_exists=branch_exists,
        private=bool(info.private),
        sha=sha,
        files=files,
        manifest=manifest,
        foreign_card=CARD_FILE in files and manifest is None,
        edited_card=manifest is not None and not manifest.is_text_of(card),
    )


def _card(api: HfApi, repo: str, revision: str) -> str:
    # Not through the cache: a branch moves.
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(repo, CARD_FILE, revision=revision, local_dir=folder)
        # Somebody else's may be in any encoding.
        return Path(path).read_text(encoding="utf-8", errors="replace")


def compare(planned: Publication, remote: RemoteRepo) -> Changes:
    """What publishing would change."""
    new, changed, unchanged = [], [], []
    for file in planned.files:
        if remote.has(file):
            unchanged.append(file)
        elif file.path in remote.files:
            changed.append(file)
        else:
            new.append(file)
    here = {file.path for file in planned.files}
    gone = [path for path in _owned(planned, remote) if path in remote.files]
    return Changes(
        new=tuple(new),
        changed=tuple(changed),
        unchanged=tuple(unchanged),
        gone=tuple(sorted(set(gone) - here)),
    )


def is_of(planned: Publication, manifest: Manifest) -> bool:
    """Whether a manifest is of the study that is published."""
    told = (manifest.study, manifest.spec_hash)
    return told == (planned.study, planned.spec_hash)


def overwritten(planned: Publication, remote: RemoteRepo) -> list[str]:
    """Paths with other content in the repo, of which no publish of this study tells.

    An interrupted first publish left SAEs and no card; those are what they are here.
    """
    own = set(_owned(planned, remote))
    if remote.manifest is not None:
        # Of these the manifest lists figures alone.
        rest = (f.path for f in (*planned.others, planned.card))
        own |= {path for path in rest if not path.startswith(f"{FIGURES}/")}
    return [f.path for f in compare(planned, remote).changed if f.path not in own]


def _owned(planned: Publication, remote: RemoteRepo) -> list[str]:
    """Paths that an earlier publish of this study put there, by its own list.

    The list comes from the repo, so it is held against what this tool publishes at all.
    """
    told = remote.manifest
    if told is None or not is_of(planned, told):
        return []
    member = re.compile(r"[\w.-]+/l0_[\w.+-]+/seed_\d+/[\w.-]+")
    figure = re.compile(rf"{FIGURES}/[\w.+-]+\.(png|svg)")
    folders = [f for f in told.members if member.fullmatch(f)]
    return [
        *(f"{folder}/{name}" for folder in folders for name in MEMBER_FILES),
        *(path for path in told.figures if figure.fullmatch(path)),
    ]


def members_to_upload(planned: Publication, changes: Changes) -> Sequence[str]:
    """Folders of members of which any file is new or changed."""
    paths = {file.path for file in changes.upload}
    return [
        folder
        for folder, files in planned.members.items()
        if any(file.path in paths for file in files)
    ]
