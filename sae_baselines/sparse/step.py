"""The training step on active entries only: when it runs, and what is common to all bases.

Inside `training_forward_pass` the encoder answers with a sparse COO tensor that remembers
its entries, and SAELens' own training step goes on with it: decoding, losses, threshold
updates and bookkeeping see the same numbers as in stock's step. Everywhere else (encode in
evaluation, calibration, export) nothing changes.
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor

from sae_baselines.compat.saes import ConfigMixin, SAEMixin, has_hooks
from sae_baselines.sparse.optimizer import use_fused_adam
from sae_baselines.sparse.products import (
    Entries,
    bias_through_encoder,
    decoder_product,
    encoder_product,
)
from sae_baselines.sparse.select import Found, NotSparseError

# More entries than this share of batch x d_sae, and the dense step may be the faster one. On
# two CPU cores they meet at about 1/8. Elsewhere dense products are faster by more than memory
# is; there it is an estimate from the two, not a measurement.
MAX_DENSITY = 1 / 16
MAX_DENSITY_ELSEWHERE = 1 / 64

# Under this name a sparse tensor of activations remembers where they are.
_LATENTS = "_active_latents"

# After a batch that was not sparse: look again after this many steps, then twice as many.
_FIRST_WAIT, _LONGEST_WAIT = 8, 128


@dataclass(kw_only=True)
class SparseStepConfig(ConfigMixin):
    """Config field of every baseline that can train on active entries only.

    Args:
        sparse_step: Compute the training step on active entries where that is exact and
            faster, falling back to SAELens' dense step by itself; False never tries.
    """

    sparse_step: bool = True


@dataclass(frozen=True, eq=False)
class ActiveLatents:
    """What the sparse encoder found on a batch, at ``entries``.

    Attributes:
        values: ``[n]`` activations there, differentiable; may be 0.
        pre: ``[n]`` pre-activations there (stock's hidden_pre), differentiable.
        x: ``[batch, d_in]`` what W_enc was multiplied with, no gradient.
        norm: ``[d_sae]`` decoder norms that activations are scaled by, or None.
    """

    entries: Entries
    values: Tensor
    pre: Tensor
    x: Tensor
    norm: Tensor | None = None


@dataclass
class SparseStepState:
    """What one step tells the next. Results depend on it only in their rounding: it is not in
    checkpoints, so a resumed run may compute a batch the other way.

    Attributes:
        inside: Whether a sparse step is about to encode.
        current: What the running sparse step found.
        floor: Where a batch-top-k may start to look.
        wait: Steps left before a batch that was not sparse is followed by another try.
        next_wait: How long to wait next time.
        sparse_steps: How many steps ran sparse.
        dense_steps: Why others did not: reason -> how many.
    """

    inside: bool = False
    current: "ActiveLatents | None" = None
    floor: float | None = None
    wait: int = 0
    next_wait: int = _FIRST_WAIT
    sparse_steps: int = 0
    dense_steps: dict[str, int] = field(default_factory=dict)

    def count_dense(self, reason: str) -> None:
        self.dense_steps[reason] = self.dense_steps.get(reason, 0) + 1


def active_latents(acts: Tensor) -> ActiveLatents | None:
    """The entries of an activation tensor made by a sparse step; None for any other tensor."""
    return getattr(acts, _LATENTS, None)


class SparseStepMixin(SAEMixin):
    """Machinery of the sparse step; a subclass per base finds the entries (see bases.py)."""

    cfg: Any  # SparseStepConfig, and the base's
    activation_fn: Any
    run_time_activation_norm_fn_out: Any
    b_enc: Tensor
    sparse_state: SparseStepState

    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.sparse_state = SparseStepState()
        use_fused_adam(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        use_fused_adam(self)  # a copy.deepcopy has not been through initialize_weights

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        # Before anything is counted: a compiled step must be the same from step to step.
        if not self.cfg.sparse_step or torch.compiler.is_compiling():
            return super().training_forward_pass(step_input)
        state = self.sparse_state
        reason = self._why_dense(step_input)
        if reason is None:
            try:
                with _inside(state):
                    output = super().training_forward_pass(step_input)
            except NotSparseError as error:
                # Raised while encoding, before anything has changed.
                reason = str(error)
                if reason == "dense":
                    state.wait = state.next_wait
                    state.next_wait = min(2 * state.next_wait, _LONGEST_WAIT)
            else:
                state.sparse_steps += 1
                state.next_wait = _FIRST_WAIT
                return output
        state.count_dense(reason)
        state.wait = max(0, state.wait - 1)
        return super().training_forward_pass(step_input)

    def _why_dense(self, step_input: TrainStepInput) -> str | None:
        """Why stock's dense step must do this batch; None if the sparse one can."""
        x = step_input.sae_in
        if self.sparse_state.wait > 0:
            return "dense"
        if not torch.is_grad_enabled() or x.requires_grad or x.ndim != 2 or x.shape[0] == 0:
            return "input"
        if x.device.type not in ("cpu", "cuda"):
            return "device"  # bounds and bias gradients need float64
        if self._dtype_in_step() not in (torch.float32, torch.float64, torch.bfloat16):
            return "dtype"
        hooks = (self.hook_sae_input, self.hook_sae_acts_pre, self.hook_sae_acts_post)
        if any(has_hooks(hook) for hook in hooks):
            return "hooks"  # they may change the input, and are owed dense activations
        return self._why_dense_here(step_input)

    def _why_dense_here(self, step_input: TrainStepInput) -> str | None:
        del step_input
        return None

    def _max_entries(self, x: Tensor, d_sae: int | None = None) -> int:
        share = MAX_DENSITY if x.device.type == "cpu" else MAX_DENSITY_ELSEWHERE
        return int(share * x.shape[0] * (self.cfg.d_sae if d_sae is None else d_sae))

    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.sparse_state.inside:
            return super().encode_with_hidden_pre(x)  # type: ignore[misc]
        self.sparse_state.inside = False  # whoever encodes next is not this step
        latents = self._sparse_encode(x, self._decoder_norm())
        if not bool(latents.pre.detach().isfinite().all()):
            raise NotSparseError("not finite")  # stock's step shows what comes of it
        self.sparse_state.current = latents
        acts, pre = map(latents.entries.to_coo, (latents.values, latents.pre))
        setattr(acts, _LATENTS, latents)
        setattr(pre, _LATENTS, latents)
        return acts, pre

    @torch.no_grad()
    def _decoder_norm(self) -> Tensor:
        """Row norms of W_dec, ``[d_sae]``, no gradient.

        Computed at every step, of a frozen decoder too: a cache cannot see edits through
        ``.data``, and one reading of W_dec is less than 1 % of a step.
        Stock multiplies latents that are not active by 0, which hides nothing that is not
        finite in their rows; the sparse step would.
        """
        norm = self.W_dec.norm(dim=-1)
        if not bool(norm.isfinite().all()):
            raise NotSparseError("not finite")
        return norm

    @abstractmethod
    def _sparse_encode(self, x: Tensor, norm: Tensor) -> ActiveLatents:
        """What is active on a batch ``[batch, d_in]``; ``norm`` are row norms of W_dec.

        Raises:
            NotSparseError: Stock's dense step must do this batch.
        """

    def decode(self, feature_acts: Tensor) -> Tensor:
        latents = self._latents_of(feature_acts)
        if latents is None:
            if active_latents(feature_acts) is not None:  # of an earlier step: norms have moved
                feature_acts = feature_acts.to_dense()
            return super().decode(feature_acts)
        sae_out_pre = self._sparse_product(latents.entries, unscaled(latents)) + self.b_dec
        sae_out_pre = self.hook_sae_recons(sae_out_pre)
        sae_out_pre = self.run_time_activation_norm_fn_out(sae_out_pre)
        return self.reshape_fn_out(sae_out_pre, self.d_head)

    def _latents_of(self, acts: Tensor) -> ActiveLatents | None:
        """The entries of ``acts`` if it comes from the step that is running."""
        latents = active_latents(acts)
        return latents if latents is self.sparse_state.current else None

    # -- for the bases

    @torch.no_grad()
    def _multiplied(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What stock multiplies, in the precision it does: ``x - b_dec`` and W_enc."""
        dtype = self._product_dtype()
        return self.process_sae_in(x).to(dtype), self.W_enc.detach().to(dtype)

    def _dtype_in_step(self) -> torch.dtype | None:
        """What stock's step computes in; None if it cannot, or mixes precisions.

        Not ``self.dtype``, which inputs are cast to: ``.double()`` leaves it as it was.
        """
        # JumpReLU's threshold is float32 in every SAE.
        dtypes = {weight.dtype for weight in (self.W_enc, self.W_dec, self.b_dec)}
        of_input = torch.promote_types(self.dtype, self.b_dec.dtype)
        return self.W_enc.dtype if dtypes == {of_input} else None

    def _product_dtype(self) -> torch.dtype:
        device = self.W_dec.device.type
        if torch.is_autocast_enabled(device) and self.W_dec.dtype != torch.float64:
            return torch.get_autocast_dtype(device)
        return self.W_dec.dtype

    def _dead_pre_activations(self, latents: ActiveLatents, dead: Tensor) -> Tensor:
        """Pre-activations (before decoder norms) of dead latents, ``[batch, dead]``."""
        W_enc = self.W_enc.index_select(1, dead)
        b_enc = self.b_enc.index_select(0, dead)
        if self.cfg.apply_b_dec_to_input:
            b_enc = b_enc + bias_through_encoder(self.b_dec, W_enc)
        return latents.x @ W_enc + b_enc

    def _trainable_product(self, found: Found, x: Tensor) -> Tensor:
        """``x @ W_enc`` at the entries, differentiable in W_enc and b_dec."""
        b_dec = self.b_dec if self.cfg.apply_b_dec_to_input else None
        return encoder_product(found.product, found.entries, x, self.W_enc, b_dec)

    def _sparse_product(self, entries: Entries, values: Tensor) -> Tensor:
        """``acts @ W_dec``, ``[batch, d_in]``."""
        return decoder_product(values, entries, self.W_dec, self._product_dtype())


def unscaled(latents: ActiveLatents) -> Tensor:
    """Activations as they multiply W_dec: stock divides by the norm it multiplied with."""
    if latents.norm is None:
        return latents.values
    return latents.values * (1 / latents.norm)[latents.entries.cols]


@contextmanager
def _inside(state: SparseStepState) -> Iterator[None]:
    state.inside = True
    try:
        yield
    finally:
        state.inside = False
        state.current = None
