"""The sparse step of each SAELens base: which entries matter, and the losses on them.

What SAELens computes on dense ``[batch, d_sae]`` matrices is computed here at entries; each
formula names the SAELens method it equals, and tests hold the two together. TopK-family
norms (``rescale_acts_by_decoder_norm``) scale activations before the selection and unscale
them in every decode, so the gradient that stock passes through them is zero up to rounding;
here they are constants.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    GatedTrainingSAE,
    JumpReLUTrainingSAE,
    MatryoshkaBatchTopKTrainingSAE,
    StandardTrainingSAE,
    TopKTrainingSAE,
)
from sae_lens.saes.sae import TrainingSAE, TrainStepInput
from torch import Tensor

from sae_baselines.compat.saes import JumpReLU, Step, act_times_W_dec, calculate_pre_act_loss
from sae_baselines.sparse.products import Entries, per_row, pick
from sae_baselines.sparse.select import (
    Found,
    NotSparseError,
    PreActivation,
    above,
    batch_top_k,
    top_k_per_row,
    top_of_dead,
)
from sae_baselines.sparse.step import ActiveLatents, SparseStepMixin, unscaled

# Ties at a batch-top-k's cut are left to stock's own operator on the dense matrix, up to
# this many values (1 GiB in float32); beyond, the first rows win.
_DENSE_TIES = 2**28
# The auxiliary loss is computed densely over dead latents only up to this many values.
_DENSE_DEAD = 2**26
# Under these SAELens' auxiliary losses compare normalised with unnormalised activations.
_UNNORMALISED_LOSS = ("layer_norm", "constant_norm_rescale")


class SparseTopKMixin(SparseStepMixin):
    """TopKTrainingSAE: k latents per row."""

    def _why_dense_here(self, step_input: TrainStepInput) -> str | None:
        x = step_input.sae_in
        if self.activation_fn.k * x.shape[0] > self._max_entries(x):
            return "dense"
        return super()._why_dense_here(step_input)

    def _sparse_encode(self, x: Tensor, norm: Tensor) -> ActiveLatents:
        scale = norm if self.cfg.rescale_acts_by_decoder_norm else None
        if scale is not None and not bool((scale > 0).all()):
            raise NotSparseError("not finite")  # stock divides by it
        x, W_enc = self._multiplied(x)
        with torch.no_grad():
            found = self._select(x, W_enc, scale)
        product = self._trainable_product(found, x)
        pre = PreActivation(self.b_enc, scale).at(product, found.entries.cols)
        # Only positive entries are found, where ReLU is the identity.
        return ActiveLatents(found.entries, pre, pre, x, scale)

    def _select(self, x: Tensor, W_enc: Tensor, norm: Tensor | None) -> Found:
        def choose(pre: Tensor) -> Tensor:
            # As SAELens' TopK does it, so that ties fall the same way.
            return torch.topk(pre, self.activation_fn.k, dim=-1, sorted=False).indices

        return top_k_per_row(x, W_enc, PreActivation(self.b_enc, norm), choose)

    def calculate_topk_aux_loss(
        self,
        sae_in: Tensor,
        sae_out: Tensor,
        hidden_pre: Tensor,
        dead_neuron_mask: Tensor | None,
    ) -> Tensor:
        """TopKTrainingSAE.calculate_topk_aux_loss on the problem restricted to dead latents."""
        latents = self._latents_of(hidden_pre)
        if (
            latents is None
            or dead_neuron_mask is None
            or not bool(dead_neuron_mask.any())
            or self.cfg.normalize_activations in _UNNORMALISED_LOSS  # stock refuses
        ):
            return super().calculate_topk_aux_loss(  # type: ignore[misc]
                sae_in, sae_out, hidden_pre, dead_neuron_mask
            )
        dead = dead_neuron_mask.nonzero().squeeze(1)
        n_dead, k_aux = dead.shape[0], sae_in.shape[-1] // 2  # stock's heuristic
        scale = min(n_dead / k_aux, 1.0)
        k = min(n_dead, k_aux)
        few = k * sae_in.shape[0] <= self._max_entries(sae_in, n_dead)
        if few or sae_in.shape[0] * n_dead > _DENSE_DEAD:
            acts = self._dead_activations(latents, dead, k)
            recons = self._sparse_product(acts.entries, unscaled(acts))
        else:
            recons = self._dense_dead_product(latents, dead, k)
        recons = self.reshape_fn_out(recons, self.d_head)
        error = (recons - (sae_in - sae_out).detach()).pow(2).sum(dim=-1).mean()
        return self.cfg.aux_loss_coefficient * scale * error

    def _dead_activations(self, latents: ActiveLatents, dead: Tensor, k: int) -> ActiveLatents:
        """The k largest pre-activations of dead latents per row, of either sign."""
        with torch.no_grad():
            W_enc = self.W_enc.index_select(1, dead).to(latents.x.dtype)
            norm = None if latents.norm is None else latents.norm.index_select(0, dead)
            found = top_k_per_row(
                latents.x,
                W_enc,
                PreActivation(self.b_enc.index_select(0, dead), norm),
                lambda pre: top_of_dead(pre, k, dead, self.cfg.d_sae),
                negative_too=True,
            )
        places = found.entries
        entries = Entries(places.rows, dead[places.cols], places.n_rows, self.cfg.d_sae)
        product = self._trainable_product(Found(entries, found.product), latents.x)
        pre = PreActivation(self.b_enc, latents.norm).at(product, entries.cols)
        return ActiveLatents(entries, pre, pre, latents.x, latents.norm)

    def _dense_dead_product(self, latents: ActiveLatents, dead: Tensor, k: int) -> Tensor:
        """The same times W_dec, where so few latents are dead that k of them are many."""
        pre = self._dead_pre_activations(latents, dead)
        W_dec = self.W_dec.index_select(0, dead)
        rescale = self.cfg.rescale_acts_by_decoder_norm
        if rescale:
            pre = pre * W_dec.norm(dim=-1)
        cols = top_of_dead(pre.detach(), k, dead, self.cfg.d_sae)
        acts = torch.zeros_like(pre).scatter(-1, cols, pre.gather(-1, cols))
        return act_times_W_dec(acts, W_dec, rescale)


class SparseBatchTopKMixin(SparseTopKMixin):
    """BatchTopKTrainingSAE: k latents per row on average over the batch."""

    def _select(self, x: Tensor, W_enc: Tensor, norm: Tensor | None) -> Found:
        state = self.sparse_state
        found, state.floor = batch_top_k(
            x,
            W_enc,
            self.b_enc,
            norm,
            int(self.activation_fn.k * x.shape[0]),
            state.floor,
            first_of_ties=x.shape[0] * self.cfg.d_sae > _DENSE_TIES,
        )
        return self._stock_choice(x, W_enc, norm) if found is None else found

    def _stock_choice(self, x: Tensor, W_enc: Tensor, norm: Tensor | None) -> Found:
        """Entries by stock's operator on the dense matrix: it decides between equals."""
        product = x @ W_enc
        acts = self.activation_fn(PreActivation(self.b_enc, norm)(product))
        keys = acts.flatten().nonzero().squeeze(1)
        entries = Entries.from_keys(keys, x.shape[0], self.cfg.d_sae)
        return Found(entries, product.flatten()[keys])

    def update_topk_threshold(self, acts_topk: Tensor) -> None:
        latents = self._latents_of(acts_topk)
        values = acts_topk if latents is None else latents.values
        super().update_topk_threshold(values)  # type: ignore[misc]


