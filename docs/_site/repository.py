"""The site's pages as files of the repository: what a link in one of them leads to."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml

ROOT = Path(__file__).parents[2]
DOCS = "docs/"
# Pages whose place on the site is not the one that their file has in the repository.
MOVED = {"README.md": "index.md", "examples/random_baselines.ipynb": "tutorial.md"}
_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s#]*)(#[^)\s]*)?(\))")


def nav_pages(config: dict[str, Any] | None = None) -> Iterator[str]:
    """Pages that the navigation names, as the site calls them."""
    if config is None:
        text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
        config = cast(dict[str, Any], yaml.safe_load(text))
    todo = list(config["nav"])
    while todo:
        entry = todo.pop(0)
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(value, list):
                todo += value
            else:
                yield value


def source_of(page: str) -> str:
    """The file of a page, from the root of the repository."""
    moved = {site: source for source, site in MOVED.items()}
    if page in moved:
        return moved[page]
    return DOCS + page if (ROOT / DOCS / page).is_file() else page


def place_of(source: str) -> str:
    """Where a file of the repository is on the site; of a report, the page with its figures."""
    if source.endswith("/report.md") and (ROOT / source).with_suffix(".html").is_file():
        return source.removesuffix(".md") + ".html"
    return MOVED.get(source, source.removeprefix(DOCS))


def linked(text: str, source: str) -> set[str]:
    """Files of the repository that a page links to."""
    found = set()
    for match in _LINK.finditer(_FENCE.sub("", text)):
        if match[2] and not re.match(r"[a-z]+:", match[2]):
            target = _resolved(match[2], source)
            if (ROOT / target).is_file():
                found.add(target)
    return found


def with_links_of_site(text: str, source: str) -> str:
    """A page whose links are those of the site, not of the repository."""
    here = posixpath.dirname(place_of(source))

    def moved(match: re.Match[str]) -> str:
        if not match[2] or re.match(r"[a-z]+:", match[2]):
            return match[0]
        target = place_of(_resolved(match[2], source))
        return f"{match[1]}{posixpath.relpath(target, here or '.')}{match[3] or ''}{match[4]}"

    # Code blocks stay as they are.
    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(moved, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(moved, text[end:])])


def _resolved(link: str, source: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
