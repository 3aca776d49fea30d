"""A study that is ready to be published, and every reason why one is not."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_baselines.compat.folder import saved_config
from sae_baselines.controls import kind_of
from sae_baselines.errors import UserError
from sae_baselines.evals.results import RESULTS_FILE, checked_results, load_results
from sae_baselines.evals.study import load_study
from sae_baselines.report.build import Report, report_of_study
from sae_baselines.report.context import ReportContext, study_context
from sae_baselines.report.write import report_files
from sae_baselines.results import Results
from sae_baselines.study.folder import OTHER_KINDS, STUDY_FILE, StudyFolder
from sae_baselines.study.plan import MemberKey, members_of, panels_of
from sae_baselines.study.spec import MemberSpec, PanelSpec, spec_hash
from sae_baselines.yaml_text import read_yaml

# They tell how the report was made (paths as typed, machine), not what it says.
_HOW = {
    "report.md": r"^<a id=\"(sceptic|provenance)\"></a>\n.*?(?=^<a id=|\Z)",
    "report.html": r'^<section id="(sceptic|provenance)">.*?^</section>',
}


@dataclass(frozen=True)
class SourceStudy:
    """What is read of a study.

    Attributes:
        root: Its folder.
        spec: Its spec.
        record: The rest of study.yaml.
        members: Every member that may be published, with what it was asked to be.
        left_out: Names of members that hold weights of somebody else.
        of_random_models: Names of members of a language model with random weights, which the
            Hub does not have and none of whose activations they would fit.
        configs: Every member's cfg.json.
        table: The results.
        context: What the report is told besides them.
        report: The report, built from both.
        report_files: Its files, paths in the folder.
    """

    root: Path
    spec: PanelSpec
    record: dict[str, Any]
    members: dict[MemberKey, MemberSpec]
    left_out: tuple[str, ...]
    of_random_models: tuple[str, ...]
    configs: dict[MemberKey, dict[str, Any]]
    table: Results
    context: ReportContext
    report: Report
    report_files: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def spec_hash(self) -> str:
        """What tells it from another study of its name."""
        # As it was recorded: a later version of this package may know more fields.
        return str(self.record.get("spec_hash") or spec_hash(self.spec))

    def folder(self, key: MemberKey) -> Path:
        """A member's folder."""
        return StudyFolder(self.root).member(key)


def read_source(root: Path) -> SourceStudy:
    """Read a study; changes nothing in it.

    Raises:
        UserError: It is of another kind or unfinished, or its results or report are missing
            or older than what they are made of.
    """
    _check_kind(root)
    spec, record = load_study(root)
    members = {key: m for p in panels_of(spec) for key, m in members_of(spec, p).items()}
    folder = StudyFolder(root)
    for key in members:
        if (flaw := folder.flaw(key)) is not None:
            raise UserError(
                f"study: {folder.member(key)} is not finished; run sae-baselines train with "
                f"--out {root} --resume ({flaw})"
            )
    left_out = tuple(
        dict.fromkeys(k.member for k, m in members.items() if _is_of_others(spec, m))
    )
    of_random_models = tuple(
        dict.fromkeys(k.member for k, m in members.items() if m.on_random_model)
    )
    withheld = (*left_out, *of_random_models)
    members = {key: m for key, m in members.items() if key.member not in withheld}
    if not members:
        raise UserError(
            f"study: {root} holds no SAE to publish but rearranged weights of the published one"
        )
    configs = {key: saved_config(folder.member(key)) for key in members}
    _check_results(root)
    report = report_of_study(root)
    files = report_files(report)
    _check_report(root, files)
    return SourceStudy(
        root=root,
        spec=spec,
        record=record,
        members=members,
        left_out=left_out,
        of_random_models=of_random_models,
        configs=configs,
        table=Results.of(load_results(root)),
        context=study_context(root),
        report=report,
        report_files=tuple(files),
    )


def _is_of_others(spec: PanelSpec, member: MemberSpec) -> bool:
    """Whether it is somebody else's SAE with something permuted, weights and all."""
    kind = kind_of(member.constraint)
    return spec.published is not None and kind is not None and not kind.untrained


def _check_kind(root: Path) -> None:
    path = root / STUDY_FILE
    if not path.exists():
        raise UserError(
            f"study: {root} has no {STUDY_FILE}; train one with sae-baselines train"
        )
    told = read_yaml(path)
    fields = told.get("spec") if isinstance(told, dict) else None
    if not isinstance(fields, dict):
        raise UserError(f"study: {path} holds no spec; train one with sae-baselines train")
    for field, (command, _) in OTHER_KINDS.items():
        if field in fields:
            raise UserError(
                f"study: {root} was made by sae-baselines {command}; what can be published is "
                "a study of a language model, made by sae-baselines train"
            )


def _check_results(root: Path) -> None:
    """results.csv must be what the files of the study say, as far as they are there."""
    if not load_results(root).equals(checked_results(root)[0]):
        raise UserError(
            f"results: {root / RESULTS_FILE} is not what the study's files say; run "
            f"sae-baselines eval {root}, then sae-baselines report {root}"
        )


def _check_report(root: Path, files: Mapping[str, str | bytes]) -> None:
    """The report on disk must be the one that the results give now."""
    command = f"run sae-baselines report {root}"
    for name, content in files.items():
        path = root / name
        if not path.is_file():
            raise UserError(f"study: {root} has no {name}; {command}")
        stored: str | bytes = path.read_bytes()
        if isinstance(content, str):
            stored, content = (_said(name, text) for text in (path.read_text("utf-8"), content))
        if stored != content:
            raise UserError(f"study: {path} is not what the results say now; {command}")


def _said(name: str, text: str) -> str:
    """Without the parts that tell how it was made."""
    how = _HOW.get(name)
    return re.sub(how, "", text, flags=re.MULTILINE | re.DOTALL) if how else text