class SparseMatryoshkaMixin(SparseBatchTopKMixin):
    """MatryoshkaBatchTopKTrainingSAE: a reconstruction per prefix of the dictionary."""

    def _why_dense_here(self, step_input: TrainStepInput) -> str | None:
        mask = step_input.dead_neuron_mask
        if self.cfg.use_matryoshka_aux_loss and mask is not None and bool(mask.any()):
            return "matryoshka auxiliary loss"  # one problem per prefix: stock's
        return super()._why_dense_here(step_input)

    def _iterable_decode(
        self, feature_acts: Tensor, include_outer_loss: bool = False
    ) -> Iterator[tuple[int, Tensor]]:
        latents = self._latents_of(feature_acts)
        if latents is None:
            yield from super()._iterable_decode(feature_acts, include_outer_loss)  # type: ignore[misc]
            return
        widths = self.cfg.matryoshka_widths
        widths = widths if include_outer_loss else widths[:-1]
        if not widths:
            return
        # Each row becomes one row per prefix: its entries are sorted by latent already.
        found, n = latents.entries, len(widths)
        edges = torch.tensor(widths, device=found.cols.device)
        level = torch.bucketize(found.cols, edges, right=True)
        kept = level < n
        entries = Entries(
            (found.rows * n + level)[kept], found.cols[kept], found.n_rows * n, found.d_sae
        )
        parts = self._sparse_product(entries, unscaled(latents)[kept])
        wide = torch.promote_types(parts.dtype, self.b_dec.dtype)  # as stock adds them
        sums = parts.view(found.n_rows, n, -1).cumsum(dim=1, dtype=wide) + self.b_dec
        for i, width in enumerate(widths):
            yield width, self.run_time_activation_norm_fn_out(sums[:, i])


