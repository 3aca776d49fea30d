"""What a panel reports about each exported member, on held-out activations."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME
from tqdm.auto import tqdm
from transformer_lens.hook_points import HookedRootModule

from sae_baselines.baselines import cosine_to_start, load_covariance, sample_directions
from sae_baselines.baselines.directions import InitScheme
from sae_baselines.files import write_atomically
from sae_baselines.reconstruction import explained_variance
from sae_baselines.study.build import Start
from sae_baselines.study.folder import MEASUREMENT_FILE, PROVENANCE_FILE
from sae_baselines.study.held_out import HeldOut, model_device, special_tokens
from sae_baselines.study.plan import MemberKey
from sae_baselines.study.spec import MemberSpec, PanelSpec

# Members are compared at the same measured L0, within this (DESIGN: matched L0 or no verdict).
L0_TOLERANCE = 0.05


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
        ce_loss_clean: Cross-entropy per token of the model as it is, nats.
        ce_loss_with_sae: With the reconstruction spliced in where the SAE was trained.
        ce_loss_zero: With zeros there.
        ce_recovered: (zero - with_sae) / (zero - clean).
        n_tokens: Evaluation tokens.
    """

    explained_variance: float
    l0: float
    l0_target: float
    alive: int
    d_sae: int
    cos_to_start_mean: float | None
    cos_to_start_min: float | None
    encoder_cos_to_start_mean: float | None
    ce_loss_clean: float | None
    ce_loss_with_sae: float | None
    ce_loss_zero: float | None
    ce_recovered: float | None
    n_tokens: int

    @property
    def l0_matches(self) -> bool:
        """Whether the measured L0 is within 5 % of the target."""
        return abs(self.l0 - self.l0_target) <= L0_TOLERANCE * self.l0_target

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "l0_matches": self.l0_matches}


@dataclass(frozen=True)
class BaseLosses:
    """Cross-entropy without an SAE, computed once for all members."""

    clean: float
    zero: float


@torch.no_grad()
def splice_loss(
    model: HookedRootModule, spec: PanelSpec, tokens: torch.Tensor, replace: Any
) -> float:
    """Cross-entropy per token with activations replaced at the trained positions.

    Args:
        model: The language model.
        spec: Hook, slice and batch size.
        tokens: ``[contexts, context_size]``.
        replace: Maps ``[n, d_in]`` float32 activations to their replacement; None for none.
    """
    special = special_tokens(model, spec)
    trained = torch.zeros(tokens.shape, dtype=torch.bool)
    trained[:, slice(*spec.seqpos_slice)] = True
    if special is not None:
        trained &= ~torch.isin(tokens, special)
    total, count = 0.0, 0
    masks = iter(trained.split(spec.store_batch_size_prompts))
    for batch in tokens.split(spec.store_batch_size_prompts):
        batch = batch.to(model_device(model))
        mask = next(masks).to(batch.device)

        def hook(
            acts: torch.Tensor,
            hook: Any,  # noqa: ARG001
            mask: torch.Tensor = mask,
        ) -> torch.Tensor:
            kept = acts[mask]  # [n, ...]
            assert replace is not None
            new = replace(kept.flatten(1).float()).reshape(kept.shape)
            out = acts.clone()
            out[mask] = new.to(acts.dtype)
            return out

        hooks: list[Any] = [] if replace is None else [(spec.hook_name, hook)]
        logits: torch.Tensor = model.run_with_hooks(
            batch, return_type="logits", fwd_hooks=hooks
        )
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
        )
        total += float(loss)
        count += batch[:, 1:].numel()
    return total / count


def base_losses(
    model: HookedRootModule, spec: PanelSpec, held_out: HeldOut
) -> BaseLosses | None:
    """Losses of the model alone and with the hook zeroed; None if ``ce_tokens`` is 0."""
    if len(held_out.tokens) == 0:
        return None
    return BaseLosses(
        splice_loss(model, spec, held_out.tokens, None),
        splice_loss(model, spec, held_out.tokens, torch.zeros_like),
    )


