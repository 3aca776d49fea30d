"""Whether an SAE's weights are where its config says that they must be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sae_baselines.baselines.factory import (
    FROZEN_DECODER,
    FROZEN_ENCODER,
    SOFT_FROZEN_DECODER,
)

# Cosines do not see the positive factors that SAELens folds into rows, only their rounding.
_ROUNDING = {"float32": 1e-6, "float16": 1e-6, "bfloat16": 2e-5}
# What the projection onto the cap promises (float32), and in half precision.
_CAP_SLACK = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 4e-3}
_SIDE = {FROZEN_DECODER.name: "decoder", FROZEN_ENCODER.name: "encoder"}
_WHAT = {"decoder": "decoder rows", "encoder": "encoder columns"}


@dataclass(frozen=True)
class Claim:
    """What a constraint promises, and whether the weights keep it.

    Attributes:
        text: The promise, in words.
        holds: None where it cannot be checked.
        reason: The number that decided, or why there is none.
    """

    text: str
    holds: bool | None
    reason: str


def precision_of(weights: torch.Tensor) -> str:
    """The shortest format that holds these numbers: they may be stored in a longer one."""
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(weights.to(dtype).to(weights.dtype), weights):
            return str(dtype).removeprefix("torch.")
    return "float32"


def check_claim(
    constraint: str,
    tau: float | None,
    drift: Mapping[str, Mapping[str, Any] | None] | None,
    precision: str,
    unknown: str,
) -> Claim | None:
    """Compare a constraint with how far the weights are from their start.

    Args:
        constraint: Name; anything but a constraint promises nothing.
        tau: Of the soft-frozen decoder.
        drift: ``facts`` of `sae_baselines.drift.cosines.drift_of` for "decoder" and
            "encoder"; None where the start is not known.
        precision: From `precision_of`.
        unknown: Why the start is not known.
    """
    if constraint == SOFT_FROZEN_DECODER.name and tau is not None:
        text = f"decoder rows within cosine {tau:g} of their start"
        side, least = "decoder", tau - _CAP_SLACK[precision]
    elif constraint in _SIDE:
        side, least = _SIDE[constraint], 1 - _ROUNDING[precision]
        text = f"{_WHAT[side]} where they started (cosine 1 within rounding)"
    else:
        return None
    facts = drift[side] if drift is not None else None
    if facts is None:
        return Claim(text, None, unknown or f"it has no {_WHAT[side]} to compare")
    lost = facts["zero_norm"] + facts["not_finite"]
    if lost or not facts["n"]:
        return Claim(text, False, f"{lost:,} {_WHAT[side]} are zero or not finite")
    lowest = facts["quantiles"]["0"]
    return Claim(text, lowest >= least, f"least cosine {lowest:.7f}")
