"""The SAEs whose training steps are compared, their data and their trainers."""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer

from sae_baselines.baselines import SEEDED, baseline_name, directions, seeded_start
from sae_baselines.study.build import architecture_options
from sae_baselines.study.recipes import (
    DEFAULT_RECIPE,
    Scales,
    bandwidth_of,
    is_controlled,
    recipe_options,
)

BASES = ("standard", "topk", "batchtopk", "jumprelu", "gated", "matryoshka_batchtopk")
STOCK = "stock"
# A second, independent copy of stock: its ratio to the first is the noise of the machine.
STOCK_AGAIN = "stock_again"
# Bases without a number of latents to select: their start decides how sparse they are.
BY_THRESHOLD = ("jumprelu", "standard", "gated")
BASELINES = ("frozen_decoder", "soft_frozen_decoder", "frozen_encoder")
MEMBERS = (STOCK, STOCK_AGAIN, *BASELINES)
# The seeded SAE with its sparse step on: what a panel may train in stock's place.
SPARSE = "sparse"

# All members draw the same directions, and steps are measured, not construction, which would
# take most of the time at the CUDA shape.
_directions = functools.lru_cache(maxsize=1)(directions.start_directions)
seeded_start.start_directions = _directions

_LR = 2e-4
_NEVER = 10**9


@dataclass(frozen=True)
class Shape:
    """Sizes of a measurement, and how long it may take.

    Attributes:
        budget_s: Seconds of timed steps per base, unless few repeats already take longer.
    """

    name: str
    d_in: int
    d_sae: int
    batch: int
    k: int
    n_batches: int = 8
    budget_s: float = 50.0


SHAPES = {
    s.name: s
    for s in (
        Shape("quick", 16, 64, 32, 4, n_batches=2, budget_s=0.02),
        # Wide enough for a few latents per row to be few.
        Shape("quick_sparse", 16, 512, 32, 4, n_batches=2, budget_s=0.02),
        Shape("small", 256, 4096, 1024, 32, budget_s=40.0),
        Shape("medium", 768, 12_288, 1024, 32, n_batches=4),
        Shape("cuda", 2304, 73_728, 4096, 160, n_batches=4, budget_s=20.0),
    )
}


# Seconds of a block: shorter ones measure the clock and the scheduler. And its most steps: at a
# tiny shape a fast machine would train on, to another L0.
_BLOCK_S, _BLOCK_STEPS = 0.5, 8
_REPEATS = (5, 25)


def blocks(
    step_s: float, budget_s: float, stocks: int, repeats: int | None = None
) -> tuple[int, int]:
    """Steps in a timed block, and how often every member has its turn.

    Args:
        step_s: What a step of stock takes.
        budget_s: Seconds for all of it.
        stocks: How many steps of stock a step of every member takes about as long as.
        repeats: If that is given.
    """
    block = max(1, min(_BLOCK_STEPS, round(min(_BLOCK_S, budget_s) / step_s)))
    if repeats is None:
        fits = int(budget_s / (stocks * block * step_s))
        repeats = max(_REPEATS[0], min(_REPEATS[1], fits))
    return block, repeats


def activations(shape: Shape, device: str) -> list[torch.Tensor]:
    """A pool of batches: 64 Gaussians with a decaying spectrum, mean norm sqrt(d_in)."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    spectrum = torch.arange(1, shape.d_in + 1).float().rsqrt()
    axes = torch.linalg.qr(normal(shape.d_in, shape.d_in)).Q
    centres = normal(64, shape.d_in) * spectrum
    n = shape.n_batches * shape.batch
    which = torch.randint(64, (n,), generator=generator)
    x = (centres[which] + normal(n, shape.d_in) * spectrum) @ axes
    x *= math.sqrt(shape.d_in) / x.norm(dim=-1).mean()
    return list(x.to(device).split(shape.batch))


@torch.no_grad()
def jumprelu_threshold(shape: Shape, batches: list[torch.Tensor]) -> float:
    """The threshold at which every JumpReLU starts with an L0 of k over the pool."""
    x = torch.cat([batch[:256] for batch in batches])
    pre = x @ start_directions(shape).to(x.device).T
    return float(pre.flatten().topk(shape.k * x.shape[0]).values[-1])


def start_directions(shape: Shape) -> torch.Tensor:
    """The decoder rows that every twin starts from (its init_seed is 0)."""
    return _directions(shape.d_sae, shape.d_in, None, seed=0, scheme="iso", covariance=None)[0]


def sizes(shape: Shape) -> dict[str, int]:
    """A shape, for a record."""
    return {name: getattr(shape, name) for name in ("d_in", "d_sae", "batch", "k")}


def conditions(shape: Shape, device: str, *, autocast: bool) -> dict[str, Any]:
    """On what, where and in which precision steps are measured, for a record."""
    return {
        "shape": {"name": shape.name, **sizes(shape)},
        "device": device,
        "dtype": "float32",
        "autocast": "bfloat16" if autocast else None,
    }


class Stepper:
    """One SAE in SAELens' own trainer, stepped by hand.

    Args:
        base: Architecture name of the base.
        member: One of `MEMBERS`, or `SPARSE`.
        shape: Sizes.
        batches: From `activations`; every member sees them in the same order.
        threshold: Initial threshold of a JumpReLU. Standard and gated SAEs start with the
            negative of it in their biases, for the same L0.
        autocast: bfloat16 autocast, as SAELens' trainer does it.
        half_dead: Count every other latent as dead at every step, so that the dead-latent
            loss of the TopK family runs. Otherwise no latent ever counts as dead.
        rows_on_edge: Every row of a soft-frozen decoder starts on the edge of its cap.
        dense: Twins take the dense step, as they do by themselves where activations are.
    """

    def __init__(
        self,
        base: str,
        member: str,
        shape: Shape,
        batches: list[torch.Tensor],
        threshold: float,
        *,
        autocast: bool = False,
        half_dead: bool = False,
        rows_on_edge: bool = True,
        dense: bool = False,
    ) -> None:
        sae = _make_sae(base, member, shape, threshold, batches[0].device.type)
        if member == "soft_frozen_decoder" and rows_on_edge:
            put_rows_on_edge(sae)
        if dense and hasattr(sae.cfg, "sparse_step"):
            sae.cfg.sparse_step = False
        self._begin(sae, shape, batches, autocast, half_dead)

    @classmethod
    def of(
        cls, sae: Any, shape: Shape, batches: list[torch.Tensor], autocast: bool = False
    ) -> "Stepper":
        """Of an SAE that is there already."""
        stepper = cls.__new__(cls)
        stepper._begin(sae, shape, batches, autocast, half_dead=False)
        return stepper

    def _begin(
        self,
        sae: Any,
        shape: Shape,
        batches: list[torch.Tensor],
        autocast: bool,
        half_dead: bool,
    ) -> None:
        self.sae, self.half_dead = sae, half_dead
        device = batches[0].device.type
        config = SAETrainerConfig(
            total_training_samples=_NEVER,
            train_batch_size_samples=shape.batch,
            lr=_LR,
            lr_end=_LR,
            device=device,
            autocast=autocast,
            dead_feature_window=_NEVER,
            feature_sampling_window=_NEVER,
        )
        self.data: Iterator[torch.Tensor] = itertools.cycle(batches)
        self.trainer: SAETrainer[Any, Any] = SAETrainer(config, self.sae, self.data)
        self.output: TrainStepOutput | None = None

    def steps(self, n: int) -> None:
        """Train ``n`` steps. The last output stays alive, as in SAELens' training loop."""
        for _ in range(n):
            if self.half_dead:
                self.trainer.n_forward_passes_since_fired[::2] = math.inf
            self.output = self.trainer.step(next(self.data))
            self.trainer.n_training_steps += 1

    @property
    def l0(self) -> float:
        """Mean number of active latents in the last step."""
        assert self.output is not None
        acts = self.output.feature_acts
        return float(acts.bool().float().sum()) / acts.shape[0]


