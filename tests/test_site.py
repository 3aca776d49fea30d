"""The documentation site: nothing is left out, and what is made from the code is all there."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from typer.main import get_command

from sae_baselines_cli import NAME, app
from tests.cli.parsing import commands

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "docs" / "_site"
SITE = runpy.run_path(str(TOOLS / "repository.py"))
PAGES: list[str] = list(SITE["nav_pages"]())
# What a study writes to be read.
SHOWN = ("report.html", "latents.html")


def test_every_page_is_in_the_navigation_once() -> None:
    written = {p.relative_to(ROOT / "docs").as_posix() for p in ROOT.glob("docs/**/*.md")}
    assert written
    written |= {p.relative_to(ROOT).as_posix() for p in ROOT.glob("benchmarks/**/README.md")}
    assert written <= set(PAGES)
    assert len(PAGES) == len(set(PAGES))
    assert [page for page in PAGES if not (ROOT / SITE["source_of"](page)).is_file()] == []


def test_links_of_the_repository_become_those_of_the_site() -> None:
    moved = SITE["with_links_of_site"]
    assert moved("[a](docs/verdicts.md#x)", "README.md") == "[a](verdicts.md#x)"
    assert moved("[a](../README.md)", "docs/verdicts.md") == "[a](index.md)"
    assert moved("[a](../../examples/random_baselines.ipynb)", "docs/explain/x.md") == (
        "[a](../tutorial.md)"
    )
    report = "../benchmarks/smollm2/report"
    assert moved(f"![a]({report}.md)", "docs/x.md") == "![a](benchmarks/smollm2/report.html)"
    same = "[a](https://b.c/d.md) [e](#f)\n```sh\n[a](docs/verdicts.md)\n```\n"
    assert moved(same, "README.md") == same


@pytest.fixture(scope="module")
def generated() -> dict[str, Any]:
    return runpy.run_path(str(TOOLS / "generated.py"))


def test_committed_pages_are_whole_and_name_no_machine() -> None:
    pages = [p for p in ROOT.glob("benchmarks/**/*.html") if p.name in SHOWN]
    assert len(pages) >= 7
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"[\"'\s(](/home|/root|/work|/tmp|/Users)/", text), page
        links = re.findall(r'(?:href|src)="(?!#|data:|https?:)([^"#]+)', text)
        assert [link for link in links if not (page.parent / link).is_file()] == [], page


def test_every_command_and_option_is_in_the_reference(generated: dict[str, Any]) -> None:
    page = generated["filled"]((ROOT / "docs/reference/commands.md").read_text())
    sections = dict(
        re.findall(r"^##+ `(.+?)`\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE)
    )
    for words in commands():
        command: Any = get_command(app)
        for word in words:
            command = command.commands[word]
        if words:
            section = sections[" ".join([NAME, *words])]
            options = [o for p in command.params for o in p.opts if o.startswith("--")]
            assert [o for o in options if o not in section] == []
    assert len(sections) > 15


def test_every_field_is_in_the_reference_with_its_default(generated: dict[str, Any]) -> None:
    page = generated["fields"]()
    for name in ("training_tokens", "lr", "seeds", "llm_dtype", "margins", "constraint"):
        assert f"| `{name}` | " in page
    assert re.search(r"\| `lr` \| `float`, > 0 \| `0.0002` \| as SAELens has it \|", page)
    assert re.search(r"\| `tau` \| `float` \| `0.8` \| Default cap of soft-frozen", page)
    assert re.search(
        r"\| `hook_name` \| `str` \| required \| Where activations are taken", page
    )


def test_every_public_name_is_in_the_reference(generated: dict[str, Any]) -> None:
    page = generated["functions"]()
    public = (ROOT / "docs" / "api.txt").read_text().splitlines()
    names = {line.partition("(")[0] for line in public if "(" in line and "__" not in line}
    assert set(re.findall(r"^::: sae_baselines\.(?:\w+\.)*(\w+)$", page, re.MULTILINE)) == names


def test_the_readme_is_short_and_has_a_line_for_each_kind_of_check() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    for line in ("make demo", "make test", "make slow", "make docs", "make gpu"):
        assert line in readme


def of_html(text: str) -> dict[str, int]:
    """How much of what a page is made of."""
    return {tag: len(re.findall(f"<{tag}[ >]", text)) for tag in ("li", "table", "tr", "pre")}


@pytest.mark.slow
def test_the_site_builds_strictly_and_needs_no_network(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    html = {p: p.read_text(encoding="utf-8") for p in tmp_path.rglob("*.html")}
    for file, text in html.items():
        loaded = re.findall(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=\"([^\"]+)\"", text)
        assert [url for url in loaded if url.startswith(("http", "//"))] == [], file
    tutorial = html[tmp_path / "tutorial.html"]
    assert len(re.findall(r"src=\"?data:image/png", tutorial)) == 2
    assert "beats" in tutorial
    assert "arxiv.org/abs/2602.14111" in (tmp_path / "external-links.txt").read_text()
    # What GitHub shows as a list or a table is one here too.
    as_github = MarkdownIt("commonmark").enable("table")
    for page in PAGES:
        source = ROOT / SITE["source_of"](page)
        if source.suffix == ".md" and "reference/" not in page:
            there = page.replace("README.md", "index.html").replace(".md", ".html")
            article = html[tmp_path / there].partition("<article")[2].partition("</article")[0]
            text = source.read_text(encoding="utf-8")
            assert of_html(article) == of_html(as_github.render(text)), page


def test_the_navigation_is_plain_yaml() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert [next(iter(part)) for part in config["nav"]] == [
        *("Start", "Tutorial", "How to", "Explanation", "Reference", "Gallery")
    ]
    assert config["theme"]["font"] is False
