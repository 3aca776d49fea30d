"""A report on disk: Markdown, one HTML page, figures."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from sae_baselines.files import write_atomically
from sae_baselines.report.build import Report
from sae_baselines.stats import Placement, Verdict, to_frame

_CODE = re.compile(r"`([^`]*)`")


def write_report(report: Report, folder: str | Path) -> list[Path]:
    """Write ``report.md``, ``report.html``, ``verdicts.csv`` and ``figures/*.png|svg``.

    Where a published SAE was placed, ``placements.csv`` too; an older one is removed elsewhere.
    The page needs nothing but itself: no network, no other file. Figures of an earlier report
    in the folder are removed, so that none contradicts this one.

    Args:
        report: From `build_report`.
        folder: Study folder; made if it is not there.

    Returns:
        The files written.
    """
    folder = Path(folder)
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for old in [*figures.glob("*.png"), *figures.glob("*.svg")]:
        old.unlink()
    (folder / "placements.csv").unlink(missing_ok=True)
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
    return files


def to_html(report: Report) -> str:
    """The page."""
    return environment(html=True).get_template("report.html.j2").render(report=report)


def to_markdown(report: Report) -> str:
    """The same in Markdown; figures by relative path."""
    return tidied(environment(html=False).get_template("report.md.j2").render(report=report))


def tidied(markdown: str) -> str:
    """Without the blank space that templates leave behind."""
    text = re.sub(r"[ \t]+$", "", markdown, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


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


def environment(html: bool, *packages: str) -> Environment:
    """Where templates are rendered: the report's, and those of other packages before them.

    Args:
        html: Whether values are escaped for HTML.
        packages: Packages with a folder ``templates``.
    """
    made = Environment(
        loader=ChoiceLoader(
            [PackageLoader(name) for name in (*packages, "sae_baselines.report")]
        ),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(rich=_html_text, md=_markdown_text, cell=_markdown_cell, slug=_slug)
    return made


def _html_text(text: str) -> Markup:
    """Escaped, with `code` as an element."""
    # Names may break after an underscore, slash or dot, or they would widen a phone's page.
    return Markup(
        _CODE.sub(lambda found: f"<code>{_breaks(found.group(1))}</code>", str(escape(text)))
    )


def _breaks(name: str) -> str:
    return re.sub(r"([_/.:])(?=\w)", r"\1<wbr>", name)


def _markdown_text(text: str) -> str:
    """Literal outside of `code`."""
    parts = _CODE.split(text)
    return "".join(
        f"`{part}`" if i % 2 else re.sub(r"([\\*<\[])", r"\\\1", part)
        for i, part in enumerate(parts)
    )


def _markdown_cell(text: str) -> str:
    return _markdown_text(" ".join(text.split())).replace("|", "\\|")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z]+", "-", text.lower()).strip("-")
