"""The members of a study as targets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_CFG_FILENAME
from transformers import AutoConfig

from sae_baselines.errors import UserError, one_line
from sae_baselines.evals.spec import EvalSpec
from sae_baselines.evals.suite import Subject
from sae_baselines.evals.target import Facts, Target, target_of
from sae_baselines.files import read_json
from sae_baselines.study.engine import resolve_device
from sae_baselines.study.folder import (
    PROVENANCE_FILE,
    StudyFolder,
    load_study,
    read_measurement,
)
from sae_baselines.study.plan import MemberKey, members_of, panels_of
from sae_baselines.study.reference.member import RECORD_FILE
from sae_baselines.study.spec import PUBLISHED, PanelSpec


def target_name(key: MemberKey) -> str:
    """Name of a member among the results."""
    return f"{key.panel.name}.{key.member}"


def facts_of_member(key: MemberKey, constraint: str) -> Facts:
    """A member's columns of the results table."""
    return Facts(
        panel=key.panel.name,
        member=key.member,
        constraint=constraint,
        architecture=key.panel.architecture,
        l0=key.panel.l0,
        seed=key.panel.seed,
    )


def study_targets(study: str | Path, seeds: int | None = None) -> list[Target]:
    """Every member of every panel.

    Args:
        study: Study folder.
        seeds: Only the first so many training seeds.

    Raises:
        UserError: A member is not trained yet.
    """
    spec, _ = load_study(study)
    folder = StudyFolder(study)
    if seeds is not None and not 1 <= seeds <= len(spec.seeds):
        raise UserError(f"seeds: {seeds} of {len(spec.seeds)} training seeds in {study}")
    chosen = spec.seeds[:seeds]
    targets = []
    for panel in panels_of(spec):
        if panel.seed not in chosen:
            continue
        for key, member in members_of(spec, panel).items():
            if (flaw := folder.flaw(key)) is not None:
                raise UserError(
                    f"study: {folder.member(key)} is not finished; run sae-baselines train "
                    f"--resume first ({flaw})"
                )
            facts = facts_of_member(key, member.constraint)
            targets.append(target_of(target_name(key), folder.member(key), facts))
    if spec.published is not None:
        if (flaw := folder.flaw_of_published()) is not None:
            raise UserError(
                f"study: {folder.published} is not finished; run the same sae-baselines "
                f"check again ({flaw})"
            )
        targets.append(target_of(PUBLISHED, folder.published, facts_of_published(spec)))
    return targets


def facts_of_published(spec: PanelSpec) -> Facts:
    """The published SAE's columns of the results table; nothing is known of its seed."""
    return Facts(
        panel=PUBLISHED,
        member=PUBLISHED,
        constraint=PUBLISHED,
        architecture=spec.architectures[0],
        l0=spec.l0s[0],
        seed=-1,
    )


def subject_of_panel(spec: PanelSpec, evals: EvalSpec) -> Subject:
    """What the SAEs of a panel will have in common, before there are any.

    Args:
        spec: What will be trained; without ``d_in`` the model's config is read.
        evals: How it will be evaluated.

    Raises:
        UserError: The model's config cannot be read.
    """
    d_in = spec.d_in or model_width(spec)
    folder = Path(spec.model.name)
    return Subject(
        model_name=spec.model.recorded_name,
        hook_name=spec.hook_name,
        d_in=d_in,
        d_sae=spec.width(d_in),
        device=resolve_device(evals.device),
        llm_dtype=evals.llm_dtype,
        llm_batch_size=evals.llm_batch_size,
        local_model=folder.resolve() if folder.is_dir() else None,
        centred=spec.model.center_writing_weights,
        hook_name_out=spec.hook_name_out,
    )


def model_width(spec: PanelSpec) -> int:
    """Of the language model's residual stream, from its config.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return int(AutoConfig.from_pretrained(spec.model.name).hidden_size)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"model.name: cannot read the width of {spec.model.name!r} "
            f"({one_line(error, 200)}); give d_in"
        ) from error


def local_model_of(study: str | Path) -> Path | None:
    """The local folder a study's language model came from, if it did.

    Raises:
        UserError: The folder is gone.
    """
    spec, _ = load_study(study)
    name = spec.model.name
    for path in (Path(name), Path(study) / name):
        if path.is_dir():
            return path
    trained_on = {
        _model_name(study, key)
        for panel in panels_of(spec)
        for key, member in members_of(spec, panel).items()
        if not member.on_random_model
    }
    # A folder's SAEs name its label or last part; the Hub's name its name.
    if trained_on - {None, name}:
        raise UserError(
            f"model: the study's language model was read from {name}, which is not there; "
            "run where it is, or give --model"
        )
    return None


def _model_name(study: str | Path, key: MemberKey) -> str | None:
    """Language model in a member's own config."""
    path = StudyFolder(study).member(key) / SAE_CFG_FILENAME
    return ((read_json(path) or {}).get("metadata") or {}).get("model_name")


def saes_of(study: str | Path) -> dict[str, tuple[Facts, Path]]:
    """Every SAE of a study by its name among the results, finished or not: facts, folder."""
    spec, _ = load_study(study)
    folder = StudyFolder(study)
    saes = {
        target_name(key): (facts_of_member(key, member.constraint), folder.member(key))
        for panel in panels_of(spec)
        for key, member in members_of(spec, panel).items()
    }
    if spec.published is not None:
        saes[PUBLISHED] = (facts_of_published(spec), folder.published)
    return saes


def measurements(study: str | Path) -> list[tuple[Facts, Path, dict[str, Any]]]:
    """Every SAE with its folder and its panel measurement (those that exist)."""
    measured = [
        (facts, path, read_measurement(path)) for facts, path in saes_of(study).values()
    ]
    return [(facts, path, m) for facts, path, m in measured if m is not None]


def published_record(study: str | Path) -> dict[str, Any] | None:
    """What is recorded of the published SAE that a study is built around, if it is.

    Raises:
        UserError: The record is damaged.
    """
    return read_json(StudyFolder(study).published / RECORD_FILE)


def training_versions(folder: Path) -> dict[str, str]:
    """Package versions a member was trained with."""
    path = folder / PROVENANCE_FILE
    try:
        found = (read_json(path) or {}).get("versions")
    except UserError:
        found = None
    return found if isinstance(found, dict) else {}


def targets_of(sources: Sequence[str | Path]) -> list[Target]:
    """Targets from folders and ``release:sae_id`` references, named after themselves.

    Folders of the same name are told apart by as many parents as it takes.
    """
    folders = {str(s): Path(s).resolve().parts[1:] for s in sources if Path(s).is_dir()}
    depth = 1
    while len({p[-depth:] for p in folders.values()}) < len(set(folders.values())):
        depth += 1
    names = {source: "_".join(parts[-depth:]) for source, parts in folders.items()}
    return [target_of(names.get(str(s), str(s)), s) for s in sources]