def base_options(
    base: str, shape: Shape, threshold: float, architecture: str | None = None
) -> dict[str, Any]:
    """Config fields that stock and twins share, and what else panels set of a twin's.

    Targets, penalties and the control of L0 are those of a panel's default recipe.

    Args:
        architecture: Registered name of the twin; None for stock's own.
    """
    known = {f.name for f in fields(get_sae_training_class(architecture or base)[1])}
    options = architecture_options(base, shape.k, shape.d_sae, known)
    if is_controlled(base):
        scales = Scales(shape.d_in, threshold)
        options |= recipe_options(base, DEFAULT_RECIPE, shape.k, scales, known)
    if base == "jumprelu":
        options["jumprelu_init_threshold"] = threshold
        options["jumprelu_bandwidth"] = (bandwidth_of(DEFAULT_RECIPE) or 0.0) * threshold
    return options


def options_record(base: str, shape: Shape, threshold: float) -> dict[str, Any]:
    """What a base's measurement was made with: fields of stock's config, and of a twin's."""
    twin = baseline_name(BASELINES[0], base)
    return {
        "options": base_options(base, shape, threshold),
        "twin_options": base_options(base, shape, threshold, twin),
    }


def _make_sae(base: str, member: str, shape: Shape, threshold: float, device: str) -> Any:
    is_stock = member in (STOCK, STOCK_AGAIN)
    constraint = SEEDED.name if member == SPARSE else member
    name = base if is_stock else baseline_name(constraint, base)
    sae_class, config_class = get_sae_training_class(name)
    config = config_class(
        **({"sparse_step": True} if member == SPARSE else {}),
        d_in=shape.d_in,
        d_sae=shape.d_sae,
        device=device,
        decoder_init_norm=1.0,
        **base_options(base, shape, threshold, name),
    )
    sae: Any = sae_class(config)
    if is_stock:
        # The twins' start, so that what depends on the data (topk, L0) is the same work.
        directions = start_directions(shape)
        sae.W_dec.data.copy_(directions)
        if hasattr(sae, "W_enc"):
            sae.W_enc.data.copy_(directions.T)
    for bias in {"standard": ["b_enc"], "gated": ["b_gate", "b_mag"]}.get(base, []):
        getattr(sae, bias).data.fill_(-threshold)
    return sae


@torch.no_grad()
def put_rows_on_edge(sae: Any) -> None:
    """Move the caps so that every row starts on the edge of its own.

    A fresh row is far inside its cap and needs no projection for a long time; late in a
    training run many rows press against the edge. This is the costly case.
    """
    rows, tau = sae.held_rows(), sae.cfg.tau
    generator = torch.Generator(rows.device).manual_seed(1)
    noise = torch.randn(rows.shape, generator=generator, device=rows.device)
    tangent = noise - (noise * rows).sum(1, keepdim=True) * rows
    tangent /= tangent.norm(dim=1, keepdim=True)
    start_of(sae).copy_(tau * rows + math.sqrt(1 - tau * tau) * tangent)


def start_of(sae: Any) -> torch.Tensor:
    """Rows ``[d_sae, d]`` around which the caps of a soft-frozen member are."""
    return getattr(sae, f"{sae.held}_start")
