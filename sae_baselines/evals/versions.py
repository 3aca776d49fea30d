"""Versions of other packages under which SAEBench's suites run as shipped."""

import os
from dataclasses import dataclass
from importlib import import_module, metadata

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from sae_baselines.errors import one_line

ALL: frozenset[str] = frozenset()
_INSTALL = "pip install 'sae-baselines[bench]'"


@dataclass(frozen=True)
class Requirement:
    """Versions of one package that some suites need.

    Attributes:
        package: Name on PyPI.
        versions: Those that do.
        why: What happens with others.
        suites: Suites that it happens to; empty for all.
    """

    package: str
    versions: SpecifierSet
    why: str
    suites: frozenset[str] = ALL

    @property
    def remedy(self) -> str:
        """Command that installs one of them."""
        return f"pip install '{self.package}{_in_order(self.versions)}'"


@dataclass(frozen=True)
class VersionProblem:
    """A package that keeps suites from running.

    Attributes:
        package: Its name.
        found: Installed version; None if it is absent.
        why: What is wrong.
        remedy: Command that mends it.
        suites: Suites that cannot run; empty for all.
    """

    package: str
    found: str | None
    why: str
    remedy: str
    suites: frozenset[str] = ALL

    def affects(self, suite: str) -> bool:
        """Whether this suite cannot run."""
        return not self.suites or suite in self.suites

    def __str__(self) -> str:
        found = "is not installed" if self.found is None else f"{self.found} is installed"
        return f"{self.package} {found}; {self.why}; {self.remedy}"


def _needs(package: str, versions: str, why: str, *suites: str) -> Requirement:
    return Requirement(package, SpecifierSet(versions), why, frozenset(suites))


REQUIREMENTS: tuple[Requirement, ...] = (
    _needs("sae-bench", ">=0.6,<0.7", "the adapters are written for SAEBench 0.6"),
    _needs("sae-lens", ">=6.54,<7", "SAEBench 0.6 and this package need SAELens 6"),
    _needs("transformer-lens", ">=2.16,<4", "SAELens 6 needs it"),
    _needs("torch", ">=2.4,<3", "SAELens 6 and TransformerLens need it"),
    _needs("numpy", ">=1.26.4,<2", "SAEBench 0.6 declares that it needs numpy 1"),
    _needs("transformers", ">=4.57", "suites were not tried with older versions"),
    _needs(
        "transformers",
        "<5",
        "in transformers 5 decoder layers return a tensor, of which SAEBench's RAVEL takes the "
        "first row for the hidden states",
        "ravel",
    ),
    _needs(
        "datasets",
        ">=3.1,<4",
        "datasets 4 runs no loading scripts, which one of its datasets needs",
        "sparse_probing",
    ),
    _needs(
        "sae-probes", ">=0.4,<0.5", "SAEBench 0.6 calls this one", "sparse_probing_sae_probes"
    ),
    _needs("openai", ">=1", "SAEBench asks the judge through it", "autointerp"),
)

# Checked unless jaxtyping's checks are off, which are what fails.
BEARTYPE = _needs(
    "beartype",
    ">=0.14,<0.18",
    "from 0.18 on it rejects the calls of SAEBench's own probe training",
    "sparse_probing",
)


def version_problems() -> list[VersionProblem]:
    """Every package that keeps a suite from running here as shipped; metadata alone is read.

    torchvision is an exception: it is imported if it is installed, since transformers does so
    and fails with it where it was built for another torch.
    """
    checked = REQUIREMENTS if _jaxtyping_is_off() else (*REQUIREMENTS, BEARTYPE)
    found = [problem for problem in map(_check, checked) if problem is not None]
    vision = _torchvision()
    return found if vision is None else [*found, vision]


def _check(wanted: Requirement) -> VersionProblem | None:
    found = _installed(wanted.package)
    if found is None:
        return VersionProblem(wanted.package, None, wanted.why, _INSTALL, wanted.suites)
    try:
        # Release candidates and local builds ("2.13.0+cpu") count as what they are made from.
        fits = wanted.versions.contains(found, prereleases=True)
    except InvalidVersion:
        fits = False
    if fits:
        return None
    why = f"needed is {_in_order(wanted.versions)}: {wanted.why}"
    return VersionProblem(wanted.package, found, why, wanted.remedy, wanted.suites)


def _torchvision() -> VersionProblem | None:
    found = _installed("torchvision")
    if found is None:
        return None  # no file of SAEBench imports it, whatever its metadata says
    try:
        import_module("torchvision")
    except Exception as error:  # RuntimeError, OSError, ImportError: what a foreign build gives
        why = f"it cannot be imported with this torch ({one_line(error, 120)}), so no suite can"
        return VersionProblem("torchvision", found, why, "pip uninstall -y torchvision")
    return None


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _in_order(versions: SpecifierSet) -> str:
    """The lower bound first, as people write it."""
    return ",".join(sorted(map(str, versions), key=lambda s: (not s.startswith(">"), s)))


def _jaxtyping_is_off() -> bool:
    return os.environ.get("JAXTYPING_DISABLE", "").lower() in ("1", "true")
