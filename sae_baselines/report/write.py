"""A report on disk: Markdown, one HTML page, figures."""

import csv
import io
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from sae_baselines.files import write_atomically
from sae_baselines.report.build import Report
from sae_baselines.stats import to_frame

_CODE = re.compile(r"`([^`]*)`")


def write_report(report: Report, folder: str | Path) -> list[Path]:
    """Write ``report.md``, ``report.html``, ``verdicts.csv`` and ``figures/*.png|svg``.

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
    written = []
    for figure in report.figures:
        for suffix, content in ((".png", figure.png), (".svg", figure.svg)):
            path = figures / f"{figure.name}{suffix}"
            path.write_bytes(content)
            written.append(path)
    texts = {
        "report.md": to_markdown(report),
        "report.html": to_html(report),
        "verdicts.csv": to_csv(report),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)
        written.append(folder / name)
    return written


def to_html(report: Report) -> str:
    """The page."""
    return _environment(html=True).get_template("report.html.j2").render(report=report)


def to_markdown(report: Report) -> str:
    """The same in Markdown; figures by relative path."""
    text = _environment(html=False).get_template("report.md.j2").render(report=report)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def to_csv(report: Report) -> str:
    """The verdicts, one row each, with all digits."""
    out = io.StringIO()
    to_frame(report.verdicts).to_csv(
        out, index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL
    )
    return out.getvalue()


def _environment(html: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("sae_baselines.report"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        rich=_html_text, md=_markdown_text, cell=_markdown_cell, slug=_slug
    )
    return environment


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
