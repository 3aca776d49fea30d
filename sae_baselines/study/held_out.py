"""Activations that no member trains on."""

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from sae_lens import ActivationsStore
from sae_lens.util import get_special_token_ids
from transformer_lens.hook_points import HookedRootModule

from sae_baselines.compat.training import side_by_side
from sae_baselines.errors import UserError
from sae_baselines.progress import progress
from sae_baselines.reconstruction import FEW, share_in_few
from sae_baselines.study.data import AnyDataset, n_held_out_contexts, split_text
from sae_baselines.study.language_model import n_ctx_of
from sae_baselines.study.spec import PanelSpec

logger = logging.getLogger("sae_baselines")


@dataclass(frozen=True)
class HeldOut:
    """Held-out activations, in two disjoint random halves of the held-out contexts.

    The split is over contexts, not over documents: documents differ in how many latents they
    need, and thresholds set on a few of them would miss L0 on the next few. For the same
    reason contexts are drawn from more documents than they fill (``held_out_spread``).

    Attributes:
        calibration: float32 CPU ``[n, d_in]``; thresholds and covariance come from these. Of
            transcoders ``[n, d_in + d_out]``: inputs and outputs side by side; the next too.
        evaluation: float32 CPU ``[n, d_in]``; everything reported is measured on these.
        tokens: int64 CPU ``[contexts, context_size]``; evaluation contexts to splice into.
        contexts: int64 CPU, likewise; every evaluation context.
        places: int64 CPU ``[n]``; where each evaluation activation is in them, flattened.
    """

    calibration: torch.Tensor
    evaluation: torch.Tensor
    tokens: torch.Tensor
    contexts: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0).long())
    places: torch.Tensor = field(default_factory=lambda: torch.empty(0).long())


# The most of the variance that the few activations furthest from the mean may hold before a
# study says that its explained variance is of them.
MOST_IN_FEW = 0.1
# Field of provenance.json.
VARIANCE_IN_FEW = "variance_in_few"


def variance_in_few(x: torch.Tensor) -> float:
    """Share of the variance of activations that the `FEW` furthest from their mean hold.

    A language model has tokens with enormous activations (BOS in the middle of a context, the
    first positions). They weigh in explained variance as much as they hold of the variance.

    Args:
        x: ``[n, d]`` activations.
    """
    return share_in_few((x - x.mean(0)).square().sum(1))


def say_few(share: float) -> None:
    """Warn before anything is trained, where that is much."""
    if share > MOST_IN_FEW:
        logger.warning(
            "hook_name: %s of the held-out activations hold %s of their variance, so explained "
            "variance is mostly of these; exclude_special_tokens: true leaves out BOS and the "
            "like, seqpos_slice: [2, null] the first positions",
            f"{FEW:.1%}",
            f"{share:.0%}",
        )


@dataclass(frozen=True)
class Data:
    """What a study reads: text to train on, activations to measure on.

    Attributes:
        train: Documents to train on.
        n_held_out: How many documents before them are held out.
        held_out: Activations of those.
        d_in: Width of the hook; of transcoders, of that where they read.
        variance_in_few: Of what is reconstructed; see `variance_in_few`.
    """

    train: AnyDataset
    n_held_out: int
    held_out: HeldOut
    d_in: int
    variance_in_few: float


