"""Tables, figures and one page that say what a study shows, and what it does not."""

from sae_baselines.report.build import Report, build_report
from sae_baselines.report.caveats import Caveat
from sae_baselines.report.context import Failure, Note, ReportContext
from sae_baselines.report.write import to_html, to_markdown, write_report

__all__ = [
    "Caveat",
    "Failure",
    "Note",
    "Report",
    "ReportContext",
    "build_report",
    "to_html",
    "to_markdown",
    "write_report",
]
