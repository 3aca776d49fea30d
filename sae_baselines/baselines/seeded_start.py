"""Initial weights that are a function of a seed in the config.

Every baseline, constrained or not, starts with unit-norm random decoder rows and the encoder
equal to the decoder transposed (of a transcoder: an independent draw). Which rows is decided
by ``init_seed`` and ``init_scheme`` alone, so that all members of a panel start from the same
point.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from sae_lens.saes.sae import SAEMetadata, TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_baselines.baselines.directions import (
    INIT_SCHEMES,
    InitScheme,
    load_covariance,
    start_directions,
)
from sae_baselines.compat.saes import ConfigMixin, LoadingMixin, has_own, is_sharded
from sae_baselines.errors import UserError
from sae_baselines.reconstruction import d_out_of

# How checkpoints name what is known of a start that is pending.
_PENDING_PREFIX = "init_pending_"
_PENDING_STATE = f"{_PENDING_PREFIX}bytes"


@dataclass(kw_only=True)
class SeededStartConfig(ConfigMixin):
    """Config fields of every baseline.

    Args:
        init_seed: Seed of the initial directions (>= 0).
        init_scheme: ``iso`` (uniform on the sphere) or ``cov`` (covariance of real
            activations; paper, Appendix E).
        init_activations_path: For ``cov``: a file of activations (see `load_covariance`).
        init_covariance_path: For ``cov``: a file with the covariance.
        init_cov_samples: For ``cov`` without a file: how many of the run's own first
            activations to estimate the covariance from; default 4 * d_in. Nothing is
            trained until they are seen; the batch that completes them is trained on. Weights
            that are loaded meanwhile are the start; exporting meanwhile is refused. Ranks of
            torch.distributed count and estimate together, and start from the same rows.
        decoder_init_norm: Must be 1.0. A frozen decoder cannot grow, so SAELens' default of
            0.1 would handicap it; every baseline has the same unit-norm start.
        encoder_init_scale: Encoder columns start as this times their decoder rows (> 0). At
            1 the first reconstructions are longer than the activations once several latents
            are active: each active row is counted in full, and random rows overlap.
    """

    init_seed: int = 0
    init_scheme: InitScheme = "iso"
    init_activations_path: str | None = None
    init_covariance_path: str | None = None
    init_cov_samples: int | None = None
    decoder_init_norm: float | None = 1.0
    encoder_init_scale: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.metadata, dict):  # SAEConfig.from_dict hands on what is stored
            self.metadata = SAEMetadata(**self.metadata)
        super().__post_init__()
        _validate_start(self)

    def get_training_architecture_details(self) -> dict[str, Any]:
        """SAELens' details; files by name only, as a path says nothing on another machine."""
        details = super().get_training_architecture_details()
        for field in ("init_activations_path", "init_covariance_path"):
            if details.get(field):
                details[field] = str(details[field]).replace("\\", "/").rsplit("/", 1)[-1]
        return details


