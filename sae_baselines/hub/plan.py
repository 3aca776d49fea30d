"""Exactly what will be published: a list of files, nothing by pattern."""

import json
from pathlib import Path

import yaml
from sae_lens.constants import SAE_CFG_FILENAME
from safetensors import SafetensorError, safe_open

from sae_baselines.errors import UserError
from sae_baselines.evals.results import RESULTS_FILE
from sae_baselines.hub.card import CardOptions, make_card
from sae_baselines.hub.ids import check_license, check_repo_id, check_revision
from sae_baselines.hub.layout import (
    CARD_FILE,
    MEMBER_FILES,
    PlannedFile,
    Publication,
    folder_of,
)
from sae_baselines.hub.source import SourceStudy, read_source
from sae_baselines.redact import data_without_places, refuse_secrets
from sae_baselines.report.gallery import PAGE
from sae_baselines.study.folder import STUDY_FILE
from sae_baselines.yaml_text import parse_yaml


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
    check_revision(revision)
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
    # The page that the report links to, where somebody made it.
    pages = [PAGE] if (root / PAGE).exists() else []
    names = [RESULTS_FILE, *source.report_files, *pages]
    files = [PlannedFile(name, inside(root, root / name)) for name in names]
    return (*files, PlannedFile(STUDY_FILE, _spec(inside(root, root / STUDY_FILE))))


def _spec(path: Path) -> bytes:
    """study.yaml as it is, or without local places where it has any."""
    stored = path.read_bytes()
    told = parse_yaml(stored)
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
        return _header(file.source)
    return b"" if file.source.suffix == ".png" else file.source.read_bytes()


def _header(path: Path) -> bytes:
    """Names and metadata of a safetensors file, a line each.

    Raises:
        UserError: It is not one.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            lines = [*file.keys(), *(f"{key}: {value}" for key, value in metadata.items())]
    except SafetensorError:
        raise UserError(f"{path}: is not a safetensors file; train the member again") from None
    return "\n".join(lines).encode()
