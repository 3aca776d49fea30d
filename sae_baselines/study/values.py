"""What no field of any spec may hold: names of no field, numbers of no use, strange text."""

import dataclasses
import types
import unicodedata
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

from sae_baselines.errors import UserError, did_you_mean

# Seeds, counts and sizes go through int64 on their way (torch, numpy, tables).
LARGEST = 2**63 - 1
_LONGEST = 1000
# While a stored spec is read: it was checked, by what was known then, when its study began, and
# the plugins that it names are not imported (a downloaded study would run its own code), so
# architectures may be unknown.
STORED: ContextVar[bool] = ContextVar("STORED", default=False)


def shown(value: Any, limit: int = 80) -> str:
    """A value in a message, cut short; whole numbers too long to print by their length."""
    if isinstance(value, int) and abs(value) > 10**limit:
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def check_keys(data: Any, kind: Any, where: str = "") -> None:
    """Every name in plain data is a field, and no number is a truth value, at any depth.

    Args:
        data: What YAML or JSON gave.
        kind: What it is to become: a dataclass, or a type with some inside.
        where: Its own name.

    Raises:
        UserError: The first that is not; names it, and the nearest field.
    """
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if isinstance(data, bool) and bool not in options and {int, float} & set(options):
        raise UserError(f"{where}: {data}: is a truth value; a number is needed")
    spec = next((o for o in options if dataclasses.is_dataclass(o)), None)
    if isinstance(data, Mapping) and spec is not None:
        hints = get_type_hints(spec)
        for name, value in data.items():
            at = f"{where}.{name}" if where else str(name)
            if name not in hints or get_origin(hints[name]) is ClassVar:
                fields = dataclasses.fields(spec)
                hint = did_you_mean(str(name), [f.name for f in fields])
                needed = [f.name for f in fields if f.name not in data and _is_needed(f)]
                prefix = f"{where}." if where else ""
                also = f" {prefix}{needed[0]}: is missing" if needed else ""
                raise UserError(f"{at}: is not a field; {hint}{also}")
            check_keys(value, hints[name], at)
    elif isinstance(data, list | tuple):
        for kind_of_list in options:
            for i, value in enumerate(data if get_origin(kind_of_list) is list else ()):
                check_keys(value, get_args(kind_of_list)[0], f"{where}.{i}")


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    no_default = field.default is dataclasses.MISSING
    return no_default and field.default_factory is dataclasses.MISSING


def check_values(spec: Any) -> None:
    """Every number of a spec fits, and its text is text.

    Args:
        spec: A dataclass.

    Raises:
        UserError: The first that is not; names field, value and remedy.
    """
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        # "" is said where it is the default.
        if flaw := _flaw(value, empty=field.default == ""):
            raise UserError(f"{field.name}: {shown(value)}: {flaw}")


def _flaw(value: Any, empty: bool = False) -> str | None:
    if isinstance(value, str):
        if not value.strip() and not empty:
            return "is empty; say what it is, or leave the field out"
        if empty or STORED.get():  # prose, or checked by what was known then
            value = " ".join(value.split())
        if STORED.get():
            value = value[:_LONGEST]
        if len(value) > _LONGEST:
            return f"has {len(value):,} characters; use at most {_LONGEST:,}"
        # Not `isprintable`, which refuses the spaces of other languages and many an emoji.
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
            return "has a character that cannot be printed; take it out"
    elif isinstance(value, int) and abs(value) > LARGEST:
        return "is too large; use less than 2^63"
    elif isinstance(value, list | tuple):
        return next((flaw for item in value if (flaw := _flaw(item))), None)
    return None


def is_number(value: Any) -> bool:
    """Whether plain data is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -LARGEST <= value <= LARGEST  # nan is not


def flaw_of_option(value: Any) -> str | None:
    """Why a value is none for an option of a SAELens config; None if it may be one."""
    for item in value if isinstance(value, list | tuple) else (value,):
        if isinstance(item, int | float) and not 0 <= item <= LARGEST:  # nan is neither
            return "use a finite number that is not negative"
    return _flaw(value)
