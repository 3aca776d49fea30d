"""A report on disk: Markdown, one HTML page, figures."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from sae_baselines.errors import UserError
from sae_baselines.files import keep_links_inside, write_atomically
from sae_baselines.report.build import Report, report_of_study
from sae_baselines.report.markdown import inline_html, page, page_parts, render
from sae_baselines.stats import Placement, Verdict, to_frame

# Sections of report.md that are open; the others are folded below them.
FIRST = ("published", "answer", "caveats")


def report(study: str | Path, correct: str | None = None) -> Report:
    """Compare members over seeds, give verdicts, and write the report of a study.

    Args:
        study: Evaluated study folder; ``report.md``, ``report.html``, ``verdicts.csv`` and
            ``figures/`` are written to it.
        correct: As of `report_of_study`.

    Raises:
        UserError: No folder, study or results there, or a table that is not what it should be
            or not that of the records.
    """
    folder = Path(study)
    if not folder.is_dir():
        raise UserError(f"study: there is no folder {study}")
    built = report_of_study(folder, correct)
    write_report(built, folder)
    return built


def write_report(report: Report, folder: str | Path) -> list[Path]:
    """Write ``report.md``, ``report.html``, ``verdicts.csv`` and ``figures/*.png|svg``.

    Where a published SAE was placed, ``placements.csv`` too, and where latents of like firing
    rates were compared, ``by_rate.csv``; older ones are removed elsewhere.
    The page needs nothing but itself: no network, no other file. Figures of an earlier report
    in the folder are removed, so that none contradicts this one.

    Args:
        report: From `build_report`.
        folder: Study folder; made if it is not there.

    Returns:
        The files written.

    Raises:
        UserError: A folder in it is a link that leads out of it.
    """
    folder = Path(folder)
    keep_links_inside(folder)
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for old in [*figures.glob("*.png"), *figures.glob("*.svg")]:
        old.unlink()
    for name in ("placements.csv", "by_rate.csv"):
        (folder / name).unlink(missing_ok=True)
    files = report_files(report)
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in files]


def report_files(report: Report) -> dict[str, str | bytes]:
    """Every file of a report: path in the study folder to content."""
    files: dict[str, str | bytes] = {}
    for figure in report.figures:
        files[f"figures/{figure.name}.png"] = figure.png
        files[f"figures/{figure.name}.svg"] = figure.svg
    files["report.md"] = to_markdown(report)
    files["report.html"] = to_html(report)
    files["verdicts.csv"] = to_csv(report)
    if report.placements:
        files["placements.csv"] = placements_to_csv(report)
    if report.by_rate:
        files["by_rate.csv"] = _csv([item.verdict for item in report.by_rate])
    return files


def to_html(report: Report) -> str:
    """The page."""
    figures = {figure.name: figure for figure in report.figures}
    return page(
        "report.html.j2",
        report=report,
        lede=inline_html(report.lede),
        parts_of=lambda section: page_parts(section.text, figures),
    )


def to_markdown(report: Report) -> str:
    """The same in Markdown; figures by relative path."""
    return render("report.md.j2", report=report, FIRST=FIRST)


def to_csv(report: Report) -> str:
    """The verdicts, one row each, with all digits."""
    return _csv(report.verdicts)


def placements_to_csv(report: Report) -> str:
    """The placements of a published SAE, likewise."""
    return _csv(report.placements)


def _csv(items: Sequence[Verdict] | Sequence[Placement]) -> str:
    out = io.StringIO()
    to_frame(items).to_csv(out, index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    return out.getvalue()
