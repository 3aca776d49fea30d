"""Bringing a repo up to a publication: SAEs first, then everything else in one commit."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
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
from sae_lens.training.upload_saes_to_huggingface import upload_saes_to_huggingface

from sae_baselines.errors import UserError
from sae_baselines.hub.errors import hub_errors, no_token
from sae_baselines.hub.leaks import redacted_logs
from sae_baselines.hub.plan import PlannedFile, Publication
from sae_baselines.hub.remote import (
    MAIN,
    RemoteRepo,
    compare,
    is_of,
    members_to_upload,
    overwritten,
    read_remote,
)

_REPLACE = "replace them with --replace, or choose another repo"
_NAMED = 3


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
