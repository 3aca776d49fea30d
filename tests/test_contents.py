"""The check of wheel and sdist finds what is missing and what is too much."""

import io
import runpy
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECK = runpy.run_path(str(ROOT / ".ci" / "contents.py"))


def dist(folder: Path, wheel: set[str], sdist: set[str]) -> Path:
    with zipfile.ZipFile(folder / "x-1-py3-none-any.whl", "w") as archive:
        for name in {*wheel, "x-1.dist-info/METADATA"}:
            archive.writestr(name, "")
    with tarfile.open(folder / "x-1.tar.gz", "w:gz") as archive:
        for name in sdist:
            archive.addfile(tarfile.TarInfo(f"x-1/{name}"), io.BytesIO())
    return folder


def test_what_is_missing_and_what_is_too_much_is_named(tmp_path: Path) -> None:
    template, beside = "sae_baselines/report/templates/report.md.j2", CHECK["BESIDE"]
    code = {template, "sae_baselines/py.typed", "sae_baselines_cli/__init__.py"}
    whole = tmp_path / "whole"
    whole.mkdir()
    assert CHECK["flaws_of"](dist(whole, code, code | beside), code) == []
    wrong = dist(tmp_path, code - {template}, code | beside | {"studies/demo/study.yaml"})
    assert CHECK["flaws_of"](wrong, code) == [
        f"x-1-py3-none-any.whl: lacks {template}",
        "x-1.tar.gz: should not hold studies/demo/study.yaml",
    ]