def cosines_to_start(
    sae: SAE[Any], seed: int, scheme: InitScheme, covariance_path: Path | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos(row now, row at the start) of decoder rows and of encoder columns.

    The start is drawn again from its seed; encoder and decoder start in the same directions.

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
    rows = sample_directions(
        sae.cfg.d_sae, sae.cfg.d_in, seed=seed, scheme=scheme, covariance=covariance
    )
    return cosine_to_start(sae.W_dec.data, rows), cosine_to_start(sae.W_enc.data.T, rows)


def measure(
    folder: Path,
    key: MemberKey,
    member: MemberSpec,
    spec: PanelSpec,
    start: Start,
    held_out: HeldOut,
    model: HookedRootModule,
    losses: BaseLosses | None,
    device: str,
) -> Measurement:
    """Load an exported member with SAELens and measure it.

    Args:
        folder: The member's folder.
        key: Which member.
        member: Its spec.
        spec: The study.
        start: The common start (for the covariance).
        held_out: Held-out activations and tokens.
        model: The language model, to splice into.
        losses: From `base_losses`.
        device: Torch device.
    """
    sae = SAE.load_from_disk(folder, device=device)
    cosines = None
    # Controls have no training that could move them.
    if spec.normalize_activations != "covariance_whitening" and not member.is_control:
        cosines = cosines_to_start(
            sae, key.panel.seed, member.init_scheme, start.covariance_path
        )
    return measure_sae(sae, spec, key.panel.l0, held_out, model, losses, cosines)


def measure_sae(
    sae: SAE[Any],
    spec: PanelSpec,
    l0_target: float,
    held_out: HeldOut,
    model: HookedRootModule,
    losses: BaseLosses | None,
    cosines: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Measurement:
    """Measure an inference SAE.

    Args:
        sae: On the device to measure on; heads of hook_z come flattened from here on.
        spec: The study.
        l0_target: What its L0 is held against.
        held_out: Held-out activations and tokens.
        model: The language model, to splice into.
        losses: From `base_losses`.
        cosines: From `cosines_to_start`, where the start is known.
    """
    sae.turn_off_forward_pass_hook_z_reshaping()
    ev, l0, alive = explained_variance(sae, held_out.evaluation)
    with_sae = recovered = None
    if losses is not None:
        with_sae = splice_loss(model, spec, held_out.tokens, sae)
        recovered = (losses.zero - with_sae) / (losses.zero - losses.clean)
    decoder_cos, encoder_cos = cosines or (None, None)
    return Measurement(
        explained_variance=ev,
        l0=l0,
        l0_target=l0_target,
        alive=alive,
        d_sae=sae.cfg.d_sae,
        cos_to_start_mean=None if decoder_cos is None else float(decoder_cos.mean()),
        cos_to_start_min=None if decoder_cos is None else float(decoder_cos.min()),
        encoder_cos_to_start_mean=None if encoder_cos is None else float(encoder_cos.mean()),
        ce_loss_clean=None if losses is None else losses.clean,
        ce_loss_with_sae=with_sae,
        ce_loss_zero=None if losses is None else losses.zero,
        ce_recovered=recovered,
        n_tokens=held_out.evaluation.shape[0],
    )


def write_measurement(folder: Path, result: Measurement) -> None:
    """Write the measurement, and the held-out L0 where SAELens users look for it."""
    cfg = json.loads((folder / SAE_CFG_FILENAME).read_text())
    # SAELens puts the L0 of the last training batches here, before calibration.
    cfg["metadata"]["l0"] = result.l0
    write_atomically(folder / SAE_CFG_FILENAME, json.dumps(cfg))
    provenance = json.loads((folder / PROVENANCE_FILE).read_text())
    provenance["l0_held_out"] = result.l0
    write_atomically(folder / PROVENANCE_FILE, json.dumps(provenance, indent=2))
    text = json.dumps(result.to_dict(), indent=2)
    write_atomically(folder / MEASUREMENT_FILE, text)


def progress(items: list[Any], desc: str) -> Any:
    """A progress bar over members."""
    return tqdm(items, desc=desc, unit="SAE")
