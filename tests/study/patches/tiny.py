"""Small vision transformers and photographs, on disk as a user would have them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
)

SIZE, PATCH, D_IN = 16, 4, 24
GRID = SIZE // PATCH
N_PATCHES = GRID**2
HOOK = "encoder.layer.1"

_SHAPE: dict[str, Any] = {
    "hidden_size": D_IN,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": PATCH,
    "initializer_range": 0.2,
}


def save_dinov2(folder: Path) -> Path:
    """A random DINOv2; deterministic."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Dinov2Model(Dinov2Config(**_SHAPE, mlp_ratio=2, layerscale_value=1.0))
    model.save_pretrained(folder)
    crop = {"height": SIZE, "width": SIZE}
    BitImageProcessor(size={"shortest_edge": SIZE}, crop_size=crop).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A random CLIP vision tower; deterministic."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPVisionModel(CLIPVisionConfig(**_SHAPE, intermediate_size=48))
    model.save_pretrained(folder)
    _clip_processor(folder)
    return folder


def _clip_processor(folder: Path) -> None:
    crop = {"height": SIZE, "width": SIZE}
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=crop).save_pretrained(folder)


def save_two_towers(folder: Path) -> Path:
    """A random CLIP with its text tower."""
    text = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    vision = {**_SHAPE, "intermediate_size": 48}
    config = CLIPConfig(text_config={**text, "num_hidden_layers": 2}, vision_config=vision)
    CLIPModel(config).save_pretrained(folder)
    _clip_processor(folder)
    return folder


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Smooth colours with a bright square; deterministic."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    y, x = rng.integers(0, height - 8), rng.integers(0, width - 8)
    pixels[y : y + 8, x : x + 8] = rng.integers(0, 255, 3)
    return Image.fromarray(pixels)


def save_photographs(folder: Path, n: int = 10) -> Path:
    """``n`` pictures, p00.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        picture(i).save(folder / f"p{i:02d}.png")
    return folder


def tiny_vision(model: Path, photographs: Path, **overrides: Any) -> dict[str, Any]:
    """A study on the tiny model that trains in about two seconds."""
    study: dict[str, Any] = {
        "name": "tiny",
        "model": {"name": str(model)},
        "hook_name": HOOK,
        "images": {"path": str(photographs), "held_out": 0.3},
        "d_sae": 96,
        "l0": 6,
        "training_samples": 64 * 60,
        "train_batch_size": 64,
        "n_batches_for_norm_estimate": 2,
        "lr": 3e-3,
        "calibration_samples": 2048,
        "eval_samples": 4096,
        "dead_feature_window": 20,
        "feature_sampling_window": 20,
        "n_checkpoints": 2,
        "device": "cpu",
    }
    return {**study, **overrides}
