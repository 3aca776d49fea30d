"""Activations are the model's own, and belong to the patch they are said to."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    BitImageProcessor,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from sae_baselines.errors import UserError
from sae_baselines.study.patches.images import Crop, patch_box
from sae_baselines.study.patches.patches import PatchModel
from sae_baselines.study.patches.spec import VisionModelSpec
from tests.study.patches.tiny import (
    D_IN,
    GRID,
    N_PATCHES,
    PATCH,
    SIZE,
    picture,
    save_two_towers,
)
from tests.tiny_model import save_tiny_model


def _model(folder: Path, hook: str, size: int | None = None) -> PatchModel:
    return PatchModel(VisionModelSpec(name=str(folder)), hook, "cpu", size)


def _pictures(n: int = 3) -> list[Image.Image]:
    return [picture(i, SIZE, SIZE) for i in range(n)]


@pytest.mark.parametrize(
    ("which", "hook"),
    [("dinov2", "encoder.layer.1"), ("clip", "vision_model.encoder.layers.1")],
)
def test_activations_are_the_hidden_states_of_transformers(
    which: str, hook: str, request: pytest.FixtureRequest
):
    folder = request.getfixturevalue(which)
    model = _model(folder, hook)
    assert (model.d_in, model.grid, model.size, model.n_special) == (D_IN, GRID, SIZE, 1)
    pixels = model.processor(
        _pictures(), do_resize=False, do_center_crop=False, return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(pixels, output_hidden_states=True)
    # hidden_states[0] is the embedding, [2] what block 1 puts out; token 0 is the class token.
    expected = states.hidden_states[2][:, 1:]
    assert torch.equal(model.activations(_pictures()), expected)


def test_register_tokens_are_dropped(tmp_path: Path):
    config = Dinov2WithRegistersConfig(
        hidden_size=D_IN,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=PATCH,
        num_register_tokens=3,
    )
    Dinov2WithRegistersModel(config).save_pretrained(tmp_path)
    BitImageProcessor(crop_size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path)
    model = _model(tmp_path, "encoder.layer.0")
    assert model.n_special == 4
    assert model.activations(_pictures(2)).shape == (2, N_PATCHES, D_IN)


@pytest.mark.parametrize("place", [0, 1, GRID, 2 * GRID + 3, N_PATCHES - 1])
def test_a_patch_sees_the_pixels_of_its_box_and_no_others(dinov2: Path, place: int):
    # Before attention, a patch depends on its own pixels alone.
    model = _model(dinov2, "embeddings.patch_embeddings")
    photograph = picture(3, 40, 30)
    crop = Crop(0, SIZE / 30, 0.4, 0.7).box(40, 30)  # of the model's size: nothing is resampled
    assert crop[2] - crop[0] == SIZE
    pixels = np.array(photograph)
    left, top, right, bottom = (int(edge) for edge in patch_box(crop, GRID, place))
    pixels[top:bottom, left:right] = 255 - pixels[top:bottom, left:right]
    pixels[: crop[1]] = 0  # what is outside of the crop does not count
    before, after = model.activations(
        [photograph.crop(crop), Image.fromarray(pixels).crop(crop)]
    )
    changed = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert changed == [place]


def test_what_is_wrong_is_said(dinov2: Path, clip: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"is not a module.*did you mean .*encoder\.layer\.1"):
        _model(dinov2, "encoder.layers.1")
    with pytest.raises(UserError, match="18 is not a multiple of the 4 pixels of a patch"):
        _model(dinov2, "encoder.layer.1", 18)
    # CLIP's positions are learned for one size.
    with pytest.raises(UserError, match="does not take pictures of 32 pixels"):
        _model(clip, "vision_model.encoder.layers.1", 32)
    with pytest.raises(UserError, match="not one vector per token"):
        _model(clip, "vision_model.embeddings.patch_embedding")
    with pytest.raises(UserError, match="cannot load"):
        _model(tmp_path, "encoder.layer.1")
    text = save_tiny_model(tmp_path / "text")
    with pytest.raises(UserError, match=r"as a vision model|has no square patches"):
        _model(text, "layers.1")


def test_of_a_model_of_two_towers_the_one_that_sees(tmp_path: Path):
    folder = save_two_towers(tmp_path)
    model = _model(folder, "vision_model.encoder.layers.1")
    assert model.activations(_pictures(2)).shape == (2, N_PATCHES, D_IN)
    with pytest.raises(UserError, match="hook a module of its vision part"):
        _model(folder, "text_model.encoder.layers.1")


def test_larger_pictures_where_positions_are_interpolated(dinov2: Path):
    model = _model(dinov2, "encoder.layer.1", 24)
    assert model.grid == 6
    assert model.activations([picture(0, 24, 24)]).shape == (1, 36, D_IN)
