"""Explained variance as the paper defines it, over tokens that arrive in batches."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from sae_lens import SAE

from sae_baselines.reconstruction import RunningVariance


@torch.no_grad()
def explained_variance(
    model: Any, sae: SAE[Any], hook_name: str, batches: Iterable[torch.Tensor], ignore: set[Any]
) -> tuple[float, int]:
    """EV of an SAE on the tokens of a model.

    Args:
        model: HookedTransformer.
        sae: In the dtype it is to be judged in.
        hook_name: Hook of the SAE.
        batches: Tokens, each ``[batch, context]``.
        ignore: Token ids that do not count.

    Returns:
        EV and the number of tokens it rests on.
    """
    if "hook_z" in hook_name:
        # The width is made one here, so that the SAE must not do it again.
        sae.turn_off_forward_pass_hook_z_reshaping()
    total = RunningVariance()
    for x, keep in _activations(model, sae, hook_name, batches, ignore):
        x_hat = sae.decode(sae.encode(x))
        total.add(x[keep], x_hat[keep])
    return total.explained_variance, total.n


@torch.no_grad()
def mean_activation(
    model: Any, sae: SAE[Any], hook_name: str, batches: Iterable[torch.Tensor], ignore: set[Any]
) -> torch.Tensor:
    """Mean over the same tokens, ``[d_in]``; arguments as of `explained_variance`."""
    total, n = torch.zeros(sae.cfg.d_in, dtype=torch.float64), 0
    for x, keep in _activations(model, sae, hook_name, batches, ignore):
        total += x[keep].double().sum(0).cpu()
        n += int(keep.sum())
    return total / n


def _activations(
    model: Any, sae: SAE[Any], hook_name: str, batches: Iterable[torch.Tensor], ignore: set[Any]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Activations ``[batch, context, d_in]``, and which of them count."""
    layer = int(hook_name.split(".")[1]) + 1
    head: int | None = getattr(sae.cfg, "hook_head_index", None)
    for tokens in batches:
        _, cache = model.run_with_cache(
            tokens, prepend_bos=False, names_filter=[hook_name], stop_at_layer=layer
        )
        x = cache[hook_name]
        if x.ndim == 4:  # [batch, pos, head, d_head]
            x = x.flatten(-2, -1) if head is None else x[:, :, head]
        x = x.to(sae.device)
        keep = torch.ones_like(tokens, dtype=torch.bool)
        for token in ignore:
            if token is not None:
                keep &= tokens != token
        yield x, keep.to(x.device)
