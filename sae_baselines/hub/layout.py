"""The layout of a repository: which file lies where, and which of them are a study's own."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from huggingface_hub import constants
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME

from sae_baselines.study.plan import MemberKey

CARD_FILE = constants.REPOCARD_NAME
# What SAELens uploads of an SAE and what an SAE consists of.
MEMBER_FILES = (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME)
FIGURES = "figures"
_MEMBER = re.compile(r"[\w.-]+/l0_[\w.+-]+/seed_\d+/[\w.-]+")
_FIGURE = re.compile(rf"{FIGURES}/[\w.+-]+\.(png|svg)")
_MARK = "sae_baselines publish"
_MANIFEST = re.compile(rf"<!-- {_MARK} (\{{.*?\}}) -->", re.DOTALL)
_CHUNK = 1 << 22


def folder_of(key: MemberKey) -> str:
    """Where a member lies in the repo: ``<architecture>/l0_<k>/seed_<s>/<member>``."""
    panel = key.panel
    return f"{panel.architecture}/l0_{panel.l0:g}/seed_{panel.seed}/{key.member}"


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


def total_size(files: Sequence[PlannedFile]) -> int:
    """Bytes."""
    return sum(file.size for file in files)


@dataclass(frozen=True)
class Manifest:
    """What a publish put into a repo, hidden in its card: so it can be told from the rest.

    Attributes:
        study: Name of the study.
        spec_hash: SHA-256 of its spec: two studies may well have the same name.
        members: Folders of members.
        figures: Paths of figures.
        text_sha256: Of the card without this, so that an edit by hand is noticed.
    """

    study: str
    spec_hash: str
    members: tuple[str, ...]
    figures: tuple[str, ...]
    text_sha256: str

    def comment(self) -> str:
        """The card's last line."""
        # "--" would end the comment.
        text = json.dumps(asdict(self)).replace("--", "\\u002d\\u002d")
        return f"<!-- {_MARK} {text} -->"

    def is_text_of(self, card: str) -> bool:
        """Whether a card still says what it said when this was put into it."""
        return text_sha256_of(card) == self.text_sha256


def manifest_of(card: str) -> Manifest | None:
    """The manifest in a card; None in one that this tool did not make."""
    found = _MANIFEST.search(card)
    if found is None:
        return None
    try:
        told = json.loads(found[1])
        return Manifest(
            str(told["study"]),
            str(told["spec_hash"]),
            tuple(map(str, told["members"])),
            tuple(map(str, told["figures"])),
            str(told["text_sha256"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def text_sha256_of(card: str) -> str:
    # Blank space at the end and line endings are the editor's, not the author's.
    text = "\n".join(_MANIFEST.sub("", card).splitlines()).strip()
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def is_of(planned: Publication, manifest: Manifest) -> bool:
    """Whether a manifest is of the study that is published."""
    told = (manifest.study, manifest.spec_hash)
    return told == (planned.study, planned.spec_hash)


def owned(planned: Publication, manifest: Manifest | None) -> list[str]:
    """Paths that an earlier publish of this study put there, by its own list.

    The list comes from the repo, so it is held against what this tool publishes at all.
    """
    if manifest is None or not is_of(planned, manifest):
        return []
    folders = [f for f in manifest.members if _MEMBER.fullmatch(f)]
    return [
        *(f"{folder}/{name}" for folder in folders for name in MEMBER_FILES),
        *(path for path in manifest.figures if _FIGURE.fullmatch(path)),
    ]