class _PenalisedMixin(SparseStepMixin):
    """Bases with a penalty instead of a k: entries above a bound, and losses on them."""

    # What, added to the product, must be positive.
    _gate = "b_enc"

    def _sparse_encode(self, x: Tensor, norm: Tensor) -> ActiveLatents:
        del norm
        x, W_enc = self._multiplied(x)
        with torch.no_grad():
            found = above(x, W_enc, self._lower_bound(x.dtype), self._max_entries(x))
        return self._activate(found.entries, self._trainable_product(found, x), x)

    def _lower_bound(self, dtype: torch.dtype) -> Tensor:
        """``[d_sae]``: below it a product in ``dtype`` has neither a value nor a gradient."""
        del dtype
        return -getattr(self, self._gate)

    @abstractmethod
    def _activate(self, entries: Entries, product: Tensor, x: Tensor) -> ActiveLatents:
        """Activations where the product ``[n]`` is above the bound."""

    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        """SAELens' losses of the base, at entries in a sparse step."""
        latents = self._latents_of(feature_acts)
        if latents is None:
            return super().calculate_aux_loss(  # type: ignore[misc,return-value]
                step_input, feature_acts, hidden_pre, sae_out
            )
        return self._losses(latents, step_input)

    @abstractmethod
    def _losses(self, latents: ActiveLatents, step_input: TrainStepInput) -> dict[str, Tensor]:
        """What the base's calculate_aux_loss returns."""


class SparseJumpReLUMixin(_PenalisedMixin):
    """JumpReLUTrainingSAE: entries above the threshold, or near it on either side.

    The straight-through estimators give a gradient within half a bandwidth of the threshold,
    also to latents just below it, which are inactive.
    """

    bandwidth: float
    threshold: Tensor

    def _above_threshold(self, of: Any, pre: Tensor, entries: Entries) -> Tensor:
        """JumpReLU or its step, at entries."""
        threshold = pick(self.threshold.to(pre.dtype), entries.cols)
        return of.apply(pre[None], threshold, self.bandwidth, self.cfg.jumprelu_ste_to_input)[0]

    def _lower_bound(self, dtype: torch.dtype) -> Tensor:
        dtype = torch.promote_types(dtype, self.b_enc.dtype)
        threshold, bias = self.threshold.to(dtype).double(), self.b_enc.double()
        # The sum with b_enc is rounded to dtype, the bound itself to float32 or finer.
        size = threshold.abs() + self.bandwidth
        wide = torch.promote_types(dtype, torch.float32)
        slack = torch.finfo(dtype).eps * size
        slack += 4 * torch.finfo(wide).eps * (size + bias.abs())
        return (threshold - 0.5 * self.bandwidth - bias - slack).to(wide)

    def _activate(self, entries: Entries, product: Tensor, x: Tensor) -> ActiveLatents:
        pre = PreActivation(self.b_enc).at(product, entries.cols)
        values = self._above_threshold(JumpReLU, pre, entries)
        return ActiveLatents(entries, values, pre, x)

    def _losses(self, latents: ActiveLatents, step_input: TrainStepInput) -> dict[str, Tensor]:
        losses = {"l0_loss": self._l0_loss(latents, step_input.coefficients["l0"])}
        if self.cfg.pre_act_loss_coefficient is not None:
            losses["pre_act_loss"] = self._pre_act_loss(latents, step_input)
        return losses

    def _l0_loss(self, latents: ActiveLatents, coefficient: float) -> Tensor:
        entries, pre = latents.entries, latents.pre
        if self.cfg.jumprelu_sparsity_loss_mode == "tanh":
            norm = pick(self.W_dec.norm(dim=1), entries.cols)
            per_entry = torch.tanh(self.cfg.jumprelu_tanh_scale * latents.values * norm)
            return (coefficient * per_row(entries, per_entry)).mean()
        l0 = per_row(entries, self._above_threshold(Step, pre, entries))
        if self.cfg.jumprelu_sparsity_loss_mode == "quadratic":
            target = self.cfg.target_l0
            return (coefficient * (2 / target * (l0 - target) ** 2)).mean()
        return (coefficient * l0).mean()

    def _pre_act_loss(self, latents: ActiveLatents, step_input: TrainStepInput) -> Tensor:
        mask = step_input.dead_neuron_mask
        if mask is None or not bool(mask.any()):
            return latents.pre.new_tensor(0.0)
        dead = mask.nonzero().squeeze(1)
        pre = self._dead_pre_activations(latents, dead)
        return calculate_pre_act_loss(
            self.cfg.pre_act_loss_coefficient,
            self.threshold.to(pre.dtype).index_select(0, dead),
            pre,
            torch.ones_like(dead, dtype=torch.bool),
            self.W_dec.index_select(0, dead).norm(dim=1),
        )


