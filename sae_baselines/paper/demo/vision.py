"""The vision demo's study."""

from typing import Any

from sae_baselines.paper.demo.vision_assets import (
    PUBLIC_DOMAIN,
    prepare_photographs,
    prepare_vision_model,
)
from sae_baselines.study.patches.spec import VisionSpec
from sae_baselines.study.spec import spec_from_dict

_LICENCE = (
    "held-out photographs, the only ones shown, come from the scikit-image package; CC0 or "
    "public domain (astronaut and hubble_deep_field: NASA; rocket: SpaceX)"
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
        # short a run behind random directions that nobody trained.
        "encoder_init": "fitted",
        # Few photographs that differ in how many latents they need: thresholds from fewer
        # crops of them miss the L0 on others (16,384 patches: by up to 6.5 %).
        "calibration_samples": 65_536,
        "eval_samples": eval_samples or 65_536,
        "n_checkpoints": 4,
    }
    return spec_from_dict(study, "vision demo", VisionSpec)
