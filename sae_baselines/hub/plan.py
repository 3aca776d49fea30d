"""Exactly what will be published: a list of files, nothing by pattern."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME

from sae_baselines.errors import UserError
from sae_baselines.evals.results import RESULTS_FILE
from sae_baselines.hub.card import CARD_FILE, CardOptions, make_card
from sae_baselines.hub.leaks import refuse_secrets, safetensors_header
from sae_baselines.hub.licenses import check_license
from sae_baselines.hub.names import check_repo_id
from sae_baselines.hub.source import SourceStudy, read_source
from sae_baselines.places import data_without_places
from sae_baselines.study.folder import STUDY_FILE
from sae_baselines.study.plan import MemberKey

# What SAELens uploads of an SAE and what an SAE consists of.
MEMBER_FILES = (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME)
FIGURES = "figures"
_CHUNK = 1 << 22


@dataclass(frozen=True)
class PlannedFile:
    """One file of the repo.

    Attributes:
        path: In the repo.
        source: Local file, or the bytes themselves where they are made for the repo.
    """

    path: str
    source: Path | bytes

    @cached_property
    def size(self) -> int:
        """Bytes."""
        return (
            len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size
        )

    @cached_property
    def sha256(self) -> str:
        """What the Hub names a large file by."""
        return self._digest(hashlib.sha256())

    @cached_property
    def git_sha1(self) -> str:
        """What git names a small file by."""
        return self._digest(hashlib.sha1(b"blob %d\0" % self.size))

    def _digest(self, made: "hashlib._Hash") -> str:
        if isinstance(self.source, bytes):
            made.update(self.source)
        else:
            with self.source.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    made.update(chunk)
        return made.hexdigest()


@dataclass(frozen=True)
class Publication:
    """What a repo will hold.

    Attributes:
        repo: ``user/repo``.
        revision: Branch.
        study: Name of the study.
        spec_hash: SHA-256 of its spec.
        members: Folder in the repo to its files.
        others: Everything else but the card.
        card: README.md.
        notes: What the publisher should know.
    """

    repo: str
    revision: str
    study: str
    spec_hash: str
    members: dict[str, tuple[PlannedFile, ...]]
    others: tuple[PlannedFile, ...]
    card: PlannedFile
    notes: tuple[str, ...]

    @property
    def card_text(self) -> str:
        """README.md as text."""
        assert isinstance(self.card.source, bytes)
        return self.card.source.decode("utf-8")

    @property
    def files(self) -> list[PlannedFile]:
        """Members first, the card last."""
        of_members = [file for files in self.members.values() for file in files]
        return [*of_members, *self.others, self.card]


def folder_of(key: MemberKey) -> str:
    """Where a member lies in the repo: ``<architecture>/l0_<k>/seed_<s>/<member>``."""
    panel = key.panel
    return f"{panel.architecture}/l0_{panel.l0:g}/seed_{panel.seed}/{key.member}"


def plan_publication(
    study: str | Path, repo: str, revision: str, options: CardOptions
) -> Publication:
    """Read a study and say what will be published of it. Touches no network.

    Args:
        study: Study folder: trained, evaluated, reported.
        repo: ``user/repo``.
        revision: Branch.
        options: What the card needs to be told.

    Raises:
        UserError: The study is of another kind or unfinished; its results or report are
            missing or stale; a file leads outside the study or holds a secret.
    """
    check_repo_id(repo)
    check_license(options.license, options.license_name, options.license_link)
    root = Path(study)
    source = read_source(root)
    folders = {key: folder_of(key) for key in source.members}
    members = {folders[key]: _member(root, source.folder(key), folders[key]) for key in folders}
    others = _others(root, source)
    card = make_card(source, repo, revision, options, folders, [f.path for f in others])
    planned = Publication(
        repo=repo,
        revision=revision,
        study=source.name,
        spec_hash=source.spec_hash,
        members=members,
        others=others,
        card=PlannedFile(CARD_FILE, card.text.encode("utf-8")),
        notes=card.notes,
    )
    for file in planned.files:
        refuse_secrets(file.path, _readable(file), root)
    return planned


def _member(root: Path, folder: Path, target: str) -> tuple[PlannedFile, ...]:
    found = []
    for name in MEMBER_FILES:
        path = inside(root, folder / name)
        source: Path | bytes = path
        if name == SAE_CFG_FILENAME:
            stored = path.read_bytes()
            told = json.loads(stored)
            clean = data_without_places(told)
            source = stored if clean == told else json.dumps(clean).encode()
        found.append(PlannedFile(f"{target}/{name}", source))
    return tuple(found)


def _others(root: Path, source: SourceStudy) -> tuple[PlannedFile, ...]:
    names = [RESULTS_FILE, *source.report_files]
    files = [PlannedFile(name, inside(root, root / name)) for name in names]
    return (*files, PlannedFile(STUDY_FILE, _spec(inside(root, root / STUDY_FILE))))


def _spec(path: Path) -> bytes:
    """study.yaml as it is, or without local places where it has any."""
    stored = path.read_bytes()
    told = yaml.safe_load(stored)
    clean = data_without_places(told)
    if clean == told:
        return stored
    return yaml.safe_dump(clean, sort_keys=False, allow_unicode=True).encode("utf-8")


def inside(root: Path, path: Path) -> Path:
    """The path, if it is a file that lies in the study.

    Raises:
        UserError: It is not there, or is a link to somewhere else.
    """
    real = path.resolve()
    if not real.is_file():
        raise UserError(f"study: {path} is not there; run sae-baselines report {root}")
    if not real.is_relative_to(root.resolve()):
        raise UserError(
            f"study: {path} is a link out of the study; nothing outside is published, so put "
            "the file itself there"
        )
    return path


def _readable(file: PlannedFile) -> bytes:
    """What of a file is text."""
    if isinstance(file.source, bytes):
        return file.source
    if file.source.suffix == ".safetensors":
        return safetensors_header(file.source)
    return b"" if file.source.suffix == ".png" else file.source.read_bytes()


def total_size(files: Sequence[PlannedFile]) -> int:
    """Bytes."""
    return sum(file.size for file in files)