class SeededStartMixin(LoadingMixin):
    """Sets W_dec and W_enc to the seeded start, at construction or from the first batches."""

    cfg: Any  # SeededStartConfig, and what a constraint adds
    _pending: "_PendingCovariance | None" = None
    _more_state = _PENDING_PREFIX

    def initialize_weights(self) -> None:
        super().initialize_weights()
        if self.device.type == "meta":
            return  # SAELens is about to load weights into this object
        cfg = self.cfg
        covariance = None
        if cfg.init_scheme == "cov":
            if cfg.init_activations_path or cfg.init_covariance_path:
                covariance = load_covariance(
                    activations_path=cfg.init_activations_path,
                    covariance_path=cfg.init_covariance_path,
                )
            else:
                # Provisional rows until the run has shown enough activations.
                wanted = cfg.init_cov_samples or 4 * self._width
                self._pending = _PendingCovariance.of_nothing(self._width, wanted)
        try:
            directions = self._draw(covariance)
        except ValueError as error:
            if covariance is None:
                raise
            field = (
                "init_activations_path" if cfg.init_activations_path else "init_covariance_path"
            )
            raise ValueError(f"{field}: {error}") from error
        self.set_start_directions(*directions)

    @property
    def _d_out(self) -> int | None:
        """Of a transcoder, whose batches are inputs and outputs side by side."""
        return d_out_of(self.cfg)

    @property
    def _width(self) -> int:
        """Of a batch."""
        return self.cfg.d_in + (self._d_out or 0)

    def _draw(self, covariance: Tensor | None) -> tuple[Tensor, Tensor]:
        return start_directions(
            self.cfg.d_sae,
            self.cfg.d_in,
            self._d_out,
            seed=self.cfg.init_seed,
            scheme="iso" if covariance is None else "cov",
            covariance=covariance,
        )

    @torch.no_grad()
    def set_start_directions(self, directions: Tensor, encoder: Tensor | None = None) -> None:
        """Start from these rows: W_dec = directions, W_enc = the encoder's scaled transpose, in
        place.

        Args:
            directions: Shape ``[d_sae, d_in]``; of a transcoder ``[d_sae, d_out]``.
            encoder: ``[d_sae, d_in]``; a transcoder needs it. Otherwise the directions.
        """
        self.W_dec.data.copy_(directions)
        if has_own(self, "W_enc"):
            rows = self.W_dec.data if self._d_out is None or encoder is None else encoder
            self.W_enc.data.copy_(self.cfg.encoder_init_scale * rows.T)

    @torch.no_grad()
    def set_start_b_dec(self, b_dec: Tensor) -> None:
        """Start b_dec from here, ``[d_in]``, in place."""
        self.b_dec.data.copy_(b_dec)

    @property
    def start_is_pending(self) -> bool:
        """Whether ``cov`` directions still wait for activations of the run."""
        return self._pending is not None

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        if self._pending is not None and not self._absorb(step_input.sae_in):
            return self._idle_step(step_input)
        return super().training_forward_pass(step_input)

    @torch.no_grad()
    def _absorb(self, sae_in: Tensor) -> bool:
        """Add a batch to the covariance; True once the start is settled."""
        assert self._pending is not None
        if is_sharded(self):
            raise UserError(
                "init_scheme: 'cov' cannot wait for activations under FSDP2, which would lose "
                "the rows that are set in a step; give a file as init_covariance_path"
            )
        # What the SAE's encoder will see: layer_norm happens inside the SAE.
        self._pending.add(self.run_time_activation_norm_fn_in(sae_in.float()))
        if not self._pending.complete:
            return False
        directions = self._draw(self._pending.covariance())
        if _ranks() > 1:  # which need not be of one kind
            decoder, encoder = directions
            directions = _of_first_rank(decoder), _of_first_rank(encoder)
        self.set_start_directions(*directions)
        self._pending = None
        return True

    def _idle_step(self, step_input: TrainStepInput) -> TrainStepOutput:
        """A step that trains nothing: no parameter gets a gradient, so optimisers skip it."""
        x = step_input.sae_in
        nothing = x.new_zeros((), dtype=torch.float32).requires_grad_()
        acts = x.new_zeros((x.shape[0], self.cfg.d_sae))
        return TrainStepOutput(
            sae_in=x,
            sae_out=torch.zeros_like(x),
            feature_acts=acts,
            hidden_pre=acts,
            loss=nothing,
            losses={"mse_loss": nothing.detach()},
        )

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)
        if self._pending is not None:
            state_dict[_PENDING_STATE] = self._pending.state()

    @torch.no_grad()
    def loaded(self, names: set[str], more: dict[str, Tensor]) -> None:
        super().loaded(names, more)
        directions = names & {"W_dec", "W_enc"}
        if more:
            self._pending = _PendingCovariance.from_state(more, self._width)
        elif self._pending is not None and directions and not self._is_provisional():
            # What was loaded is the start, and what is still provisional goes along.
            self._pending = None
            if self._d_out is not None:
                return  # neither side says anything of the other
            if "W_dec" not in names:
                self.W_dec.data.copy_(torch.nn.functional.normalize(self.W_enc.T, dim=1))
            elif "W_enc" not in names and has_own(self, "W_enc"):
                rows = torch.nn.functional.normalize(self.W_dec, dim=1)
                self.W_enc.data.copy_(self.cfg.encoder_init_scale * rows.T)

    def _is_provisional(self) -> bool:
        """Whether the rows are those that ``cov`` ones will replace."""
        rows, encoder = (rows.to(self.W_dec) for rows in self._draw(None))
        encoder = self.cfg.encoder_init_scale * encoder.T
        kept = not has_own(self, "W_enc") or torch.equal(self.W_enc, encoder)
        return kept and torch.equal(self.W_dec, rows)

    def _refuse_pending(self, what: str) -> None:
        if self._pending is not None:
            raise UserError(
                f"init_scheme: the 'cov' start waits for activations ({self._pending.count} of "
                f"{self._pending.wanted}), so there are no weights to {what} yet; train on, or "
                "set a smaller init_cov_samples or an init_covariance_path"
            )

    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        self._refuse_pending("export")
        super().process_state_dict_for_saving_inference(state_dict)

    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        self._refuse_pending("fold a scale into")
        super().fold_activation_norm_scaling_factor(scaling_factor)

    @override
    def fold_W_dec_norm(self) -> None:
        self._refuse_pending("fold norms of")
        super().fold_W_dec_norm()

    @override
    def fold_and_get_W_dec_norm(self) -> Tensor:
        self._refuse_pending("fold norms of")
        return super().fold_and_get_W_dec_norm()


