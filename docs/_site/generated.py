"""Parts of reference pages that are made from the code: commands, functions, fields."""

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from sae_baselines_cli import NAME, app

_MARKER = re.compile(r"<!-- generated: (\w+) -->")
_LISTED = re.compile(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+\n?")
_HEADED = "    options:\n      show_root_heading: true\n      heading_level: 2"
_ARGS = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def commands() -> str:
    """Every command with its arguments and options, as ``--help`` has them."""
    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name=NAME)
    # Each is a heading below; in the list its help is cut.
    return _LISTED.sub("", text.partition("\n")[2])


def functions() -> str:
    """The public names, in the order of the alphabet, for mkdocstrings."""
    import sae_baselines

    def directives() -> Iterator[str]:
        for name in sorted(sae_baselines.__all__):
            value = getattr(sae_baselines, name)
            if callable(value):
                yield f"::: {value.__module__}.{name}\n{_HEADED}"

    return "\n\n".join(directives())


def fields() -> str:
    """Fields of a panel file, its parts, and the sections and files beside it."""
    from sae_baselines.evals.spec import EvalSpec
    from sae_baselines.study.patches.spec import ImagesSpec, VisionModelSpec, VisionSpec
    from sae_baselines.study.spec import DatasetSpec, MemberSpec, ModelSpec, PanelSpec
    from sae_baselines.study.synthetic.spec import ToySpec

    sections: dict[str, type[Any]] = {
        "A panel file": PanelSpec,
        "model": ModelSpec,
        "dataset": DatasetSpec,
        "members": MemberSpec,
        "evals": EvalSpec,
        "A file for `vision train`": VisionSpec,
        "model of `vision`": VisionModelSpec,
        "images": ImagesSpec,
        "A file for `toy`": ToySpec,
    }
    return "\n\n".join(f"## {title}\n\n{_table(spec)}" for title, spec in sections.items())


def _table(spec: type[Any]) -> str:
    said = {}
    for parent in reversed(spec.__mro__):
        args = inspect.cleandoc(parent.__doc__ or "").partition("Args:\n")[2]
        said |= {name: " ".join(text.split()) for name, text in _ARGS.findall(args)}
    lines = ["| field | type | default | what it is |", "|---|---|---|---|"]
    for name, field in spec.__pydantic_fields__.items():
        bounds = [f"{sign} {b}" for sign, b in _bounds(field.metadata)]
        kind = re.sub(r"\b(?:[a-z_]\w*\.)+", "", inspect.formatannotation(field.annotation))
        cells = [
            f"`{name}`",
            f"`{kind}`" + (f", {' and '.join(bounds)}" if bounds else ""),
            "required" if field.is_required() else f"`{_written(field)}`",
            said.get(name, "as SAELens has it").replace("``", "`"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _bounds(metadata: list[Any]) -> Iterator[tuple[str, Any]]:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    for bound in metadata:
        for name, sign in signs.items():
            if (value := getattr(bound, name, None)) is not None:
                yield sign, value


def _written(field: Any) -> str:
    """A default as a YAML file would have it."""
    value = field.get_default(call_default_factory=True)
    return json.dumps(value, default=dataclasses.asdict, ensure_ascii=False)


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "functions": functions,
    "fields": fields,
}


def filled(text: str) -> str:
    """A page with its generated part."""
    return _MARKER.sub(lambda found: PARTS[found[1]](), text)
