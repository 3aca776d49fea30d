"""What the documents tell a reader to type exists, and their facts are the package's."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

import tests.cli.parsing as cli
from sae_baselines.evals import eval_spec_from_dict, load_eval_spec
from sae_baselines.evals.doctor import require_possible
from sae_baselines.evals.registry import DEFAULT_SUITES, get_suite
from sae_baselines.evals.suite import Subject
from sae_baselines.study.spec import spec_from_dict
from sae_baselines.version import __version__

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def blocks(document: Path, language: str) -> list[str]:
    """Code of one language."""
    pattern = rf"^```{language}\n(.*?)^```"
    return re.findall(pattern, document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def typed(command: str) -> list[str]:
    """Lines of shell blocks, and quoted commands in the text, that begin with a command."""
    found = []
    for document in DOCUMENTS:
        lines = [line for block in blocks(document, "sh") for line in block.splitlines()]
        lines += re.findall(r"`([^`\n]+)`", document.read_text(encoding="utf-8"))
        found += [line for line in lines if line.startswith(f"{command} ")]
    return sorted(set(found))


# Ends in "...": is not a whole one. Installing would change the files of whoever runs this.
WHOLE = [c for c in typed("sae-baselines") if not c.endswith("...") and "--install" not in c]


@pytest.mark.parametrize("line", WHOLE)
def test_commands_are_sound(line: str):
    words = shlex.split(line.split(" > ")[0], comments=True)[1:]
    result = cli.typed(*words)
    assert isinstance(result.exception, cli.HandOver), result.output


def test_there_are_commands_to_check():
    every = " ".join(typed("sae-baselines"))
    for command in ("show", "eval", "report", "publish", "check", "train", "list"):
        assert f"sae-baselines {command}" in every


def test_make_knows_what_it_is_asked():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {shlex.split(line, comments=True)[1] for line in typed("make")}
    assert {"install", "test", "demo", "slow"} <= asked <= targets


def test_python_runs_what_is_there():
    for line in typed("python"):
        script = shlex.split(line, comments=True)[1]
        if not script.startswith("-"):
            assert (ROOT / script).is_file() or (ROOT / "benchmarks" / script).is_file(), line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_links_and_code(document: Path):
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("https://", "#")):
            # A folder is no page of the site.
            assert (document.parent / link.split("#")[0]).is_file(), link
    for code in blocks(document, "python"):
        compile(code, str(document), "exec")


def test_panel_files_that_are_shown_load():
    page = ROOT / "docs" / "how-to" / "check-your-sae.md"
    panel, evals = (yaml.safe_load(block) for block in blocks(page, "yaml"))
    assert spec_from_dict(panel).name == "my-study"
    suites = eval_spec_from_dict(evals["evals"]).suites
    assert "core" in suites
    # d_in is the model's: its config is on the Hub.
    subject = Subject(
        panel["model"]["name"], panel["hook_name"], 512, 8192, "cpu", "float32", 8
    )
    require_possible(subject, suites)


def test_the_newcomer_s_evaluation_is_a_small_one_that_runs_anywhere():
    (line,) = (c for c in WHOLE if "eval studies/demo" in c and "--config" in c)
    config = ROOT / shlex.split(line, comments=True)[-1]
    spec = load_eval_spec(config)
    assert set(spec.suites) <= set(DEFAULT_SUITES)
    for name, options in spec.suites.items():
        assert len(get_suite(name).complete(options)["dataset_names"]) == 3


@pytest.fixture
def citation() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_citation_is_complete(citation: dict[str, Any]):
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert all(citation[field] for field in ("message", "title", "authors", "license"))
    assert citation["version"] == __version__
    (paper,) = citation["references"]
    assert all(paper[field] for field in ("type", "title", "authors", "year", "url"))
    assert paper["url"].endswith("2602.14111")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    cited = " ".join(readme.split("## Citing")[1].split())
    assert paper["title"] in cited
    assert ", ".join(author["family-names"] for author in paper["authors"]) in cited


def test_the_changelog_has_this_version():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == __version__
