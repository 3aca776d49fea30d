"""The suites by name; an adapter is imported when it is asked for."""

import importlib
from functools import cache
from typing import Any

from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.evals.suite import Suite

# In the order in which they are run: cheap and telling ones first.
_SUITES = {
    "core": ("core", "Core"),
    "sparse_probing_sae_probes": ("sae_probes", "SaeProbes"),
    "sparse_probing": ("sparse_probing", "SparseProbing"),
    "ravel": ("ravel", "Ravel"),
    "autointerp": ("autointerp", "AutoInterp"),
    "absorption": ("absorption", "Absorption"),
    "scr": ("scr_tpp", "Scr"),
    "tpp": ("scr_tpp", "Tpp"),
    "meta_structure": ("meta_structure", "MetaStructure"),
    "mdl": ("mdl", "Mdl"),
    "unlearning": ("unlearning", "Unlearning"),
}

# What runs anywhere: no API, no gated data, no fixed list of models.
DEFAULT_SUITES = ("core", "sparse_probing_sae_probes")


def suite_names() -> list[str]:
    """All suites, in the order in which they are run."""
    return list(_SUITES)


@cache
def _load(name: str) -> Suite:
    module, adapter = _SUITES[name]
    return getattr(importlib.import_module(f"sae_baselines.evals.suites.{module}"), adapter)()


def get_suite(name: Any) -> Suite:
    """The adapter of one suite.

    Raises:
        UserError: There is no such suite.
    """
    if name not in _SUITES:
        raise UserError(
            f"suites: {name!r} is unknown; {did_you_mean(str(name), suite_names())}"
        )
    return _load(name)