def study_data(spec: PanelSpec, model: HookedRootModule, text: AnyDataset, device: str) -> Data:
    """Hold out some of the text and run the model over that; the same every time.

    Args:
        spec: The study.
        model: The language model.
        text: From `data.load_text`.
        device: Where batches are kept.

    Raises:
        UserError: Too little text, a context longer than the model's, no such hook, one that
            does not fit the spec, activations with NaN or infinity.
    """
    if spec.hook_name not in model.hook_dict:
        raise UserError(f"hook_name: {spec.hook_name!r} is not a hook of the given model")
    d_in = hook_width(model, spec.hook_name)
    spec.check_hook(d_in, None if spec.hook_name_out is None else width_out(model, spec))
    longest = n_ctx_of(model)
    if longest is not None and spec.context_size > longest:
        raise UserError(
            f"context_size: {spec.context_size:,} is more than the {longest:,} tokens that the "
            f"model reads at once; use at most {longest:,}"
        )
    split = split_text(text, spec, model)
    torch.manual_seed(0)
    held_out = collect_held_out(model, split.held_out, spec, d_in, device)
    # Of transcoders, of what they write.
    x = held_out.evaluation if spec.hook_name_out is None else held_out.evaluation[:, d_in:]
    few = variance_in_few(x)
    say_few(few)
    return Data(split.train, split.n_held_out, held_out, d_in, few)


def width_out(model: HookedRootModule, spec: PanelSpec) -> int:
    """d_out of the hook where transcoders write.

    Raises:
        UserError: No such hook, one that is no vector a token, of another width than the
            spec's, or before the one where they read.
    """
    read, write = spec.hook_name, spec.hook_name_out
    assert write is not None
    if write not in model.hook_dict:
        raise UserError(f"hook_name_out: {write!r} is not a hook of the model that is read")
    d_out = hook_width(model, write, "hook_name_out")
    if spec.d_out is not None and spec.d_out != d_out:
        raise UserError(f"d_out: {spec.d_out} does not match {write}, which has {d_out}")
    tokens = torch.zeros((1, 2), dtype=torch.long, device=model_device(model))
    with torch.no_grad():
        cache = model.run_with_cache(tokens, names_filter=[read, write], prepend_bos=False)[1]
    # In the order in which a forward pass comes through them.
    if list(cache.keys()) != [read, write]:
        raise UserError(
            f"hook_name_out: {write!r} is before hook_name, {read!r}, in the model; a "
            "transcoder writes after it has read, so exchange them or name another"
        )
    return d_out


def hook_width(model: HookedRootModule, hook_name: str, field: str = "hook_name") -> int:
    """d_in of a hook, from forward passes over a few tokens (heads flattened).

    Raises:
        UserError: The model does not run through it, or what passes there is no vector a token;
            names ``field``.
    """

    def shape(n: int) -> tuple[int, ...]:
        tokens = torch.zeros((1, n), dtype=torch.long, device=model_device(model))
        cache = model.run_with_cache(tokens, names_filter=[hook_name], prepend_bos=False)[1]
        if hook_name not in cache:
            raise UserError(
                f"{field}: {hook_name!r} is never reached as the model is loaded (it belongs "
                "to an option of TransformerLens that is off); use another hook"
            )
        return tuple(cache[hook_name].shape)

    with torch.no_grad():
        few, more = shape(2), shape(3)
    # Patterns of attention are [batch, head, token, token].
    if few[:2] != (1, 2) or more[:2] != (1, 3) or few[2:] != more[2:] or len(few) < 3:
        raise UserError(
            f"{field}: {hook_name!r} gives an array of shape {more} for 3 tokens, and an SAE "
            "reads a vector a token; use another hook, such as one that ends in resid_post"
        )
    return math.prod(few[2:])


def model_device(model: HookedRootModule) -> torch.device:
    """Device of a model's first parameter."""
    return next(model.parameters()).device


def special_tokens(model: HookedRootModule, spec: PanelSpec) -> torch.Tensor | None:
    """Token ids that are kept out of training (``exclude_special_tokens``), or None."""
    if not spec.exclude_special_tokens:
        return None
    tokenizer: Any = model.tokenizer
    return torch.tensor(get_special_token_ids(tokenizer), dtype=torch.long)


