"""Explained variance as the paper defines it, over tokens that arrive in batches."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from sae_lens import SAE


class RunningVariance:
    """1 - E||x - x_hat||^2 / E||x - E[x]||^2 in float64, in one pass.

    Sums are taken around the first batch's mean, so that a mean far from zero costs no digits.
    """

    def __init__(self) -> None:
        self.n = 0
        self._residual = 0.0
        self._square = 0.0
        self._shift: torch.Tensor | None = None
        self._sum: torch.Tensor | None = None

    def add(self, x: torch.Tensor, x_hat: torch.Tensor) -> None:
        """Add activations and their reconstructions, both ``[n, d_in]``."""
        if not len(x):
            return
        x, x_hat = x.double().cpu(), x_hat.double().cpu()
        if self._shift is None or self._sum is None:
            self._shift = x.mean(dim=0)
            self._sum = torch.zeros_like(self._shift)
        self.n += len(x)
        self._residual += float((x - x_hat).pow(2).sum())
        shifted = x - self._shift
        self._square += float(shifted.pow(2).sum())
        self._sum += shifted.sum(dim=0)

    @property
    def explained_variance(self) -> float:
        """NaN without tokens or without variance."""
        if self._sum is None:
            return math.nan
        variance = self._square - float(self._sum.pow(2).sum()) / self.n
        return 1 - self._residual / variance if variance > 0 else math.nan


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
    layer = int(hook_name.split(".")[1]) + 1
    head: int | None = getattr(sae.cfg, "hook_head_index", None)
    if "hook_z" in hook_name:
        # The width is made one here, so that the SAE must not do it again.
        sae.turn_off_forward_pass_hook_z_reshaping()
    total = RunningVariance()
    for tokens in batches:
        _, cache = model.run_with_cache(
            tokens, prepend_bos=False, names_filter=[hook_name], stop_at_layer=layer
        )
        x = cache[hook_name]
        if x.ndim == 4:  # [batch, pos, head, d_head]
            x = x.flatten(-2, -1) if head is None else x[:, :, head]
        x = x.to(sae.device)
        x_hat = sae.decode(sae.encode(x))
        keep = torch.ones_like(tokens, dtype=torch.bool)
        for token in ignore:
            if token is not None:
                keep &= tokens != token
        keep = keep.to(x.device)
        total.add(x[keep], x_hat[keep])
    return total.explained_variance, total.n
