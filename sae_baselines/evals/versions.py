"""Versions of other packages under which SAEBench's suites run as shipped."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module, metadata

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from sae_baselines.errors import one_line

_INSTALL = "pip install 'sae-baselines[bench]'"


@dataclass(frozen=True)
class Requirement:
    """Versions of one package that suites need.

    Attributes:
        package: Name on PyPI.
        versions: Those that do, as in pip's requirements.
        why: What happens with others.
        moot_with: Environment variable that, set to 1 or true, makes it not matter.
    """

    package: str
    versions: str
    why: str
    moot_with: str = ""

    @property
    def specifier(self) -> SpecifierSet:
        return SpecifierSet(self.versions)


@dataclass(frozen=True)
class VersionProblem:
    """A package that keeps suites from running.

    Attributes:
        package: Its name.
        installed: Its version; None if it is absent.
        why: What is wrong.
        remedy: Command that mends it.
    """

    package: str
    installed: str | None
    why: str
    remedy: str

    def __str__(self) -> str:
        state = (
            "is not installed" if self.installed is None else f"{self.installed} is installed"
        )
        return f"{self.package} {state}; {self.why}; {self.remedy}"


# Of every suite; a suite's own are `Suite.requirements`.
REQUIREMENTS = (
    Requirement("sae-bench", ">=0.6,<0.7", "the adapters are written for SAEBench 0.6"),
    Requirement("sae-lens", ">=6.54.4,<7", "SAEBench 0.6 and this package need SAELens 6"),
    Requirement("transformer-lens", ">=3.2,<4", "SAELens 6 and this package need it"),
    Requirement("torch", ">=2.4,<3", "SAELens 6 and TransformerLens need it"),
    Requirement("numpy", ">=1.26.4,<2", "SAEBench 0.6 declares that it needs numpy 1"),
    Requirement("transformers", ">=4.57", "suites were not tried with older versions"),
)


def version_problems(requirements: Iterable[Requirement]) -> list[VersionProblem]:
    """Every package that is not as it is required; metadata alone is read."""
    return [problem for problem in map(_check, requirements) if problem is not None]


def problems_of_every_suite() -> list[VersionProblem]:
    """Packages that keep all suites from running.

    torchvision is imported if it is installed, since transformers does so and fails with it
    where it was built for another torch.
    """
    vision = _torchvision()
    found = version_problems(REQUIREMENTS)
    return found if vision is None else [*found, vision]


def _check(wanted: Requirement) -> VersionProblem | None:
    if os.environ.get(wanted.moot_with, "").lower() in ("1", "true"):
        return None
    installed = _installed(wanted.package)
    if installed is None:
        return VersionProblem(wanted.package, None, wanted.why, _INSTALL)
    try:
        # Release candidates and local builds ("2.13.0+cpu") count as what they are made from.
        if wanted.specifier.contains(installed, prereleases=True):
            return None
    except InvalidVersion:
        pass
    return VersionProblem(
        wanted.package,
        installed,
        f"needed is {wanted.versions}: {wanted.why}",
        f"pip install '{wanted.package}{wanted.versions}'",
    )


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
