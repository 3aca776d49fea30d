"""What soft-frozen sides share: each direction stays within a cap around its start.

Paper, Section 4.1: cosine similarity with its own random start at least tau (0.8). All
directions are projected after every step of every torch optimiser that has the held weight,
through torch's own hook for that, so that the constraint holds under any trainer and after the
last step too; and before every save. Who changes the weight without such an optimiser calls
`project`. Adam's moments are left alone (the paper is silent; resetting them would slow the
directions at the edge).
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from sae_baselines.baselines.cap import project_to_cap_, validate_tau
from sae_baselines.baselines.constraint import VECTORS, Constraint, Promise, Side, held_side
from sae_baselines.baselines.seeded_start import SeededStartConfig, SeededStartMixin
from sae_baselines.compat.saes import PreciseBuffersMixin, of_this_rank, version_of

# How far below tau a cosine may be: what the projection promises (float32), and in half
# precision.
_CAP_SLACK = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 4e-3}


@dataclass(kw_only=True)
class SoftFrozenConfig(SeededStartConfig):
    """Config of a soft-frozen side.

    Args:
        tau: Least cosine similarity of a held direction with its start, in (-1, 1].
    """

    tau: float = 0.8

    def __post_init__(self) -> None:
        validate_tau(self.tau)
        super().__post_init__()
        if self.normalize_activations == "covariance_whitening":
            raise ValueError(
                "normalize_activations: 'covariance_whitening' is not possible with a "
                "soft-frozen decoder or encoder: unwhitening at the end of training is not a "
                "rotation, so directions would leave their cap; use "
                "'expected_average_only_in' or 'none'"
            )


class SoftFrozenMixin(SeededStartMixin, PreciseBuffersMixin):
    """Keeps directions in their caps {cos(row, start) >= tau}; all is trained inside them."""

    cfg: SoftFrozenConfig
    # The weight whose directions are held; the starts of these are the buffer ``<held>_start``,
    # ``[d_sae, width]``.
    held: ClassVar[str]
    # Norms of the starts, which never change, and which tensor they belong to.
    _start_norm: tuple[Tensor, int, int] | None = None

    def held_rows(self) -> Tensor:
        """The held directions as rows, ``[d_sae, width]``: a view of the weight."""
        raise NotImplementedError

    @property
    def _start_name(self) -> str:
        return f"{self.held}_start"

    @property
    def _starts(self) -> Tensor:
        return getattr(self, self._start_name)

    def initialize_weights(self) -> None:
        super().initialize_weights()
        if not hasattr(self, self._start_name):
            self._start_here()
        _watch(self)

    def _start_here(self) -> None:
        # What was stored (bfloat16 rounds), so a fresh row has cosine 1. Casting the SAE must
        # not round the directions that the cap is measured from.
        rows = self.held_rows().float().clone(memory_format=torch.contiguous_format)
        self.register_precise_buffer(self._start_name, rows)
        self.moved()

    @torch.no_grad()
    def set_start_directions(self, directions: Tensor, encoder: Tensor | None = None) -> None:
        super().set_start_directions(directions, encoder)
        self._start_here()

    @torch.no_grad()
    def project(self) -> Tensor:
        """Project the held directions onto their caps in place; how many moved, int64."""
        rows, start = of_this_rank(self.held_rows(), self._starts, self.held)
        norm = self._norm_of_start() if rows.shape == self._starts.shape else None
        return project_to_cap_(rows, start, self.cfg.tau, norm)

    def _norm_of_start(self) -> Tensor:
        start = self._starts
        place = (start.data_ptr(), version_of(start))
        if self._start_norm is None or self._start_norm[1:] != place:
            self._start_norm = (torch.linalg.vector_norm(start, dim=1), *place)
        return self._start_norm[0]

    def moved(self) -> None:
        """Forget what is known about the starts, which were replaced."""
        self._start_norm = None

    @torch.no_grad()
    def loaded(self, names: set[str], more: dict[str, Tensor]) -> None:
        pending = self.start_is_pending
        super().loaded(names, more)
        self.moved()
        if pending and not self.start_is_pending and self._start_name not in names:
            self._start_here()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _watch(self)  # a copy.deepcopy has not been through initialize_weights

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        self.project()  # weights edited by hand are legal only once projected
        super().process_state_dict_for_saving(state_dict)

    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        state_dict.pop(self._start_name, None)


# Kept by a reload of this module: SAEs built before it go on being projected.
_watched: "weakref.WeakSet[SoftFrozenMixin]" = globals().get("_watched", weakref.WeakSet())
_hook_installed: bool = globals().get("_hook_installed", False)


def _watch(sae: SoftFrozenMixin) -> None:
    global _hook_installed
    if not _hook_installed:
        register_optimizer_step_post_hook(_after_optimizer_step)
        _hook_installed = True
    if sae not in _watched:
        _watched.add(sae)


def _after_optimizer_step(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    del args, kwargs
    if _watched:
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for sae in list(_watched):
            if id(getattr(sae, sae.held)) in stepped and not sae.start_is_pending:
                sae.project()


class SoftFrozen(Constraint):
    """Holds directions of the side ``holds``; the cap's tau is its option."""

    learned = "everything inside the cap"
    config_mixin = SoftFrozenConfig
    options = ("tau",)
    holds: ClassVar[Side | None]
    survives_whitening = False

    def promise(self, options: Mapping[str, Any], precision: str) -> Promise | None:
        tau = options.get("tau")
        if tau is None:
            return None
        side = held_side(self.name)
        text = f"{VECTORS[side]} within cosine {tau:g} of their start"
        return Promise(text, side, tau - _CAP_SLACK[precision])

    def in_words(self, options: Mapping[str, Any]) -> str:
        tau = options.get("tau")
        cap = "" if tau is None else f" = {tau:g}"
        return f"frozen: {self.frozen}{cap}; learned: {self.learned}"

    def of_directions(self, directions: str, options: Mapping[str, Any]) -> str:
        held = VECTORS[held_side(self.name)]
        near = f"{held} held near {directions} (cosine at least {options['tau']:g})"
        return f"{near}; the rest is learned."
