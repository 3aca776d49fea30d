"""Which SAEs a spec asks for, and in how many passes over the text."""

from dataclasses import dataclass
from typing import Protocol

from sae_baselines.study.spec import AnyPanel, MemberSpec


class InPasses(AnyPanel, Protocol):
    """What a spec says of its passes over the data; `PanelSpec` documents the fields."""

    @property
    def data_order(self) -> str: ...
    @property
    def max_panels_per_pass(self) -> int | None: ...


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
        index: Number of the pass, from 0.
        data_seed: Seeds torch (SAELens' mixing buffer) and, with ``data_order='per_seed'``,
            the order of the documents.
        panels: What is trained.
    """

    index: int
    data_seed: int
    panels: tuple[PanelKey, ...]

    @property
    def name(self) -> str:
        return f"pass_{self.index}"


def panels_of(spec: AnyPanel) -> list[PanelKey]:
    """Every panel, seeds outermost."""
    return [
        PanelKey(architecture, l0, seed)
        for seed in spec.seeds
        for architecture in spec.architectures
        for l0 in spec.l0s
    ]


def members_of(spec: AnyPanel, panel: PanelKey) -> dict[MemberKey, MemberSpec]:
    """The members of one panel, in the order of the spec."""
    return {MemberKey(panel, m.name): m for m in spec.member_specs}


def trained_of(spec: AnyPanel, panel: PanelKey) -> dict[MemberKey, MemberSpec]:
    """The members of one panel that are trained: all but controls."""
    return {k: m for k, m in members_of(spec, panel).items() if not m.is_control}


def controls_of(spec: AnyPanel, panel: PanelKey) -> dict[MemberKey, MemberSpec]:
    """The controls of one panel, which are made after training."""
    return {k: m for k, m in members_of(spec, panel).items() if m.is_control}


def passes_of(spec: InPasses) -> list[Pass]:
    """Group panels into passes: one stream each, at most ``max_panels_per_pass`` panels."""
    panels = panels_of(spec)
    if spec.data_order == "per_seed":
        groups = [(seed, [p for p in panels if p.seed == seed]) for seed in spec.seeds]
    else:
        groups = [(spec.seeds[0], panels)]
    passes: list[Pass] = []
    for data_seed, group in groups:
        size = spec.max_panels_per_pass or len(group)
        for first in range(0, len(group), size):
            passes.append(Pass(len(passes), data_seed, tuple(group[first : first + size])))
    return passes
