"""What mkdocs does besides rendering `docs/`: pages from the rest of the repository, the
notebook with its outputs, parts that are made from the code, and a list of outside links.
"""

import hashlib
import logging
import re
import sys
from pathlib import Path
from typing import Any

import markdown
import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbclient import NotebookClient
from pymdownx.slugs import slugify
from traitlets.config import Config

sys.path.insert(0, str(Path(__file__).parent))

from generated import filled
from repository import MOVED, ROOT, linked, nav_pages, place_of, source_of
from repository import with_links_of_site as moved

log = logging.getLogger("mkdocs.hooks")

NOTEBOOK = ROOT / "examples" / "random_baselines.ipynb"
EXTERNAL = "external-links.txt"
_external: dict[str, set[str]] = {}


class _AsGitHub(markdown.Extension):
    """Lists are nested by two spaces, as they are written and as GitHub reads them."""

    def extendMarkdown(self, md: markdown.Markdown) -> None:  # noqa: N802
        md.tab_length = 2


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Markdown as GitHub reads it: nesting, and names of headings."""
    config.markdown_extensions.append(_AsGitHub())  # type: ignore[arg-type]
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    _external.clear()
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Pages of the navigation that are not in `docs/`, and every file that a page links to."""
    for page in nav_pages({"nav": config.nav}):
        if files.get_file_from_path(page) is None and (ROOT / source_of(page)).is_file():
            files.append(_page(page, config))
    todo = [page.src_uri for page in files.documentation_pages()]
    while todo:
        source = source_of(todo.pop())
        if source.endswith(".ipynb"):
            continue
        for target in linked((ROOT / source).read_text(encoding="utf-8"), source):
            place = place_of(target)
            if files.get_file_from_path(place) is None:
                files.append(_page(place, config))
                todo += [place] if place.endswith(".md") else []
    return files


def _page(page: str, config: MkDocsConfig) -> File:
    source = ROOT / source_of(page)
    # One that is linked, not moved, is a file to download.
    if source.suffix == ".ipynb" and page.endswith(".md"):
        return File.generated(config, page, content=_run(source, config))
    return File.generated(config, page, abs_src_path=str(source))


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Generated parts, and links as the site has them."""
    del config, files
    source = source_of(page.file.src_uri)
    return text if source.endswith(".ipynb") else filled(moved(text, source))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Remember where a page leads to; nothing is fetched."""
    del config, files
    for url in re.findall(r'href="(https?://[^"]+)"', html):
        _external.setdefault(url, set()).add(page.file.src_uri)
    return html


def on_post_build(config: MkDocsConfig) -> None:
    """The outside links, for whoever wants to follow them."""
    lines = [f"{url}  {', '.join(sorted(_external[url]))}\n" for url in sorted(_external)]
    (Path(config.site_dir) / EXTERNAL).write_text("".join(lines), encoding="utf-8")
    log.info("%d outside links, not fetched: %s", len(lines), EXTERNAL)


def _run(source: Path, config: MkDocsConfig) -> str:
    """The notebook as Markdown, with what its cells print; run where code has changed since."""
    code = [source, *sorted((ROOT / "sae_baselines").rglob("*.py"))]
    key = hashlib.sha256(b"".join(file.read_bytes() for file in code)).hexdigest()[:16]
    kept = ROOT / "build" / "tutorial" / f"{key}.ipynb"
    if not kept.is_file():
        log.info("running %s", source.name)
        notebook = nbformat.read(source, as_version=4)
        # Not by TCP, of which a kernel warns.
        here = Config({"KernelManager": {"transport": "ipc"}})
        client = NotebookClient(notebook, timeout=3000, kernel_name="python3", config=here)
        client.execute()
        kept.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, kept)
    del config
    return "\n\n".join(_cells(nbformat.read(kept, as_version=4)))


def _cells(notebook: Any) -> Any:
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield moved(cell.source, MOVED_FROM)
            continue
        yield f"```python\n{cell.source}\n```"
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                image = data["image/png"].replace("\n", "")
                yield f'<img alt="figure, described below" src="data:image/png;base64,{image}">'
            elif "text/markdown" in data:
                yield data["text/markdown"]
            elif "text/html" in data:
                yield _bare(data["text/html"])
            elif text := output.get("text") or data.get("text/plain"):
                yield f"```text\n{text.rstrip()}\n```"


MOVED_FROM = next(source for source in MOVED if source.endswith(".ipynb"))


def _bare(html: str) -> str:
    """A table of pandas without its style and without empty lines, which would end it."""
    html = re.sub(r"<style.*?</style>", "", html, flags=re.DOTALL)
    return "\n".join(line.strip() for line in html.splitlines() if line.strip())
