"""What a panel reports about each exported member, on held-out activations."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from transformer_lens.hook_points import HookedRootModule

from sae_baselines.baselines import cosine_to_start, load_covariance
from sae_baselines.baselines.directions import InitScheme, start_directions
from sae_baselines.baselines.transcoder import PairStart
from sae_baselines.reconstruction import RunningVariance, d_out_of, reconstruction
from sae_baselines.study.held_out import HeldOut, model_device, special_tokens
from sae_baselines.study.language_model import n_vocab_of
from sae_baselines.study.spec import PanelSpec

# Members are compared at the same measured L0, within this (DESIGN: matched L0 or no verdict).
L0_TOLERANCE = 0.05
# Bytes of log-probabilities that are computed at a time.
_CACHED = 2**20
# Logits of a batch of contexts, at the most: with 262,144 words those of 16 contexts of 128
# tokens take 2 GB, and the model's own stand beside them.
_LOGITS = 2**27

# cos(row now, row at the start) of decoder rows and encoder columns, ``[d_sae]`` each.
Cosines = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Measurement:
    """One member on held-out activations.

    Attributes:
        explained_variance: 1 - E||x - x_hat||^2 / E||x - E[x]||^2 (the paper's EV).
        l0: Mean number of active latents of the exported SAE.
        l0_target: What the spec asked for.
        alive: Latents active at least once on the evaluation tokens.
        d_sae: Number of latents.
        cos_to_start_mean: Mean over latents of cos(decoder row, its start); None where the
            start is not in the same space (whitening), and for controls.
        cos_to_start_min: Least of these.
        encoder_cos_to_start_mean: The same for encoder columns.
        n_tokens: Evaluation activations.
        ev_median_token: See `reconstruction.Reconstruction`.
        error_in_few: Likewise.
    """

    explained_variance: float
    l0: float
    l0_target: float
    alive: int
    d_sae: int
    cos_to_start_mean: float | None
    cos_to_start_min: float | None
    encoder_cos_to_start_mean: float | None
    n_tokens: int
    ev_median_token: float
    error_in_few: float

    @property
    def l0_matches(self) -> bool:
        """Whether the measured L0 is within 5 % of the target."""
        return l0_matches(self.l0, self.l0_target)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "l0_matches": self.l0_matches}


@dataclass(frozen=True)
class TextMeasurement(Measurement):
    """With the reconstruction spliced into the language model; None where none was.

    Attributes:
        ce_loss_clean: Cross-entropy per token of the model as it is, nats.
        ce_loss_with_sae: With the reconstruction spliced in where the SAE was trained.
        ce_loss_zero: With zeros there.
        ce_recovered: (zero - with_sae) / (zero - clean).
    """

    ce_loss_clean: float | None
    ce_loss_with_sae: float | None
    ce_loss_zero: float | None
    ce_recovered: float | None


@dataclass(frozen=True)
class AffineNull:
    """What the affine map from input to output alone gives, which needs no latents: fitted by
    least squares to calibration activations, measured where transcoders are. Its names are
    those of floors (`evals.metrics.null_name`).

    Attributes:
        explained_variance_null_affine: Of the output.
        ce_recovered_null_affine: With the map's output spliced in; None where nothing was.
        kl_null_affine: Likewise.
    """

    explained_variance_null_affine: float
    ce_recovered_null_affine: float | None
    kl_null_affine: float | None


@dataclass(frozen=True)
class TranscoderMeasurement(TextMeasurement, AffineNull):
    """EV and losses are those of the output; ``..._recovered`` and KL say how well the model
    does with the whole layer replaced.

    Attributes:
        kl: KL divergence of next-token predictions from the model's own, per token, nats.
    """

    kl: float | None


def l0_matches(l0: float, target: float) -> bool:
    """Whether a measured L0 is near enough to its target to be compared."""
    return abs(l0 - target) <= L0_TOLERANCE * target


def cosine_facts(cosines: Cosines | None) -> dict[str, Any]:
    """The three numbers that are reported of `cosines_to_start`; None where it is unknown."""
    decoder, encoder = cosines or (None, None)
    return {
        "cos_to_start_mean": None if decoder is None else float(decoder.mean()),
        "cos_to_start_min": None if decoder is None else float(decoder.min()),
        "encoder_cos_to_start_mean": None if encoder is None else float(encoder.mean()),
    }


@dataclass(frozen=True)
class BaseLosses:
    """Cross-entropy without an SAE, computed once for all members."""

    clean: float
    zero: float

    def recovered(self, loss: float) -> float:
        """Share of what zeros lose that a loss has back."""
        return (self.zero - loss) / (self.zero - self.clean)


@torch.no_grad()
def splice_loss(
    model: HookedRootModule, spec: PanelSpec, tokens: torch.Tensor, replace: Any
) -> float:
    """Cross-entropy per token with activations replaced at the trained positions.

    Args:
        model: The language model.
        spec: Hook, slice and batch size.
        tokens: ``[contexts, context_size]``.
        replace: Maps ``[n, d_in]`` float32 activations to their replacement, where transcoders
            write ``[n, d_out]`` or one number; None for none.
    """
    total, count = 0.0, 0
    for batch, logits in _spliced(model, spec, tokens, replace):
        total += sum(_surprise(*each) for each in _log_probabilities(batch, logits))
        count += batch[:, 1:].numel()
    return total / count


@torch.no_grad()
def loss_and_divergence(
    model: HookedRootModule, spec: PanelSpec, tokens: torch.Tensor, replace: Any
) -> tuple[float, float]:
    """`splice_loss`, and the KL divergence per token, nats, of those predictions from the
    model's own, in one reading of the replaced model; arguments as of `splice_loss`."""
    loss, divergence, count = 0.0, 0.0, 0
    clean = _spliced(model, spec, tokens, None)
    for (batch, ours), (_, theirs) in zip(
        clean, _spliced(model, spec, tokens, replace), strict=True
    ):
        for following, p, q in _log_probabilities(batch, ours, theirs):
            loss += _surprise(following, q)
            divergence += float((p.exp() * (p - q)).sum(dtype=torch.float64))
        count += batch[:, 1:].numel()
    return loss / count, divergence / count


def _log_probabilities(
    batch: torch.Tensor, *logits: torch.Tensor
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Of some positions at a time: the tokens that follow, and their log-probabilities.

    So few that what is computed of a vocabulary stays in the processor's cache: memory that is
    taken anew for every step of it costs nine times as much as the arithmetic (262,144 words).
    """
    rows = max(1, _CACHED // (4 * logits[0].shape[-1]))
    for text, *of_text in zip(batch, *logits, strict=True):
        for start in range(0, len(text) - 1, rows):
            here = slice(start, min(start + rows, len(text) - 1))
            found = (each[here].float().log_softmax(-1) for each in of_text)
            yield text[here.start + 1 : here.stop + 1], *found


def _surprise(following: torch.Tensor, log_probabilities: torch.Tensor) -> float:
    """Summed cross-entropy of tokens, nats."""
    return -float(log_probabilities.gather(-1, following[:, None]).sum(dtype=torch.float64))


def _spliced(
    model: HookedRootModule, spec: PanelSpec, tokens: torch.Tensor, replace: Any
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of tokens, and the model's logits."""
    special = special_tokens(model, spec)
    trained = torch.zeros(tokens.shape, dtype=torch.bool)
    trained[:, slice(*spec.seqpos_slice)] = True
    if special is not None:
        trained &= ~torch.isin(tokens, special)
    at_once = _LOGITS // (tokens.shape[1] * (n_vocab_of(model) or 1))
    prompts = max(1, min(spec.store_batch_size_prompts, at_once))
    masks = iter(trained.split(prompts))
    for batch in tokens.split(prompts):
        batch = batch.to(model_device(model))
        mask = next(masks).to(batch.device)

        read: list[torch.Tensor] = []

        def look(
            acts: torch.Tensor,
            hook: Any,  # noqa: ARG001
            mask: torch.Tensor = mask,
            read: list[torch.Tensor] = read,
        ) -> None:
            read.append(acts[mask].flatten(1).float())

        def hook(
            acts: torch.Tensor,
            hook: Any,  # noqa: ARG001
            mask: torch.Tensor = mask,
            read: list[torch.Tensor] = read,
        ) -> torch.Tensor:
            kept = acts[mask]  # [n, ...]
            assert replace is not None
            new = replace(read.pop() if read else kept.flatten(1).float())
            out = acts.clone()
            out[mask] = (new.reshape(kept.shape) if new.ndim else new).to(acts)
            return out

        hooks: list[Any] = [] if replace is None else [(spec.hook_written, hook)]
        if hooks and spec.hook_written != spec.hook_name:
            hooks.insert(0, (spec.hook_name, look))
        yield batch, model.run_with_hooks(batch, return_type="logits", fwd_hooks=hooks)


def base_losses(
    model: HookedRootModule, spec: PanelSpec, held_out: HeldOut
) -> BaseLosses | None:
    """Losses of the model alone and with the hook zeroed; None if ``ce_tokens`` is 0."""
    if len(held_out.tokens) == 0:
        return None
    # A transcoder's zeros are as wide as its output.
    zeros = torch.zeros_like if spec.hook_name_out is None else lambda x: x.new_zeros(())
    return BaseLosses(
        splice_loss(model, spec, held_out.tokens, None),
        splice_loss(model, spec, held_out.tokens, zeros),
    )


@torch.no_grad()
def affine_null(
    model: HookedRootModule,
    spec: PanelSpec,
    held_out: HeldOut,
    d_in: int,
    losses: BaseLosses | None,
) -> AffineNull:
    """Fit and measure the affine map from input to output; arguments as of `measure_sae`."""
    start = PairStart.of(held_out.calibration, d_in)
    x, y = held_out.evaluation[:, :d_in], held_out.evaluation[:, d_in:]
    variance = RunningVariance(y.double().mean(dim=0))
    for part, target in zip(x.split(4096), y.split(4096), strict=True):
        variance.add(target, start.predict(part))
    recovered = kl = None
    if losses is not None:
        loss, kl = loss_and_divergence(model, spec, held_out.tokens, start.predict)
        recovered = losses.recovered(loss)
    return AffineNull(variance.explained_variance, recovered, kl)


def cosines_to_start(
    sae: SAE[Any], seed: int, scheme: InitScheme, covariance_path: Path | None
) -> Cosines:
    """cos(row now, row at the start) of decoder rows and of encoder columns.

    The start is drawn again from its seed; encoder and decoder of an SAE start in the same
    directions.

    Args:
        sae: Inference SAE, in the space it was trained in (whitening leaves it).
        seed: Seed of the initial directions.
        scheme: Their scheme.
        covariance_path: Their covariance, for ``cov``.

    Returns:
        Two float tensors ``[d_sae]``.
    """
    covariance = None
    if scheme == "cov":
        covariance = load_covariance(covariance_path=str(covariance_path))
    decoder, encoder = start_directions(
        sae.cfg.d_sae,
        sae.cfg.d_in,
        d_out_of(sae.cfg),
        seed=seed,
        scheme=scheme,
        covariance=covariance,
    )
    return cosine_to_start(sae.W_dec.data, decoder), cosine_to_start(sae.W_enc.data.T, encoder)


def measure_sae(
    sae: SAE[Any],
    spec: PanelSpec,
    l0_target: float,
    held_out: HeldOut,
    model: HookedRootModule,
    losses: BaseLosses | None,
    cosines: Cosines | None = None,
    affine: AffineNull | None = None,
) -> TextMeasurement:
    """Measure an inference SAE, or a transcoder.

    Args:
        sae: On the device to measure on; heads of hook_z come flattened from here on.
        spec: The study.
        l0_target: What its L0 is held against.
        held_out: Held-out activations and tokens.
        model: The language model, to splice into.
        losses: From `base_losses`.
        cosines: From `cosines_to_start`, where the start is known.
        affine: Of a transcoder: from `affine_null`.

    Returns:
        Of a transcoder a `TranscoderMeasurement`.
    """
    sae.turn_off_forward_pass_hook_z_reshaping()
    found = reconstruction(sae, held_out.evaluation)
    with_sae = kl = None

    def replace(x: torch.Tensor) -> torch.Tensor:
        return sae(x.to(sae.device))  # the model may be elsewhere

    if losses is not None and affine is None:
        with_sae = splice_loss(model, spec, held_out.tokens, replace)
    elif losses is not None:
        with_sae, kl = loss_and_divergence(model, spec, held_out.tokens, replace)
    measured = TextMeasurement(
        **asdict(found),
        l0_target=l0_target,
        d_sae=sae.cfg.d_sae,
        ce_loss_clean=None if losses is None else losses.clean,
        ce_loss_with_sae=with_sae,
        ce_loss_zero=None if losses is None else losses.zero,
        ce_recovered=None if with_sae is None or losses is None else losses.recovered(with_sae),
        n_tokens=held_out.evaluation.shape[0],
        **cosine_facts(cosines),
    )
    if affine is None:
        return measured
    return TranscoderMeasurement(**asdict(measured), **asdict(affine), kl=kl)
