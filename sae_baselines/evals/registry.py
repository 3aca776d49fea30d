"""The suites by name, and what is known of a metric by its names in the results table.

A suite's class is imported when it is first asked for.
"""

import fnmatch
import importlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sae_baselines.controls import is_random_model, kind_of
from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.evals.measured import NEITHER
from sae_baselines.evals.metrics import OWN, Margin, Metric, find

if TYPE_CHECKING:
    from sae_baselines.evals.suite import Suite

_OURS = "sae_baselines.evals.suites"
# In the order in which they are run: cheap and telling ones first.
_suites: dict[str, "str | type[Suite]"] = {
    "core": f"{_OURS}.core:Core",
    "sparse_probing_sae_probes": f"{_OURS}.sae_probes:SaeProbes",
    "sparse_probing": f"{_OURS}.sparse_probing:SparseProbing",
    "ravel": f"{_OURS}.ravel:Ravel",
    "autointerp": f"{_OURS}.autointerp:AutoInterp",
    "interp_embedding": f"{_OURS}.interp_embedding:InterpEmbedding",
    "interp_detection": f"{_OURS}.interp_detection:InterpDetection",
    "absorption": f"{_OURS}.absorption:Absorption",
    "scr": f"{_OURS}.scr_tpp:Scr",
    "tpp": f"{_OURS}.scr_tpp:Tpp",
    "meta_structure": f"{_OURS}.meta_structure:MetaStructure",
    "mdl": f"{_OURS}.mdl:Mdl",
    "unlearning": f"{_OURS}.unlearning:Unlearning",
}
_instances: dict[str, "Suite"] = {}

# What runs anywhere: no API, no gated data, no fixed list of models.
DEFAULT_SUITES = ("core", "sparse_probing_sae_probes")


def register_suite(name: str, suite: "str | type[Suite]") -> None:
    """Make a suite known to every command and to the report; it runs after those before it.

    Args:
        name: Name in commands, folders and tables, the class' own `Suite.name`.
        suite: A subclass of `sae_baselines.evals.Suite`, or where it is ("module:Class"), to be
            imported when the suite is first asked for.

    Raises:
        UserError: Another suite has the name, or it is no name for a folder.
    """
    if not name or not name.replace("_", "").isalnum():
        raise UserError(f"register_suite: {name!r} is no name; use letters, digits and _")
    if name in ("panel", "vision") or _suites.get(name, suite) != suite:
        raise UserError(f"register_suite: there is a suite {name!r} already; choose another")
    if isinstance(suite, str) and len(suite.split(":")) != 2:
        raise UserError(f"register_suite: {suite!r} is not 'module:Class'")
    _suites[name] = suite


def suite_names() -> list[str]:
    """All suites, in the order in which they are run."""
    return list(_suites)


def get_suite(name: Any) -> "Suite":
    """The adapter of one suite.

    Raises:
        UserError: There is no such suite, or its class cannot be used.
    """
    if name not in _suites:
        raise UserError(
            f"suites: {name!r} is unknown; {did_you_mean(str(name), suite_names())}"
        )
    if name not in _instances:
        suite = _suites[name]
        if isinstance(suite, str):
            module, _, adapter = suite.partition(":")
            try:
                suite = getattr(importlib.import_module(module), adapter)
            except (ImportError, AttributeError) as error:
                raise UserError(f"suites: {name}: cannot be loaded: {error}") from error
        if suite.name != name:
            raise UserError(f"suites: {name} is registered, but its class is {suite.name!r}")
        _instances[name] = suite()
    return _instances[name]


def asks_judge(suite: str) -> bool:
    """Whether scores of a suite, registered or not, are a judge's."""
    return suite in _suites and get_suite(suite).needs.judge


def metric_of(suite: str, metric: str) -> Metric:
    """What is known of a metric; of one that nobody describes, that it has no better or worse.

    Args:
        suite: Name in the results table, registered or not.
        metric: Name in the results table.
    """
    known = get_suite(suite).metric(metric) if suite in _suites else None
    if known is None:
        known = next(
            (
                described
                for pattern, metrics in OWN
                if fnmatch.fnmatchcase(suite, pattern)
                if (described := find(metrics, metric)) is not None
            ),
            Metric(metric),
        )
    return known if known.title else replace(known, title=f"{suite}: {metric}")


def check_pattern(field: str, pattern: str) -> None:
    """That it names a metric of which one value is better than another.

    Args:
        field: What gives it.
        pattern: ``suite/metric`` or, of any suite, ``metric``; with wildcards.

    Raises:
        UserError: It names none.
    """
    suite, _, metric = pattern.rpartition("/")
    described = [
        *((name, get_suite(name).metrics) for name in _suites if _meet(name, suite or "*")),
        # Without those of tables that did not come from here.
        *((name, known) for name, known in OWN if name != "*" and _meet(name, suite or "*")),
    ]
    known: list[str] = []
    for name, metrics in described:
        compared = [m for m in metrics if m.direction != NEITHER]
        exact = find(metrics, metric)
        if any(fnmatch.fnmatchcase(m.name, metric) for m in compared):
            return
        if exact is not None and exact.direction != NEITHER:
            return
        known += [f"{name}/{m.name}" if suite else m.name for m in compared]
    if not described:
        suites = [*_suites, *(name for name, _ in OWN if name != "*")]
        raise UserError(
            f"{field}: {pattern}: there is no suite {suite!r}; {did_you_mean(suite, suites)}"
        )
    raise UserError(
        f"{field}: {pattern!r} is no metric that verdicts are made of; "
        f"{did_you_mean(pattern, list(dict.fromkeys(known)))}"
    )


def _meet(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(pattern, name)


def margin_for(
    suite: str, metric: str, overrides: Mapping[str, float | Margin] | None = None
) -> Margin | None:
    """The margin of one metric, or None where no default exists.

    Args:
        suite: Name of the suite.
        metric: Name of the metric.
        overrides: Patterns to margins, e.g. ``{"core/explained_variance": 0.05, "ravel/*":
            0.01}``; a pattern without a slash is one for the metric in any suite. The first
            that matches wins over the defaults.

    Raises:
        UserError: A margin that is not a positive number.
    """
    for pattern, margin in (overrides or {}).items():
        if override_matches(pattern, suite, metric):
            return margin if isinstance(margin, Margin) else Margin(margin, "Set by the user.")
    return metric_of(suite, metric).margin


def override_matches(pattern: str, suite: str, metric: str) -> bool:
    """Whether a pattern names this metric: ``suite/metric``, or ``metric`` of any suite."""
    return fnmatch.fnmatchcase(f"{suite}/{metric}" if "/" in pattern else metric, pattern)


def is_null_for(constraint: str, suite: str, metric: str) -> bool:
    """Whether a member of this constraint says something on a metric; baselines always do."""
    kind = kind_of(constraint)
    if is_random_model(constraint):
        return suite in _suites and get_suite(suite).on_random_model.use == "verdict"
    return (
        kind is None
        or kind.compared_on is None
        or metric_of(suite, metric).depends in kind.compared_on
    )


def is_refused(constraint: str, suite: str) -> bool:
    """Whether a suite is not run on members of this constraint: it would mean nothing."""
    if not is_random_model(constraint) or suite not in _suites:
        return False
    return get_suite(suite).on_random_model.use == "refused"


def is_unchanged(constraint: str, suite: str, metric: str) -> bool:
    """Whether a member of this constraint must have its source's score on a metric."""
    kind = kind_of(constraint)
    return kind is not None and metric_of(suite, metric).depends in kind.unchanged
