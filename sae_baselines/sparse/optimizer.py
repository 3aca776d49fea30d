"""Adam in one pass over each parameter.

SAELens builds ``torch.optim.Adam`` with torch's default implementation, which on a CPU
reads and writes every parameter and moment several times: a fifth of a sparse step. torch's
fused implementation does the same update in one pass. The choice is a field of the
optimiser's parameter groups, and is set here, before the first step of an optimiser whose
owner chose nothing.
"""

import weakref
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

# Kept by a reload of this module, as is the hook.
_watched: "weakref.WeakSet[TrainingSAE[Any]]" = globals().get("_watched", weakref.WeakSet())
_seen: "weakref.WeakSet[Optimizer]" = globals().get("_seen", weakref.WeakSet())
_fused_here: "weakref.WeakSet[Optimizer]" = globals().get("_fused_here", weakref.WeakSet())
_hook_installed: bool = globals().get("_hook_installed", False)


def use_fused_adam(sae: TrainingSAE[Any]) -> None:
    """Let the Adam that trains ``sae`` use torch's fused implementation.

    Decided at an optimiser's first step: for ``torch.optim.Adam`` and ``AdamW`` over float32
    or float64 parameters of such SAEs alone, on a CPU or CUDA device, if neither ``fused`` nor
    ``foreach`` was chosen by whoever built it and ``sae.cfg.sparse_step`` is on. Taken back
    when a gradient or a moment lies in memory otherwise than its parameter: the fused
    implementation does not look.
    """
    global _hook_installed
    if not _hook_installed:
        register_optimizer_step_pre_hook(_before_optimizer_step)
        _hook_installed = True
    _watched.add(sae)


def _before_optimizer_step(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    del args, kwargs
    if optimizer in _seen or not _watched:
        _unfuse_strided(optimizer)
        return
    _seen.add(optimizer)
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return
    watched = [sae for sae in list(_watched) if getattr(sae.cfg, "sparse_step", False)]
    ours = {id(p) for sae in watched for p in sae.parameters()}
    for group in optimizer.param_groups:
        parameters = group["params"]
        if all(id(p) in ours for p in parameters) and _can_fuse(group):
            group["fused"] = True
            _fused_here.add(optimizer)
            for p in parameters:  # a resumed optimiser: fused wants its counters beside p
                step = optimizer.state.get(p, {}).get("step")
                if torch.is_tensor(step):
                    optimizer.state[p]["step"] = step.to(p.device, torch.float32)
    _unfuse_strided(optimizer)


def _unfuse_strided(optimizer: Optimizer) -> None:
    if optimizer not in _fused_here:
        return
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            beside = [p.grad, *(v for v in state.values() if torch.is_tensor(v) and v.ndim)]
            if any(t is not None and t.stride() != p.stride() for t in beside):
                group["fused"] = None


def _can_fuse(group: dict[str, Any]) -> bool:
    return (
        group.get("fused") is None
        and group.get("foreach") is None
        and not group.get("capturable")
        and not group.get("differentiable")
        and all(
            p.dtype in (torch.float32, torch.float64) and p.device.type in ("cpu", "cuda")
            for p in group["params"]
        )
    )
