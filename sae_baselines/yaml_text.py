"""YAML as people write it: every mistake named with its line, none of it run or blown up."""

import codecs
from pathlib import Path
from typing import Any

import yaml
from yaml import AliasEvent, MappingNode, MarkedYAMLError, Node, ScalarNode

from sae_baselines.errors import UserError, one_line
from sae_baselines.files import failed

# Levels of nesting, and values with every alias written out: far above any study or panel file.
_DEEPEST = 50
_MOST = 100_000
_UTF16 = (
    "it is UTF-16; save it as UTF-8 (PowerShell's > writes UTF-16: | Out-File -Encoding utf8)"
)


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
        UserError: No such file, or not YAML; names the line.
    """
    path = Path(path)
    try:
        return parse_yaml(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {failed(error)}") from error
    except ValueError as error:
        raise UserError(f"{path}: is not YAML: {error}") from error


def parse_yaml(content: bytes) -> Any:
    """What YAML says: mappings, lists, text, numbers, booleans, dates.

    Args:
        content: UTF-8, with or without a byte order mark.

    Raises:
        ValueError: Otherwise, a key twice, nested deeper or (with its aliases) longer than
            any file of a person; one line that begins with the number of the line.
    """
    text = _decoded(content)
    try:
        return yaml.load(text, _Loader)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        said = error.problem or ""
        if error.context and said.startswith("but "):
            said = f"{error.context}, {said}"
        raise ValueError(f"{where}{said}") from error
    except yaml.YAMLError as error:
        raise ValueError(one_line(error, 200)) from error
    except RecursionError as error:
        raise ValueError(f"nested deeper than {_DEEPEST} levels") from error


def _decoded(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:4]:
        raise ValueError(_UTF16)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"line {line}: byte 0x{content[error.start]:02x} is not UTF-8; save it as UTF-8"
        ) from error


class _Loader(yaml.SafeLoader):
    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        # Values in a node, aliases written out; of nodes that are complete.
        self._values: dict[Node, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        if self._depth == _DEEPEST:
            raise _problem(f"nested deeper than {_DEEPEST} levels", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None or node in self._values:
            return node
        if isinstance(event, AliasEvent):
            raise _problem(f"*{event.anchor} stands for what it is in", event)
        pairs = [] if isinstance(node, ScalarNode) else node.value
        inside = [n for pair in pairs for n in (pair if isinstance(pair, tuple) else [pair])]
        self._values[node] = 1 + sum(self._values[n] for n in inside)
        if self._values[node] > _MOST:
            raise _problem(f"aliases that stand for more than {_MOST:,} values", event)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        # Of what is only called a mapping PyYAML says so itself.
        for key, _ in node.value if isinstance(node, MappingNode) else ():
            if not isinstance(key, ScalarNode):
                raise _problem("a list or a mapping as a key; use text", key)
            line = key.start_mark.line + 1
            if key.value in lines:
                where = f"lines {lines[key.value]} and {line}"
                raise _problem(f"{key.value!r} is there twice, in {where}; keep one", key)
            lines[key.value] = line
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
            # PyYAML's own, for 5,000 digits, 2020-13-45, or !!bool of what is none.
            raise _problem(
                f"not what it is written as ({one_line(error, 80)})", node
            ) from error


def _problem(text: str, where: Any) -> MarkedYAMLError:
    return MarkedYAMLError(problem=text, problem_mark=where.start_mark)