@dataclass
class _PendingCovariance:
    """Covariance of a stream, accumulated in float64 around the first batch's mean."""

    wanted: int
    count: int
    shift: Tensor
    total: Tensor
    outer: Tensor

    @classmethod
    def of_nothing(cls, d_in: int, wanted: int) -> "_PendingCovariance":
        shapes = (d_in,), (d_in,), (d_in, d_in)
        return cls(wanted, 0, *(torch.zeros(s, dtype=torch.float64) for s in shapes))

    def add(self, batch: Tensor) -> None:
        x = batch.reshape(-1, batch.shape[-1]).to("cpu", torch.float64)
        n = _sum_over_ranks(torch.tensor(x.shape[0], dtype=torch.float64))
        if self.count == 0:
            self.shift = _sum_over_ranks(x.sum(dim=0)) / n
        x = x - self.shift
        total, outer = _sum_over_ranks(x.sum(dim=0)), _sum_over_ranks(x.T @ x)
        # Looked at where every rank sees it: one that stopped alone would leave others waiting.
        if not torch.isfinite(total).all():
            raise ValueError(
                "activations: contain NaN or infinity; init_scheme='cov' cannot use them"
            )
        self.count += int(n)
        self.total += total
        self.outer += outer

    @property
    def complete(self) -> bool:
        return self.count >= self.wanted

    def covariance(self) -> Tensor:
        mean = self.total / self.count
        return (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)

    def state(self) -> Tensor:
        """As bytes: loaders cast everything to the SAE's dtype, which holds bytes at least."""
        counts = torch.tensor([self.count, self.wanted], dtype=torch.float64)
        sums = [counts, self.shift, self.total, self.outer.flatten()]
        return torch.cat(sums).view(torch.uint8)

    @classmethod
    def from_state(cls, more: dict[str, Tensor], d_in: int) -> "_PendingCovariance":
        if set(more) != {_PENDING_STATE}:
            raise UserError(
                f"{min(more)}: this checkpoint was taken by an older version of sae_baselines "
                "before its 'cov' start was settled; train again from the beginning"
            )
        numbers = more[_PENDING_STATE].to("cpu", torch.uint8).contiguous().view(torch.float64)
        counts, shift, total, outer = numbers.clone().split([2, d_in, d_in, d_in * d_in])
        return cls(int(counts[1]), int(counts[0]), shift, total, outer.view(d_in, d_in))


def _ranks() -> int:
    """How many processes train together."""
    together = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if together else 1


def _on_ranks(tensor: Tensor, collective: Any) -> Tensor:
    """What an in-place collective makes of a CPU tensor; NCCL has none for the CPU."""
    on = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    shared = tensor.to(on)
    collective(shared)
    return shared.cpu()


def _of_first_rank(tensor: Tensor) -> Tensor:
    return _on_ranks(tensor, lambda t: dist.broadcast(t, src=0))


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    return tensor if _ranks() == 1 else _on_ranks(tensor, dist.all_reduce)


def _validate_start(cfg: SeededStartConfig) -> None:
    if cfg.init_scheme not in INIT_SCHEMES:
        raise ValueError(
            f"init_scheme: {cfg.init_scheme!r} is not a scheme; use {' or '.join(INIT_SCHEMES)}"
        )
    if isinstance(cfg.init_seed, bool) or not isinstance(cfg.init_seed, int):
        raise ValueError(f"init_seed: {cfg.init_seed!r} is not an integer")
    if cfg.init_seed < 0:
        raise ValueError(f"init_seed: {cfg.init_seed} is negative; use a seed >= 0")
    norm = cfg.decoder_init_norm
    if norm is None or not math.isclose(norm, 1.0):
        raise ValueError(
            f"decoder_init_norm: {norm} is not supported by sae_baselines; use 1.0. A frozen "
            "decoder keeps the norm it starts with, so every twin starts on the unit sphere"
        )
    scale = cfg.encoder_init_scale
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"encoder_init_scale: {scale} is not a positive number; use e.g. 1.0")
    files = [cfg.init_activations_path, cfg.init_covariance_path]
    if cfg.init_scheme == "iso":
        unused = [*files, cfg.init_cov_samples]
        if any(value is not None for value in unused):
            raise ValueError(
                "init_activations_path, init_covariance_path and init_cov_samples belong to "
                "init_scheme='cov', but init_scheme is 'iso'"
            )
        return
    if all(files):
        raise ValueError(
            "init_activations_path and init_covariance_path are both set; keep one"
        )
    if cfg.init_cov_samples is not None and (any(files) or cfg.init_cov_samples < 2):
        raise ValueError(
            f"init_cov_samples: {cfg.init_cov_samples}; it must be >= 2 and goes without a file"
        )
    if cfg.normalize_activations == "covariance_whitening":
        raise ValueError(
            "init_scheme: 'cov' has no meaning under "
            "normalize_activations='covariance_whitening': whitened activations have identity "
            "covariance, so the directions would be 'iso'; use init_scheme='iso'"
        )
