"""Photographs, their split, and crops that a seed decides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from datasets.exceptions import DatasetNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sae_baselines.errors import UserError
from sae_baselines.study.patches import images
from sae_baselines.study.patches.images import (
    Crop,
    CropLoader,
    open_photographs,
    patch_box,
    plan_crops,
    split_photographs,
)
from sae_baselines.study.patches.spec import ImagesSpec
from tests.study.patches.tiny import picture, save_photographs

_SHARE = st.floats(0, 1)


@given(
    share=st.floats(0.01, 0.99),
    n=st.integers(2, 40),
    seed=st.integers(0, 5),
)
def test_no_photograph_is_on_both_sides(share: float, n: int, seed: int):
    names = [f"{i}.png" for i in range(n)]
    spec = ImagesSpec(path=".", held_out=share, seed=seed)
    if max(1, round(share * n)) == n:
        with pytest.raises(UserError, match="leaves none"):
            split_photographs(names, spec)
        return
    split = split_photographs(names, spec)
    assert sorted([*split.train, *split.held_out]) == list(range(n))
    assert len(split.held_out) == max(1, round(share * n))
    assert split == split_photographs(names, spec)


def test_named_photographs_are_held_out():
    names = ["a/1.png", "a/2.png", "b/1.png", "c.png"]
    split = split_photographs(names, ImagesSpec(path=".", held_out=["a/*", "c.png"]))
    assert (split.train, split.held_out) == ([2], [0, 1, 3])
    with pytest.raises(UserError, match=r"'b/2\.png'; did you mean b/1\.png"):
        split_photographs(names, ImagesSpec(path=".", held_out=["b/2.png"]))


@given(
    n=st.integers(1, 60),
    photos=st.lists(st.integers(0, 99), min_size=1, max_size=9, unique=True),
    seed=st.integers(0, 9),
    least=st.floats(0.05, 1),
)
def test_crops_are_spread_evenly(n: int, photos: list[int], seed: int, least: float):
    crops = plan_crops(photos, n, (seed, 1), least)
    counts = [sum(c.photo == p for c in crops) for p in photos]
    assert sum(counts) == n
    assert max(counts) - min(counts) <= 1
    assert crops == plan_crops(photos, n, (seed, 1), least)
    assert all(least <= c.scale <= 1 for c in crops)
    if n >= len(photos) and least < 1:
        assert crops != plan_crops(photos, n, (seed, 2), least)


@given(
    scale=st.floats(0.01, 1), x=_SHARE, y=_SHARE, w=st.integers(1, 500), h=st.integers(1, 500)
)
def test_a_crop_is_a_square_inside_its_photograph(
    scale: float, x: float, y: float, w: int, h: int
):
    left, top, right, bottom = Crop(0, scale, x, y).box(w, h)
    assert 0 <= left < right <= w
    assert 0 <= top < bottom <= h
    assert right - left == bottom - top == max(1, round(scale * min(w, h)))


@given(
    grid=st.integers(1, 12),
    left=st.integers(0, 50),
    top=st.integers(0, 50),
    side=st.integers(1, 300),
    data=st.data(),
)
def test_every_point_of_a_crop_is_in_the_box_of_its_patch(
    grid: int, left: int, top: int, side: int, data: st.DataObject
):
    u, v = (data.draw(st.floats(0, 1, exclude_max=True)) for _ in range(2))
    crop = (left, top, left + side, top + side)
    patch = int(v * grid) * grid + int(u * grid)  # rows first
    box = patch_box(crop, grid, patch)
    x, y = left + u * side, top + v * side
    assert box[0] - 1e-6 <= x <= box[2] + 1e-6
    assert box[1] - 1e-6 <= y <= box[3] + 1e-6
    areas = [patch_box(crop, grid, i) for i in range(grid**2)]
    assert sum((b[2] - b[0]) * (b[3] - b[1]) for b in areas) == pytest.approx(side**2)


def test_a_crop_shows_what_its_box_holds(tmp_path: Path):
    photographs = open_photographs(ImagesSpec(path=str(save_photographs(tmp_path, 2))))
    loader, crop = CropLoader(photographs), Crop(1, 0.5, 0.3, 0.9)
    left, top, right, bottom = loader.box(crop)
    expected = np.asarray(picture(1))[top:bottom, left:right]
    # At its own size nothing is resampled.
    assert np.array_equal(np.asarray(loader.load(crop, right - left)), expected)
    assert loader.load(crop, 16).size == (16, 16)


def test_pictures_of_other_modes_are_made_rgb(tmp_path: Path):
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    turned = Image.new("RGB", (8, 4))
    exif = turned.getexif()
    exif[0x0112] = 6  # on its side
    turned.save(tmp_path / "turned.jpg", exif=exif)
    photographs = open_photographs(ImagesSpec(path=str(tmp_path)))
    assert photographs.names == ["clear.png", "grey.png", "turned.jpg"]
    assert photographs.load(0).getpixel((0, 0)) == (255, 255, 255)  # what is behind it: white
    assert photographs.load(1).getpixel((0, 0)) == (77, 77, 77)
    assert photographs.load(2).size == (4, 8)


def test_bad_photographs_are_named(tmp_path: Path):
    with pytest.raises(UserError, match="has no pictures in it"):
        open_photographs(ImagesSpec(path=str(tmp_path)))
    (tmp_path / "fake.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"fake\.png cannot be read"):
        open_photographs(ImagesSpec(path=str(tmp_path)))
    with pytest.raises(UserError, match="give the folder"):
        open_photographs(ImagesSpec(path=str(tmp_path / "fake.png")))
    (tmp_path / "fake.png").unlink()
    picture(0).save(tmp_path / "half.jpg", quality=95)
    whole = (tmp_path / "half.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half\.jpg cannot be read"):
        open_photographs(ImagesSpec(path=str(tmp_path))).load(0)
    (tmp_path / "half.jpg").unlink()
    Image.fromarray(np.zeros((8, 8), dtype=np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(UserError, match=r"deep\.tif has pixels of more than 8 bits"):
        open_photographs(ImagesSpec(path=str(tmp_path))).load(0)


def test_a_dataset_of_pictures(monkeypatch: pytest.MonkeyPatch):
    rows = Dataset.from_dict({"image": [picture(i) for i in range(3)], "label": [0, 1, 2]})
    rows = rows.cast_column("image", ImageFeature())
    monkeypatch.setattr(images, "load_dataset", lambda *_, **__: rows)
    photographs = open_photographs(ImagesSpec(path="some/pictures"))
    assert len(photographs.names) == 3
    assert np.array_equal(np.asarray(photographs.load(2)), np.asarray(picture(2)))
    with pytest.raises(UserError, match=r"'imag' is not a column.*did you mean image"):
        open_photographs(ImagesSpec(path="some/pictures", column="imag"))
    with pytest.raises(UserError, match="'label' of some/pictures holds no pictures"):
        open_photographs(ImagesSpec(path="some/pictures", column="label"))


def test_what_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(UserError, match="there is no folder"):
        open_photographs(ImagesSpec(path=str(tmp_path / "nothing")))

    def missing(*_: Any, **__: Any) -> None:
        raise DatasetNotFoundError("Dataset 'no/body' doesn't exist on the Hub")

    monkeypatch.setattr(images, "load_dataset", missing)
    with pytest.raises(UserError, match=r"neither a folder nor a dataset .* doesn't exist"):
        open_photographs(ImagesSpec(path="no/body"))
