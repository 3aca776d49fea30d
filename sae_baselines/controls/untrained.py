"""SAEs with random directions, at a given L0 (paper, Appendix G)."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.saes.gated_sae import GatedSAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from sae_lens.saes.standard_sae import StandardSAE
from sae_lens.saes.topk_sae import TopKSAE

from sae_baselines.baselines import covariance_of, sample_directions
from sae_baselines.controls.kinds import ControlKind, generator_of, register_control
from sae_baselines.controls.latents import (
    chunks,
    cut_above,
    flat_copy,
    measured_l0,
    wanted_active,
)
from sae_baselines.controls.source import rebuilt
from sae_baselines.errors import UserError

Scheme = Literal["iso", "cov", "kaiming"]

_KNOWN = (JumpReLUSAE, TopKSAE, StandardSAE, GatedSAE)
# Everything in front of the nonlinearity: scaling these scales the latents.
_ENCODER_SIDE = ("W_enc", "b_enc", "b_gate", "b_mag", "threshold")


@dataclass(frozen=True)
class Calibrated:
    """What was set from activations.

    Attributes:
        l0: Mean number of active latents on them, as made.
        target_l0: What was asked for.
        scale: The factor on the reconstruction.
        n_activations: How many there were.
    """

    l0: float
    target_l0: float
    scale: float
    n_activations: int


@torch.no_grad()
def untrained(
    sae: SAE[Any], scheme: Scheme, seed: int, activations: torch.Tensor, l0: float
) -> tuple[SAE[Any], Calibrated]:
    """An SAE of the same shape and architecture with nothing learned but a few numbers.

    The encoder is the decoder transposed, as SAELens initialises and as trained panel members
    start: a latent writes what it reads, the most that can be had without training (with the
    pairing broken a reconstruction would be noise and the null a straw man). For the same
    reason it gets what needs no gradient: b_dec is the mean activation; one threshold (TopK: k;
    ReLU and gated: one number on all biases) sets L0; and one factor on the reconstruction,
    the least-squares one, because the sum of many random directions that point towards the
    input overshoots it several times, which is a matter of units.

    Weights are float32: in bfloat16 pre-activations tie, and no threshold gives the L0.

    Args:
        sae: Stock inference SAE on the CPU: shape and settings.
        scheme: ``iso``: uniform on the sphere; ``cov``: covariance of the activations; both as
            a panel's start with this seed. ``kaiming``: SAELens' untrained weights, uniform in
            a cube.
        seed: Seed (>= 0).
        activations: ``[n, d_in]``, raw.
        l0: Target mean number of active latents.

    Raises:
        UserError: An architecture with another way to be sparse; no spread in the activations.
    """
    check_sparsity(type(sae))
    settings: dict[str, Any] = {"dtype": "float32"}
    if isinstance(sae, TopKSAE):
        settings["k"] = max(1, round(l0))
    weights = {k: torch.zeros_like(v, dtype=torch.float32) for k, v in sae.state_dict().items()}
    new = rebuilt(sae, weights, **settings)
    work = flat_copy(new)  # on the same weights
    seen = torch.cat([work.process_sae_in(x) for x in chunks(work, activations)])
    mean = seen.double().mean(dim=0)
    _set_directions(new, _rows(scheme, seed, new, seen), mean.float())
    del seen
    _set_l0(work, activations, l0)
    scale = _best_scale(work, activations)
    for name, weight in new.named_parameters():
        if name in _ENCODER_SIDE:
            weight.mul_(scale)
    # Again, as scaling rounds: now the threshold is exact for the weights that are saved.
    _set_l0(work, activations, l0)
    return new, Calibrated(measured_l0(new, activations), l0, scale, len(activations))


def check_sparsity(sae_class: type[SAE[Any]]) -> None:
    """Raises `UserError` for a class whose L0 is set in a way that is not known here."""
    if not issubclass(sae_class, _KNOWN):
        names = ", ".join(cls.__name__ for cls in _KNOWN)
        raise UserError(
            f"source: a random control needs to know how a {sae_class.__name__} is sparse; it "
            f"knows {names} and their subclasses"
        )


def _rows(scheme: Scheme, seed: int, sae: SAE[Any], seen: torch.Tensor) -> torch.Tensor:
    """``[d_sae, d_in]``; their norms count."""
    d_sae, d_in = sae.cfg.d_sae, sae.cfg.d_in
    if scheme == "kaiming":
        # torch's kaiming_uniform_ of [d_sae, d_in], but of this seed alone.
        bound = (6 / d_in) ** 0.5
        draw = generator_of("random:kaiming", seed).uniform(-bound, bound, (d_sae, d_in))
        return torch.from_numpy(draw.astype(np.float32))
    try:
        covariance = covariance_of(seen) if scheme == "cov" else None
        return sample_directions(d_sae, d_in, seed=seed, scheme=scheme, covariance=covariance)
    except ValueError as error:
        raise UserError(f"activations: {error}") from error


def _set_directions(sae: SAE[Any], rows: torch.Tensor, mean: torch.Tensor) -> None:
    """Unit decoder rows, norms folded into the encoder, inputs read around their mean."""
    norms = rows.norm(dim=1, keepdim=True)
    sae.W_dec.copy_(rows / norms)
    sae.W_enc.copy_((rows * norms).T)
    sae.b_dec.copy_(mean)
    if not sae.cfg.apply_b_dec_to_input:
        shift = mean @ sae.W_enc
        for name in ("b_enc", "b_gate", "b_mag"):
            bias = getattr(sae, name, None)
            if bias is not None:
                bias.sub_(shift)


def _set_l0(sae: Any, activations: torch.Tensor, l0: float) -> None:
    wanted = wanted_active(activations, l0)
    if isinstance(sae, TopKSAE):
        return
    score = _gate_of_active if isinstance(sae, GatedSAE) else _pre_activations
    cut = cut_above(sae, activations, wanted, score)
    if isinstance(sae, JumpReLUSAE):
        sae.threshold.fill_(float(cut.clamp(min=0)))
    elif isinstance(sae, StandardSAE):
        sae.b_enc.sub_(cut)
    elif torch.isfinite(cut):  # else not that many latents have a magnitude at all
        sae.b_gate.sub_(cut)


def _pre_activations(sae: Any, x: torch.Tensor) -> torch.Tensor:
    return sae.process_sae_in(x) @ sae.W_enc + sae.b_enc


def _gate_of_active(sae: Any, x: torch.Tensor) -> torch.Tensor:
    z = sae.process_sae_in(x)
    gate = z @ sae.W_enc + sae.b_gate
    magnitude = z @ (sae.W_enc * sae.r_mag.exp()) + sae.b_mag
    return torch.where(magnitude > 0, gate, -torch.inf)


def _best_scale(sae: Any, activations: torch.Tensor) -> float:
    """Least-squares factor on the reconstruction around b_dec, in the space of activations."""
    along = size = 0.0
    for x in chunks(sae, activations):
        acts = sae.encode(x)
        with_latents = sae.decode(acts)
        sae.process_sae_in(x)  # decoding used up what normalisation remembers of its input
        without = sae.decode(torch.zeros_like(acts))
        part = (with_latents - without).double()
        along += float((part * (x - without).double()).sum())
        size += float(part.pow(2).sum())
    if not (size > 0 and along > 0):
        raise UserError(
            "activations: random directions reconstruct nothing of them; are they all alike?"
        )
    return along / size


def _random(
    sae: SAE[Any], seed: int, scheme: str, activations: torch.Tensor | None, l0: float | None
) -> tuple[SAE[Any], dict[str, Any]]:
    if activations is None:
        raise UserError(
            "activations: random needs some, for the mean, the L0 and the scale; give a [n, "
            "d_in] tensor of the hook's"
        )
    target = measured_l0(sae, activations) if l0 is None else l0
    d_sae = sae.cfg.d_sae
    if not 0 < target < d_sae:
        what = "the source's on these activations" if l0 is None else "the target"
        raise UserError(
            f"l0: {target:g}, {what}, is not between 0 and d_sae={d_sae}; give another"
        )
    made, calibrated = untrained(sae, cast(Scheme, scheme), seed, activations, target)
    return made, {"scheme": scheme, "calibration": asdict(calibrated)}


register_control(
    ControlKind(
        "random",
        what="random directions, read and written alike, with the source's shape and L0, "
        "the mean of the activations and one best scale",
        null_for="training as such: what the architecture scores with nothing learned but "
        "a mean, a threshold and a scale",
        build=_random,
        untrained=True,
        schemes=get_args(Scheme),
        check=check_sparsity,
    )
)
