"""A Typer app as plain data, and an app from such data that parses and helps as it does."""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import CommandInfo, DefaultPlaceholder, OptionInfo, TyperInfo

from sae_baselines_command.known import completing

_TYPES: dict[str, Any] = {t.__name__: t for t in (str, int, float, bool, Path)}
_PLAIN = (str, int, float, bool, NoneType)
_NOT_PLAIN = ("callback", "cls", "typer_instance", "autocompletion", "default", "param_decls")


class HandOver(Exception):  # noqa: N818
    """The arguments are sound: run the command itself."""


def describe(app: typer.Typer) -> dict[str, Any]:
    """Commands, options, help and known values of an app, as plain data.

    Raises:
        TypeError: A parameter is of a kind that this cannot write down.
    """
    callback, markup = app.registered_callback, app.rich_markup_mode
    return {
        "app": _changed(app.info, TyperInfo(None)),
        "rich_markup_mode": getattr(markup, "value", markup),
        "callback": _described(callback.callback) if callback and callback.callback else None,
        "commands": [
            {"command": _changed(each, CommandInfo()), **_described(each.callback)}
            for each in app.registered_commands
            if each.callback is not None
        ],
        "groups": [
            {"name": _changed(each, TyperInfo(None)), "in": describe(each.typer_instance)}
            for each in app.registered_groups
            if each.typer_instance is not None
        ],
    }


def build(commands: dict[str, Any]) -> typer.Typer:
    """An app that parses, helps, complains and completes as the described one.

    Its commands raise `HandOver` instead of doing anything.
    """
    app = typer.Typer(
        **commands["app"],
        rich_markup_mode=commands["rich_markup_mode"],
        pretty_exceptions_enable=False,
    )
    if commands["callback"] is not None:
        app.callback()(_function(commands["callback"], _nothing))
    for each in commands["commands"]:
        app.command(**each["command"])(_function(each, _hand_over))
    for each in commands["groups"]:
        app.add_typer(build(each["in"]), **each["name"])
    return app


def _changed(info: Any, untouched: Any) -> dict[str, Any]:
    """What was set, of what can be written down."""
    plain = vars(untouched)
    return {
        name: value
        for name, value in vars(info).items()
        if not isinstance(value, DefaultPlaceholder)
        and name not in _NOT_PLAIN
        and value != plain.get(name)
    }


def _described(function: Callable[..., Any]) -> dict[str, Any]:
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return {
        "function": function.__name__,
        "help": inspect.getdoc(function),
        "parameters": [
            _parameter(each, hints[each.name])
            for each in parameters
            if hints[each.name] is not typer.Context  # which is not typed
        ],
    }


def _parameter(parameter: inspect.Parameter, hint: Any) -> dict[str, Any]:
    if get_origin(hint) is Union:
        # What Python 3.10 makes of a parameter whose default is None.
        hint = next((h for h in get_args(hint) if get_origin(h) is Annotated), hint)
    if get_origin(hint) is not Annotated:
        raise TypeError(f"{parameter.name}: {hint} is not Annotated")
    annotation, info = get_args(hint)
    required = parameter.default is inspect.Parameter.empty
    complete = info.autocompletion
    # Where Typer keeps names that are given inside Annotated.
    names = [each for each in (info.default, *(info.param_decls or ())) if each is not ...]
    return {
        "name": parameter.name,
        "type": _type_name(annotation),
        "option": isinstance(info, OptionInfo),
        "names": names,
        "info": _changed(
            info, typer.Option() if isinstance(info, OptionInfo) else typer.Argument()
        ),
        "required": required,
        "default": None if required else _plain(parameter.default),
        "values": None if complete is None else complete(""),
        "has_callback": info.callback is not None,
    }


def _plain(value: Any) -> Any:
    if not isinstance(value, _PLAIN):
        raise TypeError(f"{value!r} cannot be remembered as a default")
    return value


def _type_name(annotation: Any) -> str:
    """``Path``, ``int?`` for ``int | None``, ``str*`` for ``list[str]``."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType) and NoneType in inside:
        (kind,) = (each for each in inside if each is not NoneType)
        return f"{_type_name(kind)}?"
    if origin is list:
        return f"{_type_name(inside[0])}*"
    if annotation not in _TYPES.values():
        raise TypeError(f"a parameter of type {annotation} cannot be remembered")
    return annotation.__name__


def _type(name: str) -> Any:
    if name.endswith("?"):
        return _type(name[:-1]) | None
    if name.endswith("*"):
        return list[_type(name[:-1])]
    return _TYPES[name]


def _function(described: dict[str, Any], body: Callable[..., None]) -> Callable[..., None]:
    def function(**given: Any) -> None:
        body(**given)

    parameters, hints = [], {}
    for each in described["parameters"]:
        hint = Annotated[_type(each["type"]), _info(each)]
        empty = inspect.Parameter.empty
        default = empty if each["required"] else each["default"]
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(
            inspect.Parameter(each["name"], kind, default=default, annotation=hint)
        )
        hints[each["name"]] = hint
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = hints
    function.__name__, function.__doc__ = described["function"], described["help"]
    return function


def _info(described: dict[str, Any]) -> Any:
    options = dict(described["info"])
    values = described["values"]
    if values is not None:
        options["autocompletion"] = completing(lambda: values)
    if described["has_callback"]:
        options["callback"] = _hand_over_if
    return (typer.Option if described["option"] else typer.Argument)(
        *described["names"], **options
    )


def _nothing(**given: Any) -> None:
    del given


def _hand_over(**given: Any) -> None:
    del given
    raise HandOver


def _hand_over_if(value: bool) -> None:
    if value:
        raise HandOver