def checked_activations(
    get: Callable[[torch.Tensor], dict[str, torch.Tensor]], dtype: torch.dtype
) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """Wrap SAELens' multi-hook reader: cast to ``dtype``, and stop at NaN or infinity."""

    def wrapped(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        out = {hook: acts.to(dtype) for hook, acts in get(tokens).items()}
        for hook, acts in out.items():
            if not torch.isfinite(acts).all():
                raise UserError(
                    f"hook_name: activations at {hook} contain NaN or infinity; try "
                    "model.dtype=float32, or another hook"
                )
        return out

    return wrapped


def held_out_store(
    model: HookedRootModule, dataset: AnyDataset, spec: PanelSpec, d_in: int, device: str
) -> ActivationsStore:
    """SAELens' store over the held-out documents."""
    store = ActivationsStore.from_config_multi_hook(
        model,
        dataset=dataset,
        hook_names=[spec.hook_name],
        hook_d_ins={spec.hook_name: d_in},
        context_size=spec.context_size,
        store_batch_size_prompts=spec.store_batch_size_prompts,
        prepend_bos=spec.prepend_bos,
        device=device,
        autocast_lm=spec.autocast_lm,
        seqpos_slice=tuple(spec.seqpos_slice),
        total_training_tokens=1,
    )
    if spec.hook_name_out is not None:
        side_by_side(store, spec.hook_name, spec.hook_name_out)
    return store


@torch.no_grad()
def collect_held_out(
    model: HookedRootModule, dataset: AnyDataset, spec: PanelSpec, d_in: int, device: str
) -> HeldOut:
    """Run the model over held-out documents.

    Args:
        model: The language model.
        dataset: Held-out documents (`data.split_text`).
        spec: Token counts, context and slice.
        d_in: Width of the hook.
        device: Where the store keeps its batches.

    Returns:
        At least ``calibration_tokens`` and ``eval_tokens`` activations (whole contexts).

    Raises:
        UserError: Activations with NaN or infinity.
    """
    store = held_out_store(model, dataset, spec, d_in, device)
    read = checked_activations(store.get_multi_hook_activations, torch.float32)
    special = special_tokens(model, spec)
    n_contexts = n_held_out_contexts(spec)
    drawn: list[torch.Tensor] = []
    with contextlib.suppress(StopIteration):
        while len(drawn) < n_contexts * spec.held_out_spread:
            drawn.append(store.get_batch_tokens(1, raise_at_epoch_end=True).cpu())
    if len(drawn) < n_contexts:
        raise UserError(
            "dataset.path: the held-out documents gave fewer tokens than counted; use more text"
        )
    contexts = torch.cat(drawn)
    order = torch.randperm(len(contexts), generator=torch.Generator().manual_seed(0))
    contexts = contexts[order[:n_contexts]]

    batches: list[torch.Tensor] = []
    per_batch = spec.store_batch_size_prompts
    for batch in progress(contexts.split(per_batch), desc="Held-out activations", unit="batch"):
        rows = read(batch.to(model_device(model)))[spec.hook_name].cpu()
        batches.append(rows.reshape(*rows.shape[:2], -1))
    rows = torch.cat(batches)
    n_calibration = -(-spec.calibration_tokens // spec.training_context_size)
    n_ce = -(-spec.ce_tokens // spec.training_context_size)

    def flat(part: slice) -> torch.Tensor:
        acts = rows[part].flatten(0, 1)
        if special is None:
            return acts
        ids = contexts[part][:, slice(*spec.seqpos_slice)].reshape(-1)
        return acts[~torch.isin(ids, special)]

    evaluation = slice(n_calibration, None)
    every = contexts[evaluation]
    places = torch.arange(every.numel()).reshape(every.shape)[:, slice(*spec.seqpos_slice)]
    places = places.reshape(-1)
    if special is not None:
        places = places[~torch.isin(every.reshape(-1)[places], special)]
    return HeldOut(
        calibration=flat(slice(n_calibration)),
        evaluation=flat(evaluation),
        tokens=every[:n_ce],
        contexts=every,
        places=places,
    )
