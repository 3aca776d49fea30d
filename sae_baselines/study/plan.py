"""Which SAEs a spec asks for, and in how many passes over the text."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
