"""Names of a package that are imported when they are first asked for."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` that finds each name in the module it lives in.

    Args:
        package: The package's ``__name__``.
        names: Public name to the dotted module that defines it.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(names[name])
        # A subpackage of that name has become an attribute by now.
        return vars(sys.modules[package]).get(name) or getattr(module, name)

    return find
