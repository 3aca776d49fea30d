"""The public API is what `docs/api.txt` says: a change of it is a decision, not an accident.

`python -m tests.test_public_api` prints it anew.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sae_baselines
from tests import stock_process

LISTED = Path(__file__).parents[1] / "docs" / "api.txt"


def signature(function: object) -> str:
    """Arguments, defaults and types, these without the modules they live in."""
    assert callable(function)
    text = str(inspect.signature(function))
    return re.sub(r"(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", text).replace("'", "")


def api() -> Iterator[str]:
    """A line for each public name of the package, and each public method of a class."""
    for name in sorted(sae_baselines.__all__):
        value = getattr(sae_baselines, name)
        if not callable(value):
            yield f"{name}: {type(value).__name__}"
            continue
        yield f"{name}{signature(value)}"
        methods = (
            inspect.getmembers(value, inspect.isfunction) if isinstance(value, type) else ()
        )
        for method, function in methods:
            if not method.startswith("_"):
                yield f"{name}.{method}{signature(function)}"


def test_the_public_names_and_signatures_are_the_listed_ones():
    assert list(api()) == LISTED.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", [n for n in sae_baselines.__all__ if n != "__version__"])
def test_every_public_name_says_what_it_is(name: str):
    assert inspect.getdoc(getattr(sae_baselines, name))


def test_a_name_is_the_same_thing_however_it_is_imported():
    code = (
        "import sae_baselines\n"
        "first = sae_baselines.report\n"
        "import sae_baselines.report\n"
        "from sae_baselines import report, check\n"
        "assert first is report is sae_baselines.report\n"
        "assert callable(report) and callable(check)\n"
        "from sae_baselines.report import build_report\n"
        "try:\n"
        "    report('nowhere')\n"
        "except ValueError as error:\n"
        "    assert 'there is no folder nowhere' in str(error)\n"
        "else:\n"
        "    raise AssertionError\n"
    )
    run = stock_process.run(code)
    assert run.returncode == 0, run.stderr


if __name__ == "__main__":
    print("\n".join(api()))
