"""Bringing a repo up to a publication: SAEs first, then everything else in one commit."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
)
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from sae_lens.training.upload_saes_to_huggingface import upload_saes_to_huggingface

from sae_baselines.errors import UserError
from sae_baselines.hub.errors import hub_errors, no_token
from sae_baselines.hub.layout import (
    CARD_FILE,
    FIGURES,
    Manifest,
    PlannedFile,
    Publication,
    is_of,
    manifest_of,
    owned,
)
from sae_baselines.redact import redacted_logs

MAIN = "main"
_REPLACE = "replace them with --replace, or choose another repo"
_NAMED = 3


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
    gone = [path for path in owned(planned, remote.manifest) if path in remote.files]
    return Changes(
        new=tuple(new),
        changed=tuple(changed),
        unchanged=tuple(unchanged),
        gone=tuple(sorted(set(gone) - here)),
    )


def overwritten(planned: Publication, remote: RemoteRepo) -> list[str]:
    """Paths with other content in the repo, of which no publish of this study tells.

    An interrupted first publish left SAEs and no card; those are what they are here.
    """
    own = set(owned(planned, remote.manifest))
    if remote.manifest is not None:
        # Of these the manifest lists figures alone.
        rest = (f.path for f in (*planned.others, planned.card))
        own |= {path for path in rest if not path.startswith(f"{FIGURES}/")}
    return [f.path for f in compare(planned, remote).changed if f.path not in own]


def members_to_upload(planned: Publication, changes: Changes) -> Sequence[str]:
    """Folders of members of which any file is new or changed."""
    paths = {file.path for file in changes.upload}
    return [
        folder
        for folder, files in planned.members.items()
        if any(file.path in paths for file in files)
    ]


@dataclass(frozen=True)
class Done:
    """What `publish` did.

    Attributes:
        url: Where it is.
        commit: Last commit made; "" where there was nothing to do.
        uploaded: Files uploaded.
        unchanged: Files that were there already.
        deleted: Files deleted.
        saes: Commits made for SAEs, one each.
    """

    url: str
    commit: str
    uploaded: int
    unchanged: int
    deleted: int
    saes: int


def publish(planned: Publication, *, private: bool = False, replace: bool = False) -> Done:
    """Upload what the repo does not have, delete what an earlier publish left over.

    SAEs go first, through SAELens' own uploader, a commit each; results, report, figures, spec
    and card follow in one commit, so that a card never names an SAE that is not there; until
    then the results and the card are those of before. What is there already is left alone, so
    that an interrupted publish goes on where it stopped.

    Args:
        planned: From `plan_publication`.
        private: Make a new repo private.
        replace: Overwrite files at the planned paths even where they are not of this study,
            or are a card that was edited. Other files are left alone in any case.

    Returns:
        What was done.

    Raises:
        UserError: There is no token, the Hub refuses or cannot be reached, whatever else
            breaks on the way, or the repo holds what is not of this study. Local files are
            not touched.
    """
    repo, revision = planned.repo, planned.revision
    with redacted_logs():
        _check_token(repo)
        api = HfApi()
        remote = read_remote(api, repo, revision)
        check_target(planned, remote, private, replace)
        remote = _prepare(api, planned, remote, private)
        changes = compare(planned, remote)
        url = _url(planned)
        if changes.nothing:
            return Done(url, "", 0, len(changes.unchanged), 0, 0)
        folders = members_to_upload(planned, changes)
        uploads = {file.path for file in changes.upload}
        with hub_errors(repo, revision):
            if folders:
                with _staged(planned, folders) as saes:
                    upload_saes_to_huggingface(
                        saes, repo, hf_revision=revision, add_default_readme=False
                    )
            of_members = {f.path for folder in folders for f in planned.members[folder]}
            rest = [f for f in changes.upload if f.path not in of_members]
            commit = _commit_rest(api, planned, rest, changes.gone)
            commit = commit or read_remote(api, repo, revision).sha
    return Done(
        url=url,
        commit=commit,
        uploaded=len(uploads),
        unchanged=len(changes.unchanged),
        deleted=len(changes.gone),
        saes=len(folders),
    )


def check_target(
    planned: Publication, remote: RemoteRepo, private: bool, replace: bool
) -> None:
    """Raise where publishing would overwrite or show what it should not.

    Raises:
        UserError: The card is somebody else's, of another study, or edited; files would be
            overwritten that no publish of this study put there; ``private`` was asked for and
            the repo is public.
    """
    if private and remote.exists and not remote.private:
        raise UserError(
            f"private: {planned.repo} is there and is public; make it private in its settings "
            "on the Hub, or choose another repo"
        )
    if replace:
        return
    repo, told = planned.repo, remote.manifest
    if remote.foreign_card:
        raise UserError(f"{repo}: has a README.md that sae-baselines did not make; {_REPLACE}")
    if told is not None and not is_of(planned, told):
        other = (
            f"holds study {told.study!r}, not {planned.study!r}"
            if told.study != planned.study
            else f"holds another study that is called {told.study!r} too, with another spec "
            f"({told.spec_hash[:8]}, here {planned.spec_hash[:8]})"
        )
        raise UserError(f"{repo}: {other}; {_REPLACE}")
    if remote.edited_card:
        raise UserError(
            f"{repo}: its README.md was edited after it was published; copy what you want to "
            f"keep, then {_REPLACE}"
        )
    taken = overwritten(planned, remote)
    if taken:
        more = f" and {len(taken) - _NAMED} more" if len(taken) > _NAMED else ""
        raise UserError(
            f"{repo}: holds other files where this study's go: {', '.join(taken[:_NAMED])}"
            f"{more}; {_REPLACE}"
        )


def _check_token(repo: str) -> None:
    # SAELens sends the token that the client finds by itself.
    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        raise UserError("token: HF_HUB_DISABLE_IMPLICIT_TOKEN is set; unset it to publish")
    if not get_token():
        raise UserError(no_token())
    with hub_errors(repo):
        HfApi().whoami()


def _prepare(api: HfApi, planned: Publication, remote: RemoteRepo, private: bool) -> RemoteRepo:
    """Make the repo and the branch where they are missing."""
    repo, revision = planned.repo, planned.revision
    if remote.exists and remote.branch_exists:
        return remote
    with hub_errors(repo, revision):
        if not remote.exists:
            # Nothing said, not False: an organisation may make its repos private by default.
            wanted: dict[str, Any] = {"private": True} if private else {}
            api.create_repo(repo, exist_ok=True, **wanted)
        if revision != MAIN:
            api.create_branch(repo, branch=revision, exist_ok=True)
    return read_remote(api, repo, revision)


@contextmanager
def _staged(planned: Publication, folders: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Folders that hold the planned files and nothing else, for SAELens' uploader."""
    with tempfile.TemporaryDirectory(prefix="sae_baselines_") as scratch:
        saes = {}
        for i, folder in enumerate(folders):
            stage = Path(scratch) / str(i)
            stage.mkdir()
            for file in planned.members[folder]:
                _place(file, stage / Path(file.path).name)
            saes[folder] = stage
        yield saes


def _place(file: PlannedFile, target: Path) -> None:
    if isinstance(file.source, bytes):
        target.write_bytes(file.source)
        return
    try:
        target.symlink_to(file.source.resolve())
    except OSError:
        # Windows needs a right for links.
        shutil.copyfile(file.source, target)


def _commit_rest(
    api: HfApi, planned: Publication, files: list[PlannedFile], gone: tuple[str, ...]
) -> str:
    """Everything but SAEs in one commit; its id, "" where there was nothing."""
    operations = [
        *(CommitOperationAdd(f.path, f.source) for f in files),
        *(CommitOperationDelete(path) for path in gone),
    ]
    if not operations:
        return ""
    made = api.create_commit(
        planned.repo,
        operations=operations,
        commit_message=f"Results, report and card of {planned.study}",
        revision=planned.revision,
    )
    return made.oid


def _url(planned: Publication) -> str:
    base = f"{constants.ENDPOINT}/{planned.repo}"
    return base if planned.revision == MAIN else f"{base}/tree/{planned.revision}"
