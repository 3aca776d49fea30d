"""Tables, figures and one page that say what a study shows, and what it does not."""

import sys
from pathlib import Path
from types import ModuleType

from sae_baselines.report.build import Report, build_report, report_of_study, verdicts_of_study
from sae_baselines.report.caveats import Caveat
from sae_baselines.report.context import Failure, Note, ReportContext, study_context
from sae_baselines.report.write import report, to_html, to_markdown, write_report

__all__ = [
    "Caveat",
    "Failure",
    "Note",
    "Report",
    "ReportContext",
    "build_report",
    "report",
    "report_of_study",
    "study_context",
    "to_html",
    "to_markdown",
    "verdicts_of_study",
    "write_report",
]


class _Room(ModuleType):
    """`sae_baselines.report` is this package and, called, its function of the same name."""

    def __call__(self, study: str | Path, correct: str | None = None) -> Report:
        return report(study, correct)


sys.modules[__name__].__class__ = _Room
