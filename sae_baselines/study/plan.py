"""Which SAEs a spec asks for, and in how many passes over the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_baselines.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from sae_baselines.study.spec import MemberSpec, StudySpec


@dataclass(frozen=True)
class PanelKey:
    """One panel: architecture, target L0 and seed."""

    architecture: str
    l0: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.architecture}_l0_{self.l0:g}_seed_{self.seed}"


@dataclass(frozen=True)
class MemberKey:
    """One SAE of one panel."""

    panel: PanelKey
    member: str

    @property
    def name(self) -> str:
        """Name inside SAELens' multi-SAE runner; also a folder name in its checkpoints."""
        return f"{self.panel.name}.{self.member}"


@dataclass(frozen=True)
class Pass:
    """Panels trained together on one activation stream.

    Attributes:
        name: Of its folder of checkpoints.
        data_seed: Seeds torch (SAELens' mixing buffer) and, with ``data_order='per_seed'``,
            the order of the documents.
        panels: What is trained.
    """

    name: str
    data_seed: int
    panels: tuple[PanelKey, ...]


def panels_of(spec: "StudySpec") -> list[PanelKey]:
    """Every panel, whichever sources its members are of."""
    panels = (panel for source in spec.source_names for panel in spec.panels(source))
    return list(dict.fromkeys(panels))


def all_members(spec: "StudySpec") -> dict[MemberKey, "MemberSpec"]:
    """Every member of every panel."""
    return {k: m for panel in panels_of(spec) for k, m in members_of(spec, panel).items()}


def members_of(
    spec: "StudySpec", panel: PanelKey, source: str | None = None
) -> dict[MemberKey, "MemberSpec"]:
    """The members of one panel, in the order of the spec; with a source, those on it."""
    members = spec.member_specs if source is None else spec.members_on(source)
    return {MemberKey(panel, m.name): m for m in members}


def trained_of(
    spec: "StudySpec", panel: PanelKey, source: str | None = None
) -> dict[MemberKey, "MemberSpec"]:
    """The members of one panel that are trained: all but controls."""
    return {k: m for k, m in members_of(spec, panel, source).items() if not m.is_control}


def controls_of(
    spec: "StudySpec", panel: PanelKey, source: str | None = None
) -> dict[MemberKey, "MemberSpec"]:
    """The controls of one panel, which are made after training."""
    return {k: m for k, m in members_of(spec, panel, source).items() if m.is_control}


def panel_named(spec: "StudySpec", name: str | None) -> PanelKey:
    """A panel of the study; without a name the first.

    Raises:
        UserError: There is none of this name.
    """
    panels = {panel.name: panel for panel in panels_of(spec)}
    if name is None:
        return next(iter(panels.values()))
    if name not in panels:
        raise UserError(f"panel: {name!r} is unknown; {did_you_mean(name, list(panels))}")
    return panels[name]


def members_named(
    spec: "StudySpec", panel: PanelKey, names: Sequence[str] | None
) -> list[MemberKey]:
    """Members of a panel; all of them without names, or where these are ``["all"]``.

    Raises:
        UserError: One is unknown.
    """
    members = {k.member: k for k in members_of(spec, panel)}
    if names is None or list(names) == ["all"]:
        return list(members.values())
    for name in names:
        if name not in members:
            raise UserError(
                f"members: {name!r} is unknown; {did_you_mean(name, list(members))}"
            )
    return [members[name] for name in names]
