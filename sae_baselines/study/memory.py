"""What a study needs at the least, said before it is asked for."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sae_baselines.errors import UserError
from sae_baselines.files import size_text
from sae_baselines.study.plan import trained_of

if TYPE_CHECKING:
    from sae_baselines.study.spec import StudySpec

_LIMIT_OF_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def memory_of(device: str = "cpu") -> int | None:
    """Bytes that a machine, or its accelerator, has in all; None where that is not known."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_properties(device).total_memory
    found = []
    with suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # "max" where there is no limit
        found.append(int(_LIMIT_OF_CONTAINER.read_text()))
    return min(found, default=None)


def bytes_in_training(spec: "StudySpec", d_in: int, d_out: int | None = None) -> int:
    """Of a member, at the least: W_enc, W_dec, and two moments of the one of them that every
    member learns."""
    encoder, decoder = _matrices(spec, d_in, d_out)
    return encoder + decoder + 2 * min(encoder, decoder)


def bytes_on_disk(spec: "StudySpec", d_in: int, d_out: int | None = None) -> int:
    """Of a member's export: its two matrices."""
    return sum(_matrices(spec, d_in, d_out))


def _matrices(spec: "StudySpec", d_in: int, d_out: int | None) -> tuple[int, int]:
    """Bytes of W_enc and of W_dec."""
    row = spec.width(d_in) * (4 if spec.sae_dtype == "float32" else 2)
    return row * d_in, row * (d_in if d_out is None else d_out)


def check_memory(spec: "StudySpec", d_in: int, d_out: int | None = None) -> None:
    """Refuse a study that cannot fit, whatever else the machine does.

    Args:
        spec: The study.
        d_in: Width of its activations.
        d_out: Of what transcoders write.

    Raises:
        UserError: Weights and Adam's moments of the members that train at once, or held-out
            activations, are more than the machine's whole memory.
    """
    d_sae = spec.width(d_in)
    members = max(
        sum(len(trained_of(spec, panel, source)) for panel in this_pass.panels)
        for source in spec.source_names
        for this_pass in spec.passes(source)
    )
    one = bytes_in_training(spec, d_in, d_out)
    width = d_in + (d_out or 0)
    has = memory_of(spec.device)
    if has is not None and one * members > has:
        raise UserError(
            f"d_sae: {d_sae:,} at d_in {d_in:,} takes at least {size_text(one)} of memory a "
            f"member, {size_text(one * members)} for the {members} that train at once, and "
            f"{spec.device} has {size_text(has)}; lower d_sae or expansion, name fewer "
            "members, or train fewer panels at once (max_panels_per_pass)"
        )
    has = memory_of()
    for fields in (("calibration_tokens", "eval_tokens"), ("calibration_samples",)):
        held_out = 4 * width * sum(getattr(spec, name, 0) for name in fields)
        if has is not None and held_out > has:
            raise UserError(
                f"{', '.join(fields)}: their activations at d_in {d_in:,} take "
                f"{size_text(held_out)} of memory, and this machine has {size_text(has)}; "
                "lower them"
            )
    features = 4 * d_in * getattr(spec, "m", 0)
    if has is not None and features > has:
        raise UserError(
            f"m: the true features take {size_text(features)} of memory, and this machine has "
            f"{size_text(has)}; lower m"
        )