class SparseStandardMixin(_PenalisedMixin):
    """StandardTrainingSAE: ReLU and an L1 penalty."""

    def _why_dense_here(self, step_input: TrainStepInput) -> str | None:
        if self.cfg.lp_norm != 1:
            return "lp_norm"
        return super()._why_dense_here(step_input)

    def _activate(self, entries: Entries, product: Tensor, x: Tensor) -> ActiveLatents:
        pre = PreActivation(self.b_enc).at(product, entries.cols)
        return ActiveLatents(entries, self.activation_fn(pre), pre, x)

    def _losses(self, latents: ActiveLatents, step_input: TrainStepInput) -> dict[str, Tensor]:
        norm = pick(self.W_dec.norm(dim=1), latents.entries.cols)
        sparsity = per_row(latents.entries, (latents.values * norm).abs())
        return {"l1_loss": (step_input.coefficients["l1"] * sparsity).mean()}


@dataclass(frozen=True, eq=False, kw_only=True)
class GatedLatents(ActiveLatents):
    """Also the pre-activations of the gate, ``[n]``."""

    gate: Tensor


class SparseGatedMixin(_PenalisedMixin):
    """GatedTrainingSAE: entries whose gate is open.

    Stock multiplies with W_enc three times: for the gate, for the magnitude (with columns
    scaled by exp(r_mag)) and again for the auxiliary loss. One product serves all three.
    """

    _gate = "b_gate"
    b_gate: Tensor
    r_mag: Tensor
    b_mag: Tensor

    def _why_dense_here(self, step_input: TrainStepInput) -> str | None:
        if self.cfg.normalize_activations in _UNNORMALISED_LOSS:
            return "normalize_activations"
        return super()._why_dense_here(step_input)

    def _activate(self, entries: Entries, product: Tensor, x: Tensor) -> ActiveLatents:
        gate = product + pick(self.b_gate, entries.cols)
        gain = pick(self.r_mag.exp(), entries.cols)
        pre = product * gain + pick(self.b_mag, entries.cols)
        values = (gate > 0).to(self.dtype) * self.activation_fn(pre)
        return GatedLatents(entries, values, pre, x, gate=gate)

    def _gate_values(self, gate: Tensor) -> Tensor:
        """What stock's penalty and auxiliary reconstruction read."""
        return torch.relu(gate)

    def _losses(self, latents: Any, step_input: TrainStepInput) -> dict[str, Tensor]:
        entries, gate = latents.entries, self._gate_values(latents.gate)
        norm = pick(self.W_dec.norm(dim=1), entries.cols)
        l1 = step_input.coefficients["l1"] * per_row(entries, gate * norm).mean()
        via_gate = self._sparse_product(entries, gate) + self.b_dec
        recon = (via_gate - step_input.sae_in).pow(2).sum(dim=-1).mean()
        return {"l1_loss": l1, "auxiliary_reconstruction_loss": recon}


SPARSE_STEPS: dict[type[TrainingSAE[Any]], type[SparseStepMixin]] = {
    TopKTrainingSAE: SparseTopKMixin,
    BatchTopKTrainingSAE: SparseBatchTopKMixin,
    MatryoshkaBatchTopKTrainingSAE: SparseMatryoshkaMixin,
    JumpReLUTrainingSAE: SparseJumpReLUMixin,
    StandardTrainingSAE: SparseStandardMixin,
    GatedTrainingSAE: SparseGatedMixin,
}
